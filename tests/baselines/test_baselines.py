"""What all baselines have in common."""

import dataclasses

import pytest
import torch
from baseline_helpers import poses, small

import pose_kernels
from posemodel.baselines import (
    BASELINES,
    baseline_config,
    build_baseline,
    parameter_counts,
)
from posemodel.baselines.estimator import pixel_features
from posemodel.config import ModelConfig
from posemodel.data.mannequins import Mannequins
from posemodel.errors import UserError
from posemodel.losses.pyramid import PyramidLoss
from posemodel.model.pose_transfer import PoseTransfer, build_generator


def test_the_rows_of_table_1():
    assert BASELINES == ("fomm", "mraa", "tpsmm", "gfla32", "gfla64")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="'fom', expected one of fomm, mraa"):
        baseline_config("fom")


@pytest.mark.parametrize("name", BASELINES)
def test_paper_sizes_are_larger_and_all_else_stays(name):
    quick, paper = baseline_config(name), baseline_config(name, paper=True)
    assert type(quick) is type(paper)
    differs = {field.name for field in dataclasses.fields(quick)
               if getattr(quick, field.name) != getattr(paper, field.name)}
    assert differs <= {"width", "blocks", "max_width", "correctness_weight",
                       "regularization_weight"}
    with torch.device("meta"):
        counts = [parameter_counts(build_baseline(config, image_size=(256, 256)))["total"]
                  for config in (quick, paper)]
    assert counts[1] > 2 * counts[0]


@pytest.mark.parametrize(("name", "field", "value"), [
    ("fomm", "limb_ridge", 0.0), ("mraa", "thickness", -1.0), ("tpsmm", "ridge", float("nan")),
    ("tpsmm", "dropout", 1.5), ("gfla64", "correctness_weight", -1.0), ("mraa", "width", 0),
])
def test_an_impossible_value_names_its_field(name, field, value):
    with pytest.raises(UserError, match=f"{field} is {value}, expected"):
        dataclasses.replace(baseline_config(name), **{field: value})


def test_parameter_counts_cover_every_weight():
    model = small("mraa", occlusion=True)
    counts = parameter_counts(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts.keys() == {"hourglass", "mask", "occlusion", "background", "total"}


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
    model = small(name).eval()
    wake(model)
    first, second, target = (poses(2, seed) for seed in range(3))
    both = model(torch.cat([first, second]), target)
    expected = torch.cat([model(first, target), model(second, target)])
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_are_finite_and_reach_every_weight_with_missing_joints(name):
    model = small(name)
    wake(model)
    source, target = poses(6, present=0.5), poses(6, seed=1, present=0.5)
    source[0], target[1] = 0, 0
    batch = {key: torch.rand(6, 3, 32, 32) * 2 - 1 for key in ("source", "target")}
    motion = model.estimate(source, target)
    losses = model.losses(motion, batch, pixel_features)
    warped = pose_kernels.flow_sample(batch["source"], motion.flow)
    ((warped - batch["target"]).abs().mean() + sum(losses.values())).backward()
    for key, weight in model.named_parameters():
        # The own losses are what teaches the flow that is not asked for.
        assert weight.grad is not None and weight.grad.isfinite().all(), key
        assert weight.grad.any() or key.endswith("bias"), key


@pytest.mark.parametrize("name", BASELINES)
def test_bfloat16_changes_the_flow_little(name):
    model = small(name).eval()
    wake(model, scale=0.1)
    source, target = poses(2, present=0.8), poses(2, seed=1, present=0.8)
    batch = {key: torch.rand(2, 3, 32, 32) * 2 - 1 for key in ("source", "target")}
    expected = model.estimate(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.estimate(source, target)
        losses = model.losses(found, batch, pixel_features)
    assert found.flow.dtype == torch.float32
    torch.testing.assert_close(found.flow, expected.flow, rtol=0, atol=0.05)
    for key, value in model.losses(found, batch, pixel_features).items():
        torch.testing.assert_close(losses[key], value, rtol=1e-3, atol=1e-6)


def test_pixel_features_are_the_pixels_and_their_complement():
    image = torch.rand(1, 3, 16, 8) * 2 - 1
    fine, coarse = pixel_features(image)
    assert fine.shape == (1, 96, 4, 2) and coarse.shape == (1, 384, 2, 1)
    assert fine.min() >= 0
    first = torch.cat([(1 + image) / 2, (1 - image) / 2], dim=1)[0, :, :4, :4].flatten()
    torch.testing.assert_close(fine[0, :, 0, 0], first)
    with pytest.raises(UserError, match="multiples of 8"):
        pixel_features(image[..., :4])


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
        motion = model.estimate(batch["source_pose"], batch["target_pose"])
        warped = pose_kernels.flow_sample(batch["source"], motion.flow)
        total = loss([warped], batch["target"])[0] + sum(
            model.losses(motion, batch, pixel_features).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    copy = (batch["source"] - batch["target"]).abs().mean()
    assert (warped - batch["target"]).abs().mean() < 0.5 * copy


def wake(model, scale=0.02):
    """Give the layers that start at zero something to say, so that they do not hide the rest."""
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=scale)


@pytest.mark.parametrize("name", ["fomm", "mraa", "tpsmm"])
@pytest.mark.parametrize(("size", "stride"), [((64, 64), 2), ((128, 64), 4)])
def test_a_rivals_grid_is_as_fine_as_ours(name, size, stride):
    cells = (size[0] // stride, size[1] // stride)
    ours, theirs = (build_generator(ModelConfig(flow=flow), size) for flow in ("ours", name))
    pose, other = poses(1), poses(1, seed=1)
    assert ours.eval().warping(pose, other).shape[2:] == cells
    seen = []
    blocks = theirs.eval().warping.hourglass.encoder.blocks
    blocks[-1].register_forward_hook(lambda block, taken, given: seen.append(given.shape[2:]))
    assert theirs.warping.estimate(pose, other).flow.shape[2:] == cells
    # Its coarsest level sees the image as coarsely on either grid.
    assert seen == [(size[0] // 16, size[1] // 16)]
