"""Folders that this program makes and continues in, and those that it leaves alone.

A folder of ours is known by its *record*: a JSON file that is written before anything else and says
what the folder is. One that is neither empty nor has the record is somebody else's, and nothing in
it is touched.
"""

import fcntl
import json
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside

_locks: "weakref.WeakSet" = weakref.WeakSet()


def _close_locks_in_child() -> None:
    # A lock lives as long as any copy of its file descriptor: a data worker that outlives a killed
    # trainer would keep the folder locked.
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_locks_in_child)


class OwnFolder:
    """A place where a folder of one kind is, or is to be."""

    def __init__(self, path: Path, record: str, what: str):
        """
        Args:
            record: name of the JSON file.
            what: what messages call such a folder: "run folder".
        """
        self.path, self.record, self.what = path, path / record, what

    def refuse_foreign(self) -> None:
        """Raises: `UserError` for a folder with other things in it; `OSError`."""
        # What a start that was killed before it wrote the record leaves behind.
        first = rf"lock(-\d+)?|{re.escape(self.record.name)}(\.\d+)?\.tmp"
        names = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        # The record is looked for last: another process may be making the folder.
        if not all(re.fullmatch(first, name) for name in names) and not self.record.exists():
            raise UserError(f"{self.path} is not empty and is no {self.what} (no "
                            f"{self.record.name}): nothing was touched; choose another folder")

    def require(self) -> None:
        """Raises: `UserError` where there is no such folder."""
        if not self.record.is_file():
            raise UserError(f"{self.path} is no {self.what}: it has no {self.record.name}")

    def lock(self, doing: str, name: str = "lock") -> TextIO:
        """Make the folder and hold it, until what is returned is closed or this process ends.

        Args:
            doing: what others are told that happens: "training in".
            name: of the file that is locked; several processes may share a folder by several.

        Raises: `UserError` where another process holds it, or for a foreign folder; `OSError`.
        """
        self.refuse_foreign()
        self.path.mkdir(parents=True, exist_ok=True)
        # The kernel drops the lock when the process ends in any way, so none can be left behind.
        lock = (self.path / name).open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _content(lock) or "unknown"
            lock.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise UserError(f"in use: another process (pid {owner}) is {doing} {self.path}: "
                            "wait for it, stop it, or choose another folder") from None
        _locks.add(lock)
        if _content(lock) != str(os.getpid()):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        return lock

    def write(self, values: dict) -> None:
        """Write the record, over an earlier one. Raises: `OSError`."""
        write_aside(self.record, json.dumps(values, indent=2) + "\n")

    def claim(self, values: dict) -> None:
        """Make the folder with this record, or see that it has the same. Of several processes that
        come at a time, the first one writes it.

        Raises: `UserError` for another record or a foreign folder; `OSError`.
        """
        self.refuse_foreign()
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        temporary = self.record.with_name(f"{self.record.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, self.record)  # unlike a rename it fails where the file is there
        except FileExistsError:
            with self.reading() as there:
                pass
            self.refuse_other(there, json.loads(text))
        finally:
            temporary.unlink()

    @contextmanager
    def reading(self) -> Iterator[dict]:
        """The record, around all that is made of it. Raises: `UserError`, one line, where there is
        none, and for one that is damaged or of another version."""
        self.require()
        try:
            values = json.loads(self.record.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError("no JSON object")
            yield values
        except UserError as error:
            raise UserError(f"cannot use {self.record}: {error}; nothing was changed") from error
        except OSError as error:
            raise UserError(f"cannot read {self.record}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.record} is damaged or not of this program ({error!r}); "
                            "nothing was changed") from error

    def refuse_other(self, there: dict, asked: dict) -> None:
        """Raises: `UserError` where the folder was made of other values than are asked for now."""
        changed = []
        for name in sorted({*there, *asked}):
            old, new = there.get(name), asked.get(name)
            if old != new:
                changed.append(f"other {name}" if isinstance(old, dict) or isinstance(new, dict)
                               else f"{name}: {old!r} there, {new!r} asked")
        if changed:
            raise UserError(f"{self.path} holds another {self.what} ({'; '.join(changed)}): "
                            "nothing was touched; choose another folder, or give the same command")


def _content(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def run_folder(path: Path) -> OwnFolder:
    """Of `posemodel.train`, which writes it; others read it."""
    return OwnFolder(path, "config.json", "run folder")
