"""What the examinations find, said while it is found."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

INSTALL = "in the project's folder: pip install -e ."


@dataclass
class Problem:
    """Something that does not work."""

    what: str
    remedy: str
    stops: bool
    """whether it stops training"""


@dataclass
class Checkup:
    """What is found, printed while it is found."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    kernels: dict = field(default_factory=dict)
    """what `python -m pose_kernels --json` prints"""
    losses: dict[str, float] = field(default_factory=dict)
    """of the training step on the CPU"""

    def examine(self, title: str, examination: Callable[["Checkup"], None]) -> bool:
        """Run one examination; whether it got through. What it raises is a finding."""
        self.sections[title] = []
        print(title, flush=True)
        try:
            examination(self)
        except Exception as error:  # whatever a broken installation does
            lines = str(error).splitlines() or [""]
            self.problem(f"{title}: {type(error).__name__}: {lines[0]}",
                         f"install again, {INSTALL}; if it stays, report it with this text",
                         stops=True)
            return False
        return True

    def say(self, line: str) -> None:
        """One line of the section."""
        line = hide_home(line)
        next(reversed(self.sections.values())).append(line)
        print(f"  {line}".rstrip(), flush=True)

    def problem(self, what: str, remedy: str, *, stops: bool) -> None:
        """Note a problem, said where it is found and again at the end."""
        problem = Problem(hide_home(what), hide_home(remedy), stops)
        self.problems.append(problem)
        self.say(f"PROBLEM: {problem.what}")

    @property
    def stopped(self) -> bool:
        """Whether a problem stops training."""
        return any(problem.stops for problem in self.problems)

    def to_dict(self) -> dict:
        """For JSON."""
        return {"well": not self.problems,
                "problems": [asdict(problem) for problem in self.problems],
                "sections": self.sections, "kernels": self.kernels, "losses": self.losses}


def hide_home(text: str) -> str:
    """`text` with `~` in the place of the home directory."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
