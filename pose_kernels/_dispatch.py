"""Which implementation of an op runs, and why another one does not.

Every op registers its implementations here; the public functions ask :func:`choose` once per call.
The order of preference is ``cuda, triton, cpp, reference``: the first one that can run on the
device wins.

- ``impl="name"`` is a demand: ``ValueError`` when the op has no such implementation,
  ``RuntimeError`` with the reason when it has one that cannot run here.
- :class:`use_implementation` and ``POSE_KERNELS_IMPL`` (read once, at import) speak for a whole
  program. They bind the ops that have that implementation; the others choose for themselves. An op
  that has it and cannot run it raises.

The program-wide choice is a plain module variable, not thread-local: torch.compile can guard on it.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

NAMES = ("cuda", "triton", "cpp", "reference")


@dataclass(frozen=True)
class Implementation:
    """One implementation of one op. ``reason`` says why it cannot run, None when it can."""

    op: str
    name: str
    devices: tuple[str, ...]  # device types it runs on; empty: any
    on_request: tuple[str, ...]  # and those where it runs only when asked for by name
    reason: str | None

    @property
    def available(self) -> bool:
        return self.reason is None


_functions: dict[str, dict[str, Callable]] = {}
_implementations: dict[str, dict[str, Implementation]] = {}


def _known(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


_env = os.environ.get("POSE_KERNELS_IMPL") or None
_program_choice: str | None = _known(_env, "POSE_KERNELS_IMPL") if _env else None


def register(op: str, name: str, function: Callable, *, devices: tuple[str, ...] = (),
             on_request: tuple[str, ...] = (), reason: str | None = None) -> None:
    """Add an implementation; ``reason`` is None, or one sentence saying why it cannot run."""
    _functions.setdefault(op, {})[_known(name, "name")] = function
    entry = Implementation(op, name, devices, on_request, reason)
    _implementations.setdefault(op, {})[name] = entry


def _wanted(op: str, impl: str | None) -> str | None:
    """The implementation that the call or the program asks for; None where neither does."""
    table = _implementations[op]
    if impl is None:
        return _program_choice if _program_choice in table else None
    _known(impl, "impl")
    if impl not in table:
        raise ValueError(f"impl: {op} has {', '.join(table)}; got {impl!r}")
    return impl


def _select(op: str, impl: str | None, device: torch.device) -> str:
    """The name of the implementation to call for ``op`` on ``device``."""
    table, wanted = _implementations[op], _wanted(op, impl)
    for name in NAMES if wanted is None else (wanted,):
        entry = table.get(name)
        if entry is None:
            continue
        reason = entry.reason
        able = entry.devices + (entry.on_request if wanted is not None else ())
        if reason is None and able and device.type not in able:
            reason = f"it runs on {', '.join(able)} tensors, got {device.type}"
        if reason is None:
            return name
        if wanted is not None:
            raise RuntimeError(f"{op}: implementation {name!r} cannot run: {reason}")
    raise RuntimeError(f"{op}: no implementation can run on {device.type}")


def choose(op: str, impl: str | None, device: torch.device) -> Callable:
    """The function to call for ``op`` on ``device``."""
    return _functions[op][_select(op, impl, device)]


def chosen(op: str, device: torch.device) -> str:
    """The name of the implementation that a call of ``op`` without ``impl`` uses on ``device``.

    Raises: ``RuntimeError`` with the reason when the program asks for one that cannot run there.
    """
    return _select(op, None, device)


def passed_over(op: str, device: torch.device) -> dict[str, str]:
    """Those for ``device`` that would come before the chosen one, each with the reason against it.

    Raises: as :func:`chosen`.
    """
    name, wanted = chosen(op, device), _wanted(op, None)
    asked = "POSE_KERNELS_IMPL=" if _program_choice == _env else "use_implementation: "
    reasons = {}
    for other, entry in implementations()[op].items():
        if other == name:
            break
        if not entry.devices or device.type in entry.devices:
            reasons[other] = f"{asked}{wanted}" if wanted else entry.reason
    return reasons


def summary(ops: Iterable[str], device: torch.device) -> str:
    """In one line which implementations ``ops`` use on ``device``, and why no better ones."""
    users: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for op in ops:
        try:
            users.setdefault(chosen(op, device), []).append(op)
            reasons |= passed_over(op, device)
        except RuntimeError as error:
            return str(error)
    used = list(users) if len(users) == 1 else [f"{n} ({', '.join(o)})" for n, o in users.items()]
    return "; ".join([", ".join(used), *(f"not {name}: {why}" for name, why in reasons.items())])


def implementations() -> dict[str, dict[str, Implementation]]:
    """For every op, every implementation: available, on which devices, and why not otherwise.

    >>> pose_kernels.implementations()["flow_sample"]["cpp"].reason
    """
    return {op: {name: table[name] for name in NAMES if name in table}
            for op, table in _implementations.items()}


class use_implementation:  # noqa: N801 - reads as a statement
    """Context manager: every op that has implementation ``name`` uses it, in the whole process."""

    def __init__(self, name: str):
        self.name = _known(name, "name")

    def __enter__(self):
        global _program_choice
        self._before, _program_choice = _program_choice, self.name
        return self

    def __exit__(self, *exc):
        global _program_choice
        _program_choice = self._before
