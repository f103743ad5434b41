"""Target poses out of files: one person in every frame, whatever wrote the film."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from posemodel.poses.files import openpose_json
from posemodel.poses.joints import FLIP_PAIRS
from posemodel.poses.layouts import Pose
from posemodel.transfer.targets import read_targets
from tests.small_datasets import refused, whole_person

SIZE = (256, 256)
BODY = whole_person()


def person(x=0.0, without=()):
    joints = BODY + np.float32([x, 0, 0])
    joints[list(without)] = 0
    return Pose(joints=joints.astype(np.float32), format="openpose18")


def write(folder, *frames):
    """A file of OpenPose for each frame, given as its people."""
    folder.mkdir()
    files = []
    for index, people in enumerate(frames):
        files.append(folder / f"frame_{index:012}_keypoints.json")
        files[-1].write_text(openpose_json(list(people), SIZE))
    return files


def no_estimator(picture):
    raise AssertionError("files of joints need nobody who looks at pictures")


def read(files, **words):
    defaults = {"format": None, "units": None, "target_name": None, "target_size": None,
                "person": None, "every_person": False, "as_found": False, "smooth": None}
    return read_targets(files, argparse.Namespace(**{**defaults, **words}), SIZE, no_estimator)


def shifts(found):
    """How far right of BODY each target stands."""
    return [round(float(target.pose.joints[0, 0] - BODY[0, 0]), 3) for target in found.targets]


@pytest.fixture
def two(tmp_path):
    """Two people whose order changes; the one in front has more joints in some of the frames."""
    return write(tmp_path / "two", *(
        [person(x=index, without=range(4 * (index % 2))),
         person(x=-90, without=range(14, 18))][::1 - 2 * (index % 3 == 0)] for index in range(8)))


def test_one_person_is_followed(two):
    found = read(two)
    assert shifts(found)[::2] == [0, 2, 4, 6]  # of the others the nose is missing
    assert len({target.name for target in found.targets}) == 8
    assert found.remarks == ["film: 2 people in 8 frames, number 1 is followed, found in 8 "
                             "(--person N follows another)"]
    assert found.record == {"frames": 8, "people": 2, "person": 1, "found_in": 8, "filled": [],
                            "cuts": [], "exchanged": [], "jumps": []}
    assert shifts(read(two, person=0)) == [-90] * 8
    refused(r"--person 2: nobody has this number; there are 0 \(in 8 of 8 frames\), 1", read, two,
            person=2)
    assert len(read(two, every_person=True).targets) == 16


def test_frames_without_anybody_are_filled_and_counted(tmp_path):
    frames = [[person(x=3 * index)] for index in range(7)]
    frames[2] = frames[3] = frames[6] = []
    found = read(write(tmp_path / "gap", *frames))
    assert shifts(found) == [0, 3, 6, 9, 12, 15, 15]
    assert found.remarks == ["film: the person was not found in 3 of 7 frames (2, 3, 6); filled "
                             "from those around"]
    assert found.record["filled"] == [2, 3, 6]
    text = refused("nobody was found", read, write(tmp_path / "nobody", [], []))
    assert "and the 1 after it" in text


def test_a_film_in_one_file_is_in_step(tmp_path):
    path = tmp_path / "film.json"
    frames = [json.loads(openpose_json([person(x=3 * index)], SIZE)) for index in range(4)]
    frames[1]["people"] = []
    path.write_text(json.dumps(frames))
    found = read([path])
    assert shifts(found) == [0, 3, 6, 9] and found.record["filled"] == [1]
    assert [target.name for target in found.targets] == [f"{n}_film" for n in range(4)]


def test_one_picture_says_how_many_there_are(tmp_path):
    files = write(tmp_path / "one", [person(), person(x=50, without=[3])])
    found = read(files)
    assert found.remarks == ["target: 2 people, number 0 is taken (--person N takes another, "
                             "--every-person all)"] and found.record is None
    assert shifts(read(files, person=1)) == [50]
    assert read(write(tmp_path / "alone", [person()])).remarks == []


def test_images_of_a_data_set_are_no_film(tmp_path):
    rows = ["name:keypoints_y:keypoints_x"]
    for name, x in (("b.jpg", 0), ("a.jpg", 40), ("none.jpg", None)):
        y_x = [[-1] * 18] * 2 if x is None else np.rint(person(x).joints[:, 1::-1].T).astype(
            int).tolist()
        rows.append(f"{name}: {y_x[0]}: {y_x[1]}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    found = read([tmp_path / "set.csv"])
    assert [target.name for target in found.targets] == ["0_b", "1_a"] and found.record is None
    assert shifts(read([tmp_path / "set.csv"], target_name=["a.jpg"])) == [40]


def test_poses_that_have_nothing_to_do_with_each_other(tmp_path):
    """Every file has its own pose, however far they are apart."""
    assert shifts(read(write(tmp_path / "poses", *([person(x)] for x in (0, 900, -900))))) == [
        0, 900, -900]


def test_smooth(tmp_path):
    random = np.random.default_rng(0)
    files = write(tmp_path / "jitter", *([person(x)] for x in random.normal(0, 3, 20)))
    rough, calm = read(files), read(files, smooth=2.0)
    assert np.std(shifts(calm)) < 0.6 * np.std(shifts(rough))
    assert calm.remarks == ["joints smoothed over 2 frames"]
    every = read(files, smooth=2.0, every_person=True)
    assert shifts(every) == shifts(calm)


def test_smoothing_mixes_nobody_with_anybody_else(tmp_path):
    files = write(tmp_path / "two", *([person(0), person(900)] for _ in range(4)))
    assert shifts(read(files, smooth=2.0, every_person=True)) == [0, 900] * 4


def test_ultralytics_leaves_frames_out(tmp_path):
    """It writes no file for a frame in which nobody was found."""
    for frame, x in ((8, 0), (9, 3), (11, 9)):
        rows = person(x).joints[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10], :2]
        line = " ".join(map(str, (rows / 256).ravel()))
        (tmp_path / f"clip_{frame}.txt").write_text(f"0 .5 .5 .5 .5 {line}\n")
    files = [tmp_path / f"clip_{frame}.txt" for frame in (8, 9, 11)]
    found = read(files)
    assert shifts(found) == pytest.approx([0, 3, 6, 9], abs=0.01)
    assert found.record["filled"] == [2]


def test_units(tmp_path):
    np.save(tmp_path / "a.npy", person().joints[:, :2] / 256)
    found = read([tmp_path / "a.npy"])
    (target,) = found.targets
    assert found.remarks == ["target: joints in fractions of a picture whose size is not stated, "
                             "taken for that of the photograph, 256 x 256 (--target-size H W says "
                             "another)"]
    other = read([tmp_path / "a.npy"], target_size=(512, 256))
    assert other.remarks == [] and other.targets[0].frame == (512, 256)
    assert other.targets[0].pose.joints[0].tolist() == [BODY[0, 0], 2 * BODY[0, 1], 1]
    np.testing.assert_allclose(target.pose.joints, person().joints, atol=1e-3)
    assert target.frame == SIZE and target.pose.units == "fractions"
    (target,) = read([tmp_path / "a.npy"], units="pixels").targets
    assert target.pose.joints.max() <= 1


def test_a_film_is_steadied_and_says_so(tmp_path):
    """Left and right change places in two frames; with --as-found they stay where they were."""
    exchanged = person()
    exchanged = dataclasses.replace(exchanged, joints=exchanged.joints[list(FLIP_PAIRS)])
    files = write(tmp_path / "wrong", *([exchanged if index in (3, 4) else person()]
                                        for index in range(8)))
    found = read(files)
    assert all(np.allclose(target.pose.joints, BODY, atol=0.01) for target in found.targets)
    assert any(line.startswith("film: in 2 frames (3, 4) left and right, found the wrong way round")
               for line in found.remarks)
    assert found.record["exchanged"] == [3, 4] and found.record["jumps"] == []
    as_found = read(files, as_found=True)
    assert not any("left and right" in line for line in as_found.remarks)
    assert np.allclose(as_found.targets[3].pose.joints, exchanged.joints, atol=0.01)
    assert "exchanged" not in as_found.record
