import numpy as np
import pytest

from posemodel.poses.mask import pose_mask

draw = pytest.importorskip("skimage.draw")
morphology = pytest.importorskip("skimage.morphology")


def test_one_joint_is_a_disc_and_none_is_nothing():
    joints = np.zeros((18, 3))
    assert not pose_mask(joints, (40, 30)).any()
    joints[3] = 15, 20, 1
    expected = np.zeros((40, 30), dtype=bool)
    expected[draw.disk((20, 15), 4)] = True
    square = np.ones((5, 5))
    expected = morphology.erosion(morphology.dilation(expected, square), square)
    assert (pose_mask(joints, (40, 30)) == expected).all()


def test_a_limb_needs_both_joints_and_is_filled_between():
    joints = np.zeros((18, 3))
    joints[3], joints[4] = (10, 10, 1), (10, 40, 1)         # right elbow and wrist
    mask = pose_mask(joints, (60, 40))
    assert mask[10:41, 7:14].all() and not mask[:, 16:].any() and not mask[46:].any()
    joints[4] = 0
    assert not pose_mask(joints, (60, 40))[16:].any()


def test_against_drawn_polygons():
    random = np.random.default_rng(1)
    joints = np.concatenate([random.uniform(-3, (64, 128), (18, 2)), np.ones((18, 1))], 1)
    joints[[3, 9], 2] = 0
    limbs = [(1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11),
             (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (1, 16), (1, 17),
             (8, 11), (11, 5), (8, 2), (16, 17)]
    expected = np.zeros((128, 64), dtype=bool)
    for joint in joints[joints[:, 2] > 0]:
        expected[draw.disk(joint[1::-1], 4, shape=(128, 64))] = True
    for a, b in limbs:
        if joints[a, 2] and joints[b, 2]:
            p, q = joints[a, 1::-1], joints[b, 1::-1]
            side = 4 * np.array([-(p - q)[1], (p - q)[0]]) / np.linalg.norm(p - q)
            corners = np.array([p + side, p - side, q - side, q + side])
            expected[draw.polygon(corners[:, 0], corners[:, 1], shape=(128, 64))] = True
    square = np.ones((5, 5))
    expected = morphology.erosion(morphology.dilation(expected, square), square)
    mask = pose_mask(joints, (128, 64))
    assert 0.2 < mask.mean() < 0.95 and (mask != expected).mean() < 1e-3
