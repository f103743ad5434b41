"""Films, written and read."""

import subprocess
import sys

import numpy as np
import pytest

from tests.small_datasets import refused

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

from posemodel.data.films import Film, is_film, write_mp4  # noqa: E402


def frames(count: int = 12) -> list[np.ndarray]:
    """A bright square on its way over a dark page."""
    pages = np.full((count, 48, 64, 3), 40, np.uint8)
    for index, page in enumerate(pages):
        page[8:24, 3 * index : 3 * index + 16] = 220
    return list(pages)


@pytest.fixture
def clip(tmp_path):
    write_mp4(tmp_path / "clip.mp4", frames(), fps=10)
    return tmp_path / "clip.mp4"


def ffmpeg(*arguments) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error",
                    *map(str, arguments)], check=True)


def test_what_is_written_is_read(clip) -> None:
    film = Film(clip)
    assert film.size == (48, 64) and film.fps == 10 and film.seconds == pytest.approx(1.2, abs=0.1)
    for _ in range(2):  # as often as asked
        read = list(film.frames())
        assert len(read) == 12
        for mine, theirs in zip(frames(), read, strict=True):
            assert theirs.shape == (48, 64, 3) and theirs.dtype == np.uint8
            assert np.abs(mine.astype(int) - theirs).mean() < 6
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def test_a_film_that_its_metadata_turn_upright(clip) -> None:
    turned = clip.with_name("turned.mp4")
    ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", turned)
    film = Film(turned)
    assert film.size == (64, 48) and next(film.frames()).shape == (64, 48, 3)


def test_one_frame_and_a_gif(clip) -> None:
    one, gif = clip.with_name("one.mp4"), clip.with_name("moving.gif")
    ffmpeg("-i", clip, "-frames:v", "1", one)
    ffmpeg("-i", clip, gif)
    assert len(list(Film(one).frames())) == 1
    assert len(list(Film(gif).frames())) == 12
    assert is_film(gif) and not is_film(gif.with_suffix(".png"))


def test_a_film_that_was_cut_off_in_the_middle_gives_what_is_there(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    whole, start = tmp_path / "whole.mp4", tmp_path / "start.mkv"
    write_mp4(whole, list(noise), fps=10)
    ffmpeg("-i", whole, "-c", "copy", start)
    content = start.read_bytes()
    start.write_bytes(content[: len(content) * 2 // 3])
    assert 5 < len(list(Film(start).frames())) < 40


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00\x00\x00\x18ftypmp42" + bytes(500)])
def test_no_film(tmp_path, content) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    refused("bad.mp4: no film that can be read", lambda: list(Film(tmp_path / "bad.mp4").frames()))


def test_a_film_that_is_not_there(tmp_path) -> None:
    refused("no such film", Film, tmp_path / "nothing.mp4")
    refused("is a folder; give the films", Film, tmp_path)


def test_without_the_package(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    refused("imageio-ffmpeg is not installed", Film, tmp_path / "clip.mp4")


def test_a_film_that_fails_on_the_way_leaves_nothing(tmp_path) -> None:
    def failing():
        yield frames()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_mp4(tmp_path / "clip.mp4", failing(), fps=10)
    assert not list(tmp_path.iterdir())
