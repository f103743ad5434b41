"""The measuring of step_bench.py: one form of one preset, in a process of its own."""

import contextlib
import copy
import functools
import itertools
import multiprocessing
import resource
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import measure
import torch
from command import OUT_OF_MEMORY
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vgg import cfgs, make_layers

import pose_kernels
from posemodel.config.sections import Config
from posemodel.data.source import open_training_data
from posemodel.engine.trainer import Trainer
from posemodel.runtime import environment

PARTS = ("data", "task 1 forward", "task 1 backward", "task 2 forward", "task 2 backward",
         "D forward", "D backward", "optimiser")
DATA = "making data"
STOPPED = "stopped"
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


class Parts:
    """Milliseconds of the parts of one step."""

    def __init__(self, device):
        self.device, self.ms = device, defaultdict(float)

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    def timed(self, name, call, *arguments, **named):
        start = self.now()
        result = call(*arguments, **named)
        self.ms[name] += self.now() - start
        return result

    def watch(self, trainer):
        """Time the parts of a trainer's steps. A backward pass is what is left of `_gradients`."""
        def through(owner, method, name):
            original = getattr(owner, method)
            setattr(owner, method, functools.partial(self.timed, name, original))

        through(trainer.objective, "of_generator", "forward")
        through(trainer.objective, "of_discriminator", "D forward")
        through(trainer, "_update", "optimiser")
        through(trainer, "_average", "optimiser")
        gradients = trainer._gradients

        def less_forward(losses, parts, turn, optimizer, *rest):
            part = "D " if optimizer is trainer.discriminator_optimizer else ""
            before = self.ms[f"{part}forward"]
            values = self.timed(f"{part}backward", gradients, losses, parts, turn, optimizer,
                                *rest)
            self.ms[f"{part}backward"] -= self.ms[f"{part}forward"] - before
            return values

        trainer._gradients = less_forward


