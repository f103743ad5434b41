"""What the README's first command spends its time on, in an environment that has nothing.

    python benchmarks/install_bench.py --json FILE             # the install
    python benchmarks/install_bench.py --train --json FILE     # and the default training after it

Seconds on the clock, and seconds of CPU time of all processes, which a busy machine changes less.
The install is that of SOURCES (default: this checkout), with MAX_JOBS, TORCH_CUDA_ARCH_LIST and the
variables of pip as they are.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
# What pip's -v prints where a part begins.
PARTS = {
    "tools for the build": None,
    "torch for the build": r"pip subprocess to install backend dependencies",
    "metadata, finding packages": r"Preparing editable metadata",
    "C++, compiled and linked": r"building 'pose_kernels\._C_cpu' extension",
    "CUDA, compiled and linked": r"building 'pose_kernels\._C_cuda' extension",
    "installing what it needs": r"Building editable for posetransfer .* finished",
}


def cpu_seconds(session: int) -> float:
    """CPU time of all processes of a session so far, those that have ended too."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended since
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def parts_of(command: list[str], env: dict[str, str], beginnings: dict) -> list[dict]:
    """Runs a command in a session of its own, and divides its time where a line begins a part."""
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    waiting, found, tail = dict(beginnings), [], []
    name, began, spent = next(iter(waiting)), time.monotonic(), 0.0
    del waiting[name]

    def close(now: float, used: float) -> None:
        found.append({"part": name, "wall_s": round(now - began, 1),
                      "cpu_s": round(used - spent, 1)})
        print(f"{name:32}{now - began:8.1f} s {used - spent:8.1f} s of CPU time", flush=True)

    for line in process.stdout:
        tail = [*tail[-40:], line]
        new = next((part for part, text in waiting.items() if re.search(text, line)), None)
        if new is not None:
            now, used = time.monotonic(), cpu_seconds(process.pid)
            close(now, used)
            name, began, spent = new, now, used
            del waiting[new]
    # Its own times are there until it is waited for, with those of all that it has waited for.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    close(time.monotonic(), cpu_seconds(process.pid))
    if process.wait() != 0:
        sys.exit("".join(tail) + f"{command[0]} ended with {process.returncode}")
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="?", type=Path, default=HERE, metavar="SOURCES")
    parser.add_argument("--train", action="store_true", help="the default training, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        env = {name: value for name, value in os.environ.items()
               if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        python = str(Path(folder) / "bin" / "python")
        parts = parts_of([python, "-m", "pip", "install", "-v", "-e", str(options.sources)], env,
                         PARTS)
        if options.train:
            out = str(Path(folder) / "run")
            parts += parts_of([python, "-m", "posemodel.train", "--out", out], env,
                              {"training": None})
    results = {"benchmark": "install", "cores": len(os.sched_getaffinity(0)),
               "jobs": os.environ.get("MAX_JOBS"), "python": platform.python_version(),
               "parts": parts}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
