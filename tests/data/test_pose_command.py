"""The command that shows joints on their image: what it prints, draws, writes and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.data.pose_command import main
from posemodel.poses.annotations import write_annotations
from posemodel.poses.drawing import draw_poses
from posemodel.poses.files import openpose_json, read_poses
from posemodel.poses.joints import JOINT_COLORS
from posemodel.poses.layouts import Pose
from posemodel.runtime.errors import UserError
from tests.small_datasets import SHARED, refused
from tests.small_films import beside, frames, knowing

HEIGHT, WIDTH = 400, 300


def person(x=0.0, y=0.0, without=()):
    """Joints far from each other, so that each can be found in the picture."""
    index = np.arange(18)
    joints = np.stack([50 + 40 * (index % 4) + x, 60 + 50 * (index // 4) + y, np.ones(18)], 1)
    joints[list(without)] = 0
    return joints.astype(np.float32)


def pose(joints, number=0):
    return Pose(joints=joints, format="openpose18", person=number)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save("a.jpg", quality=95)
    people = [pose(person(without=[4, 9])), pose(person(x=30))]
    Path("poses.json").write_text(openpose_json(people, (HEIGHT, WIDTH)))
    return tmp_path


def test_it_prints_draws_and_writes(folder, capsys):
    assert main(["a.jpg", "poses.json", "--out", "a.png", "--json", "out.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["format: openpose18", "people: 2, chosen: number 1", "joints: 18 of 18"]
    assert not any(line.startswith("warning") for line in lines)
    with Image.open("a.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (WIDTH, HEIGHT))
    (written,) = read_poses("out.json")
    np.testing.assert_array_equal(written.joints, person(x=30))
    assert written.frame == (HEIGHT, WIDTH)
    assert sorted(os.listdir()) == ["a.jpg", "a.png", "out.json", "poses.json"]


def test_another_person_can_be_chosen(folder, capsys):
    main(["a.jpg", "poses.json", "--person", "0", "--json", "out.json"])
    assert "16 of 18, without right_wrist, right_knee" in capsys.readouterr().out
    np.testing.assert_array_equal(read_poses("out.json")[0].joints, person(without=[4, 9]))
    with pytest.raises(UserError, match="--person 5: people with joints here: 0, 1"):
        main(["a.jpg", "poses.json", "--person", "5"])


def test_warnings_are_printed(folder, capsys):
    joints = person(x=250)
    Path("poses.json").write_text(openpose_json([pose(joints)], (800, 600)))
    main(["a.jpg", "poses.json"])
    out = capsys.readouterr().out
    assert "warning: the joints belong to a picture of 600 x 800" in out
    assert "lie outside of the image of 300 x 400" in out
    assert sorted(os.listdir()) == ["a.jpg", "poses.json"]


def test_the_row_of_a_file_of_many_images(folder):
    rows = np.stack([person(), person(x=7), person(x=9)])
    write_annotations(Path("rows.csv"), ["b.jpg", "a.jpg", "c.jpg"], rows)
    main(["a.jpg", "rows.csv", "--json", "own.json"])
    main(["a.jpg", "rows.csv", "--json", "c.json", "--name", "c.jpg"])
    np.testing.assert_array_equal(read_poses("own.json")[0].joints, rows[1])
    np.testing.assert_array_equal(read_poses("c.json")[0].joints, rows[2])
    Path("a.jpg").rename("z.jpg")
    refused("3 images and none of z.jpg; give one with --name", main, ["z.jpg", "rows.csv"])


def test_the_only_row_that_belongs_to_another_image(folder, capsys):
    write_annotations(Path("row.csv"), ["b.jpg"], person()[None])
    main(["a.jpg", "row.csv"])
    assert "warning: the file names the image of these joints b.jpg" in capsys.readouterr().out
    main(["a.jpg", "row.csv", "--name", "b.jpg"])  # the user knows
    assert "warning" not in capsys.readouterr().out


def test_one_frame_of_a_film(folder, capsys):
    film = [json.loads(openpose_json([pose(person(x=index))], (HEIGHT, WIDTH)))
            for index in range(3)]
    Path("film.json").write_text(json.dumps([*film, {"people": []}]))
    refused("is a film of 4 frames.*--frame N --json FILE", main, ["a.jpg", "film.json"])
    main(["a.jpg", "film.json", "--frame", "2", "--json", "out.json"])
    np.testing.assert_array_equal(read_poses("out.json")[0].joints, person(x=2))
    refused("nobody was found in frame 3", main, ["a.jpg", "film.json", "--frame", "3"])
    refused("has no frame 4; expected 0 to 3", main, ["a.jpg", "film.json", "--frame", "4"])


def test_units(folder, capsys):
    centred = (2 * person()[:, :2] + 1) / (WIDTH, HEIGHT) - 1
    for units, rows in (("fractions", person()[:, :2] / (WIDTH, HEIGHT)), ("centred", centred)):
        np.save("joints.npy", rows)
        for words in ([], ["--units", units]):
            capsys.readouterr()
            main(["a.jpg", "joints.npy", "--json", "out.json", "--overwrite", *words])
            assert f"format: openpose18, in {units}\n" in capsys.readouterr().out
            np.testing.assert_allclose(read_poses("out.json")[0].joints, person(), atol=1e-3)
    refused("no units are called 'inches'", main, ["a.jpg", "poses.json", "--units", "inches"])


def test_format_and_threshold(folder, capsys):
    np.save("vunet.npy", person()[:, :2] / (WIDTH, HEIGHT))
    main(["a.jpg", "vunet.npy", "--format", "openpose18-normalized", "--json", "out.json"])
    np.testing.assert_allclose(read_poses("out.json")[0].joints, person(), atol=1e-3)
    faint = person() * (1, 1, 0.5)
    faint[0, 2] = 0.9
    Path("faint.json").write_text(json.dumps({"people": [
        {"pose_keypoints_2d": faint.ravel().tolist()}]}))
    capsys.readouterr()
    main(["a.jpg", "faint.json", "--threshold", "0.6"])
    assert "joints: 1 of 18" in capsys.readouterr().out


def test_every_joint_is_drawn_where_it_is():
    """The colour's weight lies on the joint, whether the image is enlarged or not."""
    for size, scale in (((400, 300), 1), ((128, 64), 3)):
        for joint, at in ((0, (30.0, 40.5)), (4, (41.25, 70.0)), (17, (0.0, 127.0))):
            joints = np.zeros((18, 3), np.float32)
            joints[joint] = (*at, 1)
            image = np.zeros((*size, 3), np.uint8)
            picture = np.asarray(draw_poses(image, [chosen := pose(joints)], chosen), float)
            assert picture.shape == (size[0] * scale, size[1] * scale, 3)
            weight = picture.sum(2)
            ys, xs = np.indices(weight.shape)
            found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
            if joint != 17:  # at the corner only a part of the dot is there
                np.testing.assert_allclose((found + 0.5) / scale - 0.5, at, atol=0.15)
            brightest = np.unravel_index(weight.argmax(), weight.shape)
            assert picture[brightest].tolist() == list(JOINT_COLORS[joint])
            assert (image == 0).all()


