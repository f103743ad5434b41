"""What can be written of each pose, and how large it is."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A file of a pose: `refined/NAME.png`."""

    folder: str
    ending: str
    bytes_per_pixel: float
    """of the target frame; of PNGs what a photograph takes"""


KINDS = {
    "refined": Kind("refined", ".png", 1.5), "warped": Kind("warped", ".png", 1.5),
    "flow": Kind("flow", ".npy", 8.0), "flo": Kind("flow", ".flo", 8.0),
    "flow_picture": Kind("flow_picture", ".png", 0.5),
    "visibility": Kind("visibility", ".png", 0.1), "skeleton": Kind("skeleton", ".png", 0.02)}
# Bytes from which on the size is said before.
_LARGE = 200e6


def chosen_kinds(asked: Iterable[str] | None, *, poses: int) -> tuple[str, ...]:
    """The kinds to write: those that are asked for, else all of a single pose, and of several the
    finished pictures, for these are a film."""
    if asked is None:
        asked = KINDS if poses == 1 else ["refined"]
    return tuple(kind for kind in KINDS if kind in set(asked))


def file_of(kind: str, name: str) -> str:
    """The file of a kind for the pose `name`, relative to the folder of the transfer."""
    return f"{KINDS[kind].folder}/{name}{KINDS[kind].ending}"


def size_warning(kinds: Iterable[str], frames: Iterable[tuple[int, int]], place: object) -> str:
    """A line for people where much will be written; empty otherwise.

    Args:
        frames: (H, W) of each pose.
        place: where it goes.
    """
    kinds = list(kinds)
    size = sum(height * width for height, width in frames) * sum(
        KINDS[kind].bytes_per_pixel for kind in kinds)
    if size < _LARGE:
        return ""
    return (f"about {size / 1e6:,.0f} MB will be written into {place} ({', '.join(kinds)}); "
            "--write chooses what")
