"""What the compiler made of the CUDA kernels, and what that predicts. Nothing runs on a GPU.

Reads a built library with `cuobjdump`: registers, local memory, the loops of the machine code. Of
each kernel of the paper's size (batch 7, 64 x 64 by 64 x 64, m 35, 128 outputs) it says

  registers, spills   of a thread; local loads and stores in the code
  shared              KiB of a block
  instructions        a thread issues for each element of the map: the code of the loops, with what
                      runs at edges only, and with 64 features where products go by 64
  loads ahead         of 16 bytes, by a thread in a step of the product before it waits for one; and
                      tiles of the gradient that are copied ahead
  waves               blocks over what the GPU holds at once, which registers and shared memory say
  PREDICTED ms        the longest of three: bytes over bandwidth, matrix instructions over the rate
                      of the tensor cores, instructions over what the schedulers issue

A prediction is a floor: nothing of it was measured, and it knows of no latency.

  python benchmarks/kernel_table.py --commit HASH --json FILE     of pose_kernels/_C_cuda.so
  python benchmarks/kernel_table.py --read BEFORE AFTER           the table of docs/kernels.md
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from command import check_output

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result
from posemodel.runtime.output import surviving

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK, SCHEMA = "kernel_table", 1

#: One H200 SXM. Bandwidth and rates, dense: NVIDIA H200 Tensor Core GPU datasheet (4.8 TB/s; TF32
#: 989 TFLOP/s and float32 67 TFLOP/s, the first with sparsity, twice the dense rate). The rest:
#: NVIDIA H100 Tensor Core GPU Architecture whitepaper (132 multiprocessors of 4 schedulers and 128
#: float32 cores; 65536 registers, 2048 threads, 228 KiB of shared memory, of which each block takes
#: 1 KiB more than it asks for). The clock is the one at which 128 cores make the float32 rate.
GPU = {
    "multiprocessors": 132, "schedulers": 4, "bytes_per_s": 4.8e12, "tf32_per_s": 989e12 / 2,
    "clock_hz": 67e12 / (2 * 128 * 132), "registers": 65536, "threads": 2048,
    "shared_bytes": 228 << 10, "shared_of_a_block": 1 << 10,
}
#: The paper's size.
BATCH, POSITIONS, FEATURES, OUTPUTS = 7, 4096, 35, 128
ELEMENTS = BATCH * POSITIONS**2
THREADS, WARP, TILE = 256, 32, 128
#: Of a matrix instruction at the rate of TF32; one of 16 bits does twice that at twice the rate.
MATRIX_OPERATIONS = 2 * 16 * 8 * 8
#: Passes of TF32 (or the pairs of 16 bits of csrc/cuda/product.cuh) and type of the map. A library
#: that has no pairs multiplies 16 bits in one pass.
PRECISIONS = {"float32": ((3,), "float"), "TF32": ((1,), "float"),
              "bfloat16": ((17, 1), "BFloat16")}
PAIRS = 16


@dataclass(frozen=True)
class Kernel:
    name: str
    symbol: str  # {p}: passes, {w}: of what is computed, {e}: the map's type
    kind: str  # how its loops lie: a product in a walk over tiles, sums of features, or a sweep
    blocks: int  # of a launch
    launches: int = 1
    maps: int = 0  # that it reads or writes


def walk_blocks() -> int:
    """make_walk of csrc/cuda/product.cuh."""
    tiles = POSITIONS // TILE
    return BATCH * tiles * min(-(-1024 // (BATCH * tiles)), tiles, 32)


def sweep_blocks() -> int:
    """plan_sweep of csrc/cuda/readout_tiles.cuh."""
    rows = BATCH * POSITIONS // 64
    return rows * min(-(-512 // rows), POSITIONS // 256)


WALK, SWEEP = walk_blocks(), sweep_blocks()
#: plan_gradients of csrc/cuda/feature_gradients.cuh: 16 x 16 tiles a piece.
PIECES = BATCH * (POSITIONS // TILE // 16) ** 2
KERNELS = (
    Kernel("row maxima", "row_maxima_kernel<float, {p}>", "walk", WALK),
    Kernel("their places", "locate_maxima_kernel<float, {p}>", "", BATCH * POSITIONS // 32),
    Kernel("column sums", "column_sums_kernel<float, {p}, void>", "walk", WALK),
    Kernel("map", "write_map_kernel<float, {p}, {e}, true>", "walk", WALK, maps=1),
    Kernel("column sums with G", "column_sums_kernel<float, {p}, {e}>", "walk", WALK, maps=1),
    Kernel("dC", "map_gradient_kernel<float, {p}, {e}, true>", "walk", 512, PIECES, maps=1),
    Kernel("both small products", "feature_gradients_kernel<float, {w}>", "features", 256, PIECES),
    Kernel("best sources", "column_best_kernel<float, {p}, false>", "walk", WALK),
    Kernel("readout", "readout_kernel<float, {p}, true>", "sweep", SWEEP),
    Kernel("readout, values", "readout_kernel<float, {p}, false>", "sweep", SWEEP),
    Kernel("readout, sources", "readout_gradient_kernel<float, {p}, true>", "sweep", SWEEP),
    Kernel("readout, targets", "readout_gradient_kernel<float, {p}, false>", "sweep", SWEEP),
)


# --- the machine code -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    first: int
    last: int
    instructions: tuple[str, ...]

    def contains(self, other: "Loop") -> bool:
        return self != other and self.first <= other.first and other.last <= self.last

    def count(self, operation: str = "") -> int:
        return sum(x.startswith(operation) for x in self.instructions)


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel with their addresses, and what it needs."""

    instructions: tuple[tuple[int, str], ...]
    registers: int

    def count(self, operation: str) -> int:
        return sum(x.startswith(operation) for _, x in self.instructions)

    def loops(self) -> list[Loop]:
        found = []
        for at, text in self.instructions:
            target = re.search(r"(0x[0-9a-f]+)$", text) if text.startswith("BRA") else None
            if target and (first := int(target[1], 16)) < at:
                body = tuple(x for place, x in self.instructions if first <= place <= at)
                found.append(Loop(first, at, body))
        return found

    def products(self) -> list[Loop]:
        """The innermost loops with matrix instructions, in the order of the code."""
        loops = [loop for loop in self.loops() if loop.count("HMMA")]
        return sorted((loop for loop in loops if not any(loop.contains(x) for x in loops)),
                      key=lambda loop: loop.first)

    def around(self, products: list[Loop]) -> Loop:
        """The smallest loop around all of them."""
        return min((loop for loop in self.loops() if all(loop.contains(x) for x in products)),
                   key=lambda loop: loop.last - loop.first)


