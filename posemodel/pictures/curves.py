"""Line charts as inline SVG: no script, no file beside the page, colours from the page's own CSS.

A series names the CSS class that colours it, so that a chart follows the reader's light or dark
theme and a thing has one colour in all charts.
"""

import math
import statistics

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 28
_MOST_POINTS = 240

Points = list[tuple[float, float]]
Series = tuple[str, str, Points]  # name, CSS class, points


def points(rows: list[dict], key: str) -> Points:
    """(step, value) of every row that has a finite number under `key`."""
    return [(row["step"], row[key]) for row in rows if is_number(row.get("step"))
            and is_number(row.get(key))]


def line_chart(series: list[Series], *, smooth: bool = False) -> Markup:
    """An SVG of all series that have points; empty if none has.

    `smooth` draws the mean of neighbouring points over the points themselves. A range of more
    than a factor 20 gets a logarithmic axis.
    """
    drawn = [(name, css, _thin(values)) for name, css, values in series if values]
    if not drawn:
        return Markup("")
    xs = [x for _, _, values in drawn for x, _ in values]
    ys = [y for _, _, values in drawn for _, y in values]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 20
    y_low, y_high, y_ticks = _log_axis(min(ys), max(ys)) if logarithmic else _axis(min(ys), max(ys))
    x_low, x_high, x_ticks = _axis(min(0, *xs), max(xs), tight=True)

    def place(x: float, y: float) -> tuple[float, float]:
        if logarithmic:
            share = math.log(y / y_low) / math.log(y_high / y_low)
        else:
            share = (y - y_low) / (y_high - y_low)
        return (_LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM))

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
                     f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">'
                     f"{_label(tick)}</text>")
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 9}" text-anchor="middle">'
                     f"{_label(tick)}</text>")
    for name, css, values in drawn:
        places = [place(x, y) for x, y in values]
        smoothed = places
        if smooth and len(values) > 12:
            parts.append(_path(places, f"line faint {css}"))
            smoothed = [place(x, y) for x, y in _means(values)]
        parts.append(_path(smoothed, f"line {css}"))
        if len(places) <= 24:
            parts += [f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="2.4">'
                      f"<title>{escape(name)}: {_label(value)} at step {_label(step)}</title>"
                      "</circle>" for (x, y), (step, value) in zip(places, values, strict=True)]
    label = escape(", ".join(name for name, _, _ in drawn))
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
                  + "".join(parts) + "</svg>")


def _path(places: Points, css: str) -> str:
    return f'<path class="{css}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>'


def _thin(values: Points) -> Points:
    """At most `_MOST_POINTS` points: neighbours are averaged, so that no curve is aliased."""
    group = math.ceil(len(values) / _MOST_POINTS)
    if group <= 1:
        return values
    groups = [values[start:start + group] for start in range(0, len(values), group)]
    return [(part[-1][0], statistics.fmean(y for _, y in part)) for part in groups]


def _means(values: Points) -> Points:
    reach = max(2, len(values) // 25)
    return [(x, statistics.fmean(y for _, y in values[max(0, i - reach):i + reach + 1]))
            for i, (x, _) in enumerate(values)]


def _axis(low: float, high: float, tight: bool = False) -> tuple[float, float, list[float]]:
    """Limits and about five round ticks; `tight` limits end with the data."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    raw = (high - low) / 4.5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = magnitude * next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(index * step, 12) for index in range(first, last + 1)]
    if tight:
        return low, high, [tick for tick in ticks if low <= tick <= high]
    return ticks[0], ticks[-1], ticks


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Limits and ticks at 1, 2, 5 of each decade, or at each decade where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 6:
            break
    inside = inside[::math.ceil(len(inside) / 6)]
    return low, high, inside


def _label(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    if 0 < abs(value) < 0.001:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def is_number(value) -> bool:
    """Whether a row has this finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
