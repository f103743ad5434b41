"""Images from disk or an upload: read with guards, found only inside their folder, replaced if bad.

Convention: an image is `[H, W, 3]` uint8, RGB, upright as its EXIF orientation says.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from posemodel.runtime.errors import UserError

MAX_PIXELS = 50_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # of the files of a data set
_PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".bmp")

# The decoders are called by their classes and not through `Image.open`, whose limit on pixels is a
# setting of the whole program and a warning where it should be an error. None: of other files that
# are often found under the name of an image.
_KINDS = (
    ("JPEG", 0, b"\xff\xd8\xff", JpegImageFile),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n", PngImageFile),
    ("WebP", 8, b"WEBP", WebPImageFile),
    ("BMP", 0, b"BM", BmpImageFile),
    ("a GIF", 0, b"GIF8", None),
    ("a TIFF", 0, b"II*\0", None),
    ("a TIFF", 0, b"MM\0*", None),
    ("HEIC, AVIF or a video", 4, b"ftyp", None),
    ("a web page or other text, perhaps the answer to a failed download", 0, b"<", None),
)
_HEAD = 16  # bytes that tell the kind of a file

# What Pillow raises on damaged files, apart from its own errors, which are OSError.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
                   EOFError, struct.error, zlib.error)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SUBSTITUTES = 64  # tried in the place of one bad pair

Sample = TypeVar("Sample")


class ImageError(UserError):
    """An image that cannot be used; the message is one line with its name and the reason."""


def is_picture(path: Path) -> bool:
    """Whether a file has the name of a picture that `read_image` reads."""
    return path.suffix.lower() in _PICTURE_SUFFIXES


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a JPEG, PNG, WebP or BMP file; the kind is told by the content and not by the name.

    Transparent pixels are laid over white, 16-bit grey keeps its upper 8 bits, CMYK is converted
    without a colour profile, of an animation the first picture is taken.

    Args:
        path: a regular file, or a symbolic link to one. Anything else is refused unopened.
        max_pixels: most pixels that are decoded; compared with the header before decoding.

    Returns: `[H, W, 3]` uint8, contiguous and writable.

    Raises: `ImageError`, whatever is wrong with the file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{path}: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for somebody to write into it.
        raise ImageError(f"{path}: is a pipe or a device, not an image file")
    # 16 bits in 4 channels, uncompressed, and room for what is stored beside the pixels.
    if status.st_size > 8 * max_pixels + 2**24:
        raise ImageError(
            f"{path}: {status.st_size:,} bytes are more than an image of {max_pixels:,} pixels has")
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    with file:
        return _decode(file, str(path), max_pixels)


def read_image_bytes(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, of an image that is at hand as bytes, an upload for example.

    Args:
        name: what error messages call the image.
    """
    return _decode(io.BytesIO(data), name, max_pixels)


def picture_pixels(picture: Image.Image) -> np.ndarray:
    """As `read_image`, of a picture that Pillow has opened already. Raises: `ImageError`."""
    name = getattr(picture, "filename", "") or "the picture"
    with _named(name, picture.format or "picture"):
        picture.load()
        return _upright(picture)


def inside(root: str | os.PathLike, name: str) -> Path:
    """`root / name` for a file name out of a list or an archive, which must not leave `root`.

    A name is relative, with `/` between folders. Symbolic links: `root` itself, and the folders
    above it, may be links (a data disk). A link below `root` may lead to another place below
    `root`, nowhere else. The file need not exist.

    Raises: `UserError` for absolute names, `..`, drive letters, backslashes, NUL, empty names, and
        names that a link leads out of `root`.
    """
    windows = PureWindowsPath(name)  # takes both separators apart, and drives
    bad = windows.anchor or "\\" in name or "\0" in name or ".." in windows.parts
    if bad or not windows.parts:
        raise UserError(
            f"the file name {name!r} is refused: a name must be relative, with / between folders "
            f"and without '..', and stay inside {root}")
    path = os.fspath(root)
    for part in windows.parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            _check_link(root, name)
    return Path(path)


