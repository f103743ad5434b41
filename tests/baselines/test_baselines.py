"""What all baselines have in common."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch
from baseline_helpers import small

import pose_kernels
from posemodel.baselines import BASELINES, baseline_config, build_baseline
from posemodel.build import build_generator
from posemodel.config.sections import ModelConfig
from posemodel.losses.pyramid import PyramidLoss
from posemodel.mannequins.pairs import Mannequins
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime.errors import UserError
from tests.tiny import random_poses as poses


def awake(name, scale=0.02):
    """A small model whose layers that start at zero have something to say, so that they do not hide
    the rest."""
    model = small(name)
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=scale)
    return model


def images(count):
    return {key: torch.rand(count, 3, 32, 32) * 2 - 1 for key in ("source", "target")}


def test_every_method_can_be_asked_for():
    assert ("ours", *BASELINES) == get_args(get_type_hints(ModelConfig)["flow"])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="'fom', expected one of fomm, mraa"):
        baseline_config("fom")


@pytest.mark.parametrize("name", BASELINES)
def test_paper_sizes_are_larger_and_all_else_stays(name):
    quick, paper = baseline_config(name), baseline_config(name, paper=True)
    assert type(quick) is type(paper)
    differs = {name for name, value in vars(quick).items() if value != getattr(paper, name)}
    assert differs <= {"width", "blocks", "max_width", "correctness_weight",
                       "regularization_weight"}
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build_baseline(config, image_size=(256, 256)).parameters())
                  for config in (quick, paper)]
    assert counts[1] > 2 * counts[0]


@pytest.mark.parametrize(("name", "field", "value"), [
    ("fomm", "limb_ridge", 0.0), ("mraa", "thickness", -1.0), ("tpsmm", "ridge", float("nan")),
    ("tpsmm", "dropout", 1.5), ("gfla64", "correctness_weight", -1.0), ("mraa", "width", 0)])
def test_an_impossible_value_names_its_field(name, field, value):
    with pytest.raises(UserError, match=f"{field} is {value}, expected"):
        dataclasses.replace(baseline_config(name), **{field: value})


@pytest.mark.parametrize("name", BASELINES)
def test_stands_in_for_the_warping_network(name):
    generator = build_generator(
        ModelConfig(encoder_channels=(8, 8, 8), flow_channels=(8, 8, 8, 8, 8), refine_width=4,
                    refine_blocks=1), (32, 32))
    model = PoseTransfer(warping=small(name), refinement=generator.refinement)
    result = model(torch.rand(2, 3, 32, 32), poses(2), poses(2, seed=1))
    assert result.image.shape == result.warped.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", BASELINES)
def test_several_sources_per_target_are_as_if_asked_one_by_one(name):
    model = awake(name).eval()
    first, second, target = (poses(2, seed) for seed in range(3))
    both = model(torch.cat([first, second]), target).flow
    expected = torch.cat([model(first, target).flow, model(second, target).flow])
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_are_finite_and_reach_every_weight_with_missing_joints(name):
    model = awake(name)
    source, target = poses(6, present=0.5), poses(6, seed=1, present=0.5)
    source[0], target[1] = 0, 0
    batch, motion = images(6), model(source, target)
    losses = model.losses(motion, batch, PyramidLoss().features)
    warped = pose_kernels.flow_sample(batch["source"], motion.flow)
    ((warped - batch["target"]).abs().mean() + sum(losses.values())).backward()
    for key, weight in model.named_parameters():
        # The own losses are what teaches the flow that is not asked for.
        assert weight.grad is not None and weight.grad.isfinite().all(), key
        assert weight.grad.any() or key.endswith("bias"), key


@pytest.mark.parametrize("name", BASELINES)
def test_bfloat16_changes_the_flow_little(name):
    model = awake(name, scale=0.1).eval()
    source, target = poses(2, present=0.8), poses(2, seed=1, present=0.8)
    batch, expected = images(2), model(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(source, target)
        losses = model.losses(found, batch, PyramidLoss().features)
    assert found.flow.dtype == torch.float32
    torch.testing.assert_close(found.flow, expected.flow, rtol=0, atol=0.05)
    for key, value in model.losses(found, batch, PyramidLoss().features).items():
        torch.testing.assert_close(losses[key], value, rtol=1e-3, atol=1e-6)


# gfla32 is the network of gfla64.
@pytest.mark.parametrize("name", ["fomm", "mraa", "tpsmm", "gfla64"])
def test_learns_to_warp_a_few_mannequins(name):
    # 100 steps on one batch: the warped source must come much closer to the target than a copy.
    batch = Mannequins(size=(32, 32), seed=3).pairs(range(6))
    model = small(name).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = PyramidLoss()
    for step in range(100):
        model.progress = step / 100
        motion = model(batch["source_pose"], batch["target_pose"])
        warped = pose_kernels.flow_sample(batch["source"], motion.flow)
        total = loss([warped], batch["target"])[0] + sum(
            model.losses(motion, batch, PyramidLoss().features).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    copy = (batch["source"] - batch["target"]).abs().mean()
    assert (warped - batch["target"]).abs().mean() < 0.5 * copy


@pytest.mark.parametrize("name", ["fomm", "mraa", "tpsmm"])
@pytest.mark.parametrize(("size", "stride"), [((64, 64), 2), ((128, 64), 4)])
def test_a_rivals_grid_is_as_fine_as_ours(name, size, stride):
    cells = (size[0] // stride, size[1] // stride)
    ours, theirs = (build_generator(ModelConfig(flow=flow), size) for flow in ("ours", name))
    pose, other = poses(1), poses(1, seed=1)
    assert ours.eval().warping(pose, other).flow.shape[2:] == cells
    seen = []
    blocks = theirs.eval().warping.hourglass.encoder.blocks
    blocks[-1].register_forward_hook(lambda block, taken, given: seen.append(given.shape[2:]))
    assert theirs.warping(pose, other).flow.shape[2:] == cells
    # Its coarsest level sees the image as coarsely on either grid.
    assert seen == [(size[0] // 16, size[1] // 16)]
