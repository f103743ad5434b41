"""Signals that end a command, and the work that they have to wait for."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


class Interrupted(BaseException):
    """A signal ends the program where nothing is lost by that; `code` is the exit code."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interruptions:
    """What SIGINT and SIGTERM do: where the program is `held`, they only set `code`, so that what
    is at work ends well and is saved; elsewhere they raise `Interrupted`.

    A second signal is an ordinary KeyboardInterrupt.
    """

    def __init__(self):
        self.code = 0
        """128 and the number of the signal that has come; 0: none has"""
        self._held = False

    def __enter__(self) -> "Interruptions":
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In here signals wait until somebody looks at `code`."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def unless_interrupted(self, work: Callable[[], Result]) -> Result | None:
        """Inside of `held`, what may be left unfinished: the result, or None where a signal has
        ended it or came before."""
        try:
            self._held = False
            return None if self.code else work()
        except Interrupted:
            self._say()
            return None
        finally:
            self._held = True

    def _note(self, number: int, _frame) -> None:
        if self.code:
            raise KeyboardInterrupt
        self.code = 128 + number
        if not self._held:
            raise Interrupted(number)
        self._say()

    def _say(self) -> None:
        print(f"{signal.Signals(self.code - 128).name}: saving after this step", file=sys.stderr)
