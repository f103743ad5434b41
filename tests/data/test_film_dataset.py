"""Films become data sets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("imageio_ffmpeg")

from posemodel.data import film_dataset, pair_loader  # noqa: E402
from posemodel.data.check import check  # noqa: E402
from posemodel.data.film_dataset import make_film_data  # noqa: E402
from posemodel.data.images import read_image  # noqa: E402
from posemodel.data.layouts.film import FILM, SEEN  # noqa: E402
from posemodel.data.pair_loader import PairLoader  # noqa: E402
from posemodel.data.reading import open_pairs  # noqa: E402
from posemodel.data.validation import carve_validation  # noqa: E402
from tests.small_datasets import refused  # noqa: E402
from tests.small_films import (  # noqa: E402
    Knowing,
    beside,
    blurred,
    frames,
    with_sides_exchanged,
    write_film,
)


def made(tmp_path, *films, most=400, fps=4, out="set", **options):
    """A data set of some films, each a list of frames, and the reports."""
    clips = [write_film(tmp_path / f"clip{number}.mp4", film, fps=fps)
             for number, film in enumerate(films)]
    shown = [frame for film in films for frame in film[:: max(1, -(-len(film) // most))]]
    reports = make_film_data(clips, tmp_path / out, Knowing(shown), most=most,
                             progress=lambda what, done, total: None, **options)
    return tmp_path / out, reports


def test_one_shot(tmp_path) -> None:
    root, (report,) = made(tmp_path, frames(30))
    assert (report.frames, report.shots, report.train, report.validation, report.test) == (
        30, 1, 18, 2, 6)
    assert json.loads((root / "film.json").read_text())[0]["train"] == 18
    assert check(root).problems == []
    train, validation, test = (open_pairs(root, split) for split in ("train", "validation", "test"))
    assert len(train.names) == 18 and len(train.pairs) == 18 * 17
    # Frames 18 to 19, 20 to 21, 22 to 23: gap, validation, gap. The last fifth is for testing.
    for split, before, first, last in ((validation, 18, 20, 21), (test, 22, 24, 29)):
        start = SEEN[split.split]
        number = [int(name.rpartition("_")[2].removesuffix(".jpg")) for name in split.names]
        targets = {target for _, target in split.pairs.tolist()}
        assert {number[target] for target in targets} == set(range(first, last + 1))
        for source, target in split.pairs.tolist():
            assert split.names[source].startswith(start) and number[source] < before
            assert not split.names[target].startswith(tuple(SEEN.values()))
    assert {number[source] for source, _ in test.pairs.tolist()} == set(range(22))
    names = [set(split.names) for split in (train, validation, test)]
    assert sum(map(len, names)) == len(set.union(*names))
    assert {FILM.person(name) for name in set.union(*names)} == {"clip0_s0"}
    assert validation.mask(0).parent == root / "validation_masks"
    refused("a part of each shot; .*film CLIP", carve_validation, root, share=0.5)


def test_pictures_joints_and_masks_fit_each_other(tmp_path) -> None:
    film = frames(14)
    root, _ = made(tmp_path, film)
    train = open_pairs(root, "train")
    square = [np.asarray(Image.open(train.mask(index))) for index in range(len(train.names))]
    for index, mask in enumerate(square):
        assert mask.shape == (256, 256) and train.path(index).exists()
        columns, rows = train.joints[index, [1, 8, 11], :2].round().astype(int).T
        assert (mask[rows, columns] > 100).all()
    # One square for the whole shot: what never is anybody's never changes.
    pictures = np.stack([np.asarray(Image.open(train.path(index))) for index in range(7)])
    nobody = np.stack(square).max(0) == 0
    assert nobody.mean() > 0.2 and pictures[:, nobody].astype(float).std(0).mean() < 6
    loader = PairLoader(train, image_size=(64, 64))
    batch = next(loader.stream([np.array([0, 5, 9])]))
    assert batch["source_mask"].shape == batch["target_mask"].shape == (3, 1, 64, 64)
    assert 0.05 < batch["source_mask"].mean() < 0.5 and batch["source_mask"].max() <= 1
    first = train.pairs[5, 0]
    wanted = Image.fromarray(square[first]).resize((64, 64), Image.Resampling.BICUBIC)
    assert torch.equal(batch["source_mask"][1, 0],
                       torch.from_numpy(np.asarray(wanted).astype(np.float32) / 255))


def test_what_is_behind_the_person(tmp_path) -> None:
    film = frames(40)
    root, (report,) = made(tmp_path, film)
    assert report.plates == 1 and "camera" not in report.line()
    train = open_pairs(root, "train")
    assert train.has_plates and train.plate(0) == open_pairs(root, "test").plate(0)
    plate, known = (np.asarray(Image.open(file)) for file in train.plate(0))
    known = known > 0
    assert known.mean() > 0.5
    # The last frame is a test frame, none of which had a say.
    names = open_pairs(root, "test")
    last = names.names.index("clip0_s0_000039.jpg")
    picture, mask = (np.asarray(Image.open(file)) for file in (names.path(last), names.mask(last)))
    away = known & (mask < 3)
    assert np.abs(plate[away].astype(int) - picture[away]).mean() < 6
    batch = next(PairLoader(train, image_size=(64, 64), fit="pad").stream([np.arange(3)]))
    assert batch["source_plate"].shape == (3, 3, 64, 64)
    assert set(batch["source_known"].unique().tolist()) <= {0.0, 1.0}
    sure = (batch["source_known"] * (batch["source_mask"] < 0.01)) > 0
    off = (batch["source_plate"] - batch["source"]).abs().mean(1, keepdim=True) * 127.5
    assert off[sure].mean() < 6


def test_no_frame_that_results_are_shown_on_says_what_is_behind(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(film_dataset, "write_plate",
                        lambda shot, images, masks: asked.append((shot, images, masks)) or True)
    root, _ = made(tmp_path, frames(24), frames(24, person=1))
    train = open_pairs(root, "train")
    found = [(train.path(index).name, train.mask(index).name) for index in range(len(train.names))]
    assert [(image.name, mask.name) for _, images, masks in asked
            for image, mask in zip(images, masks, strict=True)] == found
    assert {file.parent.name for _, images, _ in asked for file in images} == {"train"}
    assert [shot.name for shot, *_ in asked] == ["clip0_s0", "clip1_s0"]


def test_a_damaged_file_of_what_is_behind_is_named(tmp_path) -> None:
    root, _ = made(tmp_path, frames(24))
    train = open_pairs(root, "train")
    train.plate(0)[0].write_bytes(b"nothing")
    loader = PairLoader(train, image_size=(64, 64), replace=False)
    refused(r"have bad images .*clip0_s0\.png", lambda: list(loader.stream([np.arange(20)])))


def test_a_camera_that_moves_leaves_what_is_behind_unknown(tmp_path) -> None:
    film = [replace(frame, picture=np.roll(frame.picture, 2 * index, 1))
            for index, frame in enumerate(frames(30))]
    root, (report,) = made(tmp_path, film)
    assert report.plates == 0 and "the camera moves in 1 of them" in report.line()
    train = open_pairs(root, "train")
    assert not train.has_plates and train.plate(0) is None
    batch = next(PairLoader(train, image_size=(64, 64), fit="pad").stream([np.arange(3)]))
    assert "source_mask" in batch and "source_plate" not in batch


def test_what_is_behind_is_read_once_for_a_shot(tmp_path, monkeypatch) -> None:
    root, _ = made(tmp_path, frames(24), frames(24, person=1))
    train, read = open_pairs(root, "train"), []
    monkeypatch.setattr(pair_loader, "read_image", lambda path: read.append(path.name)
                        or read_image(path))
    every = np.arange(0, len(train.pairs), 40)
    shots = [FILM.person(train.names[source]) for source in train.pairs[every, 0]]
    assert set(shots) == {"clip0_s0", "clip1_s0"}
    for most in (64, 1):
        monkeypatch.setattr(pair_loader, "_PLATES", most)
        read.clear()
        images = pair_loader.PairImages(train, pair_loader.View(train, image_size=(64, 64),
                                                                fit="pad"), replace=True, seed=0)
        plates = images[every]["plates"]
        assert {read.count(f"{shot}{end}.png") for shot in set(shots)
                for end in ("", "_known")} == {1}
        for shot, plate in zip(shots, plates.numpy(), strict=True):
            alone = np.asarray(Image.open(root / "plates" / f"{shot}.png").resize(
                (64, 64), Image.Resampling.BICUBIC))
            assert np.array_equal(plate[..., :3], alone)
    assert len(images._plates) == 1                              # the others were forgotten


def test_shots_with_and_without_what_is_behind(tmp_path) -> None:
    root, _ = made(tmp_path, frames(24), frames(24, person=1))
    train = open_pairs(root, "train")
    shots = [FILM.person(train.names[source]) for source in train.pairs[:, 0]]
    part = {"images": torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), "pairs": [0],
            "plates": torch.full((1, 4, 4, 4), 250, dtype=torch.uint8)}
    part["plates"][:, 0] = 249                   # reduced from what is known and what is not
    assert PairLoader(train, image_size=(64, 64)).on_device(part)["source_known"][0, 0].tolist() \
        == [[0.0] * 4] + [[1.0] * 4] * 3
    for file in (root / "plates").glob("clip1_*"):
        file.unlink()
    wanted = np.array([shots.index("clip1_s0"), shots.index("clip0_s0")])
    known = next(PairLoader(train, image_size=(64, 64), fit="pad").stream([wanted]))["source_known"]
    assert not known[0].any() and known[1].mean() > 0.4


def test_cuts_doubled_blurred_and_empty_frames(tmp_path) -> None:
    first, second, short = frames(24), frames(14, person=3), frames(6, person=5)
    first[5] = first[4]                           # there twice
    first[9] = blurred(first[9])
    first[12] = first[12].without_people()
    root, (report,) = made(tmp_path, first + second + short)
    assert (report.frames, report.shots, report.nobody, report.doubled, report.blurred,
            report.short) == (44, 2, 1, 1, 1, 6)
    assert report.train == (21 - 4 - 1 - 2 - 1) + (14 - 3 - 1 - 2 - 1) and report.test == 4 + 3
    assert {FILM.person(name) for name in open_pairs(root, "train").names} == {
        "clip0_s0", "clip0_s1"}
    pairs = open_pairs(root, "train")
    people = [FILM.person(pairs.names[index]) for index in pairs.pairs.ravel()]
    assert people[0::2] == people[1::2]           # nobody is paired with somebody else
    assert "1 doubled, 1 blurred, 6 in shots too short" in report.line()


def test_of_two_people_one_is_followed_whoever_comes_first(tmp_path) -> None:
    both = [beside(a, b) for a, b in zip(frames(16), frames(16, person=3), strict=True)]
    root, (report,) = made(tmp_path, both)
    assert report.people == 2 and report.shots == 1 and report.train == 9
    assert (report.validation, report.test) == (2, 3)
    # The square holds one of them alone.
    masks = np.stack([np.asarray(Image.open(path))
                      for path in sorted((root / "train_masks").glob("*.png"))])
    assert (masks.max((1, 2)) > 200).all()


def test_left_and_right_are_the_same_in_every_frame_of_a_shot(tmp_path) -> None:
    right = frames(14)
    wrong = [with_sides_exchanged(frame) if index in (0, 3, 4, 12) else frame
             for index, frame in enumerate(right)]
    expected, mended, left = (made(tmp_path, film, fps=5, out=out, **options)
                              for film, out, options in (
                                  (right, "right", {}), (wrong, "mended", {}),
                                  (wrong, "left", {"as_found": True})))
    assert [report.exchanged for _, (report,) in (expected, mended, left)] == [0, 4, 0]
    assert "left and right exchanged in 4;" in mended[1][0].line()
    for split in ("train", "validation", "test"):
        assert np.array_equal(open_pairs(mended[0], split).joints,
                              open_pairs(expected[0], split).joints)
    assert not np.array_equal(open_pairs(left[0], "train").joints,
                              open_pairs(expected[0], "train").joints)


def test_frames_whose_joints_jump_are_left_out(tmp_path) -> None:
    """Poses that have nothing to do with each other, twenty-five a second."""
    film = frames(40)
    _, (report,) = made(tmp_path, film, fps=25)
    assert 5 < report.jumps < 30 and f"{report.jumps} with joints that jump" in report.line()
    # Gaps before both held-out parts are left out too.
    assert 40 - report.jumps - 2 == report.train + report.validation + report.test
    # Every fourth of them is too far from the next one for anybody to say.
    assert made(tmp_path, film, fps=25, out="few", most=10)[1][0].jumps == 0


def test_few_frames_of_a_long_film_and_several_clips(tmp_path) -> None:
    root, reports = made(tmp_path, frames(40), frames(12, person=3), most=20)
    assert [report.frames for report in reports] == [20, 12]
    assert len({FILM.person(name) for name in open_pairs(root, "train").names}) == 2


def test_frames_too_far_apart_to_tell_left_from_right_are_said(tmp_path) -> None:
    _, (near,) = made(tmp_path, frames(24), fps=10, out="near", most=12)
    assert near.apart == 0.2 and "too far" not in near.line()
    _, (far,) = made(tmp_path, frames(30), fps=10, out="far", most=10)
    assert far.line().endswith("the frames are 0.30 s apart, too far to tell left from right by "
                               "their neighbours: --frames 15 looks at more")
    _, (slow,) = made(tmp_path, frames(12), fps=4, out="slow")
    assert slow.line().endswith("the frames are 0.25 s apart, too far to tell left from right by "
                                "their neighbours")


def test_a_bad_clip_is_left_out_and_said(tmp_path) -> None:
    good = write_film(tmp_path / "good.mp4", frames(12))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film")
    reports = make_film_data([bad, good], tmp_path / "set", Knowing(frames(12)), most=100,
                             progress=lambda *_: None)
    assert "left out: " in reports[0].line() and "no film that can be read" in reports[0].line()
    assert reports[1].train == 6 and check(tmp_path / "set").problems == []


def test_what_cannot_become_a_data_set(tmp_path) -> None:
    empty = [frame.without_people() for frame in frames(12)]
    clip, out = write_film(tmp_path / "clip.mp4", empty), tmp_path / "set"
    options = {"most": 100, "progress": lambda *_: None}
    refused("no clip gives a data set: clip.mp4: no shot has 10 frames", make_film_data, [clip],
            out, Knowing(empty), **options)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film")
    refused("no clip gives a data set: bad.mp4: no film that can be read", make_film_data, [bad],
            out, Knowing([]), **options)
    assert not out.exists()
    refused("two clips are called clip", make_film_data, [clip, tmp_path / "b" / "clip.mov"], out,
            Knowing([]), **options)
    out.mkdir()
    refused("is there already", make_film_data, [clip], out, Knowing(empty), **options)
    refused("no frame of a film", FILM.person, "person.jpg")
