"""How far a command is that works through many files."""

import sys
import time

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self):
        self._bar, self._what, self._last_line = None, "", time.monotonic()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error) -> None:
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` things called `what`; another `what` begins a new bar."""
        if not sys.stderr.isatty():
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                print(f"{what}: {done:,} of {total:,}", file=sys.stderr)
            return
        from tqdm import tqdm

        if what != self._what:
            self._close()
            self._bar, self._what = tqdm(total=total, desc=what, unit_scale=True), what
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`: as precise as an estimate deserves."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
