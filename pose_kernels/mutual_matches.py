"""The best matches between two feature maps, both ways, without the map between them.

C(s, t) = <z_s(s), z_t(t)> is Eq. 1 of "Pose transfer using a single spatial transformation". Of it
the k largest values of every target t and the largest of every source s are kept, each with its
place. t*(s) = argmax_t C, s*(t) = argmax_s C: the match of t is mutual where t*(s*(t)) = t, that
is where gamma of Eq. 9 is 1. Values are compared as numbers; NaN is larger than all of them, as
for torch.argmax, and of equal ones the lowest index comes first.
"""

from typing import NamedTuple

import torch

from . import _checks, _dispatch, _library
from .correlation_4d import reference as correlation_reference

# tf32 as in correlation_4d. Maxima are returned in the features' dtype, indices are int64.
_library.define(
    "mutual_matches(Tensor source, Tensor target, int k, bool tf32) -> (Tensor sources,"
    " Tensor correlations, Tensor targets, Tensor target_correlations)",
    triton="mutual_matches",
)


class Matches(NamedTuple):
    """What :func:`mutual_matches` returns."""

    #: int64 ``[B, k, ht, wt]``: of every target the best sources, ``i*ws + j``, best first.
    sources: torch.Tensor
    #: ``[B, k, ht, wt]``: their correlations with the target.
    correlations: torch.Tensor
    #: int64 ``[B, hs, ws]``: of every source the best target, ``i*wt + j``.
    targets: torch.Tensor
    #: ``[B, hs, ws]``: its correlation with the source.
    target_correlations: torch.Tensor
    #: bool ``[B, ht, wt]``: whether the target is the best one of its best source.
    mutual: torch.Tensor


def reference(source: torch.Tensor, target: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    dtype = _checks.compute_dtype(source.dtype)
    C = correlation_reference(source.to(dtype), target.to(dtype)).flatten(2)  # Eq. 1, [B, S, T]
    # A stable sort keeps the order of ties, which torch.topk does not; torch.max has the first one.
    correlations, sources = C.max(dim=1, keepdim=True) if k == 1 else (
        x[:, :k].clone() for x in C.sort(dim=1, descending=True, stable=True))
    target_correlations, targets = C.max(dim=2)
    grid_s, grid_t = source.shape[2:], target.shape[2:]
    return (sources.unflatten(2, grid_t), correlations.unflatten(2, grid_t).to(source.dtype),
            targets.unflatten(1, grid_s), target_correlations.unflatten(1, grid_s).to(source.dtype))


def compiled(ops, source, target, k):
    return ops.mutual_matches(source, target, k, _checks.allow_tf32(source))


def new_matches(source, target, k, dtype=None):
    """Memory for what the operator returns; correlations in ``dtype``, or that of the features."""
    shapes = (source.shape[0], k, *target.shape[2:]), (source.shape[0], *source.shape[2:])
    return tuple(source.new_empty(shape, dtype=kind or source.dtype)
                 for shape in shapes for kind in (torch.int64, dtype))


def _check_k(k, sources: int) -> None:
    if not isinstance(k, (int, torch.SymInt)) or isinstance(k, bool):
        raise TypeError(f"k: expected an integer, got {type(k).__name__}")
    if not 1 <= k <= sources:
        raise ValueError(f"k: expected 1 to {sources}, the number of source positions, got {k}")


def mutual(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Where the way to the best source and on to its best target ends where it began."""
    best = sources[:, 0].flatten(1)  # [B, T]
    back = targets.flatten(1).gather(1, best)
    here = torch.arange(best.shape[1], device=best.device)
    return (back == here).unflatten(1, sources.shape[2:])


def _example():
    """Whole numbers: places of maxima are then the same in every precision, with many ties."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-4, 5, shape, generator=generator).double()
            for shape in ((2, 35, 9, 7), (2, 35, 6, 11))]


_library.register_without_gradient(
    "mutual_matches", reference, compiled,
    lambda source, target, k, tf32: new_matches(source, target, k), _example)


def mutual_matches(source: torch.Tensor, target: torch.Tensor, k: int = 1, *,
                   impl: str | None = None) -> Matches:
    """The best ``k`` sources of every target, the best target of every source, which are mutual.

    What a matcher reads out of a correlation map ``C = <z_s(s), z_t(t)>`` (Eq. 1): mutual nearest
    neighbours, candidates, the ratio of the best to the second. The map is never stored.

    Args:
        source: features ``[B, m, hs, ws]``; normalise them before, nothing is normalised here.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        k: how many sources of every target, 1 to ``hs*ws``.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: :class:`Matches`, a named tuple: ``sources`` and ``correlations`` ``[B, k, ht, wt]``,
        best first, ``targets`` and ``target_correlations`` ``[B, hs, ws]``, ``mutual``
        ``[B, ht, wt]``. Correlations are in the dtype of the inputs, indices are int64.

    Convention:
        Indices are row-major: source ``s = i*ws + j``, target ``t = i*wt + j``. Of equal
        correlations the lowest index comes first. NaN is the largest value, as for torch.argmax.
    Gradient:
        None: results do not require one, whatever the inputs do. To train on matches, gather the
        features at these indices and multiply them.
    Precision:
        float16 and bfloat16 are multiplied, summed and compared in float32, also under autocast
        (mixed inputs are promoted there); the correlations are rounded once. On a GPU float32 is
        accurate to float32 unless ``torch.backends.cuda.matmul.allow_tf32`` is set. Where two
        correlations differ by less than their error, implementations may choose differently. The
        same bits at every run, on a CPU for any number of threads.
    Memory:
        The results, ``O(hs*ws + k*ht*wt)``, and copies of the feature maps. ``cpp``: besides up to
        32 partial maxima of every source. ``cuda``: the same of the best of every target; there and
        in ``triton`` the product is computed ``k + 1`` times. ``reference``: one map, for ``k``
        above 1 about four.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
    """
    source, target = (z.detach() for z in _checks.check_feature_pair(source, target))
    _check_k(k, source.shape[2] * source.shape[3])
    function = _dispatch.choose("mutual_matches", impl, source.device)
    sources, correlations, targets, target_correlations = function(source, target, k)
    return Matches(sources, correlations, targets, target_correlations, mutual(sources, targets))
