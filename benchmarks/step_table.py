"""What step_bench.py prints: a table for each preset, and the parts of each form's step."""

import itertools
import sys

from command import columns, number, show_origin, times

NAMES = ("step ms", "quartiles", "img/s", "eager/", "ours/", "peak MiB", "whole")
WIDTHS = (9, 19, 7, 7, 7, 9, 8)


def show_header(results):
    memory = results["memory_available_bytes"] / 2**30
    show_origin(results, f"load {results['load']:.1f}, {memory:.1f} GiB available")
    print(f"{results['precision']}; measured here: products "
          f"{results['rate_operations_per_s'] / 1e12:.3g} TFLOP/s")
    print("pairs: generated people; VGG-19: random weights", flush=True)


def show_progress(row):
    """A line as soon as a form is measured, which can take minutes."""
    result = f"{number(row['ms'])} ms" if "ms" in row else f"{row['status']}: {row['note']}"
    print(f"{row['preset']}, {row['form']}: {result}", file=sys.stderr, flush=True)


def show(rows):
    first = rows[0]
    sizes = "{} x {}, grid {} x {}".format(*first["image"], *first["grid"])
    tasks = "alternating" if first["tasks"] == "alternate" else first["tasks"]
    if "head_kernel" in first:  # older files have neither this nor a ratio to ours
        sizes += ", head {0} x {0}".format(first["head_kernel"])
    print(f"\n{first['preset']}: batch {first['batch']}, {sizes}, {tasks} tasks, {first['loss']}")
    print(f"  {'':16}{columns(NAMES, WIDTHS)}")
    for row in rows:
        if "ms" not in row:
            print(f"  {row['form']:16} {row['status']}: {row['note']}")
            continue
        cells = (number(row["ms"]), f"{number(row['ms_p25'])} .. {number(row['ms_p75'])}",
                 number(row["images_per_s"]), times(row["eager_ratio"]),
                 times(row.get("ours_ratio")), number(row["peak_mib"]), number(row["whole_mib"]))
        grid = "" if row["grid"] == first["grid"] else "grid {} x {}".format(*row["grid"])
        note = "; ".join(filter(None, (grid, row["note"])))
        print(f"  {row['form']:16}{columns(cells, WIDTHS)}  {note}".rstrip())
    for row in rows:
        if "ms" in row:
            show_parts(row)
    sys.stdout.flush()


def show_parts(row):
    parts = {name: median for name, (median, _, _) in row["parts"].items()}
    print(f"  {row['form']}, ms (forward + backward)")
    split = ", ".join(f"{name} {number(parts[f'{name} forward'])} + "
                      f"{number(parts[f'{name} backward'])}" for name in ("task 1", "task 2", "D")
                      if f"{name} forward" in parts)
    print(f"    data {number(parts['data'])}, {split}, optimiser {number(parts['optimiser'])}")
    print(f"    W {number(row['warping_forward_ms'])} + {number(row['warping_backward_ms'])}, "
          f"peak {number(row['warping_peak_mib'])} MiB")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["shares"].items()
                       if share >= 0.005)
    rate = ""
    if row["convolution_percent"] is not None:
        rate = f"; convolutions at {row['convolution_percent']:.0f} % of the fastest product"
    print(f"    time: {shares}{rate}")


def show_all(results):
    show_header(results)
    for _, rows in itertools.groupby(results["rows"], key=lambda row: row["preset"]):
        show(list(rows))
