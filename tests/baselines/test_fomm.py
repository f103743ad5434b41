import torch
from baseline_helpers import grid, small, turn
from torch.autograd import gradcheck

from posemodel.baselines.fomm import limb_jacobians
from posemodel.poses.joints import LIMBS
from tests.tiny import random_poses as poses

RIDGE = 1e-9
ALL = torch.ones(1, 18).double()


def joints(seed=0):
    return poses(1, seed)[..., :2].double()


def test_each_joint_has_the_rotation_and_scale_of_the_limb_that_leads_to_it():
    target, expected = joints(), {}
    source = torch.zeros_like(target)
    source[:, 1] = target[:, 1]
    for index, (near, far) in enumerate(LIMBS):
        expected[far] = turn(20.0 * index - 170, 0.5 + 0.1 * index)
        source[0, far] = source[0, near] + expected[far] @ (target[0, far] - target[0, near])
    found = limb_jacobians(source, target, ALL, RIDGE)
    assert set(expected) == set(range(18)) - {1}
    for joint, matrix in expected.items():
        torch.testing.assert_close(found[0, joint], matrix, rtol=1e-5, atol=1e-5)


def test_the_neck_follows_the_limbs_around_it():
    target = joints()
    source = target @ turn(35.0, 0.8).T + 0.1
    found = limb_jacobians(source, target, ALL, RIDGE)
    torch.testing.assert_close(found, turn(35.0, 0.8).expand_as(found), rtol=1e-5, atol=1e-5)


def test_a_missing_end_hands_over_to_the_limbs_beyond_and_then_to_the_identity():
    target, source, common = joints(), joints(seed=1), ALL.clone()
    common[:, 2] = 0  # the right shoulder: the elbow takes the forearm
    found = limb_jacobians(source, target, common, RIDGE)
    forearm = [one[0, 4] - one[0, 3] for one in (source, target)]
    torch.testing.assert_close(found[0, 3] @ forearm[1], forearm[0], rtol=1e-5, atol=1e-5)
    common[:, 4] = 0  # and without the wrist it has none
    found = limb_jacobians(source, target, common, RIDGE)
    torch.testing.assert_close(found[0, 3], torch.eye(2).double())


def test_a_limb_of_no_length_gives_the_identity():
    source = joints()
    target = source.clone()
    target[:, 4] = target[:, 3]
    found = limb_jacobians(source, target, ALL, 1e-3)
    torch.testing.assert_close(found[0, 4], torch.eye(2).double())


def test_gradients():
    common = (torch.rand(1, 18) < 0.7).double()
    inputs = [joints(seed).requires_grad_() for seed in (0, 1)]
    assert gradcheck(lambda s, t: limb_jacobians(s, t, common, 1e-3), inputs)


def test_first_order_takes_both_ends_of_a_limb_to_their_place():
    model = small("fomm", (64, 64), limb_ridge=1e-4).eval()
    source, target = poses(1), poses(1, seed=1)
    target_at = target[0, :, :2].T.unsqueeze(1)                                    # [2, 1, 18]
    found = model.candidates(source, target, target_at).flows[0, :, :, 0]           # [18, 2, 18]
    for near, far in LIMBS:
        for joint in (near, far):
            torch.testing.assert_close(
                found[far, :, joint], source[0, joint, :2], rtol=1e-4, atol=1e-4)


def test_a_joint_that_one_pose_lacks_is_seen_in_the_other():
    model = small("fomm").eval()
    whole, part = poses(1), poses(1)
    part[:, 4] = 0
    z = grid(dtype=torch.float32)
    for source, target in ((whole, part), (part, whole)):
        seen = model.candidates(source, target, z).maps.flatten(2).any(2)[0]
        assert bool(seen[4]) == (target is whole) and bool(seen[18 + 4]) == (source is whole)
        assert seen.sum() == 35


def test_a_joint_that_either_pose_lacks_has_no_motion_but_the_identity():
    source, target = poses(1), poses(1, seed=1)
    source[:, 4], target[:, 7] = 0, 0
    motion = small("fomm").eval()(source, target)
    for joint in (4, 7):
        assert not motion.masks[0, 1 + joint].any()
        torch.testing.assert_close(motion.candidates[0, 1 + joint], grid(dtype=torch.float32))
    assert (motion.masks[0].flatten(1) > 0).all(1).sum() == 17
