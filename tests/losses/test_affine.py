import pytest
import torch

import pose_kernels
from posemodel.flow.affine import AffineRange, affine_flow, random_affine, transform_pose
from posemodel.losses.affine import affine_loss

BOUNDS = AffineRange(rotation=30, scale=0.25, shear=0.15, shift=0.25)


def draw(count, bounds=BOUNDS, aspect=1.0, seed=0):
    return random_affine(count, bounds, aspect=aspect,
                         generator=torch.Generator().manual_seed(seed))


def test_flow_of_an_affine_map_brings_the_moved_picture_back():
    # A smooth picture f, and the picture g of the moved person: g(A x) = f(x). Sampling g at the
    # flow must give f.
    def picture(x, y):
        return torch.stack([torch.sin(3 * x + y), torch.cos(2 * y - x), x * y])

    affine = draw(4)
    x, y = pose_kernels.identity_flow(128, 128)
    linear, shift = affine[:, :, :2], affine[:, :, 2]
    inverse = torch.linalg.inv(linear)
    back = inverse @ (torch.stack([x, y]).flatten(1) - shift[..., None])
    moved = torch.stack([picture(*one.view(2, 128, 128)) for one in back])
    flow = affine_flow(affine, 128, 128)
    restored = pose_kernels.flow_sample(moved, flow)
    inside = (flow.abs() < 0.98).all(1, keepdim=True).expand_as(restored)
    assert inside.float().mean() > 0.5
    assert (restored - picture(x, y)).abs()[inside].max() < 5e-3


def test_joints_move_with_the_map_and_missing_ones_stay_missing():
    affine = draw(3)
    pose = torch.rand(3, 18, 3) - 0.5
    pose[..., 2] = (pose[..., 2] > 0).float()
    pose[..., :2] *= pose[..., 2:]
    moved = transform_pose(pose, affine)
    expected = torch.einsum("brc,bjc->bjr", affine[:, :, :2], pose[..., :2]) + affine[:, None, :, 2]
    there = moved[..., 2] == 1
    assert torch.allclose(moved[..., :2][there], expected[there], atol=1e-6)
    assert not moved[pose[..., 2] == 0].any()


def test_a_joint_that_leaves_the_frame_is_missing():
    shift = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    pose = torch.tensor([[[0.4, 0.0, 1.0], [0.6, 0.0, 1.0]]])
    moved = transform_pose(pose, shift)
    assert moved[0, 0].tolist() == pytest.approx([0.9, 0.0, 1.0])
    assert moved[0, 1].tolist() == [0.0, 0.0, 0.0]


def test_loss_is_zero_at_the_truth_and_counts_only_what_is_in_the_frame():
    affine = draw(4)
    truth = affine_flow(affine, 16, 16)
    assert affine_loss(truth, affine) == 0
    outside = (truth.abs() > 1).any(1, keepdim=True)
    assert outside.any()
    assert affine_loss(truth + 7 * outside, affine) == 0
    assert affine_loss(truth + 0.5, affine) == pytest.approx(0.5, rel=1e-5)


def test_the_papers_norm_is_a_sum_over_the_cells_of_the_flows_grid():
    # One cell to the right at each of 8 x 16 positions; s_f runs over 1..w and 1..h.
    affine = torch.eye(2, 3)[None]
    truth = affine_flow(affine, 8, 16)
    flow = truth + torch.tensor([2 / 16, 0.0]).view(1, 2, 1, 1)
    assert affine_loss(flow, affine, cells=True) == pytest.approx(8 * 16)
    assert affine_loss(flow, affine) == pytest.approx(1 / 16)
    # On the paper's grid 32 times as much for the unit, 8,192 times for the sum.
    flow = affine_flow(affine, 64, 64) + 0.1
    assert affine_loss(flow, affine, cells=True) == pytest.approx(
        32 * 8192 * affine_loss(flow, affine).item(), rel=1e-5)


def test_everything_outside_gives_zero_and_not_nan():
    away = torch.tensor([[[1.0, 0.0, 9.0], [0.0, 1.0, 9.0]]])
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = affine_loss(flow, away)
    loss.backward()
    assert loss == 0 and not flow.grad.any()


def test_people_stay_upright_and_bounds_hold():
    affine = draw(2000)
    up = affine[:, :, :2] @ torch.tensor([0.0, -1.0])
    assert (up[:, 1] < 0).all()
    assert torch.linalg.det(affine[:, :, :2]).min() > 0
    assert affine[:, :, 2].abs().max() <= BOUNDS.shift


def test_a_rotation_is_rigid_in_pixels_of_a_narrow_image():
    only_turn = AffineRange(rotation=30, scale=0, shear=0, shift=0)
    affine = draw(5, only_turn, aspect=0.5)
    to_pixels = torch.diag(torch.tensor([32.0, 64.0]))
    rigid = to_pixels @ affine[:, :, :2] @ torch.linalg.inv(to_pixels)
    assert torch.allclose(rigid @ rigid.mT, torch.eye(2).expand(5, 2, 2), atol=1e-5)


def test_the_same_generator_state_draws_the_same_maps():
    assert torch.equal(draw(3, seed=5), draw(3, seed=5))
    assert not torch.equal(draw(3, seed=5), draw(3, seed=6))


def test_positions_count_by_their_weight_and_pairs_alike():
    affine = draw(3)
    inside = (affine_flow(affine, 8, 8).abs() <= 1).all(1, keepdim=True)
    error = torch.rand(3, 1, 8, 8)
    flow = affine_flow(affine, 8, 8) + error
    weight = torch.rand(3, 1, 8, 8) + 0.1
    weight[2] = 0
    kept = inside * weight
    pairs = [float((kept * error)[i].sum() / kept[i].sum()) for i in range(2)]
    assert affine_loss(flow, affine, weight) == pytest.approx(sum(pairs) / 3, rel=1e-4)
    assert affine_loss(flow, affine, torch.ones(3, 1, 8, 8)) == pytest.approx(
        float(affine_loss(flow, affine)), rel=1e-6)
