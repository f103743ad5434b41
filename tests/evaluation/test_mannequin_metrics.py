import json

import pytest
import torch
import torch.nn.functional as F

import pose_kernels
from posemodel.evaluation.mannequin_metrics import (
    MannequinTotals,
    background_off,
    pair_aucs,
    pair_metrics,
    part_sums,
    pixel_values,
)
from posemodel.mannequins.pairs import PART_NAMES, Mannequins
from tests.exact_auc import roc_auc


@pytest.fixture(scope="module")
def batch():
    return Mannequins(size=(48, 48), turn=180.0, seed=5).pairs(range(4))


def shifted(batch, pixels):
    flow = batch["flow"].clone()
    flow[:, 0] += 2 * pixels / 48
    return flow


def test_the_true_flow_is_within_every_limit(batch):
    values = pair_metrics(batch, batch["flow"])
    assert values["epe"].max() == 0 and values["within_1px"].min() == 1
    two = pair_metrics(batch, shifted(batch, 2.0))
    assert torch.allclose(two["epe"], torch.full((4,), 2.0), atol=1e-3)
    assert two["within_1px"].max() == 0 and two["within_3px"].min() == 1


def test_a_background_is_off_where_a_colour_is(batch):
    behind = ~batch["target_foreground"]
    image = batch["target"].clone()
    assert background_off(image, batch).max() == 0
    image[:, 1] -= 16.4 / 127.5 * behind[:, 0]                 # of one colour, and all over
    assert background_off(image, batch).min() == 1
    image[:, 1] += 0.8 / 127.5 * behind[:, 0]
    assert background_off(image, batch).max() == 0
    half = batch["target"].clone()
    half[..., :24] = -1                                        # the person there does not count
    left = behind[..., :24].sum((1, 2, 3)) / behind.sum((1, 2, 3))
    assert torch.allclose(background_off(half, batch), left)


def test_a_background_without_what_touches_the_person(batch):
    person = batch["target_foreground"]
    wider = F.max_pool2d(person.float(), 3, 1, 1) > 0
    image = torch.where(wider, -batch["target"], batch["target"])
    touching = (wider & ~person).sum((1, 2, 3)) / (~person).sum((1, 2, 3))
    assert background_off(image, batch, touching=False).max() == 0
    everywhere = background_off(-batch["target"], batch)
    assert torch.allclose(background_off(-batch["target"], batch, touching=False),
                          everywhere - touching)


def test_invented_pixels_are_those_that_the_source_does_not_show(batch):
    flow = shifted(batch, 3.0)
    values = pair_metrics(batch, flow)
    warped = pose_kernels.flow_sample(batch["source"], flow)
    for index in range(4):
        where = (batch["target_foreground"] & ~batch["visible"])[index, 0]
        assert where.any()
        target = batch["target"][index][:, where]
        person = batch["source"][index][:, batch["source_foreground"][index, 0]].mean(1)
        for name, color in (("invented_l1", warped[index][:, where]),
                            ("invented_l1_mean", person[:, None]),
                            ("invented_l1_copy", batch["source"][index][:, where])):
            expected = float((color - target).abs().mean()) * 127.5
            assert float(values[name][index]) == pytest.approx(expected, rel=1e-4), name


def test_where_invented_pixels_come_from(batch):
    identity = pose_kernels.identity_flow(48, 48).expand(4, 2, 48, 48)
    values = pair_metrics(batch, identity)
    for index in range(4):
        where = (batch["target_foreground"] & ~batch["visible"])[index, 0]
        source, target = (batch[f"{name}_part"][index, 0][where] for name in ("source", "target"))
        assert float(values["invented_same_part"][index]) == pytest.approx(
            float((source == target).float().mean()))
        assert float(values["invented_background"][index]) == pytest.approx(
            float((source == 0).float().mean()))
    assert 0 < values["invented_same_part"].mean() < 1


def test_a_pair_without_such_pixels_has_no_value(batch):
    seen = {**batch, "visible": batch["target_foreground"]}
    assert pair_metrics(seen, batch["flow"])["invented_l1"].isnan().all()


