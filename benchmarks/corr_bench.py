"""Speed, memory and error of every operator, beside what one would write without this package.

    python benchmarks/corr_bench.py                                  # all operators at 64 x 64
    python benchmarks/corr_bench.py --grids 16 32 64 128 --batch 1 4 --dtype float32 bfloat16
    python benchmarks/corr_bench.py --compile --json run.json --plot run.png
    python benchmarks/corr_bench.py --read run.json --plot run.png   # measures nothing

One table per problem and mode: `forward` without gradients, `forward+backward` with the gradients
of every input, weight and bias included. The rows are forms to write the same thing in: `eager`,
the literal equations; `ncnet`, the formulas of NCNet (another function: its error says how far);
`compile`, torch.compile of eager; `conv alone`, F.conv2d of a map that is already there; `conv over
guided`, guided_correlation and then F.conv2d; and the implementations of pose_kernels.

  ms         median and quartiles. The forms take turns, so that a busy machine slows all alike.
             Compilation and warm-up are left out. GPU: between events, L2 flushed before each call.
  eager/     the time of eager over that of this form; compile/ likewise. Above 1 is faster.
  peak MiB   most memory beyond what was there before the call (GPU: the allocator's; CPU: the
             process's resident memory, where tensors below 32 MiB also count the holes in malloc's
             heap). extra: the peak less the results and gradients returned.
  GB/s       of the fewest bytes that will do: inputs read once, result written once; backward
             besides: upstream gradient read once, gradients written once.
  TFLOP/s    of the useful operations: the products, one forward, two more backward. Nothing counts
             for what is computed again.
  of floor   floor / median, where floor = max(fewest bytes / bandwidth, operations / rate), both
             measured in this run: the fastest copy of a large tensor, the fastest square product.
             Above 100 % is possible: stores past the cache, or operands that stay in it, beat a
             copy; float32 made of TF32 products beats the rate of plain float32.
  error      norm(difference) / norm against the literal equations in float64 on the same inputs,
             the worst of result and gradients. Where the float64 problem does not fit in memory, a
             smaller one is checked ("checked at 64").

A form of ours that fails the check prints no speed, and the exit code is 1. What does not fit in
memory says so; on a CPU it is not tried. Bad arguments: exit code 2.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

SCHEMA = 1
OPS = (
    "correlation_4d",
    "soft_mutual_normalize",
    "guided_correlation",
    "guided_correlation_conv2d",
    "flow_sample",
)
MODES = ("forward", "forward+backward")
#: Relative error allowed, result and gradients alike. TF32: float32 under --tf32.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "TF32": 1e-2, "float16": 5e-3, "bfloat16": 4e-2}
OK, FAILED = "ok", "failed the check"


class Mistake(Exception):
    """The user's: one line and exit code 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Mistake(message)


