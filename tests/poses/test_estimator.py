"""Joints and masks found in pictures; with MediaPipe where it and its model are at hand."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from posemodel.data.images import read_image
from posemodel.poses import estimator
from posemodel.poses.estimator import POSE_LANDMARKER, people, pose_estimator
from posemodel.poses.files import read_poses
from tests.small_datasets import SHARED, refused

WEIGHTS = Path(os.environ.get("POSEMODEL_WEIGHTS", SHARED.parent / "weights"))
needs_estimator = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None or not (WEIGHTS / POSE_LANDMARKER.plain).exists(),
    reason=f"no package mediapipe, or no {WEIGHTS / POSE_LANDMARKER.plain}")
needs_photograph = pytest.mark.skipif(not (SHARED / "coco").exists(), reason="no photograph")


def landmarks(left: float, visibility: float = 0.9) -> np.ndarray:
    """33 landmarks of somebody: fractions of the picture, depth, visibility."""
    random = np.random.default_rng(0)
    rows = np.concatenate([random.uniform(0.2, 0.8, (33, 2)), random.normal(size=(33, 1)),
                           np.full((33, 1), visibility)], 1)
    rows[:, 0] = left + 0.3 * rows[:, 0]
    return rows


def mask(columns: int) -> np.ndarray:
    values = np.zeros((40, 80), np.float32)
    values[:, :columns] = 1
    return values


def test_everybody_is_found_and_who_covers_most_comes_first() -> None:
    found = people([landmarks(0.0), landmarks(0.5), landmarks(0.2, visibility=0.1)],
                   [mask(3), mask(9), mask(20)], (40, 80))
    assert [person.pose.person for person in found] == [0, 1]
    assert [int(person.mask.sum()) for person in found] == [360, 120]
    # The third, who is hidden altogether, is nobody.
    nose = landmarks(0.5)[0, :2] * (80, 40) - 0.5
    assert np.allclose(found[0].pose.joints[0], (*nose, 1), atol=1e-4)
    assert found[0].pose.frame == (40, 80) and found[0].pose.present.all()
    assert people([], [], (40, 80)) == []


def test_without_the_package(monkeypatch) -> None:
    monkeypatch.setattr(estimator, "missing_package", lambda: "it is not installed")
    with pose_estimator() as look:
        refused("needs MediaPipe: it is not installed; or give a file", look,
                np.zeros((9, 9, 3), np.uint8))


@needs_estimator
def test_a_damaged_model(tmp_path) -> None:
    (tmp_path / POSE_LANDMARKER.plain).write_bytes(b"PK\x03\x04 no model")
    with pose_estimator(tmp_path) as look:
        refused("no model of MediaPipe's PoseLandmarker, or a damaged one", look,
                np.zeros((90, 90, 3), np.uint8))


@needs_estimator
@needs_photograph
def test_a_photograph(capfd) -> None:
    image = read_image(SHARED / "coco" / "000000000785.jpg")
    truth = read_poses(SHARED / "coco" / "000000000785.json", image_size=image.shape[:2])[0]
    with pose_estimator(WEIGHTS) as look:
        person, = look(image)
        again, = look(image)
        assert look(np.full((60, 50, 3), 200, np.uint8)) == []
    assert np.array_equal(person.mask, again.mask)  # single pictures: nothing is remembered
    both = person.pose.present & truth.present
    away = np.hypot(*(person.pose.joints - truth.joints)[both, :2].T)
    assert both.sum() >= 15 and np.median(away) < 0.02 * image.shape[0]
    columns, rows = person.pose.joints[[1, 8, 11], :2].round().astype(int).T
    assert (person.mask[rows, columns] > 0.9).all()
    assert person.mask[:20].max() < 0.1 and 0.05 < person.mask.mean() < 0.3
    # What MediaPipe's own code says on every start does not reach the terminal.
    assert capfd.readouterr().err == ""
