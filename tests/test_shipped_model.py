"""The model that comes with the package: small, honest about itself, better than a copy, and its
refined image better than its warped one."""

from importlib import resources

import pytest
import torch

from posemodel.data.source import HELD_OUT_SEEDS, mannequins
from posemodel.evaluation.mannequin_metrics import background_off
from posemodel.inference.model import PoseTransferModel
from posemodel.model.scene import scene_of_batch


def test_it_is_one_small_file():
    files = [file for file in (resources.files("posemodel") / "pretrained").iterdir()
             if file.name.endswith(".safetensors")]
    assert len(files) == 1
    assert files[0].stat().st_size < 5_000_000


def test_it_says_what_it_is():
    model = PoseTransferModel.shipped("cpu")
    first, how = model.about.splitlines()
    assert "mannequins" in first and "photograph" in first and len(first) < 250
    assert "python -m posemodel.train" in how and "VGG-16" in how
    assert model.step > 0 and model.config.data.kind == "mannequins"
    assert model.config.model.refine == "posed"


@pytest.fixture(scope="module")
def people():
    model = PoseTransferModel.shipped("cpu")
    pairs = mannequins(model.config.data, seed=HELD_OUT_SEEDS["test"],
                       device="cpu").pairs(range(64))
    with torch.no_grad():
        return pairs, model.generator(pairs["source"], pairs["source_pose"], pairs["target_pose"],
                                      scene_of_batch(pairs))


def test_it_moves_people_it_has_never_seen(people):
    pairs, found = people
    source, warped, refined = ((image - pairs["target"]).abs().mean()
                               for image in (pairs["source"], found.warped, found.image))
    assert warped < 0.32 * source and refined < 0.9 * warped


def test_little_of_the_background_is_off(people):
    pairs, found = people
    assert background_off(found.image, pairs).mean() < background_off(found.warped, pairs).mean()
    assert background_off(found.image, pairs).mean() < 0.03


def share_of_line(images, period):
    """The power of images at one period, of columns and of rows, beside that of the periods around
    it."""
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    found = []
    for axis, size in enumerate(power.shape):
        along, at = power.sum(1 - axis), size // period
        around = torch.cat([along[at - 4 : at - 1], along[at + 2 : at + 5]]).mean()
        found.append((along[at] / around).item())
    return max(found)


@pytest.mark.parametrize("period", [2, 4])
def test_no_pattern_of_a_sampling_grid_in_a_picture(people, period):
    """The transposed convolutions of an earlier model had 3 times the power at every second row."""
    pairs, found = people
    assert share_of_line(found.image, period) < 1.3
    knitted = pairs["target"].clone()
    knitted[:, :, ::period] += 0.02
    assert share_of_line(knitted, period) > 1.3


def test_no_pattern_in_a_flat_picture(people):
    """What R adds to one colour where nobody stands is one colour, but for the border."""
    pairs, _ = people
    model = PoseTransferModel.shipped("cpu")
    flat = torch.tensor([0.3, -0.2, 0.5]).view(1, 3, 1, 1).expand(1, 3, *model.size).contiguous()
    with torch.no_grad():
        flow = model.generator(flat, pairs["source_pose"][:1], pairs["target_pose"][:1]).flow
        found = model.generator.transfer(flat, flow, torch.zeros(1, 18, 3))
    assert found.image[..., 32:-32, 32:-32].std(dim=(2, 3)).max() < 1 / 127.5  # a level of 255
