"""The figure of corr_bench.py: median times over their floor, and peak memory.

One problem size: three panels, grouped by operation. Several: one line of panels per operation,
grouped by problem.
"""

import math

import matplotlib
from corr_table import kept_busy

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

# One colour per form in every panel. What is not ours is grey to brown, ours is blue to green.
COLOURS = {
    "eager": "#8d8d8d",
    "ncnet": "#c4b59b",
    "compile": "#d98b3a",
    "conv alone": "#e3d36b",
    "conv alone, ch.-last": "#c9a227",
    "conv over guided": "#b57edc",
    "conv over guided, ch.-last": "#7b4fa3",
    "stored map, matmul": "#d48fb0",
    "sdpa": "#5c5c5c",
    "reference": "#a9cbe8",
    "cpp": "#1f6fb4",
    "cpp, ch.-last": "#0b3d66",
    "cpp, out=": "#5fa8e6",
    "cpp, bfloat16 map": "#2b4f9e",
    "triton": "#35a06b",
    "triton, ch.-last": "#1a5f3e",
    "triton, out=": "#7fce9f",
    "triton, bfloat16 map": "#4d7d3a",
    "cuda": "#0f8b8d",
    "cuda, ch.-last": "#07484a",
    "cuda, out=": "#62c4c3",
    "cuda, bfloat16 map": "#2f6f86",
}
NOT_DRAWN = "reference, ch.-last"
PANELS = (("ms", "forward", "forward, ms"), ("ms", "forward+backward", "forward + backward, ms"),
          ("peak_mib", "forward+backward", "forward + backward, peak MiB"))
PROBLEM = ("batch", "grid", "dtype", "image", "channels", "features", "outputs", "kernel", "power")
SHORT = {"guided_correlation_conv2d": "guided_correlation\n_conv2d"}


def draw(results, file):
    rows = [row for row in results["rows"] if row["form"] != NOT_DRAWN]
    problems = {tuple(row.get(key) for key in PROBLEM[:3]) for row in rows}
    if len(problems) == 1:
        bands = [("", group(rows, key=lambda row: (row["op"], *problem(row))))]
        bars = sum(row["mode"] == "forward" for row in rows) + 1.2 * len(bands[0][1])
        figure, panels = plt.subplots(3, 1, figsize=(max(10, bars / 3.5), 9), squeeze=False)
        panels = panels.T
    else:
        by_op = group(rows, key=lambda row: row["op"])
        bands = [(op, group(part, key=problem)) for op, part in by_op.items()]
        widest = max(len(groups) for _, groups in bands)
        shape = (max(12, 2.6 * widest), 2.9 * len(bands) + 1.2)
        figure, panels = plt.subplots(len(bands), 3, figsize=shape, squeeze=False)
    varying = {key for key in ("batch", "dtype") if len({row[key] for row in rows}) > 1}
    for (title, groups), line in zip(bands, panels, strict=True):
        for axes, (key, mode, label) in zip(line, PANELS, strict=True):
            panel(axes, groups, key, mode, len(problems) == 1, varying)
            axes.set_title(f"{title}: {label}" if title else label, loc="left", fontsize=10.5)
    legend(figure, rows, results, varying)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def group(rows, key):
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def problem(row):
    return tuple(row.get(key) for key in PROBLEM)


def name_of(row, of_operator, varying):
    power = f"\npower {row['power']}" if "power" in row else ""
    if of_operator:
        name = SHORT.get(row["op"], row["op"]) + power
        if "image" in row:
            name += f"\n{row['channels']} x {row['image']} x {row['image']}"
        return name
    name = f"{row['grid']} x {row['grid']}{power}"
    if "image" in row:
        name += f"\n{row['channels']} x {row['image']}²"
    name += f"\nbatch {row['batch']}" if "batch" in varying else ""
    return name + (f"\n{row['dtype']}" if "dtype" in varying else "")


def panel(axes, groups, key, mode, labelled, varying):
    """Bars of one mode; a form that gave no figure says why in its place."""
    place, ticks, names, lowest, notes = 0.0, [], [], math.inf, []
    size = 7.2 if labelled else 6.5
    for rows in groups.values():
        shown = [row for row in rows if row["mode"] == mode]
        if not shown:
            continue
        start = place
        for row in shown:
            value = row[key]
            if value is None or value <= 0:
                if row["ms"] is None:
                    notes.append((place, row["status"]))
            else:
                colour = COLOURS.get(row["form"], "#000000")
                axes.bar(place, value, 0.92, color=colour, zorder=2)
                if key == "ms" and row["repeats"] > 1:
                    ends = [[value - row["ms_p25"]], [row["ms_p75"] - value]]
                    axes.errorbar(place, value, ends, color="#222222", linewidth=0.8, zorder=3)
                if labelled:
                    above = max(value, row["ms_p75"]) if key == "ms" else value
                    axes.annotate(short(value), (place, above), (0, 2), textcoords="offset points",
                                  ha="center", fontsize=size, color="#222222", zorder=5)
                lowest = min(lowest, value)
            place += 1
        if key == "ms":
            # The forms of one operation share the floor, but a convolution alone has its own.
            for index, row in enumerate(shown):
                at = start + index
                axes.hlines(row["floor_ms"], at - 0.5, at + 0.5, "#c2185b", linewidth=1.6, zorder=4)
                lowest = min(lowest, row["floor_ms"])
        ticks.append((start + place - 1) / 2)
        names.append(name_of(rows[0], labelled, varying))
        place += 1.2
    axes.set_yscale("log")
    bottom = lowest * 0.6 if math.isfinite(lowest) else 1
    axes.set_ylim(bottom=bottom)
    top = axes.get_ylim()[1]
    axes.set_ylim(top=top * (top / bottom) ** 0.09)  # room for the labels
    for at, status in notes:
        axes.annotate(status, (at, bottom), (0, 3), textcoords="offset points", rotation=90,
                      ha="center", va="bottom", fontsize=size, color="#a03030")
    axes.set_xticks(ticks, names, fontsize=8.5 if labelled else 7)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlim(-1, place - 1.2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def short(value):
    """Two or three digits."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def legend(figure, rows, results, varying):
    present = {row["form"] for row in rows}
    handles = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in present]
    handles.append(Line2D([], [], color="#c2185b", linewidth=1.6, label="floor"))
    versions, commit = results["versions"], (results["commit"] or "unknown")[:10]
    where = f"{results['machine']}, {results['threads']} CPU threads"
    if results["device"] == "cuda":
        where = results["machine"]
    where = ", ".join(filter(None, (where, kept_busy(results))))
    line = f"{where}; torch {versions['torch']}; commit {commit}"
    row, common = rows[0], []
    if len({row["grid"] for row in rows}) == 1:
        common.append(f"{row['grid']} x {row['grid']}")
    if "batch" not in varying:
        common.append(f"batch {row['batch']}")
    if "dtype" not in varying:
        common.append(row["dtype"])
    line = "; ".join(filter(None, (", ".join(common), line)))
    height = figure.get_figheight()
    figure.suptitle(line, x=0.012, y=1 - 0.1 / height, ha="left", va="top", fontsize=9.5)
    figure.legend(handles=handles, loc="upper left", ncols=7, fontsize=8.5, frameon=False,
                  bbox_to_anchor=(0.004, 1 - 0.3 / height), handlelength=1.1, columnspacing=1.4)
    lines = math.ceil(len(handles) / 7)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.3 + 0.17 * lines) / height))