class Variant:
    """One form of a preset: its trainer, and what is measured of it."""

    def __init__(self, job):
        self.job = job
        config = copy.deepcopy(job.config)
        if job.form.startswith("eager"):
            config.model.stream = "never"
        config.compile = job.form.endswith("compiled")
        device, _ = environment.choose_device(config.device)
        dtype, _ = environment.choose_precision(config.precision, device)
        environment.set_tf32(config.tf32, device)
        self.device = device
        # The steps that the preset makes, and those that are made to tell its tasks apart.
        own = {"alternate": ("task 1", "task 2"), "joint": ("both",),
               "lazy": ("both", "task 2")}[config.optim.tasks]
        self.together = "lazy" if config.optim.tasks == "lazy" else "joint"
        self.own, self.kinds = own, dict.fromkeys((*own, "task 1", "task 2"))
        self.trainer = Trainer(config, device, dtype)
        if config.model.flow == "ours":
            self.awake()
        else:  # it has no task 1, and whatever the preset says all of its steps are the same
            self.own = self.kinds = ("task 2",)
        self.data = open_training_data(config.data, device, self.trainer.pairs,
                                       seed=config.seed)
        self.parts = Parts(device)
        self.parts.watch(self.trainer)
        self.done = 0

    def awake(self):
        """C_l's last layer starts at zero, and then no loss depends on the correlation."""
        generator = torch.Generator().manual_seed(1)
        last = self.trainer.generator.warping.head.layers[-1].weight
        with torch.no_grad():
            last.copy_(0.05 * torch.randn(last.shape, generator=generator))

    def step(self, tasks):
        """One step of "task 1", "task 2" or "both"; its parts in ms, and its losses."""
        # Odd steps have task 1, where not every step has it.
        self.done += 1 if self.done % 2 == (tasks == "task 2") else 2
        self.trainer.config.optim.tasks = self.together if tasks == "both" else "alternate"
        self.parts.ms.clear()
        with record_function(DATA):
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
        """W alone, forward and backward, and the grid of its flow."""
        warping, batch = self.trainer.generator.warping.train(), self.data.batch(1)
        ms, grid = {}, []

        def run():
            parts = Parts(self.device)
            with self.trainer.autocast():
                motion = parts.timed("forward", warping, batch["source_pose"],
                                     batch["target_pose"])
            parts.timed("backward", motion.flow.sum().backward)
            ms.update(parts.ms)
            grid[:] = motion.flow.shape[-2:]

        if self.device.type == "cuda" or "compiled" in self.job.form:
            run()  # the first call compiles
        peak = measure.peak_bytes(run, self.device)
        return {"warping_forward_ms": ms["forward"], "warping_backward_ms": ms["backward"],
                "warping_peak_mib": None if peak is None else peak / measure.MIB, "grid": grid}

    def count(self, first):
        """A round, put into `first` if that is empty; the operations of PyTorch's convolutions in
        it, and its peak in MiB."""
        compiled = "compiled" in self.job.form  # torch.compile does not go with the counter
        counter = contextlib.nullcontext() if compiled else FlopCounterMode(display=False)

        def run():
            with counter:
                steps = self.round()
            for kind, step in steps.items():
                first.setdefault(kind, step)

        peak = measure.peak_bytes(run, self.device)
        flops = None if compiled else sum(
            value for op, value in counter.get_flop_counts()["Global"].items()
            if "conv" in str(op))
        return flops, None if peak is None else peak / measure.MIB

    def times(self, rounds):
        """Medians and quartiles of the parts, from the rounds' milliseconds."""
        def of(kind, name):
            return [made[kind].get(name, 0.0) for made in rounds]

        parts = {"data": of("task 2", "data"), "optimiser": of("task 2", "optimiser")}
        tasks = [kind for kind in self.kinds if kind != "both"]
        for kind, name in itertools.product(tasks, ("forward", "backward")):
            parts[f"{kind} {name}"] = of(kind, name)
        for name in ("D forward", "D backward"):
            parts[name] = of("task 2", name)
        steps = [statistics.mean(made[kind]["step"] for kind in self.own) for made in rounds]
        step = measure.quartiles(steps)
        pairs = self.trainer.config.optim.batch_size
        return {"parts": {name: measure.quartiles(parts[name]) for name in PARTS if name in parts},
                "repeats": len(rounds), "ms": step[0], "ms_p25": step[1], "ms_p75": step[2],
                "images_per_s": 1e3 * pairs / (step[0] + statistics.median(parts["data"]))}

    def profile(self, flops):
        """Shares of a round's operators, and the rate of its convolutions."""
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
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / measure.MIB
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / measure.MIB


def shares(events, gpu):
    """Seconds by category. An operator inside one of ours counts as ours."""
    seconds = defaultdict(float)
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a GPU's kernels are counted with the operator that started them
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        if own <= 0 or not event.name.startswith(("aten::", "pose_kernels", "Torch-Compiled",
                                                  "CompiledFunction")):
            continue
        seconds[category(event)] += own / 1e6
    return seconds


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


def random_vgg19(folder):
    """Write weights for VGG-19 of random values that keep the size of the signal into a folder."""
    torch.manual_seed(0)
    features = make_layers(cfgs["E"])
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()},
               Path(folder) / "vgg19-features.pth")


def measure_form(job):
    """The figures of a job, or why there are none: `(row, None)` or `(None, (status, reason))`."""
    eager = job.form.startswith("eager")
    with pose_kernels.use_implementation("reference") if eager else contextlib.nullcontext():
        return measure.attempt(lambda: Variant(job).figures())


def work(job, threads, answers):
    """What the process of a job does."""
    if threads:
        torch.set_num_threads(threads)
    answers.send(measure_form(job))


def free_bytes():
    """Memory of the machine that is not in use."""
    return measure.available_bytes(torch.device("cpu"))


def apart(job, *, threads, available=free_bytes, worker=work, reserve=RESERVE_BYTES):
    """`measure_form` in a process of its own, which is stopped before the machine swaps."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=worker, args=(job, threads, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while not ours.poll(0.05):
            if available() < reserve:
                process.kill()
                return None, (OUT_OF_MEMORY, "stopped before the machine would swap")
        return ours.recv()
    except EOFError:
        process.join()
        return None, (STOPPED, f"its process ended with code {process.exitcode}")
    finally:
        process.join(10)
        process.kill()
