"""Registers and spills of the kernels per architecture: of those that resources/<op>.cu names, in
the types that matter, as nvcc reports them; or of all that are in a library.

``python tests/emulation/resources.py [80 90 100]`` compiles the former and prints a table; exit
code 1: a kernel spills.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("80", "90", "100")
KERNEL = re.compile(r"Compiling entry function '(\w+)'")
NUMBERS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def report(architecture: str, nvcc: str = "nvcc") -> list[tuple[str, int, int]]:
    """(kernel, registers, bytes spilled) for every kernel."""
    import torch

    include = Path(torch.__file__).parent / "include"
    sources = sorted(str(p) for p in (HERE / "resources").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", f"-arch=sm_{architecture}"]
        command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += [f"-I{HERE.parent.parent / 'csrc'}", "-isystem", str(include), "all.cu"]
        # As one translation unit: the headers cost more time than the sources do.
        Path(folder, "all.cu").write_text("".join(f'#include "{s}"\n' for s in sources))
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}"[-4000:])
    found, name, spilled = [], None, 0
    for line in (done.stdout + done.stderr).splitlines():
        if match := KERNEL.search(line):
            name = match[1]
        elif match := NUMBERS.search(line):
            spilled = sum(int(n) for n in match.groups())
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            found.append((name, int(match[1]), spilled))
            name = None
    return with_plain_names(found)


def with_plain_names(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    plain = subprocess.run(["c++filt"], input="\n".join(n for n, _, _ in found),
                           capture_output=True, text=True).stdout.splitlines()
    short = [re.sub(r"pose_kernels::|c10::|^void |\(.*", "", n) for n in plain]
    rows = {(n, r, s) for n, (_, r, s) in zip(short, found, strict=True)}
    return sorted(row for row in rows if "cub::" not in row[0])  # the toolkit's own sort


def cuobjdump() -> str | None:
    """The toolkit's, or the one that comes with Triton."""
    package = importlib.util.find_spec("triton")
    own = Path(package.origin).parent / "backends/nvidia/bin/cuobjdump" if package else None
    return shutil.which("cuobjdump") or (str(own) if own and own.exists() else None)


def of_library(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """By architecture (kernel, registers, bytes of stack, which only spilled registers use here) of
    every kernel in a compiled library."""
    done = subprocess.run([cuobjdump(), "--dump-resource-usage", str(path)], capture_output=True,
                          text=True, check=True)
    found = {}
    for part in done.stdout.split("arch = sm_")[1:]:
        rows = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", part)
        found.setdefault(part.split()[0], []).extend((n, int(r), int(s)) for n, r, s in rows)
    return {architecture: with_plain_names(rows) for architecture, rows in found.items()}


def main() -> int:
    spilling = 0
    for architecture in sys.argv[1:] or ARCHITECTURES:
        for name, registers, spilled in report(architecture):
            numbers = f"{registers:>4} registers {spilled:>4} bytes of stack and spills"
            print(f"sm_{architecture}  {name:<52} {numbers}")
            spilling += spilled > 0
    print(f"{spilling} kernels spill" if spilling else "no kernel spills")
    return spilling > 0


if __name__ == "__main__":
    sys.exit(main())
