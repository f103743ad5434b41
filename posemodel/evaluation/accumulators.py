"""What is pooled over a test set: in bounded memory, by several processes, across interruptions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np


class Accumulator(ABC):
    """Grows by its own `update`; those of the parts of a test set merge to that of the whole."""

    @abstractmethod
    def merge(self, other: Accumulator) -> None:
        """Add what another one of this kind was given."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load` needs to go on."""

    @abstractmethod
    def load(self, state: dict[str, np.ndarray]) -> Accumulator:
        """Become the one that `state` was taken from; an empty dictionary leaves an empty one."""


class Sum(Accumulator):
    """Of numbers, or of arrays of one shape."""

    def __init__(self):
        self.total: np.ndarray | int = 0

    def update(self, values) -> None:
        """Add an array or a number."""
        self.total = self.total + values

    def merge(self, other: Sum) -> None:
        self.update(other.total)

    def state(self) -> dict[str, np.ndarray]:
        return {"": np.asarray(self.total)}

    def load(self, state: dict[str, np.ndarray]) -> Sum:
        self.total = state.get("", 0)
        return self


class Group(Accumulator):
    """Accumulators by name; its state has theirs under NAME/..."""

    def __init__(self, make: Callable[[str], Accumulator] | None = None, **parts: Accumulator):
        """`make` gives that of a name which is not among `parts`, when it is first asked for."""
        self.parts, self._make = parts, make

    def __getitem__(self, name: str) -> Accumulator:
        if name not in self.parts:
            self.parts[name] = self._make(name)
        return self.parts[name]

    def merge(self, other: Group) -> None:
        for name, part in other.parts.items():
            self[name].merge(part)

    def state(self) -> dict[str, np.ndarray]:
        return {f"{name}/{path}" if path else name: array for name, part in self.parts.items()
                for path, array in part.state().items()}

    def load(self, state: dict[str, np.ndarray]) -> Group:
        states: dict[str, dict[str, np.ndarray]] = {}
        for path, array in state.items():
            name, _, rest = path.partition("/")
            states.setdefault(name, {})[rest] = array
        for name, part in states.items():
            self[name].load(part)
        return self
