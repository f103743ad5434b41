"""The measuring of corr_bench.py: every form of one problem, checked in float64, then timed."""

import itertools
import math
import time
from dataclasses import replace
from functools import partial

import measure
import torch
from command import OK
from operation import Size, differentiate

from pose_kernels import _library
from posemodel.runtime import environment
from posemodel.runtime.errors import UserError

MODES = ("forward", "forward+backward")
#: Relative error allowed, result and gradients alike. TF32: float32 under --tf32.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "TF32": 1e-2, "float16": 5e-3, "bfloat16": 4e-2}
FAILED = "failed the check"
#: What a row has when its form was timed.
MEASURED = ("ms", "ms_p25", "ms_p75", "repeats", "eager_ratio", "compile_ratio", "peak_mib",
            "extra_mib", "gb_per_s", "tflop_per_s", "percent_of_floor")


def sizes(op, options):
    """Every problem of an operation, each once."""
    problems = {}
    axes = (options.grids, options.batch, options.dtype, options.channels, options.power)
    for grid, batch, dtype, channels, power in itertools.product(*axes):
        image = options.image or (256 if channels <= 4 else grid)
        size = Size(batch, grid, dtype, options.features, options.outputs, options.kernel, image,
                    channels, power)
        problems.setdefault(tuple(getattr(size, field) for field in op.fields), size)
    return list(problems.values())


def modes(of):
    """Of an operation or a form."""
    return MODES if of.backward else MODES[:1]


