"""The page that shows how to lay out a data set of one's own, done as it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from posemodel.data.__main__ import main
from posemodel.data.check import check, describe
from posemodel.data.reading import open_pairs
from posemodel.poses.files import openpose_json
from posemodel.poses.layouts import Pose
from tests.small_datasets import whole_person

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


def photograph(path: Path, joints: np.ndarray, size: tuple[int, int]) -> None:
    """A picture with a red nose and blue ankles, and its joints beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size[::-1], "white")
    for joint, color in ((0, "red"), (10, "blue"), (13, "blue")):
        x, y = joints[joint, :2].tolist()
        ImageDraw.Draw(picture).ellipse((x - 6, y - 6, x + 6, y + 6), fill=color)
    picture.save(path, quality=95)
    pose = Pose(joints=joints, format="openpose18")
    path.with_suffix(".json").write_text(openpose_json([pose], size))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`mine`, made of photographs of several sizes by the program on the page."""
    monkeypatch.chdir(tmp_path)
    for split, people in (("train", ("anna", "berta")), ("test", ("carla",))):
        for number, who in enumerate(people):
            for name, scale, x, y, size in (("beach", 1, 0, 0, (256, 256)),
                                            ("street", 2, 300, 100, (700, 1200)),
                                            ("park", 1.5, 100, 20, (420, 500))):
                joints = whole_person(number) * np.float32([scale, scale, 1])
                joints += np.float32([x, y, 0])
                photograph(Path("photos", split, who, f"{name}.jpg"), joints, size)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, str(PAGE), "exec"), {})
    return tmp_path / "mine"


def test_the_page_makes_a_sound_set(own, capsys):
    assert main(["check", "mine"]) == 0
    found = check(own)
    assert found.problems == [] and found.made_by == ""
    assert found.splits["train"]["pairs"] == 12 and found.splits["test"]["pairs"] == 6
    assert [note.split(": a set of your own")[0] for note in found.notes] == [
        "train: 6 images instead of 48,674, 12 pairs instead of 101,966",
        "test: 3 images instead of 4,038, 6 pairs instead of 8,570"]
    assert "numbers on it do not compare with those of DeepFashion" in describe(found)


def test_joints_lie_where_the_images_show_them(own):
    pairs = open_pairs(own, "train")
    for index in range(len(pairs.names)):
        image = np.asarray(Image.open(pairs.path(index)).convert("RGB")).astype(int)
        assert image.shape == (256, 176, 3)
        red = np.argwhere((image[..., 0] > 200) & (image[..., 1] < 60))
        nose = pairs.joints[index, 0, :2] - (40, 0)  # the frame of the layout has borders
        np.testing.assert_allclose(red.mean(0)[::-1], nose, atol=0.8)
