import numpy as np
import pytest
import torch

from posemodel.evaluation.roc import RocAccumulator
from tests.exact_auc import roc_auc


def scored(count, spread=1.0):
    labels = torch.rand(count) < 0.3
    return 0.9 + spread * (torch.randn(count) + 0.7 * labels), labels


def fill(scores, labels, parts=1, **options):
    roc = RocAccumulator(**options)
    for part in zip(scores.chunk(parts), labels.chunk(parts), strict=True):
        roc.update(*part)
    return roc


def test_small_sets_are_exact():
    scores, labels = scored(500)
    scores[:100] = scores[:100].round()     # ties, zeros of both signs
    scores[:3] = torch.tensor([-0.0, 0.0, float("-inf")])
    roc = fill(scores, labels, parts=7)
    assert roc.auc() == pytest.approx(roc_auc(scores, labels), abs=1e-12) and roc.auc_error() == 0.0


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e3])
def test_large_sets_are_within_a_thousandth_and_know_their_error(spread):
    scores, labels = scored(60_000, spread)
    roc = fill(scores, labels, parts=6, limit=4096)
    error = abs(roc.auc() - roc_auc(scores, labels))
    assert 0 < roc.auc_error() < 1e-3 and error <= roc.auc_error()
    assert len(roc.state()["cell"]) <= 4096


def test_order_and_processes_make_no_difference():
    scores, labels = scored(20_000)
    once = fill(scores, labels, limit=1000)
    order = scores.argsort()
    left = fill(scores[order[:300]], labels[order[:300]], limit=1000)   # exact so far
    right = fill(scores[order[300:]], labels[order[300:]], parts=9, limit=1000)
    for first, second in ((left, right), (right, left)):
        both = RocAccumulator().load(first.state())
        both.merge(second)
        assert all(np.array_equal(a, b) for a, b in zip(
            both.state().values(), once.state().values(), strict=True))
    with pytest.raises(ValueError, match="do not merge"):
        once.merge(RocAccumulator(limit=7))


def test_curve_is_that_of_the_thresholds():
    scores, labels = scored(1000)
    curve = fill(scores, labels).curve(points=21)
    false, true = (np.array(curve[name]) for name in ("false_positive_rate", "true_positive_rate"))
    assert (false[0], true[0]) == (0, 0) and (false[-1], true[-1]) == (1, 1)
    assert 15 <= len(false) <= 21 and (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(roc_auc(scores, labels), abs=0.01)
    expected = {(float((scores[~labels] >= t).double().mean()),
                 float((scores[labels] >= t).double().mean())) for t in scores}
    assert {*zip(false.tolist(), true.tolist(), strict=True)} <= expected | {(0.0, 0.0)}


def test_one_kind_alone_has_no_curve():
    roc = fill(torch.rand(9), torch.ones(9, dtype=torch.bool))
    assert np.isnan(roc.auc()) and np.isnan(RocAccumulator().auc())
    assert roc.curve() == {"false_positive_rate": [], "true_positive_rate": []}
    with pytest.raises(ValueError, match="NaN"):
        roc.update(torch.tensor([float("nan")]), torch.tensor([True]))