def smaller(size):
    return replace(size, grid=size.grid // 2, image=max(size.image // 2, 1))


class Bench:
    """The device of a run, its ceilings, and what is measured on it."""

    def __init__(self, options):
        self.options = options
        self.device, _ = environment.choose_device(options.device or "auto")
        if options.tf32 and self.device.type == "cpu":
            raise UserError("argument --tf32: only a GPU has it")
        # Torch lets convolutions use TF32 and products not: one switch for both is fair.
        environment.set_tf32(options.tf32, self.device)
        if self.device.index is not None:
            torch.cuda.set_device(self.device)
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

    def tolerance(self, op, size, form):
        dtype = form.result_dtype or size.dtype
        tf32 = self.options.tf32 and dtype == "float32"
        return op.slack(size) * TOLERANCE["TF32" if tf32 else dtype]

    def header(self):
        origin = measure.origin(self.options, self.device, ("pose_kernels",))
        return {**origin, "options": {**origin["options"], "repeats": self.repeats},
                "simd": _library.simd_level(), "tf32": self.options.tf32,
                "flushed_bytes": self.clock.flush_bytes,
                "bandwidth_bytes_per_s": self.bandwidth, "rate_operations_per_s": self.rates,
                "rows": []}

    def fits(self, needed):
        """On a GPU a form is tried; on a CPU a failed try may take the machine along."""
        if self.device.type == "cuda":
            return True
        return needed <= 0.9 * measure.available_bytes(self.device)

    def problem(self, op, size):
        """Inputs and upstream gradient, on the device."""
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        dtype = getattr(torch, size.dtype)
        inputs = {name: x.to(dtype) for name, x in op.inputs(size, generator).items()}
        return inputs, op.upstream(size, inputs, generator)

    def call(self, op, form, mode, inputs, upstream):
        """() -> {"result": .., name of an input: its gradient ..}."""
        backward = mode != "forward"
        given = {name: x.detach().requires_grad_(backward)
                 for name, x in op.inputs_of(form, inputs).items()}
        function, gradient = form.function, None
        if form.ready_result:  # every page of it has been written, as in a loop
            function = partial(function, out=upstream.clone())
        if backward:
            format = torch.channels_last if form.channels_last else torch.contiguous_format
            dtype = form.result_dtype and getattr(torch, form.result_dtype)
            gradient = upstream.to(dtype or upstream.dtype).contiguous(memory_format=format)
        return lambda: differentiate(function, given, gradient)

    def checkable(self, op, size):
        """The problem, or the largest of smaller grid, whose float64 oracle fits in memory."""
        available = 0.8 * measure.available_bytes(self.device)
        while size.grid > 1 and op.oracle_need(size) + op.base(size) > available:
            size = smaller(size)
        return size

    def check(self, op, size, forms):
        """The size that was checked, and {(form, mode): {"error", "passed", "failure"}}."""
        while True:
            size = self.checkable(op, size)
            inputs, upstream = self.problem(op, size)
            exact, failure = measure.attempt(partial(op.exact, inputs, upstream))
            if not failure:
                break
            if failure[0] != measure.OUT_OF_MEMORY or size.grid == 1:
                raise RuntimeError(f"{op.name}: no float64 to compare with: {' '.join(failure)}")
            size = smaller(size)
        checks = {}
        for mode, form in itertools.product(modes(op), forms):
            if mode not in modes(form):
                continue
            error, failure = None, (measure.OUT_OF_MEMORY, "")
            if self.fits(op.need(size, form, mode != "forward")):
                call = self.call(op, form, mode, inputs, upstream)
                result, failure = measure.attempt(call)
                error = None if failure else error_of(result, exact)
                del result, call
            passed = error is not None and error <= self.tolerance(op, size, form)
            checks[form.name, mode] = {"error": error, "passed": passed, "failure": failure}
        return size, checks

    def measure(self, op, size):
        """All rows of one problem; the rows of each mode are shown when they are there."""
        op = op.of(size)
        forms = op.forms(size, self.device, self.options)
        if self.options.compile:
            torch._dynamo.reset()  # so that no size is compiled as a general one
        checked_size, checks = self.check(op, size, forms)
        problem, failure = None, (measure.OUT_OF_MEMORY, "")
        if self.fits(op.base(size)):
            problem, failure = measure.attempt(partial(self.problem, op, size))
        for mode in modes(op):
            rows, running = [], {}
            for form in (form for form in forms if mode in modes(form)):
                row = self.row(op, size, form, mode, checks[form.name, mode], checked_size)
                rows.append(row)
                if failure:
                    self.set_failure(row, op, size, form, failure)
                elif row["status"] == OK:
                    self.prepare(row, op, size, form, problem, running)
            self.time(running)
            for row in rows:
                self.finish(row, rows)
            if rows:
                yield rows

    def row(self, op, size, form, mode, check, checked_size):
        backward = mode != "forward"
        fewest, operations = op.work(size, backward, form)
        times = {"bytes": fewest / self.bandwidth, "operations": operations / self.rate(size.dtype)}
        bound = max(times, key=times.get)
        error = check["error"]
        row = {
            "op": op.name, **{field: getattr(size, field) for field in op.fields},
            "mode": mode, "form": form.name, "ours": form.kind == "ours", "status": OK,
            "note": form.note, **dict.fromkeys(MEASURED), "floor_ms": 1e3 * times[bound],
            "bound": bound, "fewest_bytes": fewest, "operations": operations,
            "error": error if error is None or math.isfinite(error) else None,
            "tolerance": self.tolerance(op, size, form), "checked_at": checked_size.grid,
        }
        if check["failure"]:
            self.set_failure(row, op, size, form, check["failure"])
        elif not self.fits(op.need(size, form, backward) + op.base(size)):
            self.set_failure(row, op, size, form, (measure.OUT_OF_MEMORY, ""))
        elif not check["passed"]:
            if form.kind == "ours":
                row["status"] = FAILED
            elif form.kind == "peer":
                row["note"] = joined(form.note, "above the tolerance of ours")
        if checked_size != size:
            row["note"] = joined(row["note"], f"checked at {checked_size.grid}")
        return row

    def set_failure(self, row, op, size, form, failure):
        row["status"], reason = failure
        if row["status"] == measure.OUT_OF_MEMORY:
            needed = op.need(size, form, row["mode"] != "forward") + op.base(size)
            reason = f"needs about {needed / 2**30:.1f} GiB"
        row["note"] = joined(reason, row["note"])

    def prepare(self, row, op, size, form, problem, running):
        """Warm up and find the peak; what gets through goes into `running`."""

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
        running[form.name] = {"row": row, "call": call, "times": [],
                              "fail": partial(self.set_failure, row, op, size, form)}

    def time(self, running):
        """The forms take turns. The round in which the peaks were found warmed up the CPU."""
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
            row["ms"], row["ms_p25"], row["ms_p75"] = measure.quartiles(times)

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


def joined(*notes):
    return "; ".join(filter(None, notes))


def error_of(result, exact):
    """The worst relative error among what both have; sample by sample, for the memory's sake."""
    worst = 0.0
    for name in result.keys() & exact.keys():
        difference = total = 0.0
        for value, oracle in zip(result[name], exact[name], strict=True):
            oracle = oracle.to(value.device)
            difference += (value.double() - oracle).square().sum().item()
            total += oracle.square().sum().item()
        error = math.sqrt(difference / (total or 1))
        worst = error if not error <= worst else worst  # a NaN stays
    return worst
