"""What a command prints never stops its work: neither a terminal that lacks a character, nor a
reader that has left, a closed or a full file."""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

# The characters of our tables in the repertoire that every terminal has.
_PLAIN = str.maketrans({"─": "-", "│": "|", **dict.fromkeys("╭╮╰╯", "+"), "–": "-", "—": "-",
                        "×": "x", "±": "+-", "↑": "^", "↓": "v"})


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """In the place of characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start:error.end]
    if all("\udc80" <= character <= "\udcff" for character in lacking):
        return os.fsencode(lacking), error.end  # bytes of a file's name, as they were
    text = lacking.translate(_PLAIN)
    return text if text.isascii() else "?" * len(lacking), error.end


codecs.register_error("posemodel.plain", _plain)


class Output:
    """A text stream that goes on where the one beneath fails: what is written then is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure: OSError | None = None
        """why something was lost; None: nothing was, or the reader left, which is his right"""
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors="posemodel.plain")

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Returns: the length of the text, whatever became of it."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """What cannot be written is lost."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.failure = self.failure or error
        # From now on also what is left in its buffer, and what other libraries write, goes nowhere.
        _to_nowhere(self._stream.fileno())


@contextlib.contextmanager
def surviving() -> Iterator[Output]:
    """In here nothing that is printed, or cannot be, ends the program. Yields: what takes the place
    of stdout."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Output(stream or _instead_of_closed(number))
                              for number, stream in enumerate(before, 1))
    try:
        yield sys.stdout
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _instead_of_closed(number: int) -> TextIO:
    """A file of ours must not get the number of a closed stream, or what libraries print would end
    up in it."""
    try:
        os.fstat(number)
    except OSError:
        _to_nowhere(number)
    return open(os.devnull, "w", encoding="utf-8")


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
