"""What corr_bench.py and step_bench.py share as commands: arguments, exit codes, files of results,
and the look of a table. Loads neither torch nor the models, so that --help answers at once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# Beside an installed package the one of this checkout is a fallback.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from posemodel.runtime.errors import UserError  # noqa: E402
from posemodel.runtime.files import write_result  # noqa: E402

OK, OUT_OF_MEMORY = "ok", "out of memory"


class Parser(argparse.ArgumentParser):
    """The arguments of a benchmark. A mistake in them is a `UserError`."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(message)

    def add_files(self, *, plot: bool = False) -> None:
        """Where results go and where they come from."""
        add, files, show = self.add_argument, "--json", "show"
        if plot:
            files, show = "--json and --plot", "show or plot"
        add("--commit", metavar="HASH", help="what is measured, where git cannot tell")
        add("--json", type=Path, metavar="FILE", help="write every figure, versions and machine")
        if plot:
            add("--plot", type=Path, metavar="FILE", help="draw a figure, .png or .svg")
        add("--read", type=Path, metavar="FILE", help=f"{show} what --json wrote; measure nothing")
        add("--force", action="store_true", help=f"let {files} overwrite a file")

    def parse(self, words: list[str] | None) -> argparse.Namespace:
        """The options; those of `add_files` and --seconds are checked."""
        options = self.parse_args(words)
        for flag in ("json", "plot"):
            check_output(f"--{flag}", getattr(options, flag, None), options.force)
        if options.read and options.json:
            raise UserError("argument --json: not allowed with --read, which measures nothing")
        if not options.seconds >= 0:
            raise UserError(
                f"argument --seconds: expected no negative number, got {options.seconds}")
        return options


def count(text: str) -> int:
    """An argument that is 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


count.__name__ = "positive number"  # as argparse calls what it expected


def check_output(flag: str, file: Path | None, force: bool) -> None:
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise UserError(f"argument {flag}: there is no folder {file.parent}")
    if file.is_dir() or (file.exists() and not force):
        raise UserError(f"argument {flag}: {file} exists (--force overwrites a file)")


def read_results(file: Path, benchmark: str | None, schema: int) -> dict:
    """What --json of that benchmark wrote; corr_bench.py, which was first, is `None` there."""
    try:
        results = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"argument --read: {file}: {error.strerror}") from None
    except ValueError:
        results = None
    if not isinstance(results, dict) \
            or (results.get("benchmark"), results.get("schema")) != (benchmark, schema):
        raise UserError(f"argument --read: {file} was not written by --json of this version")
    return results


def run_benchmark(program: str, words: list[str] | None, benchmark: str | None, schema: int, *,
                  parse: Callable, run: Callable, show: Callable,
                  failures: Callable[[dict], Iterable[str]], draw: Callable | None = None) -> int:
    """From the words of a command to its exit code: 1 where anything failed, 2 for a mistake.

    Args:
        benchmark, schema: as `read_results` finds them in the file of --read.
        parse: words -> options.
        run: options -> results, which it also shows.
        show: results of --read.
        failures: results -> a line for each form that failed.
        draw: results, file of --plot.
    """
    try:
        options = parse(words)
        if options.read:
            show(results := read_results(options.read, benchmark, schema))
        else:
            results = run(options)
        if options.json:
            write_result(options.json, json.dumps(results, indent=1, allow_nan=False) + "\n")
    except UserError as mistake:
        print(f"{program}: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted, nothing written", file=sys.stderr)
        return 130
    if draw and options.plot:
        draw(results, options.plot)
    lines = list(failures(results))
    for line in lines:
        print(f"{program}: {line}", file=sys.stderr)
    return 1 if lines else 0


def failed(row: dict) -> bool:
    """Whether that is a fault; a machine that is too small is none."""
    return row["status"] not in (OK, OUT_OF_MEMORY)


def show_origin(results: dict, more: str) -> None:
    """Two lines: the machine, with `more` about it, and the software."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items()
                         if version)
    changed = ", changed since" if results["changed"] else ""
    print(f"{results['machine']}: {results['device']}, {results['threads']} CPU threads, {more}")
    print(f"{versions}; commit {(results['commit'] or 'unknown')[:12]}{changed}")


def number(value: float | None, digits: int = 3) -> str:
    """About three digits, no exponent."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else digits - 1}f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{number(ratio)}x"


def columns(cells: Iterable[str], widths: Iterable[int]) -> str:
    """A line of a table, flush right."""
    return "".join(f"{cell:>{width + 1}}" for cell, width in zip(cells, widths, strict=True))
