"""Unpacking of data sets: zip, also with a password, tar and tar.gz, from whoever made them."""

import errno
import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from posemodel.data.images import inside
from posemodel.runtime.errors import UserError

MAX_BYTES = 200 * 10**9
MAX_FILES = 1_000_000
# Photographs hardly get smaller and tables some 20 times; a file made to fill a disk, 1000 times.
_MAX_RATIO = 200
_RATIO_COUNTS_FROM = 2**24  # bytes unpacked; less does no harm

_CHUNK = 2**20
_MAX_TAR_READ = 2**24
_PART = ".extract.part"  # what is being written, in the destination

_DAMAGE = (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError,
           ValueError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive."""

    name: str  # normal form: no "./", no "//"
    size: int
    open: Callable[[], BinaryIO]


def extract(archive: str | Path, destination: str | Path, *,
            wanted: Callable[[str], bool] | None = None, password: str | None = None,
            max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES,
            progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Unpack the regular files of an archive below `destination`.

    Everything that the archive says of itself is checked before anything is written. Each file is
    written aside and moved into place when it is complete. A file that is there with the right size
    is left as it is, so the same call again continues after an interruption. One call at a time may
    unpack into a folder. Modes, owners and dates are not taken over.

    Args:
        archive: a zip, tar or tar.gz file, told by its content. Zip: stored or deflated, plain or
            in the classic encryption, which Python undoes at about 1 MB per second; the program
            unzip is much faster.
        destination: a folder; it is made if need be.
        wanted: says by the name in the archive (`folder/file.jpg`) which files to unpack; default
            all.
        password: of an encrypted zip.
        max_bytes, max_files: limits on what the whole archive contains, wanted or not.
        progress: is called with bytes done and bytes in total, both unpacked.

    Returns: the paths of all wanted files, in the archive's order.

    Raises: `UserError`: no archive, damaged, cut off, a wrong or missing password; names that leave
        the destination or come twice, links and devices among the wanted; too many or too large
        files, or compressed more than 200 times; a file in the way, which is never overwritten; no
        room on the disk.
    """
    archive, destination = Path(archive), Path(destination)
    if not archive.is_file():
        raise UserError(f"{archive}: there is no such file")
    with _explained(archive, destination, password), open(archive, "rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")  # with files, without any
        file.seek(0)
        entries = _zip_entries(file, archive, password) if is_zip else _tar_entries(file, archive)
        members = _members(entries, archive, wanted or (lambda name: True), max_bytes, max_files)
        paths = {member.name: _path(destination, member, archive) for member in members}
        missing = [member for member in members if not paths[member.name].exists()]
        needed = sum(member.size for member in missing)
        above = next(p for p in (destination, *destination.absolute().parents) if p.exists())
        free = shutil.disk_usage(above).free
        if needed > free:
            raise UserError(f"{destination}: {needed:,} bytes are to be unpacked, {free:,} are "
                            "free")
        total = sum(member.size for member in members)
        done = total - needed
        part = destination / _PART
        part.unlink(missing_ok=True)  # what a killed call left behind
        for member in missing:
            for count in _write(member, paths[member.name], part, archive):
                done += count
                if progress is not None:
                    progress(done, total)
    return list(paths.values())


def _write(member: _Member, path: Path, part: Path, archive: Path) -> Iterator[int]:
    """Write one file as a whole or not at all; yields the bytes written since the last time."""
    with member.open() as source:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield from _copy(source, part, member, archive)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


# An entry: name, size, opener; the opener is None for a folder and the kind of anything strange.
_Entry = tuple[str, int, Callable[[], BinaryIO] | str | None]


def _zip_entries(file: BinaryIO, archive: Path, password: str | None) -> Iterator[_Entry]:
    packed = zipfile.ZipFile(file)
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            yield info.filename, 0, None
        elif kind not in (0, stat.S_IFREG):
            yield info.filename, 0, "a symbolic link or a device"
        else:
            opener = partial(_open_in_zip, packed, info, archive, password)
            yield info.filename, info.file_size, opener


def _open_in_zip(packed: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path,
                 password: str | None) -> BinaryIO:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError(f"compression method {info.compress_type}")
    encrypted = info.flag_bits & 1
    if encrypted and password is None:
        raise UserError(f"{archive}: is encrypted; give its password")
    try:
        return packed.open(info, pwd=password.encode() if encrypted else None)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        raise UserError(f"{archive}: the password is wrong") from error


def _tar_entries(file: BinaryIO, archive: Path) -> Iterator[_Entry]:
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    raw = _ShortReads(gzip.GzipFile(fileobj=file) if zipped else file)
    try:
        packed = tarfile.TarFile(fileobj=raw)
    except (tarfile.ReadError, gzip.BadGzipFile) as error:
        raise UserError(f"{archive}: is no zip, tar or tar.gz file ({error})") from error
    for info in packed:
        if info.isdir():
            yield info.name, 0, None
        elif not info.isreg():
            yield info.name, 0, "a link or a device"
        else:
            yield info.name, info.size, partial(packed.extractfile, info)
    # tarfile takes a broken header in the middle, or a missing rest, for the end.
    raw.seek(packed.offset)
    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the end is missing")


class _ShortReads:
    """The bytes of a tar file. Refuses reads of any size, which a forged header can ask for."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_TAR_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _members(entries: Iterator[_Entry], archive: Path, wanted: Callable[[str], bool],
             max_bytes: int, max_files: int) -> list[_Member]:
    """The wanted files, once the archive as a whole is found to be sound."""
    packed_size = archive.stat().st_size
    members: dict[str, _Member] = {}
    folders: set[PurePosixPath] = set()
    total = 0
    for count, (raw_name, size, opener) in enumerate(entries, 1):
        if count > max_files:
            raise UserError(f"{archive}: has more than {max_files:,} files")
        total += size
        if total > max_bytes:
            raise UserError(f"{archive}: unpacks to more than {max_bytes:,} bytes")
        if total > max(_MAX_RATIO * packed_size, _RATIO_COUNTS_FROM):
            raise UserError(f"{archive}: unpacks to more than {_MAX_RATIO} times its size")
        posix = PurePosixPath(raw_name)
        name = str(posix)
        if opener is None or not wanted(name):
            continue
        if isinstance(opener, str):
            raise UserError(f"{archive}: {name} is {opener}; only regular files are unpacked")
        if name in members:
            raise UserError(f"{archive}: has two files called {name}")
        members[name] = _Member(name, size, opener)
        folders.update(posix.parents)
    for folder in folders:
        if str(folder) in members:
            raise UserError(f"{archive}: {folder} is a file and a folder at once")
    return list(members.values())


def _path(destination: Path, member: _Member, archive: Path) -> Path:
    """Where a file goes, if nothing is in its way."""
    try:
        path = inside(destination, member.name)
    except UserError as error:
        raise UserError(f"{archive}: {error}") from error
    if path == destination / _PART:
        raise UserError(f"{archive}: has a file called {_PART}, a name that unpacking itself needs")
    if path.exists() and not (path.is_file() and path.stat().st_size == member.size):
        raise UserError(
            f"{path} is in the way of a file of {archive} and differs from it; move it away, or "
            "unpack into another folder")
    return path


def _copy(source: BinaryIO, part: Path, member: _Member, archive: Path) -> Iterator[int]:
    """Write one file, and yield the bytes of each step."""
    written = 0
    with open(part, "xb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            target.write(chunk)
            yield len(chunk)
    if written != member.size:
        raise UserError(f"{archive}: {member.name} has not the {member.size:,} bytes it declares")


@contextmanager
def _explained(archive: Path, destination: Path, password: str | None):
    """What a bad archive, or the disk, raises, as a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        # gzip's own errors have no number, and a place before the start of the file is invalid.
        # What has another number comes from the disk.
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise UserError(f"unpacking {archive} into {destination}: {error}") from error
        # One wrong password in 256 passes the check at the start of a file.
        guess = "" if password is None else ", or the password is wrong"
        reason = str(error) or type(error).__name__
        raise UserError(f"{archive}: is damaged or cut off{guess} ({reason})") from error
    except NotImplementedError as error:
        raise UserError(
            f"{archive}: is packed in a way that is unknown here ({error}); unpack it with another "
            "program (unzip, 7-Zip) and give the folder") from error
