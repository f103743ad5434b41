import pytest
import torch
from baseline_helpers import grid, turn
from torch.autograd import gradcheck

from posemodel.baselines.dense_motion import affine_motions
from posemodel.baselines.mraa import PARTS, region_affine, region_maps, regions, symmetric_root
from tests.tiny import random_poses as poses

FLOOR = 0.0025


def joints(seed=0):
    return poses(2, seed)[..., :2].double()


def some(probability, seed=5):
    return (torch.rand(2, 18, generator=torch.Generator().manual_seed(seed)) < probability).double()


def test_mean_and_covariance_of_a_part():
    points, present = joints(), some(0.7)
    found = regions(points, present)
    for k, part in enumerate(PARTS):
        members = [j for j in part if present[0, j]]
        assert found.present[0, k] == bool(members)
        if members:
            own = points[0, members]
            torch.testing.assert_close(found.mean[0, k], own.mean(0))
            torch.testing.assert_close(
                found.spread[0, k], (own - own.mean(0)).T @ (own - own.mean(0)) / len(own))
        else:
            assert not found.mean[0, k].any() and not found.spread[0, k].any()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_root_squares_to_the_covariance_and_is_symmetric(rank):
    factor = torch.randn(7, 2, rank).double()
    spread = factor @ factor.mT
    root = symmetric_root(spread, FLOOR)
    torch.testing.assert_close(root @ root, spread + FLOOR * torch.eye(2).double())
    torch.testing.assert_close(root, root.mT)
    assert (torch.linalg.eigvalsh(root) > 0).all()


@pytest.mark.parametrize("share", [1.0, 0.6, 0.2, 0.0])
def test_affine_takes_one_covariance_to_the_other_and_never_mirrors(share):
    source, target, common = joints(), joints(seed=1), some(share)
    found = region_affine(source, target, common, FLOOR)
    thick = FLOOR * torch.eye(2).double()
    moved = found @ (regions(target, common).spread + thick) @ found.mT
    torch.testing.assert_close(moved, regions(source, common).spread + thick)
    assert (torch.linalg.det(found) > 0).all()


@pytest.mark.parametrize("degrees", [0.0, 60.0, 90.0, 175.0, -120.0])
def test_a_limb_turns_with_its_joints_and_keeps_its_width(degrees):
    target = joints()
    source = target @ turn(degrees).T + 0.3
    found = region_affine(source, target, torch.ones(2, 18).double(), FLOOR)
    torch.testing.assert_close(found, turn(degrees).expand_as(found), rtol=0, atol=0.02)


def test_a_longer_limb_stretches_along_itself_alone():
    target = joints()
    target[:, 2], target[:, 3] = torch.tensor([[-0.2, 0.1], [0.2, 0.1]]).double()
    source = target.clone()
    source[:, 2], source[:, 3] = torch.tensor([[-0.4, 0.1], [0.4, 0.1]]).double()
    found = region_affine(source, target, torch.ones(2, 18).double(), 1e-6)
    arm = PARTS.index((2, 3))
    torch.testing.assert_close(
        found[0, arm], torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), rtol=0, atol=1e-3)


def test_one_joint_shifts():
    common = torch.zeros(2, 18).double()
    common[:, 3] = 1
    found = region_affine(joints(), joints(seed=1), common, FLOOR)
    torch.testing.assert_close(found, torch.eye(2).double().expand_as(found))


def test_gradients():
    common = some(0.7)[:1]
    inputs = [joints(seed)[:1].requires_grad_() for seed in (0, 1)]
    assert gradcheck(lambda s, t: region_affine(s, t, common, FLOOR), inputs)
    spread = torch.tensor([[0.3, 0.1], [0.1, 0.2]]).double().requires_grad_()
    assert gradcheck(lambda s: symmetric_root(s, FLOOR), [spread])


def test_straight_short_and_empty_parts_have_finite_gradients():
    # All joints on a line, all in one point, and none: covariances of rank one and zero.
    line = torch.linspace(-0.5, 0.5, 18)[:, None] * torch.tensor([1.0, 0.3])
    target = torch.stack([line, torch.zeros(18, 2), line]).requires_grad_()
    source = torch.stack([line.flip(1), line, torch.zeros(18, 2)]).requires_grad_()
    common = torch.ones(3, 18)
    common[2, 5:] = 0
    found = region_affine(source, target, common, FLOOR)
    found.sum().backward()
    assert all(value.isfinite().all() for value in (found, source.grad, target.grad))


def test_a_turn_in_one_line_is_found_from_the_names_of_the_joints():
    # Covariances cannot tell a limb from the same limb upside down; its joints can.
    target = joints()
    source = target.clone()
    source[:, [2, 3]] = target[:, [3, 2]]
    found = region_affine(source, target, torch.ones(2, 18).double(), FLOOR)
    arm = PARTS.index((2, 3))
    torch.testing.assert_close(found[:, arm], -torch.eye(2).double().expand(2, 2, 2), rtol=0,
                               atol=1e-2)


def test_map_of_a_part_is_the_gaussian_of_its_covariance():
    points, present = joints(), some(0.5)
    parts, z = regions(points, present), grid(6, 6)
    found = region_maps(parts, FLOOR, z)
    inverse = torch.linalg.inv(parts.spread + FLOOR * torch.eye(2).double())
    offset = affine_motions(torch.eye(2).double().expand_as(inverse), torch.zeros_like(parts.mean),
                            parts.mean, z)
    distance = torch.einsum("bkihw,bkij,bkjhw->bkhw", offset, inverse, offset)
    torch.testing.assert_close(found, torch.exp(-distance / 2) * parts.present[..., None, None])
    assert not parts.present.all()