def test_area_of_each_pair_is_the_chance_that_a_visible_pixel_scores_above_an_invented_one(batch):
    score = torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    found = pair_aucs(batch, {"some": score, "truth": batch["visible"].float()})
    assert found.keys() == {"pair_auc_some", "pair_auc_truth"}
    assert found["pair_auc_truth"].tolist() == [1.0] * 4
    for index in range(4):
        body, visible = (batch[name][index] for name in ("target_foreground", "visible"))
        yes, no = score[index][visible & body], score[index][body & ~visible]
        above = (yes[:, None] > no).double() + (yes[:, None] == no).double() / 2
        assert float(found["pair_auc_some"][index]) == pytest.approx(float(above.mean()), abs=1e-12)


def test_no_area_where_all_of_the_person_is_seen(batch):
    seen = {**batch, "visible": batch["target_foreground"]}
    assert pair_aucs(seen, {"some": torch.randn(4, 1, 48, 48)})["pair_auc_some"].isnan().all()


def test_part_sums_by_hand():
    value = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    part = torch.tensor([[[1, 1], [5, 5]]])
    (sums, counts), = part_sums({"some": (value, mask)}, part).values()
    assert sums.shape == counts.shape == (1, len(PART_NAMES))
    assert sums[0, [1, 5]].tolist() == [3.0, 3.0] and counts[0, [1, 5]].tolist() == [2, 1]
    assert sums.sum() == 6 and counts.sum() == 3


def filled(batch, indices, scores, flow):
    totals = MannequinTotals()
    for index in indices:
        one = {name: value[index:index + 1] for name, value in batch.items()}
        totals.update(one, flow[index:index + 1], {"cycle": scores[index:index + 1]})
    return totals


def test_totals_pool_pixels_over_the_body_and_by_part(batch):
    flow = shifted(batch, 2.0) + 0.05 * torch.randn(4, 2, 48, 48)
    scores = torch.rand(4, 1, 48, 48) + 0.3 * batch["visible"]
    totals = filled(batch, range(4), scores, flow)
    summary = totals.summary()
    json.dumps(summary, allow_nan=False)
    values = pixel_values(batch, flow)
    part = batch["target_part"][:, 0]
    for name, (value, mask) in values.items():
        assert summary["body"][name] == pytest.approx(float(value[mask].double().mean()))
        inside = mask & (part == PART_NAMES.index("chest"))
        assert summary["parts"]["chest"][name] == pytest.approx(
            float(value[inside].double().mean()))
    body = summary["body"]
    assert body["invented_relative"] == pytest.approx(
        body["invented_l1"] / body["invented_l1_mean"])
    foreground, visible = batch["target_foreground"], batch["visible"]
    assert body["invented_share"] == pytest.approx(
        1 - float(visible.sum()) / float(foreground.sum()))
    auc = summary["visibility"]["cycle"]
    assert auc["auc"] == pytest.approx(roc_auc(scores[foreground], visible[foreground]))
    assert auc["auc_error"] == 0 and auc["curve"]["true_positive_rate"][-1] == 1
    inside = batch["target_part"] == PART_NAMES.index("chest")
    assert auc["parts"]["chest"] == pytest.approx(roc_auc(scores[inside], visible[inside]))
    assert "background" not in summary["parts"]


def test_totals_of_two_processes_and_of_a_stop_are_those_of_one(batch):
    flow, scores = shifted(batch, 1.5), torch.rand(4, 1, 48, 48)
    whole = filled(batch, range(4), scores, flow).summary()
    first, second = filled(batch, (0, 2), scores, flow), filled(batch, (1, 3), scores, flow)
    first = MannequinTotals().load(first.state())
    first.merge(second)
    merged = first.summary()
    assert merged["visibility"] == whole["visibility"]
    for name, value in whole["body"].items():
        assert merged["body"][name] == pytest.approx(value, rel=1e-12)
