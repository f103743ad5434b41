"""Where the time and the memory of a training step go, beside the same model in plain PyTorch.

    python benchmarks/step_bench.py                                  # preset quick
    python benchmarks/step_bench.py --presets paper hires --batch 1
    python benchmarks/step_bench.py --presets quick --compile --json run.json
    python benchmarks/step_bench.py --read run.json                  # the table again

The forms: `ours`, the model as it is trained; `eager`, the same model with the operators' equations
written out in PyTorch and the 4D map stored; with --compile also `eager compiled` and `ours
compiled`, where torch.compile has the networks. Every form runs in a process of its own, from the
same weights on the same pairs. All pairs are generated people, whatever the preset trains on, and
VGG-19 has random weights: neither changes the time. The adversarial loss is on (phase two).

  step         ms of the preset's step, median and quartiles. Presets whose tasks alternate: the
               mean of a step of task 1 and one of task 2.
  img/s        pairs per second, the data included.
  eager/       time of eager over that of this form, without data. Above 1 is faster.
  peak MiB     most memory in a step beyond what was there before the first one (GPU: the
               allocator's; CPU: the process's resident memory); whole: with what was there.
  data         making a batch, on the device that trains.
  task 1       affine: W (M, correlation, C_l) on random affine maps. Forward and backward.
  task 2       reconstruction: W, R and VGG-19, and D as judge of the image. Forward and backward.
               Where a step has both tasks at once, these two are measured in steps of their own,
               and add up to more than the step, which encodes the target pose once.
  D            the discriminator's own loss, forward and backward.
  optimiser    both of them, clipping and the average of the weights.
  W            the warping network alone, one pose pair per image: ms forward, backward, peak MiB.
  time         shares of a step by torch.profiler, and how fast the convolutions are beside the
               fastest matrix product of this machine: near 100 %, arithmetic bounds them.

GPU: the clock waits for it at the borders of these parts, some ten times in a step. CPU: a form
that would make the machine swap is stopped. Out of memory is a result. The losses of all forms are
compared; where those of ours differ from those of eager, the exit code is 1. Bad arguments: exit
code 2.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

# Beside an installed package the one of this checkout is a fallback.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from corr_bench import Mistake, Parser, check_output, count, number, write_json  # noqa: E402

from posemodel.config import Config, ConfigError  # noqa: E402
from posemodel.errors import UserError  # noqa: E402
from posemodel.presets import PRESETS  # noqa: E402

SCHEMA = 1
FORMS = ("ours", "eager", "ours compiled", "eager compiled")
PARTS = ("data", "task 1 forward", "task 1 backward", "task 2 forward", "task 2 backward",
         "D forward", "D backward", "optimiser")
#: Relative difference of a loss of the first step between ours and eager.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 3e-2}
DATA = "making data"
OK, DIFFERENT, STOPPED = "ok", "other losses", "stopped"
#: Memory that a form has to leave to the machine.
RESERVE_BYTES = 1 << 30
#: What an operator is counted as, by a part of its name; the first that fits.
CATEGORIES = (("our operators", "pose_kernels"), ("convolutions", "conv"),
              ("normalisation", "norm"), ("matrix products", "mm"), ("matrix products", "linear"),
              ("compiled code", "ompiled"), ("optimiser", "adam"), ("resizing", "upsample"),
              ("copies", "copy"), ("copies", "cat"), ("copies", "zero_"), ("copies", "fill_"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One form of one preset, for a process of its own."""

    config: Config
    form: str
    steps: int
    seconds: float
    rate: float
    """operations per second of the fastest product"""


def parse(words):
    parser = Parser(prog="step_bench.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--presets", nargs="+", default=["quick"], choices=PRESETS, metavar="PRESET",
        help=f"of {', '.join(PRESETS)} (default: quick)")
    add("--batch", type=count, metavar="N", help="pairs in a step (default: the preset's)")
    add("--steps", type=count, default=5, metavar="N",
        help="timed steps of each kind, after one to warm up (default: 5)")
    add("--seconds", type=float, default=60, metavar="S",
        help="no further step of a form that has taken so long, but at least one (default: 60)")
    add("--compile", action="store_true", help="also torch.compile of the networks")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--precision", default="auto", choices=("auto", *TOLERANCE), help="(default: auto)")
    add("--threads", type=count, metavar="N", help="CPU threads (default: torch's)")
    add("--commit", metavar="HASH", help="what is measured, where git cannot tell")
    add("--json", type=Path, metavar="FILE", help="write every figure, versions and machine")
    add("--read", type=Path, metavar="FILE", help="show what --json wrote; measure nothing")
    add("--force", action="store_true", help="let --json overwrite a file")
    options = parser.parse_args(words)
    check_output("--json", options.json, options.force)
    if options.read and options.json:
        raise Mistake("argument --json: not allowed with --read, which measures nothing")
    if not options.seconds >= 0:
        raise Mistake(f"argument --seconds: expected no negative number, got {options.seconds}")
    return options


