import json

import numpy as np
import pytest

from posemodel.evaluation.__main__ import main
from posemodel.evaluation.pckh import pckh
from posemodel.poses.annotations import write_annotations
from posemodel.runtime.errors import UserError


def person():
    """All joints there; the head is 20 wide and 10 high."""
    joints = np.zeros((18, 3))
    joints[:, 0] = np.arange(18) * 10.0
    joints[:, 1] = 100.0
    joints[:, 2] = 1
    joints[[0, 1, 14, 15, 16, 17], :2] = [[0, 0], [20, 10], [5, 5], [6, 5], [7, 5], [8, 5]]
    return joints


def test_reach_is_half_the_head_across_and_along_and_does_not_count_itself():
    target, found = person(), person()
    found[2, 0] += 9.9
    found[3, 0] += 10.0
    found[4, 1] += 4.9
    found[5, 1] -= 5.0
    result = pckh(found[None], target[None])
    assert result.right.tolist() == [16] and result.joints.tolist() == [18]
    assert result.value == 16 / 18


def test_missing_joints():
    target, found = person(), person()
    found[2] = 0                # not found: wrong
    target[3] = 0               # not there: not counted, though something was found
    result = pckh(found[None], target[None])
    assert result.right.tolist() == [16] and result.joints.tolist() == [17]


def test_an_image_without_a_head_is_left_out_and_a_flat_head_makes_all_wrong():
    bodiless, flat, whole = person(), person(), person()
    bodiless[[1, 14, 15, 16, 17]] = 0       # one point of the head is left
    flat[[0, 1, 14, 15, 16, 17], 1] = 5
    target = np.stack([bodiless, flat, whole])
    result = pckh(target, target)
    assert result.measured.tolist() == [False, True, True]
    assert result.right.tolist() == [0, 0, 18] and result.joints.tolist() == [0, 18, 18]
    assert result.value == 0.5


def test_brute_force():
    random = np.random.default_rng(0)
    target = random.uniform(0, 60, (40, 18, 3)).round()
    found = target + random.normal(0, 8, target.shape).round()
    target[..., 2], found[..., 2] = random.random((2, 40, 18)) < 0.6
    right = joints = 0
    for there, seen in zip(found, target, strict=True):
        head = [seen[k, :2] for k in (0, 1, 14, 15, 16, 17) if seen[k, 2]]
        if len(head) < 2:
            continue
        width, height = np.ptp(head, axis=0)
        for a, b in zip(there, seen, strict=True):
            joints += int(b[2])
            right += bool(a[2] and b[2] and abs(a[0] - b[0]) < 0.5 * width
                          and abs(a[1] - b[1]) < 0.5 * height)
    result = pckh(found, target)
    assert result.value == right / joints and 0.1 < result.value < 0.9


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 18, 3\]"):
        pckh(np.zeros((2, 17, 3)), np.zeros((2, 17, 3)))
    assert np.isnan(pckh(np.zeros((0, 18, 3)), np.zeros((0, 18, 3))).value)


def write_files(folder, names):
    """Annotations of two targets, and of images with these names in which one joint is far off."""
    targets = np.stack([person(), person()])
    found = np.stack([person() for _ in names])
    found[0, 2, 0] += 30
    write_annotations(folder / "targets.csv", ["a.jpg", "b.jpg"], targets)
    write_annotations(folder / "found.csv", names, found)
    return [str(folder / "found.csv"), "--targets", str(folder / "targets.csv")]


@pytest.mark.parametrize("names",
                         [["b.jpg", "a.jpg"], ["a.jpg___b.jpg_vis.jpg", "b.jpg___a.jpg_vis.png"],
                          ["a.jpg___b.jpg", "b.jpg___a.jpg"]])
def test_command(tmp_path, capsys, names):
    files = write_files(tmp_path, names)
    assert main(["pckh", *files, "--json", str(tmp_path / "result.json")]) == 0
    assert capsys.readouterr().out.startswith("PCKh 0.9722: 35 of 36 joints in 2 images; 0 left")
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert numbers["pckh"] == 35 / 36
    assert numbers["images"][0] == {"name": names[0], "right": 17, "joints": 18}


def test_image_of_an_unknown_target_is_named(tmp_path):
    with pytest.raises(UserError, match="a.jpg___c.jpg_vis.jpg has the target c.jpg"):
        main(["pckh", *write_files(tmp_path, ["a.jpg___b.jpg", "a.jpg___c.jpg_vis.jpg"])])
