"""The folder that a run lives in.

    runs/quick/
      config.json    what the run is; the same command again continues it
      command.txt    every command that started or continued it
      env.json       versions, hardware, state of the checkout
      log.txt        what the terminal showed
      metrics.jsonl  training, one line every --log-every steps
      eval.jsonl     held-out pairs, one line for each evaluation
      samples/       step_000300.png, the same pairs every time
      checkpoints/   see checkpoint.py
      report.html    DONE    lock

One process trains in a folder at a time; of a job of several the first one, which writes for all.
Lines are flushed to the disk as they are written; on resume `truncate_to` drops those that the
restored checkpoint has not seen yet.
"""

import contextlib
import fcntl
import json
import math
import os
import shlex
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from posemodel.config import Config, ConfigError, drift, free_changes, from_dict, to_dict
from posemodel.engine import environment
from posemodel.errors import UserError
from posemodel.files import write_aside

# What a start that was killed before it wrote config.json leaves behind.
_FIRST_FILES = {"lock", "config.json.tmp"}

_locks: "weakref.WeakSet" = weakref.WeakSet()


def _close_locks_in_child() -> None:
    # A lock lives as long as any copy of its file descriptor: a data worker that outlives a killed
    # trainer would keep the folder locked.
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_locks_in_child)


class RunFolder:
    """One run's folder; made by `open` (to train) or `open_existing` (to look)."""

    def __init__(self, path: Path, config: Config, *, resumed: bool, lock=None):
        self.path, self.config, self.resumed = path, config, resumed
        self._lock = lock

    @classmethod
    def open(cls, config: Config, argv: list[str], processes: int = 1) -> "RunFolder":
        """Make the folder `config.out`, or continue the run that is in it, by so many processes.

        Raises: `UserError` when that is not possible; an existing folder is then as it was.
        """
        path = Path(config.out)
        _refuse_foreign(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            saved = _read_config(path) if (path / "config.json").exists() else None
            if saved is not None:
                _refuse_drift(path, saved, config)
            run = cls(path, config, resumed=saved is not None, lock=lock)
            run._start(saved, argv, processes)
        except OSError as error:
            lock.close()
            raise _cannot_write(path, error) from error
        except BaseException:
            lock.close()
            raise
        return run

    @classmethod
    def open_existing(cls, path: str | Path) -> "RunFolder":
        """A run folder to read from; takes no lock and writes nothing."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is no run folder: it has no config.json")
        return cls(path, _read_config(path), resumed=True)

    def _start(self, saved: Config | None, argv: list[str], processes: int) -> None:
        # config.json comes first: with it the folder is a run and can be continued.
        write_aside(self.path / "config.json", json.dumps(to_dict(self.config), indent=2) + "\n")
        for folder in ("samples", "checkpoints"):
            (self.path / folder).mkdir(exist_ok=True)
        before, now = self.read_environment(), environment.collect(processes)
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

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around everything that writes into the folder while a run is at work.

        Raises: `UserError`, one line, when the disk is full or the folder cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write into {self.path} ({error.strerror or error}); what is there stays "
                "as it was, and the same command continues from the last checkpoint") from error

    def log(self, line: str) -> None:
        """To the terminal and, from the process that trains, to log.txt."""
        tqdm.write(line)  # print, but it keeps clear of a progress bar
        if self._lock is not None:
            with self.writing(), (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def append_metrics(self, row: dict) -> None:
        """One line of metrics.jsonl; NaN and infinity become null."""
        self._require_lock()
        with self.writing():
            _append(self.path / "metrics.jsonl", json.dumps(_strict(row), allow_nan=False))

    def append_evaluation(self, row: dict) -> None:
        """One line of eval.jsonl; NaN and infinity become null."""
        self._require_lock()
        with self.writing():
            _append(self.path / "eval.jsonl", json.dumps(_strict(row), allow_nan=False))

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
        return _read_json(self.path / "env.json") or {}

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


def _refuse_foreign(path: Path) -> None:
    """Never write among files that are not ours."""
    try:
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    except OSError as error:
        raise _cannot_write(path, error) from error
    if "config.json" not in names and not names <= _FIRST_FILES:
        raise UserError(f"{path} is not empty and is no run folder (no config.json): "
                        "nothing was touched; choose another --out")


def _take_lock(path: Path):
    # The kernel drops the lock when the process ends in any way, so none can be left behind.
    lock = (path / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(f"another process (pid {owner}) is training in {path}: "
                        "wait for it, stop it, or choose another --out") from None
    except OSError:
        lock.close()
        raise
    _locks.add(lock)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _read_config(path: Path) -> Config:
    file = path / "config.json"
    try:
        return from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ConfigError) as error:
        raise UserError(f"cannot use {file}: {error}; nothing was changed") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); nothing was changed") from error


def _refuse_drift(path: Path, saved: Config, wanted: Config) -> None:
    lines = drift(saved, wanted)
    if not lines:
        return
    shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
    why = " (more steps change the whole course of the learning rate)" \
        if saved.steps != wanted.steps else ""
    raise UserError(f"{path} holds another run: {shown}{why}. Start a new one with another --out, "
                    f"or continue this one with its own command (the last in {path}/command.txt)")


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"--out {path}: cannot write there ({error.strerror or error})")


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


def _read_json(path: Path) -> dict | None:
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else None
    return None


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
