"""Unpacking: what comes out, what is refused, and that nothing else is written."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from posemodel.data import archives
from posemodel.data.archives import extract
from posemodel.runtime.errors import UserError
from tests import small_datasets
from tests.encrypted_zip import encrypted_zip_of, zip_of
from tests.small_datasets import contents, refusal

FILES = {
    "set/a.jpg": np.random.default_rng(0).bytes(3000),
    "set/b/c.jpg": b"c" * 5000,
    "set/empty.txt": b"",
}


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


MAKERS = {
    "stored.zip": zip_of,
    "deflated.zip": lambda path, files: zip_of(path, files, compression=zipfile.ZIP_DEFLATED),
    "plain.tar": tar_of,
    "packed.tar.gz": lambda path, files: tar_of(path, files, "w:gz"),
}
each_kind = pytest.mark.parametrize("kind", MAKERS)


def packed(kind: str, folder: Path, files: dict[str, bytes] = FILES) -> Path:
    return MAKERS[kind](folder / kind, files)


def refused(archive: Path, destination: Path, message: str, **options) -> None:
    """`extract` says why, and neither the destination nor anything beside it changes."""
    before = contents(archive.parent)
    assert str(archive) in small_datasets.refused(message, extract, archive, destination, **options)
    assert contents(archive.parent) == before


# What comes out


@each_kind
def test_everything_comes_out(tmp_path, kind) -> None:
    out = tmp_path / "deep" / "out"
    paths = extract(packed(kind, tmp_path), out)
    assert contents(out) == FILES
    assert paths == [out / name for name in FILES]


@each_kind
def test_only_what_is_wanted(tmp_path, kind) -> None:
    files = {f"./{name}": content for name, content in FILES.items()}
    out = tmp_path / "out"
    extract(packed(kind, tmp_path, files), out, wanted=lambda name: name == "set/b/c.jpg")
    assert contents(out) == {"set/b/c.jpg": FILES["set/b/c.jpg"]}


def test_an_encrypted_zip(tmp_path) -> None:
    archive = encrypted_zip_of(tmp_path / "img.zip", FILES, b"secret")
    refused(archive, tmp_path / "out", "is encrypted; give its password")
    refused(archive, tmp_path / "out", "the password is wrong", password="guess")
    extract(archive, tmp_path / "out", password="secret")
    assert contents(tmp_path / "out") == FILES


def test_a_wrong_password_that_passes_the_first_check(tmp_path) -> None:
    archive = encrypted_zip_of(tmp_path / "img.zip", FILES, b"secret")
    messages = set()
    for number in range(600):
        text = refusal(extract, archive, tmp_path / "out", password=f"guess {number}")
        messages.add(text.removeprefix(f"{archive}: ").split(" (")[0])
    assert messages == {"the password is wrong", "is damaged or cut off, or the password is wrong"}
    assert not contents(tmp_path / "out")


@each_kind
def test_the_same_call_again_writes_only_what_is_missing(tmp_path, kind) -> None:
    archive, out = packed(kind, tmp_path), tmp_path / "out"
    extract(archive, out)
    (out / "set/b/c.jpg").unlink()
    (out / "set/a.jpg").write_bytes(b"x" * 3000)  # the right size: taken to be ours
    (out / archives._PART).write_bytes(b"left behind by a killed call")
    written: list[tuple[int, int]] = []
    extract(archive, out, progress=lambda done, total: written.append((done, total)))
    assert written == [(8000, 8000)]
    assert contents(out) == FILES | {"set/a.jpg": b"x" * 3000}


@each_kind
def test_an_interrupted_call_leaves_whole_files_only(tmp_path, kind) -> None:
    archive, out = packed(kind, tmp_path), tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        assert total == 8000
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, out, progress=interrupt)
    assert contents(out) == {"set/a.jpg": FILES["set/a.jpg"]}
    extract(archive, out)
    assert contents(out) == FILES


def test_an_archive_without_files(tmp_path) -> None:
    assert extract(zip_of(tmp_path / "a.zip", {}), tmp_path / "out") == []
    assert extract(tar_of(tmp_path / "a.tar", {}), tmp_path / "out") == []


# What is refused


@each_kind
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil"])
def test_names_that_leave_the_destination(tmp_path, kind, name) -> None:
    archive = packed(kind, tmp_path, {"good": b"x", name: b"x"})
    refused(archive, tmp_path / "out", "the file name .* is refused")
    # What is not wanted harms nobody.
    extract(archive, tmp_path / "out", wanted="good".__eq__)
    assert contents(tmp_path / "out") == {"good": b"x"}


@each_kind
def test_a_link_in_the_destination_is_not_followed_out_of_it(tmp_path, kind) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "set").symlink_to(tmp_path / "elsewhere")
    refused(packed(kind, tmp_path), tmp_path / "out", "leads through a symbolic link")
    # The destination itself may be a link.
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    extract(packed(kind, tmp_path), tmp_path / "link")
    assert contents(tmp_path / "elsewhere") == FILES


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                                  tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("strange")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(tmp_path / "a.tar", tmp_path / "out", "strange is a link or a device; only regular")


def test_links_in_a_zip(tmp_path) -> None:
    info = zipfile.ZipInfo("strange")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "out", "strange is a symbolic link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("files, message", [
    ({"set/a.jpg": b"1", "./set//a.jpg": b"2"}, "has two files called set/a.jpg"),
    ({"set/a/b.jpg": b"1", "set/a": b"2"}, "set/a is a file and a folder at once"),
    ({archives._PART: b"x"}, "a name that unpacking itself needs")])
def test_names_that_cannot_be_used(tmp_path, maker, files, message) -> None:
    refused(maker(tmp_path / "archive", files), tmp_path / "out", message)


@each_kind
def test_limits_count_what_is_declared(tmp_path, kind) -> None:
    archive = packed(kind, tmp_path)
    refused(archive, tmp_path / "out", "more than 2 files", max_files=2)
    refused(archive, tmp_path / "out", "more than 7,999 bytes", max_bytes=7999)
    extract(archive, tmp_path / "out", max_files=3, max_bytes=8000)


@pytest.mark.parametrize("kind", ["deflated.zip", "packed.tar.gz"])
def test_what_unpacks_to_a_multiple_of_its_size(tmp_path, kind) -> None:
    archive = packed(kind, tmp_path, {"zeros": bytes(2**24 + 1)})
    refused(archive, tmp_path / "out", "more than 200 times its size")


def test_a_disk_without_room(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=7999))
    with pytest.raises(UserError, match="out: 8,000 bytes are to be unpacked, 7,999 are free"):
        extract(zip_of(tmp_path / "a.zip", FILES), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails(tmp_path, monkeypatch) -> None:
    def fail(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.Path, "replace", fail)
    refused(zip_of(tmp_path / "a.zip", FILES), tmp_path / "out", "No space left on device")


def declare(archive: Path, size: int) -> None:
    """Forge the unpacked size of the only file of a zip, in both of its headers."""
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(mark) + offset
        data[start : start + 4] = struct.pack("<I", size)
    archive.write_bytes(data)


@pytest.mark.parametrize("size", [2999, 3001])
@pytest.mark.parametrize("kind", ["stored.zip", "deflated.zip"])
def test_a_size_that_is_a_lie(tmp_path, kind, size) -> None:
    archive = packed(kind, tmp_path, {"a.jpg": FILES["set/a.jpg"]})
    declare(archive, size)
    refused(archive, tmp_path / "out", "damaged or cut off|has not the 3,001 bytes it declares")


def test_more_bytes_than_declared_stop_at_the_declared_size(tmp_path) -> None:
    """The counter alone, since the standard library's readers stop by themselves."""
    member = archives._Member("a.jpg", 2 * archives._CHUNK, io.BytesIO)
    part = tmp_path / "part"
    with pytest.raises(UserError, match="a.jpg has not the 2,097,152 bytes it declares"):
        list(archives._copy(io.BytesIO(bytes(2**23)), part, member, Path("a.zip")))
    assert part.stat().st_size == member.size


