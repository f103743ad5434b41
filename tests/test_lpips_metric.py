import pytest
import torch

from posemodel import lpips_metric
from posemodel.errors import UserError

lpips = pytest.importorskip("lpips")


@pytest.fixture
def random_backbone(monkeypatch):
    """The real metric on a random backbone: its structure without a download."""
    original = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: original(pnet_rand=True, **options))


def test_one_value_per_pair_and_zero_for_equal_images(random_backbone):
    torch.manual_seed(0)
    metric = lpips_metric.Lpips("alex", torch.device("cpu"))
    a, b = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(3, 3, 64, 64) * 2 - 1
    assert metric(a, b).shape == (3,) and (metric(a, b) > 0).all()
    assert metric(a, a).abs().max() == 0


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "alexnet-owt-7be5be79.pth" in lpips_metric.missing("alex")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert lpips_metric.missing("alex") == ""


def test_a_failed_download_is_one_line(monkeypatch):
    def offline(**_):
        raise OSError("no network")
    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(UserError, match="the download failed"):
        lpips_metric.Lpips("alex", torch.device("cpu"))
