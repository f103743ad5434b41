"""The model that comes with the package: small, honest about itself, and better than a copy."""

from importlib import resources

import torch

from posemodel.data.source import HELD_OUT_SEED, mannequins
from posemodel.inference.model import PoseTransferModel


def test_it_is_one_small_file():
    files = [file for file in (resources.files("posemodel") / "pretrained").iterdir()
             if file.name.endswith(".safetensors")]
    assert len(files) == 1
    assert files[0].stat().st_size < 5_000_000


def test_it_says_what_it_is():
    model = PoseTransferModel.shipped("cpu")
    assert "mannequins" in model.about and "photograph" in model.about
    assert "python -m posemodel.train" in model.about
    assert model.step > 0 and model.config.data.kind == "mannequins"
    assert (model.config.model.flow_stride, model.config.model.limb_sigma) == (4, 0)


@torch.no_grad()
def test_it_moves_people_it_has_never_seen():
    model = PoseTransferModel.shipped("cpu")
    pairs = mannequins(model.config.data, seed=HELD_OUT_SEED, device="cpu").pairs(range(16))
    found = model.generator(pairs["source"], pairs["source_pose"], pairs["target_pose"])
    target = pairs["target"]
    copy = (pairs["source"] - target).abs().mean()
    assert (found.warped - target).abs().mean() < 0.4 * copy
    assert (found.image - target).abs().mean() < 0.4 * copy
