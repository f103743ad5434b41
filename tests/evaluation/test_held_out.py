import pytest
import torch

import pose_kernels
from posemodel.build import build_generator
from posemodel.data.source import HELD_OUT_SEEDS, mannequins
from posemodel.evaluation.held_out import evaluate
from posemodel.evaluation.inspection import Inspection, inspect
from posemodel.evaluation.mannequin_metrics import MannequinTotals
from posemodel.evaluation.measures import Instruments, measure
from tests.exact_auc import roc_auc
from tests.tiny import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch():
    return mannequins(tiny_config().data, seed=HELD_OUT_SEEDS["test"], device=CPU).pairs(range(4))


def untrained(std=0.0):
    """A model whose last layer is nothing, or random: with it the flow is not the identity."""
    config = tiny_config(model_flow_parametrization="residual")
    torch.manual_seed(0)
    model = build_generator(config.model, config.data.image_size).eval()
    if std:
        torch.nn.init.normal_(model.warping.head.layers[-1].weight, std=std)
    return model, config


def test_an_untrained_flow_scores_like_copying_the_source():
    model, config = untrained()
    row = evaluate(model, config, CPU, torch.float32, split="test")
    assert row["warped_l1"] == pytest.approx(row["copy_l1"], rel=1e-5)
    assert row["epe_visible"] == pytest.approx(row["epe_zero"], rel=1e-5)
    assert row["ssim_warped"] == pytest.approx(row["ssim_copy"], rel=1e-4) and row["pairs"] == 4


def test_the_true_flow_and_the_target_score_perfectly(batch):
    size = batch["source"].shape[-2:]
    truth = Inspection(batch["target"], pose_kernels.flow_sample(batch["source"], batch["flow"]),
                       batch["flow"], {})
    values = measure(batch, truth, Instruments())
    assert values["epe_visible"].max() == 0
    assert values["refined_l1"].max() == 0 and values["ssim"].min() == pytest.approx(1, abs=1e-6)
    assert (values["epe_zero"] > 0).all() and size == (32, 32)


def test_parts_by_turn_add_up_to_the_whole():
    model, config = untrained()
    config.data.evaluation_pairs = 20
    row = evaluate(model, config, CPU, torch.float32, split="test")
    parts = row["by_turn"].values()
    assert sum(part["pairs"] for part in parts) == 20
    mean = sum(part["copy_l1"] * part["pairs"] for part in parts if part["pairs"]) / 20
    assert mean == pytest.approx(row["copy_l1"], rel=1e-5)


def test_a_group_without_pairs_has_no_numbers_instead_of_nan():
    model, config = untrained()
    config.data.turn = 0.0
    row = evaluate(model, config, CPU, torch.float32, split="test")
    assert row["by_turn"]["60-180"]["pairs"] == 0 and row["by_turn"]["60-180"]["copy_l1"] is None


def test_evaluation_repeats_itself_and_does_not_change_the_model():
    model, config = untrained()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (evaluate(model, config, CPU, torch.float32, split="test") for _ in range(2))
    assert first == second
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_without_the_truth_the_images_are_measured_all_the_same(batch):
    model, _ = untrained(std=0.02)
    photographs = {name: batch[name] for name in ("source", "target", "source_pose", "target_pose")}
    known, seen = (inspect(model, one, torch.float32) for one in (batch, photographs))
    assert torch.equal(seen.image, known.image) and torch.equal(seen.flow, known.flow)
    assert seen.scores.keys() == {"affine"}
    assert torch.equal(seen.scores["affine"], known.scores["affine"])
    all_values = measure(batch, known, Instruments())
    values = measure(photographs, seen, Instruments())
    assert all_values.keys() - values.keys() == {
        "epe_zero", "epe_visible", "turn", "copy_background_off", "warped_background_off",
        "refined_background_off"}
    assert all(torch.equal(value, all_values[name]) for name, value in values.items())


def test_inspection_agrees_with_the_models_own_forward(batch):
    model, _ = untrained(std=0.02)
    seen = inspect(model, batch, torch.float32)
    with torch.no_grad():
        result = model(batch["source"], batch["source_pose"], batch["target_pose"])
    assert torch.allclose(seen.image, result.image, atol=1e-6)
    assert torch.equal(seen.warped, result.warped)
    # The warped source is the source sampled at the flow that the metrics look at.
    assert torch.allclose(pose_kernels.flow_sample(batch["source"], seen.flow), result.warped,
                          atol=1e-4)
    assert {name: tuple(score.shape) for name, score in seen.scores.items()} == dict.fromkeys(
        ("affine", "peak", "correlation", "cycle"), (4, 1, 32, 32))


@pytest.mark.parametrize("motion_input", ["keypoints", "keypoints+image"])
def test_a_method_without_a_correlation_has_the_other_scores(batch, motion_input):
    config = tiny_config(model_flow="fomm", model_motion_input=motion_input)
    model = build_generator(config.model, config.data.image_size).eval()
    seen = inspect(model, batch, torch.float32)
    assert seen.scores.keys() == {"affine", "cycle"}
    row = evaluate(model, config, CPU, torch.float32, split="test")
    assert row["visibility_auc_cycle"] is not None and row["visibility_auc_peak"] is None
    assert row["epe_visible"] > 0


def test_visibility_is_judged_over_the_pixels_of_all_people(batch):
    model, config = untrained(std=0.02)
    seen = inspect(model, batch, torch.float32)
    row = evaluate(model, config, CPU, torch.float32, split="test")
    body = batch["target_foreground"]
    for name, score in seen.scores.items():
        expected = roc_auc(score[body], batch["visible"][body])
        assert row[f"visibility_auc_{name}"] == pytest.approx(expected, abs=1e-9), name


def test_totals_of_parts_are_those_of_the_whole(batch):
    model, _ = untrained()
    whole, first, second = (MannequinTotals() for _ in range(3))
    for totals, rows in ((whole, slice(None)), (first, slice(2)), (second, slice(2, None))):
        part = {name: values[rows] for name, values in batch.items()}
        seen = inspect(model, part, torch.float32)
        totals.update(part, seen.flow, seen.scores)
    joined = MannequinTotals().load(first.state())
    joined.merge(second)
    expected, pooled = whole.summary(), joined.summary()
    assert pooled["body"] == pytest.approx(expected["body"], rel=1e-4)
    assert pooled["visibility"]["affine"]["auc"] == pytest.approx(
        expected["visibility"]["affine"]["auc"], abs=1e-3)
