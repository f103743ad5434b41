"""Films: frames read one after the other, and written as MP4 (imageio with its ffmpeg plug-in)."""

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from posemodel.runtime.errors import UserError

FILM_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
_PLUGIN = "FFMPEG"
_PACKAGES = "pip install -e '.[video]'"


class Film:
    """A film in a file: `fps`, frames per second, and its frames as often as asked.

    Rotation in its metadata is applied; frames of a variable rate come at a constant one.
    """

    def __init__(self, path: Path):
        """Raises: `UserError` for what is no film that can be read."""
        require_packages()
        import imageio.v3 as iio

        # It warns of films that their metadata turn upright.
        logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
        self.path, self._reader = Path(path), iio
        if not self.path.is_file():
            raise UserError(f"{path}: no such film" if not self.path.exists() else
                            f"{path}: no file")
        try:
            about = iio.immeta(self.path, plugin=_PLUGIN)
        except Exception as error:  # many lines of ffmpeg, of several classes
            raise self._unreadable() from error
        self.fps = float(about.get("fps") or 0.0)
        self.seconds = float(about.get("duration") or 0.0)
        """as its head says; a film that was cut off has fewer frames"""
        self.size = tuple(reversed(about["size"]))
        """(H, W)"""

    def frames(self) -> Iterator[np.ndarray]:
        """`[H, W, 3]` uint8, one after the other. Raises: `UserError` where not one can be read."""
        count = 0
        try:
            for frame in self._reader.imiter(self.path, plugin=_PLUGIN):
                count += 1
                yield frame
        except (OSError, RuntimeError, ValueError, StopIteration) as error:
            if not count:
                raise self._unreadable() from error
        if not count:
            raise self._unreadable()

    def _unreadable(self) -> UserError:
        return UserError(f"{self.path}: no film that can be read, or a damaged one; expected MP4, "
                         "MOV, WebM, MKV, AVI or GIF")


def is_film(path: Path) -> bool:
    """Whether a file has the name of a film."""
    return path.suffix.lower() in FILM_SUFFIXES


def missing_packages() -> str:
    """Why films can be neither read nor written; empty if they can."""
    for name in ("imageio", "imageio_ffmpeg"):
        if importlib.util.find_spec(name) is None:
            return f"the package {name.replace('_', '-')} is not installed ({_PACKAGES})"
    return ""


def require_packages() -> None:
    """Raises: `UserError` where films can be neither read nor written."""
    why = missing_packages()
    if why:
        raise UserError(f"films need imageio and ffmpeg: {why}")


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an MP4; it appears entirely or not at all.

    Args:
        frames: `[H, W, 3]` uint8, all of one size with even sides.
        fps: frames per second.
    """
    require_packages()
    import imageio_ffmpeg

    temporary, writer = path.with_name(f".{path.stem}.tmp.mp4"), None
    try:
        for frame in frames:
            if writer is None:
                writer = imageio_ffmpeg.write_frames(
                    str(temporary), frame.shape[1::-1], fps=fps, macro_block_size=2)
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
        if writer is not None:
            writer.close()
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
