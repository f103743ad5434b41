"""The ordinary commands, each in a process of its own, and where they find and leave things."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from posemodel.runtime.errors import UserError


def add_places(parser: argparse.ArgumentParser, *, weights_for: str) -> None:
    """The flags --out, --device and --weights, which all tables have."""
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR",
                        help="folder for tables and runs (default: runs/reproduce)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help=f"folder of published weights, for {weights_for}, looked into before "
                             "that of the variable POSEMODEL_WEIGHTS and torch hub's cache")


def run_command(module: str, *words, threads: int, running: set | None = None) -> None:
    """`python -m module words...`, without what it prints; ended where the caller is interrupted.

    Args:
        threads: CPU threads that it may take.
        running: the process is in it for as long as it runs.

    Raises: `UserError` with what the command says of its end, where that is not a good one.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    running = set() if running is None else running
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    running.add(process)
    try:
        _, errors = process.communicate()
    except BaseException:
        process.terminate()
        raise
    finally:
        running.discard(process)
    if process.returncode:
        said = [line for line in errors.splitlines() if line.strip()]
        raise UserError(f"{' '.join(command[1:])} ended with code {process.returncode}: "
                        f"{said[-1] if said else 'no message'}")
