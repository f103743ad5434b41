"""Values of every pair of a test set, in files that survive an interruption.

    FOLDER/
      about.json       what is measured and how; another evaluation is refused
      rows-0.jsonl     one line per pair, as process 0 measured them
      totals-0.npz     pooled totals, and up to where rows-0.jsonl belongs to them
      lock-0           held by process 0 while it measures
      rows-1.jsonl     ...

Each process writes files of its own, so any number of them may share a test set, and a later start
may have another number. What `commit` has written is never lost; what came after the last commit is
measured again.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside, writing
from posemodel.runtime.folder import OwnFolder

if TYPE_CHECKING:  # for annotations only: reading results needs no torch
    from torch import Tensor


class PairRecords:
    """The files of one process; made by `open`, used as a context."""

    def __init__(self, folder: Path, process: int):
        self.folder, self.process = folder, process
        self.done: set[int] = set()
        """pairs that need no measuring any more, by whichever process"""
        self.totals: dict[str, np.ndarray] = {}
        """the state of what this process last committed beside its rows; empty at first"""
        self._names: list[str] | None = None
        self._rows = self._lock = None

    @classmethod
    def open(cls, folder: str | Path, about: dict, *, process: int = 0) -> PairRecords:
        """Begin an evaluation, or continue the one in `folder`.

        Args:
            about: what the numbers depend on, JSON values: protocol, weights, data set.
            process: each process of one evaluation has another.

        Raises: `UserError` where the folder holds another evaluation, is in use or damaged, or
            cannot be written.
        """
        self = cls(Path(folder), process)
        own = _own(self.folder)
        with writing(f"in {folder}"):
            own.claim(about)
            self._lock = own.lock("measuring into", f"lock-{process}")
            self._rows = (self.folder / f"rows-{process}.jsonl").open("a+b")
        for other in _processes(self.folder):
            rows, totals, size = _committed(self.folder, other)
            self.done.update(row["pair"] for row in rows)
            if rows:
                self._names = [name for name in rows[0] if name != "pair"]
            if other == process:
                self.totals = totals
                self._rows.truncate(size)
                self._rows.seek(size)
        return self

    def pending(self, pairs: Iterable[int]) -> list[int]:
        """Those that are still to be measured, in their order."""
        return [pair for pair in pairs if pair not in self.done]

    def append(self, pairs: Iterable[int], values: dict[str, Tensor]) -> None:
        """Add measured pairs.

        Args:
            pairs: B indices.
            values: `[B]` each, the same names every time; values that are not finite are stored as
                null and read as NaN.

        Raises: `UserError` if the names are not those of the rows before.
        """
        pairs = list(pairs)
        if self._names is None:
            self._names = list(values)
        if list(values) != self._names:
            raise UserError(f"{self.folder} holds {', '.join(self._names)} of each pair, not "
                            f"{', '.join(values)}; choose another folder")
        columns = {name: column.tolist() for name, column in values.items()}
        for index, pair in enumerate(pairs):
            row = {"pair": pair} | {name: column[index] if math.isfinite(column[index]) else None
                                    for name, column in columns.items()}
            self._rows.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self.done.update(pairs)

    def commit(self, totals: dict[str, np.ndarray] | None = None) -> None:
        """Make everything appended so far survive.

        Args:
            totals: the state of what is pooled over exactly the pairs that this process has
                appended, ever.
        """
        self._rows.flush()
        os.fsync(self._rows.fileno())
        file = io.BytesIO()
        np.savez(file, size=self._rows.tell(), **{f"total/{name}": value
                                                 for name, value in (totals or {}).items()})
        write_aside(_totals_path(self.folder, self.process), file.getvalue())

    def close(self) -> None:
        """Give the files free; what was not committed is measured again another time."""
        self._rows.close()
        self._lock.close()

    def __enter__(self) -> PairRecords:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read(folder: str | Path) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """All that the processes of an evaluation have committed.

    Returns:
        The values by name, each `[N]` in float64 in the order of `pair` (int64); and the state of
        the totals of each process.

    Raises: `UserError` if there is no evaluation, a file is damaged, or two processes have measured
        the same pair.
    """
    folder = Path(folder)
    _own(folder).require()
    rows, totals = [], []
    for process in _processes(folder):
        committed, state, _ = _committed(folder, process)
        rows += committed
        totals.append(state)
    rows.sort(key=lambda row: row["pair"])
    pairs = np.array([row["pair"] for row in rows], dtype=np.int64)
    twice = pairs[1:][pairs[1:] == pairs[:-1]]
    if len(twice):
        raise UserError(f"{folder}: two processes have measured pair {twice[0]}; delete the folder "
                        "and measure again")
    names = [name for name in rows[0] if name != "pair"] if rows else []
    return {"pair": pairs, **{
        name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}}, totals


def means(table: dict[str, np.ndarray]) -> dict[str, float | None]:
    """The mean of each column of `read` over the pairs that have the value; None if none has."""
    return {name: mean(values) for name, values in table.items() if name != "pair"}


def mean(values: np.ndarray) -> float | None:
    """The mean of the finite ones; None if there is none."""
    finite = values[np.isfinite(values)]
    # fsum rounds once, so the order in which processes came does not matter.
    return math.fsum(finite) / len(finite) if len(finite) else None


def _own(folder: Path) -> OwnFolder:
    return OwnFolder(folder, "about.json", "evaluation")


def _processes(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("rows-")) for path in folder.glob("rows-*.jsonl"))


def _totals_path(folder: Path, process: int) -> Path:
    return folder / f"totals-{process}.npz"


def _committed(folder: Path, process: int) -> tuple[list[dict], dict[str, np.ndarray], int]:
    """Rows, totals and the length of the rows in bytes as of the last commit of a process."""
    path = _totals_path(folder, process)
    if not path.exists():
        return [], {}, 0
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        size = int(arrays.pop("size"))
        with (folder / f"rows-{process}.jsonl").open("rb") as file:
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"rows-{process}.jsonl is shorter than when it was written")
        rows = [json.loads(line) for line in content.splitlines()]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); nothing was changed") from error
    return rows, {name.removeprefix("total/"): value for name, value in arrays.items()}, size