@each_kind
def test_a_file_in_the_way_is_never_overwritten(tmp_path, kind) -> None:
    out = tmp_path / "out"
    (out / "set").mkdir(parents=True)
    (out / "set" / "a.jpg").write_bytes(b"mine")
    refused(packed(kind, tmp_path), out, "set/a.jpg is in the way of a file of .* move it away")
    (out / "set" / "a.jpg").unlink()
    (out / "set" / "a.jpg").mkdir()
    refused(packed(kind, tmp_path), out, "is in the way")


@each_kind
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_cut_off(tmp_path, kind, part) -> None:
    archive = packed(kind, tmp_path)
    data = archive.read_bytes().rstrip(b"\0")  # a tar is padded to 10 KiB
    archive.write_bytes(data[: int(part * len(data))])
    refused(archive, tmp_path / "out", "is damaged or cut off")


@pytest.mark.parametrize("kind, files, start, stop, put, message", [
    # tarfile takes the end between two files, and a damaged header in the middle, for the end.
    ("plain.tar", FILES, 512 + 3072, None, b"", "the end is missing"),
    ("plain.tar", FILES, 512 + 3072, 512 + 3073, b"\1", "the end is missing"),
    ("stored.zip", {"a.jpg": bytes(3000)}, 1000, 1001, b"\1", "damaged or cut off .*CRC"),
    # Behind the header of 30 bytes and the name: a block of a kind unknown.
    ("deflated.zip", {"a": FILES["set/b/c.jpg"]}, 31, 32, b"\xff",
     "is damaged or cut off .*invalid block type"),
    # By the directory, which is counted from the end, the first file starts before the archive.
    ("stored.zip", FILES, 1000, 1010, b"", "is damaged or cut off")])
def test_damage_in_the_middle(tmp_path, kind, files, start, stop, put, message) -> None:
    archive = packed(kind, tmp_path, files)
    data = archive.read_bytes()
    archive.write_bytes(data[:start] + put + (data[stop:] if stop else b""))
    refused(archive, tmp_path / "out", message)


def test_a_header_of_any_size(tmp_path) -> None:
    """tarfile reads a long name into memory at once, whatever length it is said to have."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(archive, tmp_path / "out", "a header of 1099511627776 bytes")


def test_unknown_packing(tmp_path) -> None:
    archive = zip_of(tmp_path / "a.zip", FILES, compression=zipfile.ZIP_LZMA)
    refused(archive, tmp_path / "out", r"unknown here \(compression method 14\); unpack it with")
    archive = zip_of(tmp_path / "a.zip", FILES)
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 250  # the version of the format that is needed
    archive.write_bytes(data)
    refused(archive, tmp_path / "out", r"unknown here \(zip file version 25.0\)")


def test_what_is_no_archive(tmp_path) -> None:
    for content in (b"", b"<!DOCTYPE html>", bytes(range(256)) * 10, gzip.compress(b"a,b")):
        (tmp_path / "a.zip").write_bytes(content)
        refused(tmp_path / "a.zip", tmp_path / "out", "is no zip, tar or tar.gz file")
    refused(tmp_path / "none.zip", tmp_path / "out", "there is no such file")
    (tmp_path / "folder.zip").mkdir()
    refused(tmp_path / "folder.zip", tmp_path / "out", "there is no such file")
