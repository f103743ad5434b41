import pytest
import torch

import pose_kernels
from posemodel.flow.affine import AffineRange, affine_flow, random_affine, transform_pose
from posemodel.losses.joint import joint_loss


def poses(count, joints=18, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pose = 1.7 * torch.rand(count, joints, 3, generator=generator) - 0.85
    pose[..., 2] = 1.0
    return pose


def test_zero_for_the_flow_of_the_map_that_moved_the_joints():
    bounds = AffineRange(rotation=30, scale=0.25, shear=0.15, shift=0.1)
    matrix = random_affine(4, bounds, aspect=0.5, generator=torch.Generator().manual_seed(0))
    target = poses(4)
    source = transform_pose(target, matrix)
    assert 0 < source[..., 2].mean() < 1                       # some joints left the frame
    assert joint_loss(affine_flow(matrix, 16, 8), source, target) < 1e-6


def test_is_the_l1_of_the_joints_in_normalised_coordinates():
    target = poses(1, joints=2)
    source = target.clone()
    source[0, 0, :2] += torch.tensor([0.3, -0.1])
    source[0, 1, :2] += torch.tensor([0.0, 0.2])
    flow = pose_kernels.identity_flow(8, 8)[None]
    assert joint_loss(flow, source, target) == pytest.approx((0.2 + 0.1) / 2, rel=1e-5)


def test_joints_that_either_pose_misses_do_not_count():
    target, source = poses(1), poses(1, seed=1)
    flow = torch.rand(1, 2, 8, 8)
    source[0, ::2, 2] = 0
    target[0, 1::3, 2] = 0
    kept = ((source[0, :, 2] * target[0, :, 2]) > 0).nonzero()[:, 0]
    assert 0 < len(kept) < 9
    expected = joint_loss(flow, source[:, kept], target[:, kept])
    source[0, ::2, :2], target[0, 1::3, :2] = 7.0, -7.0
    assert joint_loss(flow, source, target) == pytest.approx(float(expected), rel=1e-6)


def test_every_pair_has_the_same_weight_and_one_without_common_joints_has_zero():
    target, source, flow = poses(3), poses(3, seed=1), torch.rand(3, 2, 8, 8)
    source[0, 5:, 2] = 0
    source[2, :, 2] = 0
    alone = [joint_loss(*(x[i:i + 1] for x in (flow, source, target))) for i in range(3)]
    assert alone[2] == 0 and alone[0] > 0
    assert joint_loss(flow, source, target) == pytest.approx(float(sum(alone)) / 3, rel=1e-6)


def test_gradient_reaches_the_cells_around_the_joints_and_no_others():
    target = torch.zeros(1, 1, 3)
    target[..., :2], target[..., 2] = 0.05, 1
    source = target.clone()
    source[..., 0] += 0.4
    flow = pose_kernels.identity_flow(8, 8)[None].requires_grad_()
    joint_loss(flow, source, target).backward()
    touched = flow.grad[0].abs().sum(0) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[3:5, 3:5] = True
    assert torch.equal(touched, expected)
    assert (flow.grad[0, 0][expected] < 0).all()               # x has to grow
    assert not flow.grad[0, 1].any()