def tool() -> str:
    """cuobjdump of the toolkit, or the one that comes with Triton."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton
        except ImportError:
            raise UserError("cuobjdump: not found; it comes with the CUDA toolkit and with Triton"
                            ) from None
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found


def dump(library: Path, what: str, architecture: str) -> list[str]:
    command = [tool(), what, "-arch", architecture, str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or "Function" not in done.stdout:
        raise UserError(f"{library}: no code for {architecture}: {done.stderr.strip()[-300:]}")
    plain = subprocess.run(["c++filt"], input=done.stdout, capture_output=True, text=True).stdout
    return re.sub(r"pose_kernels::|c10::|torch::headeronly::", "", plain).splitlines()


def name_of(line: str) -> str | None:
    """Of a kernel, without its arguments."""
    found = re.search(r"Function ?:? (?:void )?(\w+(?:<.*?>)?)[(:]", line)
    return found[1] if found else None


def read_library(library: Path, architecture: str) -> dict[str, Code]:
    registers, name = {}, None
    for line in dump(library, "-res-usage", architecture):
        name = name_of(line) or name
        if used := re.search(r"REG:(\d+)", line):
            registers[name] = int(used[1])
    kernels, name = {}, None
    for line in dump(library, "-sass", architecture):
        if begun := name_of(line):
            name, kernels[begun] = begun, []  # every source has copies: one counts
        found = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line)
        if found and name:
            text = re.sub(r"^@!?U?P\w+\s+", "", found[2])
            kernels[name].append((int(found[1], 16), text))
    return {name: Code(tuple(code), registers[name]) for name, code in kernels.items()}


# --- a row ----------------------------------------------------------------------------------------


def counted(code: Code, kind: str, passes: int) -> tuple[float, float]:
    """Instructions of a thread for an element of the map, and those of them that are products of
    matrices, at the paper's size."""
    step = 16 if passes >= PAIRS else 8
    times, steps = 3 if passes == 3 else 1, -(-FEATURES // step)
    products = code.products()
    if kind == "features":  # a turn of either side: 16 x 32 elements, 2 warps share the features
        return tuple(sum(x.count(of) for x in products) * 2 / 16 for of in ("", "HMMA"))
    made = products[: 2 if kind == "gradient" else 1]
    walk = code.around(made)
    trips = [steps, -(-OUTPUTS // step)][: len(made)]
    elements = made[0].count("HMMA") // times * 4
    found = []
    for of in ("", "HMMA"):
        turn = walk.count(of) + sum((n - 1) * x.count(of) for n, x in zip(trips, made, strict=True))
        found.append(turn / elements)
    if kind != "walk":  # X times values or features: 32 x 16 elements, which 4 warps share
        wide = 2 if kind == "gradient" else 4  # fragments of a warp; 35 features are 5 of them
        (product,) = (x for x in products[len(made):] if x.count("HMMA") == 4 * wide * times)
        found = [a + product.count(of) * 4 / 16 for a, of in zip(found, ("", "HMMA"), strict=True)]
    return tuple(found)


def shared_bytes(kernel: Kernel, copied: int, map_bytes: int) -> int:
    """Dynamic shared memory, which is in no library: ColumnSumsShared, MapGradientShared and
    SweepShared of csrc/cuda."""
    if kernel.kind == "sweep":
        return 4 * 64 * (256 + 8) + 4 * 4 * 64 + 20
    if "column_sums" in kernel.symbol or "map_gradient" in kernel.symbol:
        return 1024 + copied * 2 * 4 * 4 * THREADS * map_bytes
    return 0


def blocks_at_once(registers: int, shared: int) -> int:
    of_registers = GPU["registers"] // (-(-registers // 8) * 8 * THREADS)
    of_shared = GPU["shared_bytes"] // (shared + GPU["shared_of_a_block"])
    return min(of_registers, of_shared, GPU["threads"] // THREADS)


def make_row(kernel: Kernel, precision: str, passes: int, code: Code) -> dict:
    map_bytes = 2 if precision == "bfloat16" else 4
    copied = 2 if code.count("LDGSTS") else 0  # tiles of the gradient
    shared = shared_bytes(kernel, copied, map_bytes)
    held = GPU["multiprocessors"] * blocks_at_once(code.registers, shared)
    first = code.products()[0].instructions
    matrix = next(i for i, x in enumerate(first) if x.startswith("HMMA"))
    row = {"kernel": kernel.name, "precision": precision, "registers": code.registers,
           "spills": code.count("LDL") + code.count("STL"), "shared_bytes": shared,
           "loads_ahead": sum(x.startswith("LDG") for x in first[:matrix]),
           "tiles_ahead": copied, "launches": kernel.launches, "waves": kernel.blocks / held,
           "instructions": None, "matrix_instructions": None,
           "map_bytes": kernel.maps * map_bytes * ELEMENTS}
    if kernel.kind:
        gradient = kernel.symbol.startswith("readout_gradient")
        kind = "gradient" if gradient else kernel.kind
        row["instructions"], row["matrix_instructions"] = counted(code, kind, passes)
    return row | predicted(row)


def predicted(row: dict) -> dict:
    """What a row's figures make of the constants: milliseconds, and which of the three it is."""
    if row["instructions"] is None:
        return {"predicted_ms": None, "bound": None}
    warps = ELEMENTS / WARP
    issued = GPU["multiprocessors"] * GPU["schedulers"] * GPU["clock_hz"]
    seconds = {
        "bytes": row["map_bytes"] / GPU["bytes_per_s"],
        "products": warps * row["matrix_instructions"] * MATRIX_OPERATIONS / GPU["tf32_per_s"],
        "instructions": warps * row["instructions"] / issued}
    bound = max(seconds, key=seconds.get)
    return {"predicted_ms": 1e3 * seconds[bound], "bound": bound}


def make_rows(kernels: dict[str, Code]) -> list[dict]:
    rows = []
    for kernel in KERNELS:
        for precision, (all_passes, element) in PRECISIONS.items():
            for passes in all_passes:
                wide = 3 if passes == 3 else 1
                code = kernels.get(kernel.symbol.format(p=passes, w=wide, e=element))
                if code:
                    rows.append(make_row(kernel, precision, passes, code))
                    break
    return rows


# --- the table ------------------------------------------------------------------------------------


def shown(row: dict | None, key: str) -> str:
    value = row and row[key]
    if value is None:
        return "-"
    return f"{value:.2f}" if key == "predicted_ms" else f"{value:.1f}"


def change(before: dict | None, after: dict, key: str) -> str:
    old, new = shown(before, key), shown(after, key)
    return new if old == new else f"{old} → {new}"


def table(before: dict, after: dict) -> str:
    """Of two files, in Markdown."""
    old = {(row["kernel"], row["precision"]): row for row in before["rows"]}
    lines = ["| kernel | precision | registers | spills | shared, KiB | instructions an element "
             "| loads ahead | waves | PREDICTED ms, bound by |", "|" + "---|" * 9]
    for row in after["rows"]:
        was = old.get((row["kernel"], row["precision"]))
        ahead = f"{row['loads_ahead']}" + (", G 2 tiles" if row["tiles_ahead"] else "")
        many = f"{row['launches']} x " if row["launches"] > 1 else ""
        bound = f", {row['bound']}" if row["bound"] else ""
        cells = [row["kernel"], row["precision"], row["registers"], row["spills"],
                 math.ceil(row["shared_bytes"] / 1024), change(was, row, "instructions"), ahead,
                 many + change(was, row, "waves"), change(was, row, "predicted_ms") + bound]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kernel_table.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("library", type=Path, nargs="?", default=ROOT / "pose_kernels" / "_C_cuda.so")
    add("--architecture", default="sm_90", help="that the library was built for")
    add("--commit", default="", metavar="HASH", help="what the library was built from")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--force", action="store_true", help="let --json overwrite a file")
    add("--read", type=Path, nargs=2, metavar=("BEFORE", "AFTER"),
        help="show what --json wrote of two libraries; read none")
    options = parser.parse_args(words)
    check_output("--json", options.json, options.force)
    return options


def main(words: list[str] | None = None) -> int:
    try:
        options = parse(words)
        if options.read:
            print(table(*(json.loads(file.read_text()) for file in options.read)))
            return 0
        results = {"benchmark": BENCHMARK, "schema": SCHEMA, "commit": options.commit,
                   "architecture": options.architecture, "gpu": GPU,
                   "rows": make_rows(read_library(options.library, options.architecture))}
        print(table(results, results))
        if options.json:
            write_result(options.json, json.dumps(results, indent=1, allow_nan=False) + "\n")
    except UserError as mistake:
        print(f"kernel_table.py: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with surviving():
        sys.exit(main())
