from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import pose_kernels
from posemodel.config.sections import DataConfig
from posemodel.data.source import mannequins
from posemodel.losses.perceptual import (
    VGG16,
    VGG19,
    PerceptualLoss,
    load_perceptual_loss,
    mean_distance,
)
from posemodel.losses.pyramid import PyramidLoss
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import VARIABLE, tensors_sha256
from tests.published import REAL, tensors, without_network, write


def test_pyramid_is_the_mean_of_l1_over_four_sizes():
    a, b = torch.rand(2, 3, 64, 32), torch.rand(2, 3, 64, 32)
    expected = sum((F.avg_pool2d(a, 2**k) - F.avg_pool2d(b, 2**k)).abs().mean() for k in range(4))
    found, zero = PyramidLoss()([a, b], b)
    assert found == pytest.approx(float(expected / 4), rel=1e-5)
    assert zero == 0


def random_features(letter):
    """The convolutions of a VGG with random weights that keep the size of the signal."""
    from torchvision.models.vgg import cfgs, make_layers
    torch.manual_seed(0)
    features = make_layers(cfgs[letter])
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return features


@pytest.fixture(scope="module")
def vgg():
    return random_features("E")


@pytest.fixture(scope="module")
def vgg16():
    return random_features("D")


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


def test_vgg16_is_the_pyramid_and_its_layers_at_two_scales(vgg16):
    loss = PerceptualLoss(vgg16, VGG16)
    a, b, target = (torch.rand(2, 3, 48, 32) * 2 - 1 for _ in range(3))
    expected = [float(value) for value in PyramidLoss()([a, b], target)]
    for number, image in enumerate((a, b)):
        for scale in (1, 2):
            small = [F.interpolate(x, (48 // scale, 32 // scale), mode="bilinear", antialias=True)
                     for x in (image, target)]
            x, y = ((s / 2 + 0.5 - loss.mean) / loss.std for s in small)
            for index, layer in enumerate(vgg16[:16]):
                x, y = layer(x), layer(y)
                if index in (3, 8, 15):  # relu1_2, relu2_2, relu3_3
                    expected[number] += VGG16.weight * float((x - y).abs().mean())
    assert [float(x) for x in loss([a, b], target)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not REAL, reason=f"{VARIABLE} names no folder")
def test_the_two_parts_of_vgg16_are_of_about_the_same_size():
    if VGG16.network.look(REAL) is None:
        pytest.skip(f"{REAL} has no weights of VGG-16")
    loss = load_perceptual_loss(VGG16, REAL)
    pairs = mannequins(DataConfig(), seed=0, device=torch.device("cpu")).pairs(range(16))
    moved = pose_kernels.flow_sample(pairs["source"], pairs["flow"])
    for image in (pairs["source"], moved):
        pixels, = PyramidLoss()([image], pairs["target"])
        whole, = loss([image], pairs["target"])
        assert 1.8 < whole / pixels < 2.5


@pytest.mark.parametrize("form, letter", [(VGG16, "D"), (VGG19, "E")])
def test_layers_are_what_their_names_say(form, letter):
    from torchvision.models.vgg import cfgs, make_layers

    block, number, names = 1, 0, {}
    for end, layer in enumerate(make_layers(cfgs[letter]), 1):
        number += isinstance(layer, torch.nn.Conv2d)
        if isinstance(layer, torch.nn.ReLU):
            names[f"relu{block}_{number}"] = end
        if isinstance(layer, torch.nn.MaxPool2d):
            block, number = block + 1, 0
    assert form.layers.items() <= names.items()


def test_the_gradient_of_vgg16_is_that_of_its_parts(vgg16):
    loss = PerceptualLoss(vgg16, VGG16)
    image, target = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
    loss([image], target)[0].backward()
    found, image.grad = image.grad, None
    total, = PyramidLoss()([image], target)
    for scale in (1, 2):
        maps = [loss.maps(F.interpolate(x, 32 // scale, mode="bilinear", antialias=True))
                for x in (image, target)]
        for got, want in zip(*maps, strict=True):
            total = total + VGG16.weight * (got - want).abs().mean()
    total.backward()
    torch.testing.assert_close(found, image.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("form, shapes", [
    (VGG16, [(64, 64), (128, 32), (256, 16), (256, 8)]),
    (VGG19, [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)])])
def test_methods_find_maps_of_a_quarter_and_an_eighth(form, shapes, vgg, vgg16):
    loss = PerceptualLoss({VGG16.name: vgg16, VGG19.name: vgg}[form.name], form)
    found = loss.features(torch.rand(1, 3, 64, 64))
    assert [tuple(x.shape[1:3]) for x in found] == shapes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One of one's own, beside an empty cache."""
    without_network(monkeypatch, tmp_path / "hub")
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.mark.parametrize("form", [VGG16, VGG19], ids=["vgg16", "vgg19"])
def test_weights_from_a_folder_and_no_layer_too_many(form, folder):
    write(folder, form.network)
    loss = load_perceptual_loss(form, folder)
    values = tensors(form.network)
    features = form.network.layers().to_empty(device="cpu")
    features.load_state_dict({name.removeprefix("features."): value
                              for name, value in values.items()})
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert torch.equal(loss([a], b)[0], PerceptualLoss(features, form)([a], b)[0])
    assert not any(p.is_meta or p.requires_grad for p in [*loss.parameters(), *loss.buffers()])
    used = {name: value for name, value in values.items()
            if int(name.split(".")[1]) < max(form.layers.values())}
    assert sum(p.numel() for p in loss.parameters()) == sum(x.numel() for x in used.values())
    assert loss.weights == {"network": form.network.constructor, "layers": list(form.layers),
                            "sha256": tensors_sha256(used)}
    assert len(used) == {"vgg16": 14, "vgg19": 26}[form.network.constructor]
    assert all(begin < end for begin, end in pairwise(form.layers.values()))


@pytest.mark.parametrize("form", [VGG16, VGG19], ids=["vgg16", "vgg19"])
def test_without_weights_it_is_said_what_to_do(form, folder):
    with pytest.raises(UserError, match="no network.* --loss.reconstruction pyramid") as caught:
        load_perceptual_loss(form, folder)
    assert str(folder) in str(caught.value) and form.network.plain in str(caught.value)
    write(folder, form.network, **{"features.0.bias": None})
    with pytest.raises(UserError, match="it has no features.0.bias"):
        load_perceptual_loss(form, folder)


def test_pixel_features_are_the_pixels_and_their_complement():
    image = torch.rand(1, 3, 16, 8) * 2 - 1
    fine, coarse = PyramidLoss().features(image)
    assert fine.shape == (1, 96, 4, 2) and coarse.shape == (1, 384, 2, 1)
    assert fine.min() >= 0
    first = torch.cat([(1 + image) / 2, (1 - image) / 2], dim=1)[0, :, :4, :4].flatten()
    torch.testing.assert_close(fine[0, :, 0, 0], first)
    with pytest.raises(UserError, match="multiples of 8"):
        PyramidLoss().features(image[..., :4])