def count(text):
    """An argument that is 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


count.__name__ = "positive number"  # as argparse calls what it expected


def parse(words):
    parser = Parser(
        prog="corr_bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def several(name, type, default, help, **keywords):
        shown = " ".join(map(str, default)) if default else ""
        help += f" (default: {shown})" if shown else ""
        parser.add_argument(name, type=type, nargs="+", default=default, help=help, **keywords)

    def one(name, default, help):
        parser.add_argument(
            name, type=count, default=default, metavar="N", help=f"{help} (default: {default})"
        )

    several("--op", str, list(OPS), "operators", choices=OPS, metavar="OP")
    several("--grids", count, [64], "side of feature maps and flow", metavar="N")
    several("--batch", count, [1], "samples", metavar="N")
    dtypes = [name for name in TOLERANCE if name != "TF32"]
    several("--dtype", str, ["float32"], "of everything", choices=dtypes, metavar="DTYPE")
    one("--features", 35, "channels m of the feature maps")
    one("--outputs", 128, "channels n of the convolution's result")
    one("--kernel", 3, "side of the convolution's kernel")
    several("--channels", count, [3, 256], "of what flow_sample reads", metavar="N")
    add = parser.add_argument
    add("--image", type=count, metavar="N", help="side of what flow_sample reads (default: 256 for "
        "up to 4 channels, an image; the grid for more, features)")  # fmt: skip
    add("--compile", action="store_true", help="also torch.compile of eager")
    add("--channels-last", action="store_true", help="also maps in channels-last memory")
    add("--tf32", action="store_true", help="allow TF32 for float32 on a GPU, in products and in "
        "convolutions alike; otherwise both are forbidden")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--threads", type=count, metavar="N", help="CPU threads (default: torch's)")
    add("--repeats", type=count, metavar="N", help="timed calls of each form, at most (default: 15 "
        "on a CPU, 50 on a GPU)")  # fmt: skip
    add("--seconds", type=float, default=3, metavar="S", help="no further repeat of a table that "
        "has taken so long, but at least 3 (default: 3)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the random inputs (default: 0)")
    add("--commit", metavar="HASH", help="what is measured, where git cannot tell")
    add("--json", type=Path, metavar="FILE", help="write every figure, versions and machine")
    add("--plot", type=Path, metavar="FILE", help="draw a figure, .png or .svg")
    add("--read", type=Path, metavar="FILE", help="show or plot what --json wrote; measure nothing")
    add("--force", action="store_true", help="let --json and --plot overwrite a file")
    options = parser.parse_args(words)
    for flag in ("json", "plot"):
        check_output(f"--{flag}", getattr(options, flag), options.force)
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise Mistake(f"argument --plot: expected a .png or .svg file, got {options.plot}")
    if options.read and options.json:
        raise Mistake("argument --json: not allowed with --read, which measures nothing")
    if not options.seconds >= 0:
        raise Mistake(f"argument --seconds: expected no negative number, got {options.seconds}")
    return options


def check_output(flag, file, force):
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise Mistake(f"argument {flag}: there is no folder {file.parent}")
    if file.is_dir() or (file.exists() and not force):
        raise Mistake(f"argument {flag}: {file} exists (--force overwrites a file)")


def sizes(op, options):
    """Every problem of an operation, each once."""
    from corr_forms import Size

    found = {}
    axes = (options.grids, options.batch, options.dtype, options.channels)
    for grid, batch, dtype, channels in itertools.product(*axes):
        image = options.image or (256 if channels <= 4 else grid)
        size = Size(
            batch, grid, dtype, options.features, options.outputs, options.kernel, image, channels
        )
        found.setdefault(tuple(getattr(size, field) for field in op.fields), size)
    return list(found.values())


def smaller(size):
    return replace(size, grid=size.grid // 2, image=max(size.image // 2, 1))


class Bench:
    """One run: the device, its ceilings, and the rows found so far."""

    def __init__(self, options):
        import measure
        import torch

        self.options = options
        name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.device = torch.device(name)
        except RuntimeError:
            self.device = torch.device("meta")
        if self.device.type not in ("cpu", "cuda"):
            raise Mistake(f"argument --device: expected cpu, cuda or cuda:N, got {name}")
        if self.device.type == "cuda":
            if (self.device.index or 0) >= torch.cuda.device_count():
                raise Mistake(f"argument --device: there is no {name} here")
            torch.cuda.set_device(self.device)
            # Torch lets convolutions use TF32 and products not: one switch for both is fair.
            torch.backends.cuda.matmul.allow_tf32 = options.tf32
            torch.backends.cudnn.allow_tf32 = options.tf32
        elif options.tf32:
            raise Mistake("argument --tf32: only a GPU has it")
        if options.threads:
            torch.set_num_threads(options.threads)
        self.repeats = options.repeats or (15 if self.device.type == "cpu" else 50)
        self.clock = measure.Clock(self.device)
        self.bandwidth = measure.bandwidth(self.clock)
        self.rates = {}
        for dtype in options.dtype:
            # Forms that compute half precision in float32 are held to whichever is faster.
            for name in {dtype, "float32" if "16" in dtype else dtype}:
                if name not in self.rates:
                    self.rates[name] = measure.product_rate(getattr(torch, name), self.clock)

    def rate(self, dtype):
        return max(self.rates[dtype], self.rates["float32"] if "16" in dtype else 0)

    def tolerance(self, op, size):
        tf32 = self.options.tf32 and size.dtype == "float32"
        return op.slack(size) * TOLERANCE["TF32" if tf32 else size.dtype]

    def header(self):
        import measure
        import torch

        import pose_kernels
        from pose_kernels import _library

        root = Path(pose_kernels.__file__).resolve().parents[1]
        code = ("pose_kernels", "csrc", "setup.py", "benchmarks", ":!benchmarks/results")
        commit, dirty = measure.commit(root, code)
        simd = None
        if _library.cpu_reason is None:
            simd = ("baseline", "avx2", "avx512")[torch.ops.pose_kernels.simd_level()]
        try:
            import triton

            triton_version = triton.__version__
        except ImportError:
            triton_version = None
        cuda = self.device.type == "cuda"
        given = {k: v for k, v in vars(self.options).items() if not isinstance(v, Path)}
        return {
            "schema": SCHEMA,
            "date": time.strftime("%Y-%m-%d"),
            "machine": measure.machine(self.device),
            "device": self.device.type,
            "driver": measure.driver() if cuda else None,
            "threads": torch.get_num_threads(),
            "simd": simd,
            "versions": {
                "pose_kernels": pose_kernels.__version__,
                "torch": torch.__version__,
                "triton": triton_version,
                "cuda": torch.version.cuda,
                "python": platform.python_version(),
            },
            "commit": self.options.commit or commit,
            "changed": None if self.options.commit else dirty,
            "build": _library.build_info,
            "options": {**given, "repeats": self.repeats},
            "tf32": self.options.tf32,
            "flushed_bytes": self.clock.flush_bytes,
            "bandwidth_bytes_per_s": self.bandwidth,
            "rate_operations_per_s": self.rates,
            "rows": [],
        }

    def fits(self, needed):
        """On a GPU a form is tried; on a CPU a failed try may take the machine along."""
        import measure

        if self.device.type == "cuda":
            return True
        return needed <= 0.9 * measure.available_bytes(self.device)

    def problem(self, op, size):
        """Inputs and upstream gradient, on the device."""
        import torch

        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        dtype = getattr(torch, size.dtype)
        inputs = {name: x.to(dtype) for name, x in op.inputs(size, generator).items()}
        return inputs, op.upstream(size, inputs, generator)

    def call(self, op, form, mode, inputs, upstream):
        """() -> {"result": .., name of an input: its gradient ..}."""
        import torch
        from corr_forms import differentiate

        if form.ready_map:
            inputs = op.with_map(inputs, form.channels_last)
        backward = mode != "forward"
        given = {name: x.detach().requires_grad_(backward) for name, x in inputs.items()}
        gradient = upstream if backward else None
        if backward and form.channels_last:
            gradient = upstream.contiguous(memory_format=torch.channels_last)
        return lambda: differentiate(form.function, given, gradient)

    def checkable(self, op, size):
        """The problem, or the largest of smaller grid, whose float64 oracle fits in memory."""
        import measure

        available = 0.8 * measure.available_bytes(self.device)
        while size.grid > 1 and op.oracle_need(size) + op.base(size) > available:
            size = smaller(size)
        return size

    def check(self, op, size, forms):
        """The size that was checked, and {(form, mode): {"error", "passed", "failure"}}."""
        import measure

        while True:
            size = self.checkable(op, size)
            inputs, upstream = self.problem(op, size)
            exact, failure = measure.attempt(partial(op.exact, inputs, upstream))
            if not failure:
                break
            if failure[0] != measure.OUT_OF_MEMORY or size.grid == 1:
                raise RuntimeError(f"{op.name}: no float64 to compare with: {' '.join(failure)}")
            size = smaller(size)
        found = {}
        for mode, form in itertools.product(MODES, forms):
            if not self.fits(op.need(size, form, mode != "forward")):
                failure = (measure.OUT_OF_MEMORY, "")
                found[form.name, mode] = {"error": None, "passed": False, "failure": failure}
                continue
            call = self.call(op, form, mode, inputs, upstream)
            result, failure = measure.attempt(call)
            error = None if failure else error_of(result, exact)
            passed = error is not None and error <= self.tolerance(op, size)
            found[form.name, mode] = {"error": error, "passed": passed, "failure": failure}
            del result, call
        return size, found

    def measure(self, op, size):
        """All rows of one problem; the rows of each mode are shown when they are there."""
        import measure
        import torch

        forms = op.forms(size, self.device, self.options)
        if self.options.compile:
            torch._dynamo.reset()  # so that no size is compiled as a general one
        checked_size, checks = self.check(op, size, forms)
        problem, failure = None, (measure.OUT_OF_MEMORY, "")
        if self.fits(op.base(size)):
            problem, failure = measure.attempt(partial(self.problem, op, size))
        for mode in MODES:
            rows, running = [], {}
            for form in forms:
                row = self.row(op, size, form, mode, checks[form.name, mode], checked_size)
                rows.append(row)
                if failure:
                    self.set_failure(row, op, size, form, failure)
                elif row["status"] == OK:
                    self.prepare(row, op, size, form, problem, running)
            self.time(running)
            for row in rows:
                self.finish(row, rows)
            yield rows

    def row(self, op, size, form, mode, check, checked_size):
        import measure

        backward = mode != "forward"
        fewest, operations = op.work(size, backward, form)
        times = {
            "bytes": fewest / self.bandwidth,
            "operations": operations / self.rate(size.dtype),
        }
        bound = max(times, key=times.get)
        error = check["error"]
        row = {
            "op": op.name,
            **{field: getattr(size, field) for field in op.fields},
            "mode": mode,
            "form": form.name,
            "ours": form.kind == "ours",
            "status": OK,
            "note": form.note,
            **dict.fromkeys(("ms", "ms_p25", "ms_p75", "repeats", "eager_ratio", "compile_ratio")),
            **dict.fromkeys(("peak_mib", "extra_mib", "gb_per_s", "tflop_per_s")),
            "percent_of_floor": None,
            "floor_ms": 1e3 * times[bound],
            "bound": bound,
            "fewest_bytes": fewest,
            "operations": operations,
            "error": error if error is None or math.isfinite(error) else None,
            "tolerance": self.tolerance(op, size),
            "checked_at": checked_size.grid,
        }
        if check["failure"]:
            self.set_failure(row, op, size, form, check["failure"])
        elif not self.fits(op.need(size, form, backward) + op.base(size)):
            self.set_failure(row, op, size, form, (measure.OUT_OF_MEMORY, ""))
        elif not check["passed"]:
            if form.kind == "ours":
                row["status"] = FAILED
            elif form.kind == "peer":
                row["note"] = "; ".join(filter(None, (form.note, "above the tolerance of ours")))
        if checked_size != size:
            note = f"checked at {checked_size.grid}"
            row["note"] = "; ".join(filter(None, (row["note"], note)))
        return row

    def set_failure(self, row, op, size, form, failure):
        import measure

        row["status"], reason = failure
        if row["status"] == measure.OUT_OF_MEMORY:
            needed = op.need(size, form, row["mode"] != "forward") + op.base(size)
            reason = f"needs about {needed / 2**30:.1f} GiB"
        row["note"] = "; ".join(filter(None, (reason, row["note"])))

    def prepare(self, row, op, size, form, problem, running):
        """Warm up and find the peak; what gets through goes into `running`."""
        import measure

        def warm_up():
            call = self.call(op, form, row["mode"], *problem)
            unseen = row["checked_at"] != row["grid"]  # the check warmed up another size
            for _ in range(2 if self.device.type == "cuda" else unseen):
                call()
            return call, measure.peak_bytes(call, self.device)

        done, failure = measure.attempt(warm_up)
        if failure:
            self.set_failure(row, op, size, form, failure)
            return
        call, peak = done
        if peak is not None:
            returned = op.returned(size, row["mode"] != "forward", form)
            row["peak_mib"] = peak / measure.MIB
            row["extra_mib"] = (peak - returned) / measure.MIB
        running[form.name] = {
            "row": row,
            "call": call,
            "times": [],
            "fail": partial(self.set_failure, row, op, size, form),
        }

    def time(self, running):
        """The forms take turns. The round in which the peaks were found warmed up the CPU."""
        import measure

        start, done = time.monotonic(), 0
        while running and done < self.repeats:
            if done >= 3 and time.monotonic() - start > self.options.seconds:
                break
            for name, entry in list(running.items()):
                ms, failure = measure.attempt(partial(self.clock.milliseconds, entry["call"]))
                if failure:
                    entry["fail"](failure)
                    del running[name]
                else:
                    entry["times"].append(ms)
            done += 1
        for entry in running.values():
            row, times = entry["row"], entry["times"]
            row["repeats"] = len(times)
            row["ms"] = statistics.median(times)
            ends = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times
            row["ms_p25"], row["ms_p75"] = ends[0], ends[-1]

    def finish(self, row, rows):
        """What follows from the median."""
        if row["ms"] is None:
            return
        for form in ("eager", "compile"):
            other = next((r["ms"] for r in rows if r["form"] == form), None)
            row[f"{form}_ratio"] = other and other / row["ms"]
        row["gb_per_s"] = row["fewest_bytes"] / row["ms"] / 1e6
        row["tflop_per_s"] = row["operations"] / row["ms"] / 1e9 or None
        row["percent_of_floor"] = 100 * row["floor_ms"] / row["ms"]


def error_of(found, exact):
    """The worst relative error among what both have; sample by sample, for the memory's sake."""
    worst = 0.0
    for name in found.keys() & exact.keys():
        difference = total = 0.0
        for value, oracle in zip(found[name], exact[name], strict=True):
            oracle = oracle.to(value.device)
            difference += (value.double() - oracle).square().sum().item()
            total += oracle.square().sum().item()
        error = math.sqrt(difference / (total or 1))
        worst = error if not error <= worst else worst  # a NaN stays
    return worst


