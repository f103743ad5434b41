"""How far a run is: one bar on a terminal, now and then a plain line elsewhere."""

import contextlib
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

from tqdm import tqdm

from posemodel.runtime.progress_bar import duration

# The first steps pay for warm-up of caches and allocators and say nothing about the others.
_WARM_UP = 3
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Call `update` after each step; wrap evaluations in `pause()`.

    The time left is the median of the recent steps for each step to come plus the median of the
    evaluations so far for each evaluation to come, so that neither distorts the other.
    """

    def __init__(self, total: int, start: int, log: Callable[[str], None], *,
                 evaluate_every: int = 0):
        self.total, self.step, self.log = total, start, log
        self.evaluate_every = evaluate_every
        self._seen = 0
        self._durations: deque[float] = deque(maxlen=100)
        self._pauses: list[float] = []
        self._last = time.perf_counter()
        self._last_line = -math.inf
        self._values: dict = {}
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, dynamic_ncols=True, leave=False,
                             bar_format="{desc}{percentage:3.0f}% |{bar}| {postfix}")
            self._bar.set_description_str(f"step {start}/{total} ")

    def update(self, step: int, values: dict) -> None:
        """Step `step` is done; `values` as in metrics.jsonl, empty to keep the last ones."""
        now = time.perf_counter()
        steps = max(step - self.step, 1)
        self._seen += steps
        if self._seen > _WARM_UP:
            self._durations.append((now - self._last) / steps)
        self.step, self._last = step, now
        self._values = values or self._values
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(f"step {step}/{self.total} ", refresh=False)
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.refresh()
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES or step >= self.total:
            self._last_line = now
            share = 100 * step / self.total
            self.log(f"step {step}/{self.total} ({share:.0f} %) | {self._text()}")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here is no step's; it is expected again at each evaluation to come."""
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self._pauses.append(elapsed)
            self._last += elapsed

    def seconds_left(self) -> float | None:
        """The estimate; None while too few steps were seen."""
        if not self._durations:
            return None
        steps = (self.total - self.step) * statistics.median(self._durations)
        each = statistics.median(self._pauses) if self._pauses else 0.0
        return steps + self._evaluations_left() * each

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _evaluations_left(self) -> int:
        if not self.evaluate_every or self.step >= self.total:
            return 0
        # One at every multiple and one at the last step.
        return math.ceil(self.total / self.evaluate_every) - self.step // self.evaluate_every

    def _text(self) -> str:
        parts = [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in self._values.items()
                 if name.startswith("loss") and isinstance(value, (int, float))]
        speed = self._values.get("pairs_per_second")
        if isinstance(speed, (int, float)):
            parts.append(f"{speed:.1f} pairs/s")
        if self._durations:
            parts.append(f"{1000 * statistics.median(self._durations):.0f} ms/step")
        left = self.seconds_left()
        parts.append("measuring the speed" if left is None else f"{duration(left)} left")
        return " | ".join(parts)