def test_the_chosen_person_stands_out():
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    first, second = pose(person(without=range(1, 18))), pose(person(x=100, y=20), 1)
    picture = np.asarray(draw_poses(image, [first, second], second))
    assert picture[80, 150].tolist() == list(JOINT_COLORS[0])  # second
    faint = picture[60, 50].astype(int)  # first
    expected = 128 + 0.4 * (np.array(JOINT_COLORS[0]) - 128)
    assert np.abs(faint - expected).max() <= 2
    assert (picture == 255).all(2).any()  # the frame
    alone = np.asarray(draw_poses(image, [second], second))
    assert not (alone == 255).all(2).any()


def test_joints_far_outside_do_no_harm():
    joints = person()
    joints[0] = (9e5, -9e5, 1)
    joints[1] = (-400, 10, 1)
    image = np.zeros((64, 64, 3), np.uint8)
    draw_poses(image, [pose(joints), pose(joints, 1)], pose(joints, 1))


@pytest.mark.parametrize(("words", "message"), [
    (["a.jpg", "poses.json", "--out", "a.jpg"], "give a name ending in .png"),
    (["a.jpg", "poses.json", "--json", "poses.json", "--overwrite"], "would replace what is"),
    (["a.jpg", "poses.json", "--out", "there.png"], "there.png exists; --overwrite replaces"),
    (["a.jpg", "poses.json", "--out", "x.png", "--json", "x.png"], "are the same file"),
    (["a.jpg", "poses.json", "--out", "no/x.png"], "there is no folder no"),
    (["a.jpg", "poses.json", "--format", "bodies"], "no format is called 'bodies'"),
    (["poses.json", "poses.json", "--out", "x.png"], "is no image"),
    (["a.jpg", "a.jpg", "--out", "x.png"], "neither text nor"),
    (["a.jpg", "gone.json", "--out", "x.png"], "gone.json: No such file"),
])
def test_refused_and_nothing_touched(folder, words, message):
    Path("there.png").write_bytes(b"mine")
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    refused(message, main, words)
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_overwrite(folder):
    Path("there.png").write_bytes(b"mine")
    main(["a.jpg", "poses.json", "--out", "there.png", "--overwrite"])
    with Image.open("there.png") as picture:
        picture.load()


