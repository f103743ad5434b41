"""Where the time and the memory of a training step go, beside the same model in plain PyTorch.

    python benchmarks/step_bench.py                                  # preset quick
    python benchmarks/step_bench.py --presets paper hires --batch 1
    python benchmarks/step_bench.py --presets quick --compile --json run.json
    python benchmarks/step_bench.py --other-head --rivals fomm mraa tpsmm gfla32
    python benchmarks/step_bench.py --read run.json                  # the table again

The forms: `ours`, the model as it is trained; `eager`, the same model with the operators' equations
written out in PyTorch and the 4D map stored; with --compile also `eager compiled` and `ours
compiled`, where torch.compile has the networks. Beside them other networks: `head 3 x 3` (or 1 x 1)
is ours with the other window of C_l's first layer; a method of Table 1 stands in the place of M and
C_l and has losses of its own in that of task 1. Every form runs in a process of its own, from the
same seed on the same pairs. All pairs are generated people, whatever the preset trains on, and
VGG-19 has random weights: neither changes the time. The adversarial loss is on (phase two). The
grid is that of the flow which W gave; GFLA has its own.

  step         ms of the preset's step, median and quartiles. Presets whose tasks alternate: the
               mean of a step of task 1 and one of task 2; of a method of Table 1 the latter.
  img/s        pairs per second, the data included.
  eager/       time of eager over that of this form, without data. Above 1 is faster.
  ours/        time of ours over that of this form: how many times its step ours takes.
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
that would make the machine swap is stopped. Out of memory is a result. The losses of all forms that
compute the same are compared; where those of ours differ from those of eager, the exit code is 1.
Bad arguments: exit code 2.
"""

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from command import OK, Parser, count, failed, run_benchmark
from step_table import show, show_all, show_header, show_progress

from posemodel.config.presets import PRESETS, for_method
from posemodel.config.sections import Config, ModelConfig
from posemodel.runtime.output import surviving

BENCHMARK, SCHEMA = "step", 1
#: Those that compute the same.
FORMS = ("ours", "eager", "ours compiled", "eager compiled")
RIVALS = tuple(name for name in get_args(ModelConfig.__annotations__["flow"]) if name != "ours")
#: Relative difference of a loss of the first step between ours and eager.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 3e-2}
DIFFERENT = "other losses"


def parse(words):
    parser = Parser("step_bench.py", __doc__)
    add = parser.add_argument
    add("--presets", nargs="+", default=["quick"], choices=PRESETS, metavar="PRESET",
        help=f"of {', '.join(PRESETS)} (default: quick)")
    add("--batch", type=count, metavar="N", help="pairs in a step (default: the preset's)")
    add("--steps", type=count, default=5, metavar="N",
        help="timed steps of each kind, after one to warm up (default: 5)")
    add("--seconds", type=float, default=60, metavar="S",
        help="no further step of a form that has taken so long, but at least one (default: 60)")
    add("--compile", action="store_true", help="also torch.compile of the networks")
    add("--other-head", action="store_true", help="also ours with the other window of C_l's first "
        "layer: 3 x 3 where the preset has 1 x 1, and 1 x 1 where it has 3 x 3")
    add("--rivals", nargs="+", default=[], choices=RIVALS, metavar="METHOD",
        help=f"also methods of Table 1 in the place of M and C_l: {', '.join(RIVALS)}")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--precision", default="auto", choices=("auto", *TOLERANCE), help="(default: auto)")
    add("--threads", type=count, metavar="N", help="CPU threads (default: torch's)")
    parser.add_files()
    return parser.parse(words)


def benchmark_config(name, options, weights_folder):
    """The preset, on generated people and with the adversarial loss from the first step on."""
    config = PRESETS[name]()
    config.device, config.precision = options.device, options.precision
    config.data.kind = "mannequins"
    config.loss.weights_folder = str(weights_folder)
    config.optim.phase_one = 0.0
    config.optim.batch_size = options.batch or config.optim.batch_size
    return config


