"""Speed, memory and error of every operator, beside what one would write without this package.

    python benchmarks/corr_bench.py                                  # all operators at 64 x 64
    python benchmarks/corr_bench.py --grids 16 32 64 128 --batch 1 4 --dtype float32 bfloat16
    python benchmarks/corr_bench.py --compile --json run.json --plot run.png
    python benchmarks/corr_bench.py --read run.json --plot run.png   # measures nothing

One table per problem and mode: `forward` without gradients, `forward+backward` with the gradients
of every input, weight and bias included. The rows are forms to write the same thing in: `eager`,
the literal equations; `ncnet`, the formulas of NCNet (another function: its error says how far);
`compile`, torch.compile of eager; `conv alone`, F.conv2d of a map that is already there; `conv over
guided`, guided_correlation and then F.conv2d; `stored map, matmul`, guided_correlation and then a
product; `sdpa`, the softmax attention of PyTorch on the same features and values, the yardstick of
a read-out's arithmetic; and the implementations of pose_kernels, also with `out=`, which has no
gradients and writes into memory that is there, and with a `bfloat16 map` of float32 features.

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

import sys
from collections.abc import Iterator

from busy import busy
from command import Parser, count, failed, run_benchmark
from corr_table import show, show_all, show_header, title
from operators import NAMES, operator

from posemodel.runtime.errors import UserError
from posemodel.runtime.output import surviving

SCHEMA = 1
DTYPES = ("float64", "float32", "float16", "bfloat16")


def parse(words):
    parser = Parser("corr_bench.py", __doc__)

    def several(name, type, default, help, **keywords):
        shown = " ".join(map(str, default)) if default else ""
        help += f" (default: {shown})" if shown else ""
        parser.add_argument(name, type=type, nargs="+", default=default, help=help, **keywords)

    def single(name, default, help):
        parser.add_argument(name, type=count, default=default, metavar="N",
                            help=f"{help} (default: {default})")

    several("--op", str, list(NAMES), "operators", choices=NAMES, metavar="OP")
    several("--grids", count, [64], "side of feature maps and flow", metavar="N")
    several("--batch", count, [1], "samples", metavar="N")
    several("--dtype", str, ["float32"], "of everything", choices=DTYPES, metavar="DTYPE")
    single("--features", 35, "channels m of the feature maps")
    single("--outputs", 128, "channels n of the convolution's result, and of the read-out's")
    single("--kernel", 3, "side of the convolution's kernel")
    several("--power", int, [1, 2], "power of the map in guided_readout", choices=(1, 2),
            metavar="N")
    several("--channels", count, [3, 256], "of what flow_sample reads", metavar="N")
    add = parser.add_argument
    add("--image", type=count, metavar="N", help="side of what flow_sample reads (default: 256 for "
        "up to 4 channels, an image; the grid for more, features)")
    add("--compile", action="store_true", help="also torch.compile of eager")
    add("--channels-last", action="store_true", help="also maps in channels-last memory")
    add("--tf32", action="store_true", help="allow TF32 for float32 on a GPU, in products and in "
        "convolutions alike; otherwise both are forbidden")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--threads", type=count, metavar="N", help="CPU threads (default: torch's)")
    add("--busy", type=count, metavar="N", help="keep N cores busy meanwhile, as a machine that is "
        "not one's own does: N processes that compute all the time, at the same priority")
    add("--repeats", type=count, metavar="N", help="timed calls of each form, at most (default: 15 "
        "on a CPU, 50 on a GPU)")
    add("--seconds", type=float, default=3, metavar="S", help="no further repeat of a table that "
        "has taken so long, but at least 3 (default: 3)")
    add("--seed", type=int, default=0, metavar="N", help="of the random inputs (default: 0)")
    parser.add_files(plot=True)
    options = parser.parse(words)
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise UserError(f"argument --plot: expected a .png or .svg file, got {options.plot}")
    return options


def run(options):
    import corr_measure

    with busy(options.busy or 0):
        bench = corr_measure.Bench(options)
        results = {"schema": SCHEMA, **bench.header()}
        show_header(results)
        for name in dict.fromkeys(options.op):
            op = operator(name)
            for size in corr_measure.sizes(op, options):
                for index, rows in enumerate(bench.measure(op, size)):
                    show(rows, index == 0)
                    results["rows"] += rows
    return results


def failures(results) -> Iterator[str]:
    """Forms of ours that did not compute the right thing, or did not run for another reason than
    memory."""
    for row in results["rows"]:
        if row["ours"] and failed(row):
            yield f"{title(row)}, {row['mode']}, {row['form']}: {row['status']}"


def draw(results, file):
    import corr_figure

    corr_figure.draw(results, file)


def main(words=None):
    return run_benchmark("corr_bench.py", words, None, SCHEMA, parse=parse, run=run, show=show_all,
                         failures=failures, draw=draw)


if __name__ == "__main__":
    with surviving():
        sys.exit(main())
