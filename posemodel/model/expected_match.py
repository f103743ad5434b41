"""Where each target position finds itself in the source, on average; from features, so that no 4D
map is stored, or from a map that is."""

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import pose_kernels

#: Bytes of a band of one sample's map, all sources by some targets. It is worked on in several
#: passes, so on a CPU it has to stay in the cache; a GPU wants enough work for one launch.
BAND_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
#: Targets that a product needs to run at full speed, whatever their bytes.
BAND_TARGETS = 64


def expected_match(source: Tensor, target: Tensor, eps: float) -> Tensor:
    """`sum_s x_s Qhat(s, t)^2`, the mean source position under the squared guided correlation.

    The squares sum to one over the sources (Eq. 2), but where the norm is at its floor eps. Equal
    to what the stored map gives, to within rounding, value and gradient.

    Args:
        source: M's features `[B, m, hs, ws]`.
        target: `[B, m, ht, wt]`.
        eps: floor of the row maxima and of the column norms.

    Returns: `[B, 2, ht, wt]` float32, (x, y), normalised, pixel centres.

    Memory: a few bands of one sample's map; backward makes each band again.
    """
    hs, ws = source.shape[2:]
    places = pose_kernels.identity_flow(hs, ws, device=source.device).flatten(1)   # [2, S]
    terms = torch.cat([places, torch.ones_like(places[:1])])                       # [3, S]
    run = _band
    if torch.is_grad_enabled():
        run = functools.partial(checkpoint, _band, use_reentrant=False, preserve_rng_state=False)
    # Autocast would take the sums over 4096 and more positions in half precision.
    with torch.autocast(source.device.type, enabled=False):
        source, target = source.float(), target.float()
        # Eq. 9 divides C^3 by b_s: so do features of the source that are divided by its cube root.
        best = row_max(source, target, eps).unflatten(1, (1, hs, ws))
        source = source * best.pow(-1 / 3)
        samples = [
            torch.cat([run(a, band, terms, eps) for band in _bands(b, hs * ws)], dim=2)
            for a, b in zip(source.split(1), target.split(1), strict=True)]
        return torch.cat(samples).unflatten(2, target.shape[2:])


def _bands(features: Tensor, others: int) -> tuple[Tensor, ...]:
    """`[1, m, h, w]` in bands `[1, m, 1, n]` whose correlation with `others` positions is small."""
    return features.flatten(2).unsqueeze(2).split(_band_targets(others, features.device), dim=3)


def _band_targets(sources: int, device: torch.device) -> int:
    return max(BAND_TARGETS, BAND_BYTES[device.type] // (4 * sources))


def row_max(source: Tensor, target: Tensor, eps: float) -> Tensor:
    """b_s of Eq. 9, `[B, S]`: the best match of each source position, at least eps."""
    positions = target.shape[2] * target.shape[3]
    with torch.no_grad():
        best = torch.cat([
            torch.cat([pose_kernels.correlation_4d(band, b).flatten(2).argmax(dim=2)
                       for band in _bands(a, positions)], dim=1)
            for a, b in zip(source.split(1), target.split(1), strict=True)
        ])                                                                         # t*(s), [B, S]
    # The maximum again from its place, so that its gradient needs no map either.
    partners = target.flatten(2).gather(2, best[:, None].expand(-1, target.shape[1], -1))
    return (source.flatten(2) * partners).sum(dim=1).clamp_min(eps)


def _band(source: Tensor, target: Tensor, terms: Tensor, eps: float) -> Tensor:
    """The expected match of some targets `[1, m, 1, n]`, `[1, 2, n]`."""
    u = pose_kernels.correlation_4d(source, target).pow(3)                         # Eq. 1, 9
    # x, y and the squared norm of Eq. 2 in one product with the squares.
    x, y, squared_norm = (terms @ u.square().flatten(2)).unbind(1)                 # [1, n] each
    return torch.stack([x, y], dim=1) / squared_norm.clamp_min(eps**2)[:, None]


def expected_match_in(guided: Tensor, source_size: tuple[int, int]) -> Tensor:
    """`sum_s x_s Qhat(s, t)^2` from the stored map.

    Args:
        guided: Qhat, `[B, hs*ws, ht, wt]`, of any floating type; read fastest in channels-last.
        source_size: (hs, ws).

    Returns: `[B, 2, ht, wt]` float32, (x, y), normalised, pixel centres; summed in float32, also
        under autocast.

    Memory: a band of the map; backward adds the map's gradient, in its dtype and channels-last.
    """
    places = pose_kernels.identity_flow(*source_size, device=guided.device).flatten(1)  # [2, S]
    # Autocast would take the sum over all source positions in half precision.
    with torch.autocast(guided.device.type, enabled=False):
        if torch.compiler.is_compiling():
            # A graph for any batch has no bands, and what it is compiled to fuses the squares.
            squares = guided.float().square().flatten(2)
            return (places @ squares).unflatten(2, guided.shape[2:])
        return _MatchIn.apply(guided, places)


class _MatchIn(torch.autograd.Function):
    """The squares never exist but for a band: as a whole they and what autograd keeps of them are
    several float32 maps, which cost more to move than all that is computed from them."""

    @staticmethod
    def forward(ctx, guided: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(guided, places)
        rows, of_places = _rows(guided), places.T.contiguous()
        bands = rows.split(_band_targets(rows.shape[1], rows.device))
        match = rows.new_empty(len(rows), 2, dtype=torch.float32)
        memory = torch.empty_like(bands[0], dtype=torch.float32)
        for out, band in zip(match.split(len(memory)), bands, strict=True):
            squares = memory[: len(band)].copy_(band)
            torch.mm(squares.mul_(squares), of_places, out=out)
        return match.view(len(guided), *guided.shape[2:], 2).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        guided, places = ctx.saved_tensors
        result = torch.empty_like(guided, memory_format=torch.channels_last)
        twice = 2 * gradient.permute(0, 2, 3, 1).flatten(0, 2)                     # [B T, 2]
        count = _band_targets(guided.shape[1], guided.device)
        bands = [rows.split(count) for rows in (_rows(result), _rows(guided), twice)]
        memory = torch.empty_like(bands[1][0], dtype=torch.float32)
        for out, band, upstream in zip(*bands, strict=True):
            of_squares = torch.mm(upstream, places, out=memory[: len(band)])
            torch.mul(of_squares, band, out=out)
        return result, None


def _rows(guided: Tensor) -> Tensor:
    """`[B, S, ht, wt]` -> `[B T, S]`, a view of a channels-last map."""
    return guided.permute(0, 2, 3, 1).flatten(0, 2)
