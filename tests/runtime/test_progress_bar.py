"""What a long command shows on a terminal, and what in a log."""

import io

import pytest

from posemodel.runtime import progress_bar
from posemodel.runtime.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_each_thing_has_a_bar_that_is_closed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressBar() as bar:
        bar("checked", 1, 2)
        bar("checked", 2, 2)
        assert "\n" not in terminal.getvalue()
        bar("copied", 1, 1)
        assert terminal.getvalue().count("\n") == 1     # the first one is closed
    shown = terminal.getvalue()
    assert shown.count("\n") == 2 and "checked: 100%" in shown and "copied: 100%" in shown


@pytest.mark.parametrize("seconds, lines", [(9, 0), (10, 1)])
def test_elsewhere_it_is_a_line_now_and_then(monkeypatch, capsys, seconds, lines):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with ProgressBar() as bar:
        now[0] = float(seconds)
        bar("copied", 1500, 3000)
        bar("copied", 1501, 3000)
    assert capsys.readouterr().err == lines * "copied: 1,500 of 3,000\n"
