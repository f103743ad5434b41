"""The folder that a run lives in.

    runs/quick/
      config.json    what the run is; the same command again continues it
      command.txt    every command that started or continued it
      env.json       versions, hardware, state of the checkout
      log.txt        what the terminal showed
      metrics.jsonl  training, one line every --log-every steps
      eval.jsonl     validation pairs, one line for each evaluation
      samples/       step_000300.png, the same pairs every time
      checkpoints/   see checkpoint.py
      report.html    DONE    lock

One process trains in a folder at a time; of a job of several the first one, which writes for all.
Lines are flushed to the disk as they are written; on resume `truncate_to` drops those that the
restored checkpoint has not seen yet.
"""

import contextlib
import itertools
import json
import math
import os
import shlex
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

import pose_kernels
from pose_kernels import _dispatch
from posemodel.config.sections import Config
from posemodel.config.stored import drift, free_changes, from_dict, to_dict
from posemodel.runtime import environment
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside, writing
from posemodel.runtime.folder import run_folder


class RunFolder:
    """One run's folder; made by `open` (to train) or `open_existing` (to look)."""

    def __init__(self, path: Path, config: Config, *, resumed: bool, lock=None):
        self.path, self.config, self.resumed = path, config, resumed
        self._lock = lock

    @classmethod
    def open(cls, config: Config, argv: list[str], processes: int = 1,
             weights: dict | None = None) -> "RunFolder":
        """Make the folder `config.out`, or continue the run that is in it, by so many processes.

        Args:
            weights: what the reconstruction loss says of published weights that it uses.

        Raises: `UserError` when that is not possible; an existing folder is then as it was."""
        path = Path(config.out)
        own = run_folder(path)
        try:
            with contextlib.ExitStack() as until_open:
                lock = until_open.enter_context(own.lock("training in"))
                saved = _read_config(path) if own.record.exists() else None
                if saved is not None:
                    _refuse_drift(path, saved, config, argv)
                run = cls(path, config, resumed=saved is not None, lock=lock)
                run._start(saved, argv, processes, weights)
                until_open.pop_all()
            return run
        except OSError as error:
            raise UserError(f"--out {path}: cannot write there ({error.strerror or error})"
                            ) from error

    @classmethod
    def open_existing(cls, path: str | Path) -> "RunFolder":
        """A run folder to read from; takes no lock and writes nothing."""
        path = Path(path)
        return cls(path, _read_config(path), resumed=True)

    def _start(self, saved: Config | None, argv: list[str], processes: int,
               weights: dict | None) -> None:
        # config.json comes first: with it the folder is a run and can be continued.
        run_folder(self.path).write(to_dict(self.config))
        for folder in ("samples", "checkpoints"):
            (self.path / folder).mkdir(exist_ok=True)
        before = self.read_environment()
        kernels = {op: {name: entry.reason or "available" for name, entry in table.items()}
                   for op, table in pose_kernels.implementations().items()}
        now = environment.collect(processes) | {"pose_kernels": kernels,
                                                "reconstruction_weights": weights}
        write_aside(self.path / "env.json", json.dumps(now, indent=2) + "\n")
        command = f"{shlex.join(['python', '-m', 'posemodel.train', *argv])}  # {_now()}"
        _append(self.path / "command.txt", command)
        _append(self.path / "log.txt", f"--- {command}")
        if saved is not None:
            for line in free_changes(saved, self.config):
                self.log(f"changed since the last start: {line}")
            for key in sorted(now.keys() & before.keys()):
                if before[key] != now[key]:
                    self.log(f"changed since the last start: {key}: {before[key]} -> {now[key]}")
            if before.get("processes", processes) != processes:
                self.log("with another number of processes the run goes on equal to within "
                         "rounding, not to the bit")

    # --- writing ------------------------------------------------------------------------------

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Around everything that writes into the folder while a run is at work.
        Raises: `UserError`, one line, when the disk is full or the folder cannot be written."""
        return writing(f"into {self.path}", then="; what is there stays as it was, and the same "
                       "command continues from the last checkpoint")

    def log(self, line: str) -> None:
        """To the terminal and, from the process that trains, to log.txt."""
        tqdm.write(line)  # print, but it keeps clear of a progress bar
        if self._lock is not None:
            with self.writing(), (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def append_metrics(self, row: dict) -> None:
        """One line of metrics.jsonl; NaN and infinity become null."""
        self._append_row("metrics.jsonl", row)

    def append_evaluation(self, row: dict) -> None:
        """One line of eval.jsonl; NaN and infinity become null."""
        self._append_row("eval.jsonl", row)

    def _append_row(self, name: str, row: dict) -> None:
        self._require_lock()
        with self.writing():
            _append(self.path / name, json.dumps(_strict(row), allow_nan=False))

    def truncate_to(self, step: int) -> None:
        """Back to a checkpoint: drop the lines of later steps, a torn last line, and DONE."""
        self._require_lock()
        with self.writing():
            for name in ("metrics.jsonl", "eval.jsonl"):
                path = self.path / name
                if path.exists():
                    rows = [row for row in _read_lines(path) if row.get("step", 0) <= step]
                    write_aside(path, "".join(json.dumps(row) + "\n" for row in rows))
            (self.path / "DONE").unlink(missing_ok=True)

    def mark_done(self) -> None:
        """The run has reached its last step."""
        self._require_lock()
        with self.writing():
            write_aside(self.path / "DONE", _now() + "\n")

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.path} was opened to be read, or is closed")

    # --- reading ------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its last step."""
        return (self.path / "DONE").exists()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def sample_path(self, step: int) -> Path:
        """Where the sample picture of a step belongs."""
        return self.path / "samples" / f"step_{step:06d}.png"

    def read_metrics(self) -> list[dict]:
        """The readable lines of metrics.jsonl."""
        return _read_lines(self.path / "metrics.jsonl")

    def read_evaluations(self) -> list[dict]:
        """The readable lines of eval.jsonl."""
        return _read_lines(self.path / "eval.jsonl")

    def read_environment(self) -> dict:
        """env.json; empty if it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            values = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
            return values if isinstance(values, dict) else {}
        return {}

    def last_command(self) -> str:
        """The command that started or last continued the run; empty if it is not known."""
        with contextlib.suppress(OSError):
            lines = (self.path / "command.txt").read_text(encoding="utf-8").splitlines()
            return lines[-1] if lines else ""
        return ""

    # --- the lock -----------------------------------------------------------------------------

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _read_config(path: Path) -> Config:
    with run_folder(path).reading() as values:
        return from_dict(values)


def _refuse_drift(path: Path, saved: Config, wanted: Config, argv: list[str]) -> None:
    lines = drift(saved, wanted)
    if not lines:
        return
    shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
    why = " (other steps change the whole course of the run)" \
        if saved.steps != wanted.steps else ""
    anew = "Start a new one with another --out"
    if (path / "checkpoints" / "LATEST").exists():
        anew = f"Start a new one from its weights: {_new_run(path, saved, wanted, argv)}"
    raise UserError(f"{path} holds another run: {shown}{why}. {anew}; or continue this one with "
                    f"its own command (the last in {path}/command.txt)")


def _new_run(path: Path, saved: Config, wanted: Config, argv: list[str]) -> str:
    """The command of a new run from the weights in `path`, with what was asked for by `argv`."""
    parts = iter(argv)
    words = []
    for word in parts:
        flag, equals, _ = word.partition("=")
        if flag not in ("--out", "--init", "--steps"):
            words.append(word)
        elif not equals:
            next(parts, None)  # its value
    # A longer run: the steps that the weights have not seen yet.
    steps = wanted.steps - saved.steps if wanted.steps > saved.steps else wanted.steps
    out = next(name for number in itertools.count(2)
               if not (name := path.with_name(f"{path.name}-{number}")).exists())
    return shlex.join(["python", "-m", "posemodel.train", *words, "--steps", str(steps),
                       "--init", str(path), "--out", str(out)])


def _now() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"


def _strict(value):
    """Plain JSON values: numbers of other libraries become Python's, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path) -> list[dict]:
    """The rows of a JSON lines file; a line that a kill left torn is skipped."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def kernels_on(device: torch.device) -> str:
    """Which implementation the two ops of the model use on `device`, and why no better one."""
    return _dispatch.summary(("guided_correlation", "flow_sample"), device)