def forms(config, options):
    """Every form that is measured, with its configuration."""
    found = dict.fromkeys(FORMS if options.compile else FORMS[:2], config)

    def with_model(**changes):
        return replace(config, model=replace(config.model, **changes))

    if options.other_head:
        kernel = 3 if config.model.head_kernel == 1 else 1
        found[f"head {kernel} x {kernel}"] = with_model(head_kernel=kernel)
    return found | {rival: for_method(with_model(flow=rival), rival)
                    for rival in options.rivals}


def run(options):
    import measure
    import step_measure
    import torch

    from posemodel.runtime import environment

    device, _ = environment.choose_device(options.device)
    dtype = str(environment.choose_precision(options.precision, device)[0]).removeprefix("torch.")
    if options.threads:
        torch.set_num_threads(options.threads)
    environment.set_tf32(Config().tf32, device)
    rate = measure.product_rate(getattr(torch, dtype), measure.Clock(device))
    results = {"schema": SCHEMA, "benchmark": BENCHMARK,
               **measure.origin(options, device, ("posemodel", "pose_kernels")),
               "memory_available_bytes": measure.available_bytes(device),
               "load": os.getloadavg()[0], "precision": dtype, "tf32": Config().tf32,
               "rate_operations_per_s": rate, "data": "mannequins", "vgg19": "random weights",
               "rows": []}
    show_header(results)
    with tempfile.TemporaryDirectory() as folder:
        step_measure.random_vgg19(folder)
        for name in dict.fromkeys(options.presets):
            rows = []
            preset = benchmark_config(name, options, folder)
            for form, config in forms(preset, options).items():
                job = step_measure.Job(config=config, form=form, steps=options.steps,
                                       seconds=options.seconds, rate=rate)
                answer = step_measure.apart(job, threads=options.threads)
                rows.append(make_row(config, form, answer))
                show_progress(rows[-1])
            compare(rows, TOLERANCE[dtype])
            show(rows)
            results["rows"] += rows
    return results


def make_row(config, form, answer):
    """What was asked for, and what came of it; the grid of what was measured."""
    figures, failure = answer
    height, width = config.data.image_size
    stride = config.model.stride(config.data.image_size)
    row = {"preset": config.preset, "form": form, "batch": config.optim.batch_size,
           "image": [height, width], "grid": [height // stride, width // stride],
           "head_kernel": config.model.head_kernel, "tasks": config.optim.tasks,
           "loss": config.loss.reconstruction, "status": OK, "note": ""}
    if failure:
        row["status"], row["note"] = failure
    return {**row, **(figures or {})}


def compare(rows, tolerance):
    """How many times faster each form is than ours and, where it computes the same, than eager, and
    whether its losses are those of eager."""
    measured = {row["form"]: row for row in rows if row["status"] == OK}
    ours, eager = measured.get("ours"), measured.get("eager")
    for row in rows:
        row |= dict.fromkeys(("eager_ratio", "ours_ratio", "loss_difference"))
        if ours and row["form"] in measured:
            row["ours_ratio"] = ours["ms"] / row["ms"]
        if not eager or row["form"] not in measured.keys() & FORMS:
            continue
        row["eager_ratio"] = eager["ms"] / row["ms"]
        difference = max(abs(row["losses"][name] - value) / max(abs(value), 1e-6)
                         for name, value in eager["losses"].items())
        row["loss_difference"] = difference if math.isfinite(difference) else None
        if not difference <= tolerance:
            row["status"] = DIFFERENT
            row["note"] = f"a loss differs by {difference:.1e} from that of eager"


def failures(results) -> Iterator[str]:
    for row in results["rows"]:
        if failed(row):
            yield f"{row['preset']}, {row['form']}: {row['status']}: {row['note']}"


def main(words=None):
    # As in training: threads that wait for each other do not spin for long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler is talkative
    return run_benchmark("step_bench.py", words, BENCHMARK, SCHEMA, parse=parse, run=run,
                         show=show_all, failures=failures)


if __name__ == "__main__":
    with surviving():
        sys.exit(main())