def test_help_and_the_command_need_no_torch(folder):
    code = (
        "import sys; from posemodel.data.pose_command import main\n"
        "main(['a.jpg', 'poses.json', '--out', 'a.png'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_real_photograph(tmp_path, capsys):
    image, joints = SHARED / "coco/000000000785.jpg", SHARED / "coco/000000000785.json"
    if not image.exists():
        pytest.skip("the photograph is not here")
    main([str(image), str(joints), "--out", str(tmp_path / "a.png")])
    out = capsys.readouterr().out
    assert "format: coco17" in out and "18 of 18" in out and "warning" not in out


# --- joints that are found in the image ---------------------------------------------------------


@pytest.fixture
def photograph(tmp_path, monkeypatch):
    """Two people in a picture, whom the estimator knows."""
    monkeypatch.chdir(tmp_path)
    both = beside(*(frames(1, person=number)[0] for number in (0, 3)))
    Image.fromarray(both.picture).save("a.png")
    knowing(monkeypatch, [both])
    return both


def test_joints_are_found_in_the_image(photograph, capsys):
    assert main(["a.png", "--out", "drawn.png", "--mask", "mask.png", "--json", "found.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("format: mediapipe33")
    assert lines[1] == "people: 2, chosen: number 0" and "mask: mask.png" in lines
    (written,) = read_poses("found.json")
    np.testing.assert_allclose(written.joints, photograph.people[0].pose.joints, atol=1e-3)
    with Image.open("mask.png") as mask:
        assert np.array_equal(np.asarray(mask) > 0, photograph.people[0].mask > 0)


def test_the_other_one(photograph, capsys):
    main(["a.png", "--person", "1", "--json", "found.json"])
    (written,) = read_poses("found.json")
    np.testing.assert_allclose(written.joints, photograph.people[1].pose.joints, atol=1e-3)


def test_nobody_in_the_image_and_flags_of_files(photograph, monkeypatch):
    refused("--format says how a file of joints is read, and none is given", main,
            ["a.png", "--format", "coco17"])
    refused("--person 7: people", main, ["a.png", "--person", "7"])
    refused("--out and --mask are the same file", main,
            ["a.png", "--out", "x.png", "--mask", "x.png"])
    Path("poses.json").write_text(openpose_json([photograph.people[0].pose], (96, 192)))
    refused("--mask goes with joints that are found", main,
            ["a.png", "poses.json", "--mask", "mask.png"])
    knowing(monkeypatch, [photograph.without_people()])
    refused("a.png: nobody was found in this picture", main, ["a.png"])
