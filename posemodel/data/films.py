"""Films: frames read one after the other, and written as MP4 (by imageio-ffmpeg)."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from posemodel.runtime.errors import UserError

FILM_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
_INSTALL = "pip install -e '.[video]'"


class Film:
    """A film in a file: `fps`, frames per second, and its frames as often as asked.

    Rotation in its metadata is applied; frames of a variable rate come at a constant one.
    """

    def __init__(self, path: Path):
        """Raises: `UserError` for what is no film that can be read."""
        require_package()
        # It warns of films that their metadata turn upright.
        logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: is a folder; give the films in it by their names"
                            if self.path.is_dir() else f"{path}: no such film")
        with contextlib.closing(self._read()) as parts:
            about = next(parts)
        self.fps = float(about.get("fps") or 0.0)
        self.seconds = float(about.get("duration") or 0.0)
        """as its head says; a film that was cut off has fewer frames"""
        self.size = tuple(reversed(about["size"]))
        """(H, W)"""

    def frames(self) -> Iterator[np.ndarray]:
        """`[H, W, 3]` uint8, one after the other. Raises: `UserError` where not one can be read."""
        parts, count = self._read(), 0
        next(parts)
        for part in parts:
            count += 1
            yield np.frombuffer(part, np.uint8).reshape(*self.size, 3).copy()
        if not count:
            raise self._unreadable()

    def _read(self) -> Iterator:
        """What its head says, then each frame as bytes."""
        import imageio_ffmpeg

        read = 0
        try:
            for part in imageio_ffmpeg.read_frames(str(self.path)):
                yield part
                read += 1
        # Many lines of ffmpeg, in several classes. What came before an error is as it should be.
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            if read < 2:
                raise self._unreadable() from error

    def _unreadable(self) -> UserError:
        return UserError(f"{self.path}: no film that can be read, or a damaged one; expected MP4, "
                         "MOV, WebM, MKV, AVI or GIF")


def is_film(path: Path) -> bool:
    """Whether a file has the name of a film."""
    return path.suffix.lower() in FILM_SUFFIXES


def missing_package() -> str:
    """Why films can be neither read nor written; empty if they can."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the second: installed, but without its program
        return f"the package imageio-ffmpeg is not installed ({_INSTALL})"
    return ""


def require_package() -> None:
    """Raises: `UserError` where films can be neither read nor written."""
    why = missing_package()
    if why:
        raise UserError(f"films need ffmpeg: {why}")


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an MP4; it appears entirely or not at all.

    Args:
        frames: `[H, W, 3]` uint8, all of one size with even sides.
        fps: frames per second.
    """
    require_package()
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
        if writer is not None:
            writer.close()  # else ffmpeg goes on and writes
        temporary.unlink(missing_ok=True)
