"""The protocol of Market-1501 against loops, cases by hand, and torchreid's formula."""

import math

import numpy as np
import pytest
import torch

from posemodel.reid import ranking as module
from posemodel.reid.ranking import rank_distances, rank_features
from tests.small_datasets import refused


def by_loop(distances, query, gallery):
    """Matches, first hit, and both average precisions of each query, one gallery image after the
    other; `query` and `gallery` are lists of (person, camera)."""
    rows = []
    for row, (person, camera) in zip(distances, query, strict=True):
        place = hits = 0
        first = None
        step = trapezoid = 0.0
        for index in sorted(range(len(gallery)), key=lambda index: (row[index], index)):
            other, where = gallery[index]
            if other == -1 or (other == person and where == camera):
                continue
            if other == person:
                before = hits / place if place else 1.0
                hits += 1
                step += hits / (place + 1)
                trapezoid += (before + hits / (place + 1)) / 2
                first = place if first is None else first
            place += 1
        rows.append((hits, first, step / max(hits, 1), trapezoid / max(hits, 1)))
    return rows


def torchreid(distances, q_pids, g_pids, q_camids, g_camids):
    """mAP and CMC from the formula of torchreid's eval_market1501."""
    all_cmc, all_ap = [], []
    for index in range(len(q_pids)):
        order = np.argsort(distances[index], kind="stable")
        remove = (g_pids[order] == q_pids[index]) & (g_camids[order] == q_camids[index])
        raw = (g_pids[order] == q_pids[index])[~remove].astype(np.int32)
        if not raw.any():
            continue
        cmc = np.minimum(raw.cumsum(), 1)
        all_cmc.append([cmc[min(rank, len(cmc)) - 1] for rank in (1, 5, 10)])
        precision = raw.cumsum() / (np.arange(len(raw)) + 1.0)
        all_ap.append((precision * raw).sum() / raw.sum())
    return np.mean(all_ap), np.mean(all_cmc, axis=0)


def rank(distances, query, gallery):
    (qp, qc), (gp, gc) = (np.array(rows).T for rows in (query, gallery))
    return rank_distances(np.asarray(distances, float), query_persons=qp, query_cameras=qc,
                          gallery_persons=gp, gallery_cameras=gc)


def random_case(seed, gallery=40):
    random = np.random.default_rng(seed)
    query, others = (list(zip(random.integers(first, 6, count).tolist(),
                              random.integers(1, 4, count).tolist(), strict=True))
                     for first, count in ((1, 9), (-1, gallery)))
    # Few different distances, so that many are equal.
    return random.integers(0, 12, (9, gallery)) / 12, query, others


@pytest.mark.parametrize("seed", range(25))
def test_equals_a_loop(seed):
    distances, query, gallery = random_case(seed, gallery=4 + 3 * seed)
    found = rank(distances, query, gallery)
    for index, (hits, first, step, trapezoid) in enumerate(by_loop(distances, query, gallery)):
        assert found.matches[index] == hits
        assert not hits or found.first_hit[index] == first
        assert found.precision["step"][index] == pytest.approx(step, abs=1e-12)
        assert found.precision["trapezoid"][index] == pytest.approx(trapezoid, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_step_is_torchreids_formula(seed):
    distances, query, gallery = random_case(seed)
    found = rank(distances, query, gallery).scores("step")
    (qp, qc), (gp, gc) = (np.array(rows).T for rows in (query, gallery))
    usable = gp != -1  # torchreid leaves junk out when it lists the files
    expected, cmc = torchreid(distances[:, usable], qp, gp[usable], qc, gc[usable])
    assert found["mAP"] == pytest.approx(expected)
    assert [found[f"rank{k}"] for k in (1, 5, 10)] == pytest.approx(cmc.tolist())


def test_by_hand():
    # Kept, in order: right, distractor, right. Junk and the query's own camera do not count.
    gallery = [(-1, 2), (7, 1), (7, 2), (0, 2), (7, 3)]
    found = rank([[0.1, 0.2, 0.3, 0.4, 0.5]], [(7, 1)], gallery)
    assert found.matches[0] == 2 and found.first_hit[0] == 0
    assert found.precision["step"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert found.precision["trapezoid"][0] == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)


def test_first_right_one_in_second_place():
    found = rank([[0.1, 0.2]], [(7, 1)], [(8, 2), (7, 2)])
    assert found.precision["step"][0] == pytest.approx(1 / 2)
    assert found.precision["trapezoid"][0] == pytest.approx((0 + 1 / 2) / 2)
    assert found.scores("step")["rank1"] == 0 and found.scores("step")["rank5"] == 1


def test_query_without_a_match():
    # The second query's identity is only there under its own camera.
    found = rank([[0.1, 0.2], [0.1, 0.2]], [(7, 1), (8, 2)], [(7, 2), (8, 2)])
    assert found.matches.tolist() == [1, 0]
    step, trapezoid = (found.scores(name) for name in ("step", "trapezoid"))
    assert step == {"mAP": 1, "rank1": 1, "rank5": 1, "rank10": 1}
    assert trapezoid == {"mAP": 0.5, "rank1": 0.5, "rank5": 0.5, "rank10": 0.5}


def test_no_query_has_a_match():
    found = rank([[0.1]], [(7, 1)], [(7, 1)])
    refused("no query has a match", found.scores, "step")


def test_in_parts_as_at_once(monkeypatch):
    random = np.random.default_rng(0)
    query, gallery = torch.randn(23, 8), torch.randn(57, 8)
    words = {"query_persons": random.integers(1, 9, 23), "query_cameras": random.integers(1, 4, 23),
             "gallery_persons": random.integers(-1, 9, 57),
             "gallery_cameras": random.integers(1, 4, 57)}
    whole = rank_features(query, gallery, **words)
    sizes = []
    real = module.rank_distances
    monkeypatch.setattr(module, "rank_distances",
                        lambda d, **more: sizes.append(d.shape) or real(d, **more))
    monkeypatch.setattr(module, "_AT_ONCE", 5 * 57)
    parts = rank_features(10 * query, gallery, **words)  # the length of a feature says nothing
    assert sizes == [(5, 57)] * 4 + [(3, 57)]
    for name in ("step", "trapezoid"):
        np.testing.assert_allclose(parts.precision[name], whole.precision[name], atol=1e-12)
        assert all(math.isfinite(value) for value in parts.scores(name).values())


def test_rank_features_is_by_angle():
    gallery = torch.tensor([[10.0, 1.0], [0.1, 0.0]])
    found = rank_features(torch.tensor([[1.0, 0.0]]), gallery, query_persons=np.array([1]),
                          query_cameras=np.array([1]), gallery_persons=np.array([2, 1]),
                          gallery_cameras=np.array([2, 2]))
    assert found.first_hit[0] == 0
