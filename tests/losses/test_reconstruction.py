import pytest
import torch
import torch.nn.functional as F

from posemodel.errors import UserError
from posemodel.losses.perceptual import PerceptualLoss, load_perceptual_loss
from posemodel.losses.pyramid import PyramidLoss


def test_pyramid_is_the_mean_of_l1_over_four_sizes():
    a, b = torch.rand(2, 3, 64, 32), torch.rand(2, 3, 64, 32)
    expected = sum((F.avg_pool2d(a, 2**k) - F.avg_pool2d(b, 2**k)).abs().mean() for k in range(4))
    assert PyramidLoss()(a, b) == pytest.approx(float(expected / 4), rel=1e-5)
    assert PyramidLoss()(a, a) == 0


def test_pyramid_never_calls_itself_perceptual():
    assert "no perceptual network" in PyramidLoss.name


@pytest.fixture(scope="module")
def vgg():
    from torchvision.models import vgg19
    torch.manual_seed(0)
    return vgg19(weights=None)


def test_perceptual_is_zero_for_equal_images_and_leaves_the_network_alone(vgg):
    loss = PerceptualLoss(vgg.features)
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    other = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert loss(image, image) == 0
    loss(image, other).backward()
    assert image.grad.abs().sum() > 0
    assert other.grad is None, "the target needs no graph"
    assert not any(p.requires_grad for p in loss.parameters())


def test_perceptual_uses_relu1_1_to_relu5_1(vgg):
    loss = PerceptualLoss(vgg.features)
    shapes = [f.shape[1:] for f in loss.features(torch.rand(1, 3, 64, 64))]
    assert [tuple(s) for s in shapes] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    assert all((f >= 0).all() for f in loss.features(torch.rand(1, 3, 64, 64)))


def test_weights_from_a_file(vgg, tmp_path):
    file = tmp_path / "vgg.pth"
    torch.save({f"features.{k}": v for k, v in vgg.features.state_dict().items()}, file)
    loss = load_perceptual_loss(str(file))
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert torch.equal(loss(a, b), PerceptualLoss(vgg.features)(a, b))


def test_missing_and_wrong_weight_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_perceptual_loss(str(tmp_path / "nothing.pth"))
    wrong = tmp_path / "wrong.pth"
    wrong.write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not torchvision's VGG-19 weights"):
        load_perceptual_loss(str(wrong))


def test_no_cache_and_no_network_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.models import VGG19_Weights
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(VGG19_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match="--loss.reconstruction pyramid"):
        load_perceptual_loss()
