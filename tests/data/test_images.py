"""Images: what is read and how, what is refused, names that leave the folder, bad pairs."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from posemodel.data.images import (
    BadImages,
    ImageError,
    inside,
    read_image,
    read_image_bytes,
    read_or_substitute,
)
from posemodel.runtime.errors import UserError
from tests.small_datasets import encoded, refused

HEIGHT, WIDTH = 24, 20
ORIENTATION = 0x0112


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8)


def read(data: bytes, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image_bytes(data, name="picture", **options)


def png_that_declares(width: int, height: int) -> bytes:
    """A header and nothing behind it: decoding it would fail."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT")
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# What is read


def test_a_jpeg_is_what_pillow_decodes(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(pixels()), "JPEG"))
    image = read_image(path)
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert image.flags.writeable and image.flags.c_contiguous
    np.testing.assert_array_equal(read_image_bytes(path.read_bytes(), name="a"), image)


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})],
                         ids=str)
def test_lossless_kinds_come_back_exactly_whatever_the_name(tmp_path, kind, options) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(pixels()), kind, **options))
    np.testing.assert_array_equal(read_image(str(path)), pixels())


def test_grey_and_black_and_white() -> None:
    grey = pixels(1)
    image = Image.fromarray(grey[..., 0])
    np.testing.assert_array_equal(read(encoded(image, "PNG")), grey.repeat(3, axis=2))
    bits = 255 * (grey > 127).astype(np.uint8)
    data = encoded(Image.fromarray(bits[..., 0]).convert("1"), "PNG")
    np.testing.assert_array_equal(read(data), bits.repeat(3, axis=2))