# What is printed.


def title(row):
    grid = f"{row['grid']} x {row['grid']}"
    parts = [f"flow {grid}" if "image" in row else grid]
    if "image" in row:
        parts.insert(0, f"{row['channels']} x {row['image']} x {row['image']}")
    if "features" in row:
        parts.append(f"m {row['features']}")
    if "kernel" in row:
        parts.append(f"{row['kernel']} x {row['kernel']} to {row['outputs']}")
    return f"{row['op']}: {', '.join(parts)}, batch {row['batch']}, {row['dtype']}"


COLUMNS = ("ms", "quartiles", "eager/", "compile/", "peak MiB", "extra", "GB/s", "TFLOP/s")
WIDTHS = (9, 19, 7, 8, 9, 9, 7, 8)


def number(value, digits=3):
    """About three digits, no exponent."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else digits - 1}f}"


def show(rows, new_title):
    first = rows[0]
    if new_title:
        print(f"\n{title(first)}")
    names = "".join(f"{name:>{width + 1}}" for name, width in zip(COLUMNS, WIDTHS, strict=True))
    floor = f"floor {number(first['floor_ms'])} ms ({first['bound']})"
    print(f"  {first['mode']}, {floor}")
    print(f"    {'':26}{names} {'of floor':>9} {'error':>8}")
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        if row["ms"] is None:
            reason = row["status"] + (f" ({row['note']})" if row["note"] else "")
            print(f"    {row['form']:26} {reason}; error {error}")
            continue
        ratios = (row["eager_ratio"], row["compile_ratio"])
        cells = (
            number(row["ms"]),
            f"{number(row['ms_p25'])} .. {number(row['ms_p75'])}",
            *("-" if ratio is None else f"{number(ratio)}x" for ratio in ratios),
            *("-" if row[key] is None else f"{row[key]:.1f}" for key in ("peak_mib", "extra_mib")),
            number(row["gb_per_s"]),
            number(row["tflop_per_s"], 4),
        )
        line = "".join(f"{cell:>{width + 1}}" for cell, width in zip(cells, WIDTHS, strict=True))
        percent = f"{row['percent_of_floor']:.0f} %"
        print(f"    {row['form']:26}{line} {percent:>9} {error:>8}  {row['note']}".rstrip())
    sys.stdout.flush()


def show_header(found):
    versions = found["versions"]
    changed = {True: ", changed since", False: "", None: ""}[found["changed"]]
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    print(f"{found['machine']}: {found['device']}, {found['threads']} CPU threads, {found['simd']}")
    print(f"{software}; commit {(found['commit'] or 'unknown')[:12]}{changed}")
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s {dtype}"
        for dtype, rate in found["rate_operations_per_s"].items()
    )
    bandwidth = f"{found['bandwidth_bytes_per_s'] / 1e9:.4g} GB/s"
    print(f"measured here: copy {bandwidth} (read + written), products {rates}")
    if found["device"] == "cuda":
        flushed = f"{found['flushed_bytes'] / 2**20:.0f} MiB written before each call to flush L2"
        print(f"TF32 {'allowed' if found['tf32'] else 'forbidden'}; {flushed}")


def show_all(found):
    show_header(found)
    before = None
    for _, rows in itertools.groupby(found["rows"], key=lambda row: (title(row), row["mode"])):
        rows = list(rows)
        show(rows, title(rows[0]) != before)
        before = title(rows[0])


def write_json(found, file):
    """All of it or nothing: never half a file."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read_json(file):
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise Mistake(f"argument --read: {file}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise Mistake(f"argument --read: {file} was not written by --json of this version")
    return found


def run(options):
    from corr_forms import OPERATIONS

    bench = Bench(options)
    found = bench.header()
    show_header(found)
    for name in dict.fromkeys(options.op):
        op = OPERATIONS[name]
        for size in sizes(op, options):
            for index, rows in enumerate(bench.measure(op, size)):
                show(rows, index == 0)
                found["rows"] += rows
    return found


def failures(found):
    """Rows of ours that did not compute the right thing, or did not run for another reason than
    memory."""
    return [r for r in found["rows"] if r["ours"] and r["status"] in (FAILED, "error")]


def main(words=None):
    try:
        options = parse(words)
        if options.read:
            found = read_json(options.read)
            show_all(found)
        else:
            found = run(options)
    except Mistake as mistake:
        print(f"corr_bench.py: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncorr_bench.py: interrupted, nothing written", file=sys.stderr)
        return 130
    if options.json:
        write_json(found, options.json)
    if options.plot:
        from corr_figure import draw

        draw(found, options.plot)
    failed = failures(found)
    for row in failed:
        print(
            f"corr_bench.py: {title(row)}, {row['mode']}, {row['form']}: {row['status']}",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    # Beside an installed package the one of this checkout is a fallback.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
