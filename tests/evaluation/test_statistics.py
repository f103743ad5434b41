import numpy as np
import pytest

from posemodel.evaluation.statistics import compare, rejected, spread

stats = pytest.importorskip("scipy.stats")


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == (result := spread([1.0, 2.0, 3.0]))
    assert (result.mean, result.deviation, result.count) == (2.0, 1.0, 3)
    assert result.text(digits=1) == "2.0 ± 1.0"
    assert np.isnan(spread([4.0]).deviation) and spread([4.0]).text(digits=0) == "4"
    for values in ([], [1.0, float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="expected finite values"):
            spread(values)


def test_interval_and_p_are_scipys():
    random = np.random.default_rng(0)
    second = random.exponential(10, 60)
    first = second + random.normal(0.2, 2, 60)
    result = compare(first, second)
    difference = first - second
    assert result.difference == pytest.approx(difference.mean(), rel=1e-12)
    interval = stats.bootstrap((difference,), np.mean, n_resamples=10_000, method="percentile",
                               rng=np.random.default_rng(1)).confidence_interval
    assert result.low == pytest.approx(interval.low, abs=0.04)
    assert result.high == pytest.approx(interval.high, abs=0.04)
    test = stats.permutation_test((difference,), np.mean, permutation_type="samples",
                                  n_resamples=10_000, rng=np.random.default_rng(1))
    assert 0.01 < result.p < 0.5 and result.p == pytest.approx(test.pvalue, abs=0.02)
    assert compare(first, second) == result and compare(first, second, seed=1) != result


def test_few_pairs_try_every_sign():
    first, second = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.zeros(5)
    result = compare(first, second)
    assert result.p == 2 / 32  # all plus and all minus
    test = stats.permutation_test((first,), np.mean, permutation_type="samples")
    assert result.p == pytest.approx(test.pvalue) and compare(first, first).p == 1.0


def test_it_is_wrong_as_often_as_it_says():
    random = np.random.default_rng(0)
    results = [compare(*random.normal(size=(2, 25)), resamples=400) for _ in range(200)]
    assert 0.01 < np.mean([result.p < 0.05 for result in results]) < 0.10
    assert 0.88 < np.mean([result.low <= 0 <= result.high for result in results]) < 0.99


def test_pairs_of_a_group_do_not_count_as_many():
    random = np.random.default_rng(0)
    person = random.normal(0.3, 1, 12)
    first = np.repeat(person, 50) + random.normal(0, 0.01, 600)
    groups = np.repeat(np.arange(12), 50)
    alone, grouped = compare(first, 0 * first), compare(first, 0 * first, groups=groups)
    assert (alone.pairs, alone.groups, grouped.groups) == (600, 600, 12)
    assert alone.p < 0.001 < 0.05 < grouped.p
    assert 4 * (alone.high - alone.low) < grouped.high - grouped.low < 2
    assert grouped.low < grouped.difference < grouped.high
    shuffled = random.permutation(600)
    again = compare(first[shuffled], 0 * first, groups=groups[shuffled])
    assert again.p == grouped.p and again.low == pytest.approx(grouped.low)


def test_pairs_without_a_value_are_left_out():
    first = np.array([1.0, np.nan, 3.0, 4.0, np.inf])
    second = np.array([0.0, 1.0, np.nan, 1.0, 0.0])
    result = compare(first, second)
    assert (result.pairs, result.difference) == (2, 2.0)
    with pytest.raises(ValueError, match="takes 2"):
        compare(first[:2], second[:2])
    with pytest.raises(ValueError, match="one shape"):
        compare(first, second[:2])


def test_a_whole_test_set_fits_into_memory(monkeypatch):
    from posemodel.evaluation import statistics
    random = np.random.default_rng(0)
    first = random.normal(0.1, 1, 300)
    whole = compare(first, 0 * first, resamples=500)
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)
    parts = compare(first, 0 * first, resamples=500)
    assert parts.low == whole.low and parts.p == whole.p


def test_holm_by_hand():
    # Against 0.05 / 4, / 3, / 2, / 1 from the smallest on; the first that fails ends it.
    assert rejected([0.04, 0.001, 0.03, 0.013]).tolist() == [False, True, False, True]
    assert rejected([0.02, 0.02, 0.02]).tolist() == [False] * 3
    assert rejected([0.02, 0.016, 0.05]).tolist() == [True] * 3
    assert rejected([0.06]).tolist() == [False] and rejected([]).tolist() == []


def test_holm_keeps_the_level_of_the_family():
    random = np.random.default_rng(0)
    wrong = [rejected(random.uniform(size=20)).any() for _ in range(2000)]
    assert 0.03 < np.mean(wrong) < 0.065
