"""Progress: honest estimates on a clock that the test turns, quiet where there is no terminal."""

import io
import sys

import pytest

from posemodel.engine import progress as module
from posemodel.engine.progress import Progress
from posemodel.runtime.progress_bar import duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return clock


def run(progress, clock, first, last, seconds):
    for step in range(first, last + 1):
        clock.now += seconds
        progress.update(step, {"loss": 0.5})


def test_first_steps_do_not_count(clock):
    progress = Progress(100, 0, lambda line: None)
    run(progress, clock, 1, 3, seconds=60.0)
    assert progress.seconds_left() is None
    run(progress, clock, 4, 50, seconds=0.5)
    assert progress.seconds_left() == pytest.approx(25.0)


def test_one_slow_step_does_not_move_the_estimate(clock):
    progress = Progress(100, 0, lambda line: None)
    run(progress, clock, 1, 40, seconds=0.5)
    run(progress, clock, 41, 41, seconds=300.0)
    assert progress.seconds_left() == pytest.approx(59 * 0.5)


def test_evaluations_are_no_steps_but_are_expected_again(clock):
    progress = Progress(95, 0, lambda line: None, evaluate_every=30)
    run(progress, clock, 1, 30, seconds=1.0)
    with progress.pause():
        clock.now += 20.0
    run(progress, clock, 31, 40, seconds=1.0)
    # 55 steps, and evaluations after 60, 90 and 95.
    assert progress.seconds_left() == pytest.approx(55 + 3 * 20)
    run(progress, clock, 41, 95, seconds=1.0)
    assert progress.seconds_left() == 0


def test_a_resumed_run_estimates_what_is_left_of_it(clock):
    progress = Progress(1000, 900, lambda line: None)
    run(progress, clock, 901, 950, seconds=2.0)
    assert progress.seconds_left() == pytest.approx(100.0)


def test_plain_lines_are_seldom_and_the_last_step_has_one(clock):
    lines = []
    progress = Progress(100, 0, lines.append)
    run(progress, clock, 1, 100, seconds=1.0)
    progress.close()
    assert len(lines) == 11  # after 1, 11, 21, ... and 100 steps
    assert lines[0].startswith("step 1/100 (1 %) | loss 0.5")
    assert "1000 ms/step" in lines[5] and "49 s left" in lines[5]
    assert lines[-1].startswith("step 100/100 (100 %)") and "0 s left" in lines[-1]


def test_values_are_shown_by_name_and_missing_ones_left_out(clock):
    lines = []
    progress = Progress(2, 0, lines.append)
    values = {"loss": 1.23456, "loss_affine": None, "loss_warped": 0.2, "pairs_per_second": 31.4159}
    progress.update(2, values)
    assert "loss 1.23 | warped 0.2 | 31.4 pairs/s" in lines[0] and "affine" not in lines[0]


def test_terminal_gets_a_bar_and_no_lines(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    lines = []
    progress = Progress(100, 10, lines.append)
    run(progress, clock, 11, 60, seconds=1.0)
    progress.close()
    assert lines == []
    assert "step 60/100" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()
    assert "40 s left" in terminal.getvalue()


@pytest.mark.parametrize("seconds, text",
                         [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (95, "1 min 35 s"),
                          (1234, "20 min"), (3600, "1 h"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
