"""The tables that corr_bench.py prints: one per problem and mode."""

import itertools
import sys

from command import columns, number, show_origin, times


def title(row):
    grid = f"{row['grid']} x {row['grid']}"
    parts = [f"flow {grid}" if "image" in row else grid]
    if "image" in row:
        parts.insert(0, f"{row['channels']} x {row['image']} x {row['image']}")
    if "features" in row:
        parts.append(f"m {row['features']}")
    if "kernel" in row:
        parts.append(f"{row['kernel']} x {row['kernel']} to {row['outputs']}")
    elif "outputs" in row:
        power = f", power {row['power']}" if "power" in row else " and 2 squared"
        parts.append(f"{row['outputs']} values{power}")
    return f"{row['op']}: {', '.join(parts)}, batch {row['batch']}, {row['dtype']}"


COLUMNS = ("ms", "quartiles", "eager/", "compile/", "peak MiB", "extra", "GB/s", "TFLOP/s")
WIDTHS = (9, 19, 7, 8, 9, 9, 7, 8)


def show(rows, new_title):
    """One mode of one problem, which has a title where its first mode is shown."""
    first = rows[0]
    if new_title:
        print(f"\n{title(first)}")
    floor = f"floor {number(first['floor_ms'])} ms ({first['bound']})"
    print(f"  {first['mode']}, {floor}")
    print(f"    {'':26}{columns(COLUMNS, WIDTHS)} {'of floor':>9} {'error':>8}")
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        if row["ms"] is None:
            reason = row["status"] + (f" ({row['note']})" if row["note"] else "")
            print(f"    {row['form']:26} {reason}; error {error}")
            continue
        mib = ("-" if row[key] is None else f"{row[key]:.1f}" for key in ("peak_mib", "extra_mib"))
        cells = (number(row["ms"]), f"{number(row['ms_p25'])} .. {number(row['ms_p75'])}",
                 times(row["eager_ratio"]), times(row["compile_ratio"]), *mib,
                 number(row["gb_per_s"]), number(row["tflop_per_s"], 4))
        percent = f"{row['percent_of_floor']:.0f} %"
        line = f"{columns(cells, WIDTHS)} {percent:>9} {error:>8}"
        print(f"    {row['form']:26}{line}  {row['note']}".rstrip())
    sys.stdout.flush()


def kept_busy(results):
    """What was done meanwhile, where anything was."""
    cores = results["options"].get("busy")  # files of before the option have none
    return cores and f"{cores} core{'s' * (cores > 1)} kept busy meanwhile"


def show_header(results):
    show_origin(results, ", ".join(filter(None, (results["simd"], kept_busy(results)))))
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}"
                      for dtype, rate in results["rate_operations_per_s"].items())
    bandwidth = f"{results['bandwidth_bytes_per_s'] / 1e9:.4g} GB/s"
    print(f"measured here: copy {bandwidth} (read + written), products {rates}")
    if results["device"] == "cuda":
        flushed = f"{results['flushed_bytes'] / 2**20:.0f} MiB written before each call to flush L2"
        print(f"TF32 {'allowed' if results['tf32'] else 'forbidden'}; {flushed}")


def show_all(results):
    show_header(results)
    before = None
    for _, rows in itertools.groupby(results["rows"], key=lambda row: (title(row), row["mode"])):
        rows = list(rows)
        show(rows, title(rows[0]) != before)
        before = title(rows[0])