def image_names(folder: Path) -> list[str]:
    """The image files in a folder of a data set, sorted. Raises: `UserError` for a folder that
    cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return sorted(name for name in names
                  if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


def read_or_substitute(read: Callable[[int], Sample], index: int, *, count: int,
                       seed: int) -> tuple[Sample, list[str]]:
    """Read a pair, or another one in the place of a pair with a bad image.

    Which pair it is depends on the files, `index`, `count` and `seed` only. So it is the same in
    every process, with any number of workers and after a restart. Substitutes are drawn from the
    whole set, because neighbours in the list often share the bad image.

    Args:
        read: reads the pair of an index; an `ImageError` says that it is bad.
        index: the pair that is wanted, 0 .. count - 1.
        count: number of pairs.

    Returns:
        what `read` returned, and the messages of the `ImageError`s before: give them to the
        `BadImages` of the main process.

    Raises: `ImageError`, when no substitute is good either.
    """
    problems: list[str] = []
    substitutes = np.random.default_rng([seed, index]).integers(count, size=_SUBSTITUTES)
    for candidate in (index, *substitutes.tolist()):
        try:
            return read(candidate), problems
        except ImageError as error:
            problems.append(str(error))
    raise ImageError(
        f"pair {index} and {_SUBSTITUTES} others drawn in its place have bad images: {problems[0]}")


class BadImages:
    """The main process's account of bad images: each is reported once, and too many end the run.

    Too many are more than 10 different ones and more than 1 % of the images looked at.
    """

    def __init__(self, *, images: int, report: Callable[[str], None]):
        """An account with nothing in it.

        Args:
            images: number of images in the set.
            report: is given one line for each bad image.
        """
        self.images = images
        self.report = report
        self.looked_at = 0
        self.problems: set[str] = set()

    def add(self, looked_at: int, problems: Iterable[str]) -> None:
        """Count what was read since the last call.

        Args:
            looked_at: number of images that were asked for.
            problems: what `read_or_substitute` returned.

        Raises: `UserError`, when there are too many.
        """
        self.looked_at += looked_at
        for problem in problems:
            if problem not in self.problems:
                self.problems.add(problem)
                self.report(f"bad image, replaced by another: {problem}")
        # Images come back every epoch, bad ones too, and a bad one counts once.
        seen = min(self.looked_at, self.images)
        if len(self.problems) > max(10, seen // 100):
            raise UserError(
                f"{len(self.problems)} bad images among the first {seen:,}: the data set is damaged"
                f" or incomplete (one of them: {min(self.problems)}); check it with "
                "python -m posemodel.data check")


def _decode(file: BinaryIO, name: str, max_pixels: int) -> np.ndarray:
    with _named(name, "file"):
        head = file.read(_HEAD)
        file.seek(0)
    kind, reader = _reader(head, name)
    with _named(name, kind):
        image = reader(file)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels; images of up to {max_pixels:,} pixels are read")
    with _named(name, kind):
        image.load()
        return _upright(image)


def _upright(image: Image.Image) -> np.ndarray:
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return _rgb(image if turn is None else image.transpose(turn))


def _reader(head: bytes, name: str) -> tuple[str, type[Image.Image]]:
    """The kind of an image file, by its first bytes, and what opens it."""
    if not head:
        raise ImageError(f"{name}: is empty")
    kind, reader = next(((kind, reader) for kind, start, mark, reader in _KINDS
                         if head.startswith(mark, start)), ("no image", None))
    if reader is None:
        raise ImageError(f"{name}: is {kind}; JPEG, PNG, WebP and BMP images are read")
    return kind, reader


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data and not image.mode.startswith("I"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode.startswith("I"):
        # Pillow would cut 16-bit grey off at 255.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _named(name: str, kind: str):
    """What Pillow raises on a bad file, as an `ImageError`."""
    try:
        yield
    except Image.DecompressionBombError as error:  # WebP alone has a limit of its own
        raise ImageError(f"{name}: {error}") from error
    except _DECODER_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: the {kind} is damaged or cut off ({reason})") from error


def _check_link(root: str | os.PathLike, name: str) -> None:
    target = Path(os.path.realpath(os.path.join(root, name)))
    if not target.is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"the file name {name!r} leads through a symbolic link to {target}, outside of {root}; "
            "only the folder of the images itself may be a link")
