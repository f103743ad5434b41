"""mutual_matches against loops over positions, torch.topk, and the map in float64."""

import functools

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    FEATURE_SHAPES,
    TOLERANCE,
    Case,
    features,
    implementations,
    whole_features,
)

from pose_kernels import Matches, mutual_matches

IMPLS = implementations("mutual_matches")
INF, NAN = float("inf"), float("nan")


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5)):
    return whole_features(batch, m, source, target, dtype)


def calls(ops, new, batch, m, source_size, target_size, last):
    z = new(batch, m, *source_size), new(batch, m, *target_size)
    for k in (1, min(3, source_size[0] * source_size[1])):
        yield "mutual_matches", (*z, k, False)


CASE = Case(inputs, calls, medium={"m": 35, "source": (13, 11), "target": (9, 17)},
            large={"m": 35, "source": (17, 16), "target": (16, 19)}, activations=0,
            differentiable=False)

every_impl = pytest.mark.parametrize("impl", IMPLS)


def run(*arguments, impl, **keywords):
    return mutual_matches(*arguments, impl=impl, **keywords)


def by_loops(source, target, k):
    """The order of the definition, position by position: NaN first, large before small, low index
    before high."""
    (hs, ws), (ht, wt) = source.shape[2:], target.shape[2:]
    C = torch.einsum("bks,bkt->bst", source.flatten(2).double(), target.flatten(2).double())
    B, S, T = C.shape

    def order(values):
        return sorted(range(len(values)), key=lambda i: (
            values[i] == values[i], -values[i] if values[i] == values[i] else 0, i))

    sources = torch.tensor([[order(C[b, :, t].tolist())[:k] for t in range(T)] for b in range(B)])
    targets = torch.tensor([[order(C[b, s].tolist())[0] for s in range(S)] for b in range(B)])
    sources = sources.transpose(1, 2)  # [B, k, T]
    mutual = torch.tensor([[targets[b, sources[b, 0, t]] == t for t in range(T)] for b in range(B)])
    back = C.gather(2, targets[:, :, None])
    return Matches(sources.reshape(B, k, ht, wt), C.gather(1, sources).reshape(B, k, ht, wt),
                   targets.view(B, hs, ws), back.view(B, hs, ws), mutual.view(B, ht, wt))


def assert_same(found, expected, dtype):
    assert isinstance(found, Matches)
    assert (found.sources.dtype, found.targets.dtype) == (torch.int64, torch.int64)
    assert found.mutual.dtype == torch.bool
    for name, a, b in zip(Matches._fields, found, expected, strict=True):
        if a.is_floating_point():
            assert a.dtype == dtype
            b = b.to(dtype)
        assert torch.equal(a.nan_to_num(12345), b.nan_to_num(12345)), name