# --- one form, in its own process -------------------------------------------------------------


class Parts:
    """Milliseconds of the parts of one step."""

    def __init__(self, device):
        self.device, self.ms = device, defaultdict(float)

    def now(self):
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    def timed(self, name, call, *arguments, **named):
        start = self.now()
        result = call(*arguments, **named)
        self.ms[name] += self.now() - start
        return result

    def watch(self, trainer):
        """Time the parts of a trainer's steps. A backward pass is what is left of `_backward`."""
        def through(method, name):
            original = getattr(trainer, method)
            setattr(trainer, method, functools.partial(self.timed, name, original))

        through("_tasks", "forward")
        through("_judge_loss", "D forward")
        through("_update", "optimiser")
        through("_average", "optimiser")
        backward = trainer._backward

        def less_forward(losses, pieces, optimizer, *rest):
            part = "D " if optimizer is trainer.discriminator_optimizer else ""
            before = self.ms[f"{part}forward"]
            found = self.timed(f"{part}backward", backward, losses, pieces, optimizer, *rest)
            self.ms[f"{part}backward"] -= self.ms[f"{part}forward"] - before
            return found

        trainer._backward = less_forward


class Variant:
    """One form of a preset: its trainer, and what is measured of it."""

    def __init__(self, job):
        import measure
        import torch

        from posemodel.engine import environment
        from posemodel.engine.data_source import open_training_data
        from posemodel.engine.trainer import Trainer

        self.job, self.measure = job, measure
        config = copy.deepcopy(job.config)
        if job.form.startswith("eager"):
            config.model.stream = "never"
        config.compile = job.form.endswith("compiled")
        device, _ = environment.choose_device(config.device)
        dtype, _ = environment.choose_precision(config.precision, device)
        environment.set_tf32(config.tf32, device)
        self.device = device
        # The steps that the preset makes, and those that are made to tell its tasks apart.
        own = ("task 1", "task 2") if config.optim.tasks == "alternate" else ("both",)
        self.own, self.kinds = own, dict.fromkeys((*own, "task 1", "task 2"))
        self.trainer = Trainer(config, device, dtype)
        # This layer starts at zero, and then no loss depends on the correlation.
        generator = torch.Generator().manual_seed(1)
        last = self.trainer.generator.warping.head.layers[-1].weight
        with torch.no_grad():
            last.copy_(0.05 * torch.randn(last.shape, generator=generator))
        self.data = open_training_data(config, device, self.trainer.pairs)
        self.parts = Parts(device)
        self.parts.watch(self.trainer)
        self.done = 0

    def step(self, tasks):
        """One step of "task 1", "task 2" or "both"; its parts in ms, and its losses."""
        import torch

        # Odd steps have task 1, where the tasks alternate.
        self.done += 1 if self.done % 2 == (tasks == "task 2") else 2
        self.trainer.config.optim.tasks = "joint" if tasks == "both" else "alternate"
        self.parts.ms.clear()
        with torch.profiler.record_function(DATA):
            batch = self.parts.timed("data", self.data.batch, self.done)
        losses = self.parts.timed("step", self.trainer.step, self.done, batch)
        return dict(self.parts.ms), losses

    def round(self):
        """A step of each kind."""
        return {kind: self.step(kind) for kind in self.kinds}

    def figures(self):
        """Everything, as columns of a row."""
        row, first = self.warping(), {}
        if "compiled" in self.job.form:
            first = self.round()  # compilation takes memory of its own
        flops, row["peak_mib"] = self.count(first)
        # Later steps of forms that only round differently drift apart.
        row["losses"] = {f"{kind}: {name}": value for kind in self.own
                         for name, value in first[kind][1].items() if name.startswith("loss")}
        start, rounds = time.monotonic(), []
        while not rounds or (len(rounds) < self.job.steps
                             and time.monotonic() - start < self.job.seconds):
            rounds.append({kind: parts for kind, (parts, _) in self.round().items()})
        row |= self.times(rounds)
        row |= self.profile(flops)
        row["whole_mib"] = self.whole()
        return row

    def warping(self):
        """W alone, forward and backward."""
        warping, batch = self.trainer.generator.warping.train(), self.data.batch(1)
        ms = {}

        def run():
            parts = Parts(self.device)
            with self.trainer._autocast():
                flow = parts.timed("forward", warping, batch["source_pose"], batch["target_pose"])
            parts.timed("backward", flow.sum().backward)
            ms.update(parts.ms)

        if self.device.type == "cuda" or "compiled" in self.job.form:
            run()  # the first call compiles
        peak = self.measure.peak_bytes(run, self.device)
        return {"warping_forward_ms": ms["forward"], "warping_backward_ms": ms["backward"],
                "warping_peak_mib": None if peak is None else peak / self.measure.MIB}

    def count(self, first):
        """A round, put into `first` if that is empty; the operations of PyTorch's convolutions in
        it, and its peak in MiB."""
        from torch.utils.flop_counter import FlopCounterMode

        compiled = "compiled" in self.job.form  # torch.compile does not go with the counter
        counter = contextlib.nullcontext() if compiled else FlopCounterMode(display=False)

        def run():
            with counter:
                found = self.round()
            for kind, step in found.items():
                first.setdefault(kind, step)

        peak = self.measure.peak_bytes(run, self.device)
        flops = None if compiled else sum(
            value for op, value in counter.get_flop_counts()["Global"].items()
            if "conv" in str(op))
        return flops, None if peak is None else peak / self.measure.MIB

    def times(self, rounds):
        """Medians and quartiles of the parts, from the rounds' milliseconds."""
        def of(kind, *names):
            return [sum(one[kind].get(name, 0.0) for name in names) for one in rounds]

        parts = {"data": of("task 2", "data"), "optimiser": of("task 2", "optimiser")}
        for kind, name in itertools.product(("task 1", "task 2"), ("forward", "backward")):
            parts[f"{kind} {name}"] = of(kind, name)
        for name in ("D forward", "D backward"):
            parts[name] = of("task 2", name)
        steps = [statistics.mean(one[kind]["step"] for kind in self.own) for one in rounds]
        step = quartiles(steps)
        pairs = self.trainer.config.optim.batch_size
        return {"parts": {name: quartiles(parts[name]) for name in PARTS},
                "repeats": len(rounds), "ms": step[0], "ms_p25": step[1], "ms_p75": step[2],
                "images_per_s": 1e3 * pairs / (step[0] + statistics.median(parts["data"]))}

    def profile(self, flops):
        """Shares of a round's operators, and the rate of its convolutions."""
        from torch.profiler import ProfilerActivity, profile

        gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with profile(activities=activities) as profiler:
            self.round()
        seconds = shares(profiler.events(), gpu)
        total = sum(seconds.values())
        rate = None
        if flops and seconds.get("convolutions"):
            rate = flops / seconds["convolutions"]
        return {"shares": {name: value / total for name, value in
                           sorted(seconds.items(), key=lambda item: -item[1])},
                "convolution_operations_per_s": rate,
                "convolution_percent": rate and 100 * rate / self.job.rate}

    def whole(self):
        """MiB of the process at its largest; on a GPU of the allocator."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / self.measure.MIB
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / self.measure.MIB


def quartiles(values):
    """Median, 25th, 75th percentile."""
    ends = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values
    return [statistics.median(values), ends[0], ends[-1]]


def shares(events, gpu):
    """Seconds by category. An operator inside one of ours counts as ours."""
    found = defaultdict(float)
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a GPU's kernels are counted with the operator that started them
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        if own <= 0 or not event.name.startswith(("aten::", "pose_kernels", "Torch-Compiled",
                                                  "CompiledFunction")):
            continue
        found[category(event)] += own / 1e6
    return found


def category(event):
    """What an operator of the profiler's tree counts as."""
    outer = event
    while outer is not None:
        if "pose_kernels" in outer.name:
            return "our operators"
        if outer.name == DATA:
            return "data"
        outer = outer.cpu_parent
    name = event.name.lower()
    return next((label for label, part in CATEGORIES if part in name), "the rest")


