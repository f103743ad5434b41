import pytest
import torch
import torchvision

from posemodel.evaluation import lpips as lpips_metric
from posemodel.runtime.errors import UserError

lpips = pytest.importorskip("lpips")
CPU = torch.device("cpu")


def random_weights(net, path):
    """A file in torchvision's format. The classifier, which LPIPS has no use for, takes no room."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, {"alex": "alexnet", "vgg": "vgg16"}[net])()
    torch.manual_seed(1)
    torch.save({name: torch.randn(weight.shape) / weight[0].numel()**0.5
                if name.startswith("features.") else torch.zeros(1).expand(weight.shape)
                for name, weight in shapes.state_dict().items()}, path)
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache of torch hub, and no network."""
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_given_weights_give_what_the_package_gives(net, hub):
    file = random_weights(net, hub / lpips_metric.BACKBONES[net].path.name)
    package = lpips.LPIPS(net=net, version="0.1", verbose=False)  # from the cache
    ours = lpips_metric.Lpips(net, CPU, file)
    a, b = torch.rand(3, 3, 64, 48) * 2 - 1, torch.rand(3, 3, 64, 48) * 2 - 1
    expected = package(a, b).flatten()
    assert (expected > 0.01).all() and expected.unique().numel() == 3
    assert torch.allclose(ours(a, b), expected, rtol=1e-5) and ours(a, a).abs().max() == 0


def test_a_large_batch_is_measured_in_parts(hub, monkeypatch):
    metric = lpips_metric.Lpips("alex", CPU, random_weights("alex", hub / "given.pth"))
    a, b = torch.rand(5, 3, 32, 32) * 2 - 1, torch.rand(5, 3, 32, 32) * 2 - 1
    whole = metric(a, b)
    sizes = []
    monkeypatch.setattr(lpips_metric, "_AT_ONCE", 2)
    metric.network.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    assert torch.allclose(metric(a, b), whole, rtol=1e-5) and sizes == [2, 2, 1]


def test_missing_weights_are_named_with_their_place_and_source(hub):
    line = lpips_metric.missing("alex")
    assert "alexnet-owt-7be5be79.pth" in line and str(hub) in line and "https://" in line
    (hub / "alexnet-owt-7be5be79.pth").touch()
    assert lpips_metric.missing("alex") == ""


def test_a_damaged_cache_is_found_out(hub):
    random_weights("alex", hub / "alexnet-owt-7be5be79.pth")
    with pytest.raises(UserError, match="damaged"):
        lpips_metric.Lpips("alex", CPU)


@pytest.mark.parametrize("name, says", [
    (None, "the download from .* failed"), ("text.pth", "no file of PyTorch weights"),
    ("other.pth", "not the weights of"), ("absent.pth", "cannot read")])
def test_a_failed_download_and_other_files_are_one_line(hub, name, says):
    (hub / "text.pth").write_text("no weights")
    torch.save({"features.0.weight": torch.zeros(1)}, hub / "other.pth")
    with pytest.raises(UserError, match=says) as error:
        lpips_metric.Lpips("alex", CPU, name and hub / name)
    assert "\n" not in str(error.value)
