"""What a command does where it cannot print: every kind of stdout, the work always done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posemodel.runtime.output import Output, surviving

ROOT = Path(__file__).resolve().parents[2]
PRINTS = "╭─ quick ─╮ 64 × 64 – 1 ± 2 é 中"
# A command that prints before and after its work, much more than a pipe's buffer.
COMMAND = f"""
import pathlib, sys
from posemodel.runtime.main import run_main
from tqdm import tqdm

def main(argv):
    for _ in range(4000):
        print({PRINTS!r}, flush=True)
        tqdm.write({PRINTS!r})
    print({PRINTS!r}, file=sys.stderr)
    print("a name \\udcff", flush=True)
    pathlib.Path(argv[0]).write_text("done")
    print({PRINTS!r})
    return 0

run_main(main)
"""


def run(shell: str, done: Path, **environment) -> subprocess.CompletedProcess:
    """`shell` with the command for `$C`."""
    script = done.with_suffix(".py")
    script.write_text(COMMAND, encoding="utf-8")
    return subprocess.run(["bash", "-c", shell.replace("$C", f"'{sys.executable}' '{script}' "
                                                       f"'{done}'")],
                          cwd=ROOT, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


@pytest.mark.parametrize(("encoding", "line"), [
    ("utf-8", PRINTS), ("ascii", "+- quick -+ 64 x 64 - 1 +- 2 ? ?"),
    ("latin-1", "+- quick -+ 64 × 64 - 1 ± 2 é ?"), ("cp1252", "+- quick -+ 64 × 64 – 1 ± 2 é ?"),
    ("ascii:surrogateescape", "+- quick -+ 64 x 64 - 1 +- 2 ? ?")])
def test_every_encoding(encoding, line, tmp_path):
    done = run("$C", tmp_path / "done", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and (tmp_path / "done").read_text() == "done", done.stderr
    line, lines = line.encode(encoding.partition(":")[0]), done.stdout.splitlines()
    assert len(lines) == 8002 and set(lines) == {line, b"a name \xff"}
    assert done.stderr == line + b"\n"


@pytest.mark.parametrize("shell", [
    "$C | head -n 1; exit ${PIPESTATUS[0]}", "$C >&-", "$C >&- 2>&-", "$C 2>&-",
    "$C | true; exit ${PIPESTATUS[0]}"])
def test_a_reader_that_leaves_or_never_was(shell, tmp_path):
    done = run(shell, tmp_path / "done")
    assert done.returncode == 0 and (tmp_path / "done").read_text() == "done", done.stderr
    assert done.stderr.decode() in ("", PRINTS + "\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_said_and_the_work_done(tmp_path):
    done = run("$C > /dev/full", tmp_path / "done")
    assert (tmp_path / "done").read_text() == "done"
    assert done.returncode == 1 and done.stderr.decode() == (
        f"{PRINTS}\nerror: not all that was to be printed could be written (No space left on "
        "device)\n")


def test_the_numbers_of_closed_streams_are_not_given_to_files(tmp_path):
    code = ("import os; from posemodel.runtime.output import surviving\n"
            f"with surviving():\n    file = open({str(tmp_path / 'file')!r}, 'w')\n"
            "    os.write(1, b'a library prints'); assert file.fileno() > 2\n")
    subprocess.run(["bash", "-c", f"'{sys.executable}' -c \"$CODE\" >&-"], cwd=ROOT, check=True,
                   timeout=60, env={**os.environ, "CODE": code, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "file").read_bytes() == b""


def test_everything_else_of_the_stream_stays_and_comes_back(capsys):
    before = sys.stdout
    with surviving() as stdout:
        assert sys.stdout is stdout and isinstance(sys.stderr, Output)
        assert stdout.encoding == before.encoding and stdout.isatty() == before.isatty()
        print("here", end="")
    assert sys.stdout is before and capsys.readouterr().out == "here"
