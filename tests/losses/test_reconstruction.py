import hashlib

import pytest
import torch
import torch.nn.functional as F

from posemodel.losses.perceptual import PerceptualLoss, load_perceptual_loss, mean_distance
from posemodel.losses.pyramid import PyramidLoss
from posemodel.runtime.errors import UserError


def test_pyramid_is_the_mean_of_l1_over_four_sizes():
    a, b = torch.rand(2, 3, 64, 32), torch.rand(2, 3, 64, 32)
    expected = sum((F.avg_pool2d(a, 2**k) - F.avg_pool2d(b, 2**k)).abs().mean() for k in range(4))
    found, zero = PyramidLoss()([a, b], b)
    assert found == pytest.approx(float(expected / 4), rel=1e-5)
    assert zero == 0


@pytest.fixture(scope="module")
def vgg():
    """The convolutions of VGG-19 with random weights that keep the size of the signal."""
    from torchvision.models.vgg import cfgs, make_layers
    torch.manual_seed(0)
    features = make_layers(cfgs["E"])
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return features


def test_perceptual_is_zero_for_equal_images_and_leaves_the_network_alone(vgg):
    loss = PerceptualLoss(vgg)
    image, other = (torch.rand(1, 3, 32, 32, requires_grad=True) for _ in range(2))
    same, different = loss([other, image], other.detach())
    assert same == 0
    different.backward()
    assert image.grad.abs().sum() > 0
    assert other.grad is None
    loss([image], other)[0].backward()
    assert other.grad is None, "the target needs no graph"
    assert not any(p.requires_grad for p in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_distance_is_torchs_with_its_gradient(dtype):
    x = torch.randn(3, 4, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    target = x + torch.randint(-2, 3, x.shape)          # also equal ones, whose gradient is zero
    oracle, x = x.clone().requires_grad_(), x.requires_grad_()
    found = mean_distance(x, target)
    expected = (oracle - target).abs().mean(dtype=torch.float32)
    torch.testing.assert_close(found, expected)
    (5 * found).backward()
    (5 * expected).backward()
    assert (x.grad == 0).any()
    torch.testing.assert_close(x.grad, oracle.grad)


def test_perceptual_is_the_sum_over_scales_and_layers(vgg):
    loss = PerceptualLoss(vgg)
    a, b, target = (torch.rand(1, 3, 48, 32) * 2 - 1 for _ in range(3))
    expected = []
    for image in (a, b):
        total = 0.0
        for scale in (1, 2, 4, 8):
            small = [F.interpolate(x, (48 // scale, 32 // scale), mode="bilinear", antialias=True)
                     for x in (image, target)]
            x, y = ((s / 2 + 0.5 - loss.mean) / loss.std for s in small)
            for index, layer in enumerate(vgg[:30]):
                if isinstance(layer, torch.nn.MaxPool2d) and min(x.shape[-2:]) < 2:
                    break
                x, y = layer(x), layer(y)
                if index in (1, 6, 11, 20, 29):
                    total += float((x - y).abs().mean())
        expected.append(total)
    assert [float(x) for x in loss([a, b], target)] == pytest.approx(expected, rel=1e-4)


def test_the_targets_features_are_computed_once(vgg):
    loss = PerceptualLoss(vgg)
    images = []
    loss.slices[0].register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    loss([torch.rand(1, 3, 32, 32) for _ in range(2)], torch.rand(1, 3, 32, 32))
    assert len(images) == 3 * 4


def test_mixed_precision_changes_little_and_sums_in_float32(vgg):
    loss = PerceptualLoss(vgg)
    image, target = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    (exact,) = loss([image], target)
    seen = []
    loss.slices[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss.slices[0].register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = loss([image.bfloat16()], target)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(float(exact), rel=0.02)
    assert {x.dtype for x in seen[1::2]} == {torch.bfloat16}
    normalised = ((image.bfloat16().float() + 1) / 2 - loss.mean) / loss.std
    torch.testing.assert_close(seen[2], normalised, rtol=0, atol=1e-6)  # after the target's


def test_perceptual_uses_relu1_1_to_relu5_1(vgg):
    loss = PerceptualLoss(vgg)
    found = loss.features(torch.rand(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in found] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    assert all((f >= 0).all() for f in found)


@pytest.fixture
def vgg_file(vgg, tmp_path):
    torch.save({f"features.{k}": v for k, v in vgg.state_dict().items()}, tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


def test_weights_from_a_file(vgg, vgg_file):
    loss = load_perceptual_loss(str(vgg_file))
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert torch.equal(loss([a], b)[0], PerceptualLoss(vgg)([a], b)[0])
    assert not any(p.is_meta for p in [*loss.parameters(), *loss.buffers()])


def test_a_name_with_a_hash_is_held_to_it(vgg_file):
    digest = hashlib.sha256(vgg_file.read_bytes()).hexdigest()
    right = vgg_file.rename(vgg_file.with_name(f"vgg19-{digest[:8]}.pth"))
    load_perceptual_loss(str(right))
    with right.open("ab") as handle:
        handle.write(b"more")
    with pytest.raises(UserError, match="SHA-256 begins with .* delete it and fetch it again"):
        load_perceptual_loss(str(right))


def test_missing_and_wrong_weight_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_perceptual_loss(str(tmp_path / "nothing.pth"))
    wrong = tmp_path / "wrong.pth"
    wrong.write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not torchvision's VGG-19 weights"):
        load_perceptual_loss(str(wrong))


def test_no_cache_and_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="no network.* --loss.reconstruction pyramid"):
        load_perceptual_loss()


def test_the_download_goes_to_the_cache_with_its_hash(vgg, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url, path, hash_prefix):
        asked.append((url, path, hash_prefix))
        # What a server sends whose file is not the one of that name.
        torch.save({}, path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it lies in the cache
        with pytest.raises(UserError, match=r"vgg19-dcbb9e9d\.pth: its SHA-256 begins with"):
            load_perceptual_loss()
    name = "vgg19-dcbb9e9d.pth"
    path = str(tmp_path / "checkpoints" / name)
    assert asked == [(f"https://download.pytorch.org/models/{name}", path, "dcbb9e9d")]


def test_pixel_features_are_the_pixels_and_their_complement():
    image = torch.rand(1, 3, 16, 8) * 2 - 1
    fine, coarse = PyramidLoss().features(image)
    assert fine.shape == (1, 96, 4, 2) and coarse.shape == (1, 384, 2, 1)
    assert fine.min() >= 0
    first = torch.cat([(1 + image) / 2, (1 - image) / 2], dim=1)[0, :, :4, :4].flatten()
    torch.testing.assert_close(fine[0, :, 0, 0], first)
    with pytest.raises(UserError, match="multiples of 8"):
        PyramidLoss().features(image[..., :4])