# And sizes around a tile of every kind: rows and columns of registers, blocks, segments.
@pytest.mark.parametrize("shape", [*FEATURE_SHAPES, (1, 67, (7, 13), (33, 9))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_impl
def test_against_loops(impl, dtype, shape):
    source, target = whole_features(*shape, dtype)
    S = shape[2][0] * shape[2][1]
    for k in {1, min(2, S), min(5, S)}:
        assert_same(run(source, target, k, impl=impl), by_loops(source, target, k), dtype)


@every_impl
def test_all_sources_in_their_order(impl):
    source, target = whole_features(2, 3, (4, 7), (3, 3))
    assert_same(run(source, target, 28, impl=impl), by_loops(source, target, 28), torch.float64)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_numbers(impl, dtype):
    """The values are those of the map, in descending order, at their places; topk has no larger."""
    source, target = features(2, 35, (11, 12), (9, 15), dtype)
    found = run(source, target, 4, impl=impl)
    C = torch.einsum("bks,bkt->bst", source.flatten(2).double(), target.flatten(2).double())
    tolerance = 4 * TOLERANCE[dtype][0]
    values = found.correlations.flatten(2).double()
    assert (values.diff(dim=1) <= 0).all()
    close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(values, C.gather(1, found.sources.flatten(2)))
    close(values, C.topk(4, dim=1).values)
    back = found.target_correlations.flatten(1).double()
    close(back, C.gather(2, found.targets.flatten(1)[:, :, None]).squeeze(2))
    close(back, C.amax(2))
    assert len(found.sources[0, :, 0, 0].unique()) == 4


@every_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_mutual_match_has_one_value(impl, dtype):
    """Seen from both sides; and the largest value of all is one."""
    found = run(*features(3, 35, (9, 14), (13, 7), dtype), impl=impl)
    best = found.sources[:, 0].flatten(1)
    back = found.target_correlations.flatten(1).gather(1, best).view_as(found.mutual)
    assert torch.equal(found.correlations[:, 0][found.mutual], back[found.mutual])
    there = found.targets.flatten(1).gather(1, best).view_as(found.mutual)
    here = torch.arange(13 * 7).view(13, 7)
    assert torch.equal(found.mutual, there == here)
    first = found.correlations[:, 0].flatten(1).argmax(1)
    assert found.mutual.flatten(1).gather(1, first[:, None]).all()


@every_impl
@pytest.mark.parametrize("k", [1, 4])
def test_ties_go_to_the_lowest_index(impl, k):
    source, target = torch.ones(2, 3, 5, 30), torch.ones(2, 3, 7, 20)
    found = run(source, target, k, impl=impl)
    assert torch.equal(found.sources, torch.arange(k).view(1, k, 1, 1).expand(2, k, 7, 20))
    assert (found.targets == 0).all() and (found.correlations == 3).all()
    assert found.mutual.flatten(1).sum(1).tolist() == [1, 1] and found.mutual[:, 0, 0].all()
    zeros = run(torch.zeros_like(source), -target, k, impl=impl)  # products -0: equal to 0
    assert_same(zeros, [found.sources, 0 * found.correlations, found.targets,
                        0 * found.target_correlations, found.mutual], torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite(impl, bad, dtype):
    """NaN is the largest value, of several the first one is first; infinity is a number."""
    source, target = whole_features(2, 4, (5, 9), (4, 11), dtype)
    source[0, 1, 3, 2] = source[0, 1, 1, 4] = bad
    target[0, 2, 1, 7] = bad
    for k in (1, 5):
        assert_same(run(source, target, k, impl=impl), by_loops(source, target, k), dtype)


@every_impl
def test_nothing_but_minus_infinity(impl):
    """Places are of what is there, not of the padding of a tile."""
    source, target = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 2, 1)
    source[0, 0] = -INF
    found = run(source, target, 3, impl=impl)
    assert found.sources.flatten(1).tolist() == [[0, 0, 1, 1, 2, 2]]
    assert (found.correlations == -INF).all() and (found.targets == 0).all()
    assert found.mutual.flatten().tolist() == [True, False]
    source[0, 0, 0, 0] = 5
    found = run(source, target, 2, impl=impl)
    assert found.sources.flatten(1).tolist() == [[0, 0, 1, 1]]


@every_impl
def test_no_gradient(impl):
    maps = [z.requires_grad_() for z in features(1, 4, (3, 3), (3, 4))]
    found = run(*maps, 2, impl=impl)
    assert not any(x.requires_grad for x in found)
    values = tuple(z.detach() for z in maps)  # nor forward: what is constant moves by nothing
    _, moved = torch.func.jvp(lambda *z: run(*z, impl=impl).correlations, values, values)
    assert (moved == 0).all()
    # Trained all the same: through the features at the places that were found.
    best = found.sources[:, 0].flatten(1)
    matched = maps[0].flatten(2).gather(2, best[:, None].expand(-1, 4, -1))
    value = (matched * maps[1].flatten(2)).sum(1)
    torch.testing.assert_close(value.view(1, 3, 4), found.correlations[:, 0])
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(value.sum(), maps))


@pytest.mark.skipif("cpp" not in IMPLS, reason="no CPU library")
def test_the_operator_itself_has_no_gradient():
    maps = [z.requires_grad_() for z in features(1, 4, (3, 3), (3, 4))]
    assert not any(x.requires_grad for x in torch.ops.pose_kernels.mutual_matches(*maps, 2, False))
    with pytest.raises(RuntimeError, match="k: expected 1 to the number of source positions"):
        torch.ops.pose_kernels.mutual_matches(*maps, 10, False)


@every_impl
def test_autocast_and_mixed_inputs(impl):
    """Multiplied and compared in float32: bfloat16 would make ties of these."""
    source, target = features(1, 35, (6, 7), (5, 8), torch.float32)
    expected = run(source, target, 2, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(source, target, 2, impl=impl)
        mixed = run(source.bfloat16(), target, impl=impl)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert mixed.correlations.dtype == torch.float32


@every_impl
def test_16_bits_are_compared_before_they_are_rounded(impl):
    """257 and 256 are one number in bfloat16: the larger one is second in memory."""
    source = torch.tensor([256.0, 1.0]).view(1, 2, 1, 1) * torch.ones(1, 2, 1, 2)
    source[0, 1, 0, 0] = 0
    found = run(source.bfloat16(), torch.ones(1, 2, 1, 1).bfloat16(), 2, impl=impl)
    assert found.sources.flatten().tolist() == [1, 0]
    assert (found.correlations == 256).all()


@every_impl
def test_compiled_for_any_k(impl):
    torch.compiler.reset()
    maps = whole_features(2, 3, (3, 4), (2, 5))
    compiled = torch.compile(functools.partial(run, impl=impl), fullgraph=True,
                             backend="aot_eager")
    for k in (1, 2, 5):
        assert_same(compiled(*maps, k), run(*maps, k, impl=impl), torch.float64)


@pytest.mark.skipif("cpp" not in IMPLS, reason="no CPU library")
def test_no_map_is_made():
    """4096 x 4096 values have 64 MiB; what torch allocates on the way are results and copies."""
    maps = features(1, 8, (64, 64), (64, 64), torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        run(*maps, 2, impl="cpp")
    assert max(e.self_cpu_memory_usage for e in profile.events()) < 1 << 20


def test_errors_name_the_argument():
    source, target = features(2, 3, (2, 3), (3, 2))
    for k in (0, 7, -1):
        with pytest.raises(ValueError, match=f"k: expected 1 to 6, the number of source .*{k}"):
            mutual_matches(source, target, k)
    for k in (1.0, None, True):
        with pytest.raises(TypeError, match=f"k: expected an integer, got {type(k).__name__}"):
            mutual_matches(source, target, k)
    with pytest.raises(ValueError, match="target: expected 3 channels as source"):
        mutual_matches(source, target[:, :1])