def measure_form(job):
    """The figures of a job, or why there are none: `(row, None)` or `(None, (status, reason))`."""
    import measure

    import pose_kernels

    eager = job.form.startswith("eager")
    with pose_kernels.use_implementation("reference") if eager else contextlib.nullcontext():
        return measure.attempt(lambda: Variant(job).figures())


def work(job, threads, answers):
    """What the process of a job does."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    answers.send(measure_form(job))


def apart(job, *, threads, available, worker=work, reserve=RESERVE_BYTES):
    """`measure_form` in a process of its own, which is stopped before the machine swaps.

    Args:
        available: () -> bytes of the machine's memory that are not in use.
    """
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=worker, args=(job, threads, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while not ours.poll(0.05):
            if available() < reserve:
                process.kill()
                return None, ("out of memory", "stopped before the machine would swap")
        return ours.recv()
    except EOFError:
        process.join()
        return None, (STOPPED, f"its process ended with code {process.exitcode}")
    finally:
        process.join(10)
        process.kill()


# --- all forms --------------------------------------------------------------------------------


def random_vgg19(folder):
    """A file with weights for VGG-19 of random values that keep the size of the signal."""
    import torch
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    features = make_layers(cfgs["E"])
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    file = Path(folder) / "vgg19-random.pth"
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, file)
    return file


def benchmark_config(name, options, vgg_weights):
    """The preset, on generated people and with the adversarial loss from the first step on."""
    config = PRESETS[name]()
    config.device, config.precision = options.device, options.precision
    config.data.kind = "mannequins"
    config.loss.vgg_weights = str(vgg_weights)
    config.optim.phase_one = 0.0
    config.optim.batch_size = options.batch or config.optim.batch_size
    return config


def header(options, device, dtype, rate):
    import measure
    import torch

    import pose_kernels
    from pose_kernels import _library

    root = Path(pose_kernels.__file__).resolve().parents[1]
    code = ("posemodel", "pose_kernels", "csrc", "setup.py", "benchmarks", ":!benchmarks/results")
    commit, changed = measure.commit(root, code)
    given = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    return {
        "schema": SCHEMA,
        "benchmark": "step",
        "date": time.strftime("%Y-%m-%d"),
        "machine": measure.machine(device),
        "device": device.type,
        "driver": measure.driver() if device.type == "cuda" else None,
        "threads": options.threads or torch.get_num_threads(),
        "memory_available_bytes": measure.available_bytes(device),
        "load": os.getloadavg()[0],
        "versions": {"pose_kernels": pose_kernels.__version__, "torch": torch.__version__,
                     "cuda": torch.version.cuda, "python": platform.python_version()},
        "commit": options.commit or commit,
        "changed": None if options.commit else changed,
        "build": _library.build_info,
        "options": given,
        "precision": dtype,
        "tf32": Config().tf32,
        "rate_operations_per_s": rate,
        "data": "mannequins",
        "vgg19": "random weights",
        "rows": [],
    }


def run(options):
    import measure
    import torch

    from posemodel.engine import environment

    device, _ = environment.choose_device(options.device)
    dtype = str(environment.choose_precision(options.precision, device)[0]).removeprefix("torch.")
    if options.threads:
        torch.set_num_threads(options.threads)
    environment.set_tf32(Config().tf32, device)
    rate = measure.product_rate(getattr(torch, dtype), measure.Clock(device))
    found = header(options, device, dtype, rate)
    show_header(found)
    forms = FORMS if options.compile else FORMS[:2]
    host = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        weights = random_vgg19(folder)
        for name in dict.fromkeys(options.presets):
            config = benchmark_config(name, options, weights)
            rows = []
            for form in forms:
                job = Job(config=config, form=form, steps=options.steps,
                          seconds=options.seconds, rate=rate)
                answer = apart(job, threads=options.threads,
                               available=lambda: measure.available_bytes(host))
                rows.append(make_row(config, form, answer))
                show_progress(rows[-1])
            compare(rows, TOLERANCE[dtype])
            show(rows)
            found["rows"] += rows
    return found


def make_row(config, form, answer):
    """What was asked for, and what came of it."""
    figures, failure = answer
    height, width = config.data.image_size
    row = {"preset": config.preset, "form": form, "batch": config.optim.batch_size,
           "image": [height, width], "grid": [height // 4, width // 4],
           "tasks": config.optim.tasks, "loss": config.loss.reconstruction, "status": OK,
           "note": ""}
    if failure:
        row["status"], row["note"] = failure
    return {**row, **(figures or {})}


def compare(rows, tolerance):
    """How many times faster than eager each form is, and whether it computes the same losses."""
    eager = next(row for row in rows if row["form"] == "eager")
    for row in rows:
        row["eager_ratio"] = row["loss_difference"] = None
        if OK != row["status"] or OK != eager["status"]:
            continue
        row["eager_ratio"] = eager["ms"] / row["ms"]
        difference = max(abs(row["losses"][name] - value) / max(abs(value), 1e-6)
                         for name, value in eager["losses"].items())
        row["loss_difference"] = difference if math.isfinite(difference) else None
        if not difference <= tolerance:
            row["status"] = DIFFERENT
            row["note"] = f"a loss differs by {difference:.1e} from that of eager"


# --- what is printed --------------------------------------------------------------------------


def show_header(found):
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items() if value)
    changed = ", changed since" if found["changed"] else ""
    print(f"{found['machine']}: {found['device']}, {found['threads']} CPU threads, load "
          f"{found['load']:.1f}, {found['memory_available_bytes'] / 2**30:.1f} GiB available")
    print(f"{versions}; commit {(found['commit'] or 'unknown')[:12]}{changed}")
    print(f"{found['precision']}; measured here: products "
          f"{found['rate_operations_per_s'] / 1e12:.3g} TFLOP/s")
    print("pairs: generated people; VGG-19: random weights", flush=True)


def show_progress(row):
    """A line as soon as a form is measured, which can take minutes."""
    result = f"{number(row['ms'])} ms" if "ms" in row else f"{row['status']}: {row['note']}"
    print(f"{row['preset']}, {row['form']}: {result}", file=sys.stderr, flush=True)


def show(rows):
    first = rows[0]
    sizes = "{} x {}, grid {} x {}".format(*first["image"], *first["grid"])
    tasks = "alternating" if first["tasks"] == "alternate" else "joint"
    print(f"\n{first['preset']}: batch {first['batch']}, {sizes}, {tasks} tasks, {first['loss']}")
    names = ("step ms", "quartiles", "img/s", "eager/", "peak MiB", "whole")
    widths = (9, 19, 7, 7, 9, 8)
    columns = "".join(f"{name:>{width + 1}}" for name, width in zip(names, widths, strict=True))
    print(f"  {'':16}{columns}")
    for row in rows:
        if "ms" not in row:
            print(f"  {row['form']:16} {row['status']}: {row['note']}")
            continue
        ratio = row["eager_ratio"]
        cells = (number(row["ms"]), f"{number(row['ms_p25'])} .. {number(row['ms_p75'])}",
                 number(row["images_per_s"]), "-" if ratio is None else f"{number(ratio)}x",
                 number(row["peak_mib"]), number(row["whole_mib"]))
        line = "".join(f"{cell:>{width + 1}}" for cell, width in zip(cells, widths, strict=True))
        print(f"  {row['form']:16}{line}  {row['note']}".rstrip())
    for row in rows:
        if "ms" in row:
            show_parts(row)
    sys.stdout.flush()


def show_parts(row):
    parts = {name: median for name, (median, _, _) in row["parts"].items()}
    print(f"  {row['form']}, ms (forward + backward)")
    split = ", ".join(f"{name} {number(parts[f'{name} forward'])} + "
                      f"{number(parts[f'{name} backward'])}" for name in ("task 1", "task 2", "D"))
    print(f"    data {number(parts['data'])}, {split}, optimiser {number(parts['optimiser'])}")
    print(f"    W {number(row['warping_forward_ms'])} + {number(row['warping_backward_ms'])}, "
          f"peak {number(row['warping_peak_mib'])} MiB")
    times = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["shares"].items()
                      if share >= 0.005)
    rate = ""
    if row["convolution_percent"] is not None:
        rate = f"; convolutions at {row['convolution_percent']:.0f} % of the fastest product"
    print(f"    time: {times}{rate}")


def read_json(file):
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise Mistake(f"argument --read: {file}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or (found.get("benchmark"), found.get("schema")) != ("step",
                                                                                        SCHEMA):
        raise Mistake(f"argument --read: {file} was not written by --json of this version")
    return found


def main(words=None):
    # As in training: threads that wait for each other do not spin for long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler is talkative
    try:
        options = parse(words)
        if options.read:
            found = read_json(options.read)
            show_header(found)
            for _, rows in itertools.groupby(found["rows"], key=lambda row: row["preset"]):
                show(list(rows))
        else:
            found = run(options)
    except (Mistake, UserError, ConfigError) as mistake:
        print(f"step_bench.py: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstep_bench.py: interrupted, nothing written", file=sys.stderr)
        return 130
    if options.json:
        write_json(found, options.json)
    failed = [row for row in found["rows"] if row["status"] in (DIFFERENT, STOPPED, "error")]
    for row in failed:
        print(f"step_bench.py: {row['preset']}, {row['form']}: {row['status']}: {row['note']}",
              file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