def test_16_bit_grey_is_scaled_and_not_cut_off() -> None:
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    image = read(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(image, (deep // 256)[..., None].repeat(3, axis=2))


def test_palette() -> None:
    indexed = Image.fromarray(pixels()).quantize(8)
    np.testing.assert_array_equal(read(encoded(indexed, "PNG")), np.asarray(indexed.convert("RGB")))


def test_a_transparent_palette_entry_is_white() -> None:
    indexed = Image.fromarray(pixels()).quantize(8)
    expected = np.asarray(indexed.convert("RGB")).copy()
    expected[np.asarray(indexed) == 3] = 255
    np.testing.assert_array_equal(read(encoded(indexed, "PNG", transparency=3)), expected)


def test_a_transparent_colour_is_white() -> None:
    image = pixels()
    image[5, 7] = image[2, 3]
    expected = image.copy()
    expected[[5, 2], [7, 3]] = 255
    key = tuple(int(channel) for channel in image[2, 3])
    data = encoded(Image.fromarray(image), "PNG", transparency=key)
    np.testing.assert_array_equal(read(data), expected)


@pytest.mark.parametrize("kind, options",
                         [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(kind, options, mode) -> None:
    image = Image.fromarray(pixels(4)).convert(mode)
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = alpha * rgba[..., :3] + (1 - alpha) * 255
    np.testing.assert_allclose(read(encoded(image, kind, **options)), expected, atol=1)


def test_cmyk_comes_back_as_the_colours_it_was_made_of() -> None:
    color = (200, 60, 30)
    data = encoded(Image.new("RGB", (16, 16), color).convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(read(data), np.full((16, 16, 3), color), atol=4)


# How the upright image is made of the stored one (EXIF 2.32, tag 274).
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, k=-1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, kind) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(pixels()), kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(read(data), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_picture(kind, options) -> None:
    later = [Image.fromarray(255 - pixels()), Image.fromarray(pixels() // 2)]
    image = Image.fromarray(pixels())
    data = encoded(image, kind, save_all=True, append_images=later, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(read(data), pixels())


# What is refused


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    with pytest.raises(ImageError, match="picture: 20000 x 20000 pixels; images of up to 50,000,0"):
        read(png_that_declares(20000, 20000))
    data = encoded(Image.fromarray(pixels()), "PNG")
    assert read(data, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="20 x 24 pixels; images of up to 479 pixels"):
        read(data, max_pixels=HEIGHT * WIDTH - 1)


def test_the_limit_of_pillow_is_neither_used_nor_changed(monkeypatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    read(encoded(Image.fromarray(pixels()), "JPEG"))
    assert Image.MAX_IMAGE_PIXELS == before
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    for kind in ("JPEG", "PNG", "BMP"):
        read(encoded(Image.fromarray(pixels()), kind))  # a warning would be an error


@pytest.mark.parametrize("data, reason", [
    (b"", "is empty"), (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
    (b"name:keypoints_y:keypoints_x", "is no image"),
    (b"\xff\xd8\xff", "the JPEG is damaged or cut off"),
    (encoded(Image.new("P", (4, 4)), "GIF"), "is a GIF; JPEG, PNG, WebP and BMP"),
    (encoded(Image.new("L", (4, 4)), "TIFF"), "is a TIFF; JPEG"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC"),
    (png_that_declares(0, 5), "the PNG is damaged or cut off"),
])
def test_what_is_no_image(tmp_path, data, reason) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: {reason}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_cut_off(kind, part) -> None:
    data = encoded(Image.fromarray(pixels()), kind)
    with pytest.raises(ImageError, match="^picture: the .* is damaged or cut off"):
        read(data[: int(part * len(data))])


def test_what_is_no_file(tmp_path) -> None:
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "none.jpg", "No such file"),
                         (tmp_path / "a\0b.jpg", "null"), ("/dev/zero", "is a pipe or a device")):
        with pytest.raises(ImageError, match=reason):
            read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="is a pipe"):
        read_image(tmp_path / "a.jpg")


def test_a_file_larger_than_any_image(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(pixels()), "JPEG"))
    os.truncate(path, 2**26)
    with pytest.raises(ImageError, match="67,108,864 bytes are more than an image of 10,000"):
        read_image(path, max_pixels=10_000)
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)  # rubbish behind a good image does no harm


# Names


@pytest.mark.parametrize("name", ["a.jpg", "women/tees/a.jpg", "./a.jpg", "a..b.jpg", "ä.jpg"])
def test_names_inside(tmp_path, name) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "C:/a.jpg", "C:a.jpg", "a\\b.jpg",
     "..\\a.jpg", "\\\\server\\share\\a.jpg", "//server/share/a.jpg", "a\0.jpg"],
)
def test_names_that_are_refused(tmp_path, name) -> None:
    refused("the file name .* is refused", inside, tmp_path, name)


def test_links(tmp_path) -> None:
    disk, data, other = tmp_path / "disk", tmp_path / "data", tmp_path / "other"
    (disk / "men").mkdir(parents=True)
    other.mkdir()
    (other / "a.jpg").touch()
    data.symlink_to(disk)
    (disk / "all").symlink_to("men")
    (disk / "other").symlink_to(other)
    (disk / "a.jpg").symlink_to(other / "a.jpg")
    (disk / "loop").symlink_to("loop")
    assert inside(data, "men/a.jpg") == data / "men" / "a.jpg"
    assert inside(data, "all/a.jpg") == data / "all" / "a.jpg"
    assert inside(data / "other", "a.jpg") == data / "other" / "a.jpg"
    for name in ("other/a.jpg", "a.jpg", "other"):
        refused(f"'{name}' leads through a symbolic link to .*other", inside, data, name)
    with pytest.raises(ImageError, match="Too many levels of symbolic links"):
        read_image(inside(data, "loop"))


# Bad pairs


def reader_of(bad: set[int]):
    def read_pair(index: int) -> int:
        if index in bad:
            raise ImageError(f"{index}.jpg: is empty")
        return index

    return read_pair


def test_a_good_pair_is_itself() -> None:
    assert read_or_substitute(reader_of({1}), 0, count=2, seed=0) == (0, [])


def test_substitutes_are_good_and_spread_over_the_set() -> None:
    bad = set(range(100, 140))
    found = [read_or_substitute(reader_of(bad), index, count=1000, seed=3) for index in sorted(bad)]
    assert all(problems[0] == f"{i}.jpg: is empty" for i, (_, problems) in zip(sorted(bad), found,
                                                                               strict=True))
    substitutes = [pair for pair, _ in found]
    assert not bad & set(substitutes) and len(set(substitutes)) > 30
    assert min(substitutes) < 100 and max(substitutes) > 900


def test_substitutes_do_not_depend_on_who_reads_them_and_when() -> None:
    bad = set(range(0, 60, 2))
    alone = {i: read_or_substitute(reader_of(bad), i, count=60, seed=5) for i in range(60)}
    shuffled = random.Random(0).sample(range(60), 60)
    for workers in (2, 3):
        for worker in range(workers):
            read_pair = reader_of(bad)
            for index in shuffled[worker::workers]:
                assert read_or_substitute(read_pair, index, count=60, seed=5) == alone[index]
    other = {i: read_or_substitute(reader_of(bad), i, count=60, seed=6) for i in range(60)}
    assert other != alone


def test_no_substitute_is_good() -> None:
    with pytest.raises(ImageError, match="pair 1 and 64 others .* have bad images: 1.jpg: is emp"):
        read_or_substitute(reader_of({0, 1}), 1, count=2, seed=0)


def test_only_bad_images_are_substituted() -> None:
    def read_pair(index: int) -> int:
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        read_or_substitute(read_pair, 0, count=2, seed=0)


def test_a_bad_image_is_reported_once() -> None:
    lines: list[str] = []
    bad = BadImages(images=20, report=lines.append)
    for _ in range(50):
        bad.add(20, ["a.jpg: is empty", "b.jpg: is empty", "a.jpg: is empty"])
    assert lines == ["bad image, replaced by another: a.jpg: is empty",
                     "bad image, replaced by another: b.jpg: is empty"]


def test_more_than_ten_bad_images_and_one_percent_end_the_run() -> None:
    def problems(count: int) -> list[str]:
        return [f"{n:04}.jpg: is empty" for n in range(count)]

    BadImages(images=100, report=str).add(100, problems(10))
    with pytest.raises(UserError, match="11 bad images among the first 100: .*0000.jpg: is empty"):
        BadImages(images=100, report=str).add(100, problems(11))
    BadImages(images=10_000, report=str).add(2000, problems(20))
    with pytest.raises(UserError, match="21 bad images among the first 2,000"):
        BadImages(images=10_000, report=str).add(2000, problems(21))


def test_epochs_do_not_raise_the_number_of_bad_images_allowed() -> None:
    bad = BadImages(images=1000, report=str)
    bad.add(1_000_000, [])
    refused("among the first 1,000", bad.add, 2, [f"{n}.jpg: is empty" for n in range(11)])
