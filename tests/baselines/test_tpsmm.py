import pytest
import torch
from baseline_helpers import grid, small, turn
from torch.autograd import gradcheck

import pose_kernels
from posemodel.baselines.tpsmm import GROUPS, spline_motions
from posemodel.flow.estimator import Motion
from posemodel.losses.pyramid import PyramidLoss
from tests.tiny import random_poses as poses


def points(seed=0, count=5):
    generator = torch.Generator().manual_seed(seed)
    return 1.2 * torch.rand(1, 1, count, 2, generator=generator).double() - 0.6


def at(target):
    """Points `[1, 1, N, 2]` as positions `[2, 1, N]`."""
    return target[0, 0].T.unsqueeze(1)


def spline(source, target, z, ridge=1e-10, common=None):
    common = torch.ones(source.shape[:-1]).double() if common is None else common
    return spline_motions(source, target, common, ridge, z)


def test_goes_through_its_points_when_the_ridge_vanishes():
    source, target = points(), points(seed=1)
    torch.testing.assert_close(
        spline(source, target, at(target))[0, 0, :, 0].T, source[0, 0], rtol=0, atol=1e-6)


def test_bends_as_the_textbook_system_says():
    # [[U, P], [P^T, 0]] [w; a] = [source; 0], without a similarity first and without a ridge.
    source, target = points(), points(seed=1)
    p, s = target[0, 0], source[0, 0]

    def kernel(square):
        return torch.where(square > 0, square * square.clamp_min(1e-300).log(), 0)

    plane = torch.cat([torch.ones(5, 1), p], dim=1)
    system = torch.zeros(8, 8).double()
    system[:5, :5] = kernel((p[:, None] - p[None]).square().sum(-1))
    system[:5, 5:], system[5:, :5] = plane, plane.T
    weights = torch.linalg.solve(system, torch.cat([s, torch.zeros(3, 2)]))
    z = grid(9, 7).flatten(1).T
    square = (z[:, None] - p[None]).square().sum(-1)
    expected = kernel(square) @ weights[:5] + weights[5] + z @ weights[6:]
    found = spline(source, target, grid(9, 7)).flatten(3)[0, 0].flatten(1).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_reproduces_affine_maps_everywhere():
    target, linear = points(), torch.tensor([[1.2, -0.4], [0.3, 0.7]]).double()
    source = target @ linear.T + 0.2
    expected = torch.einsum("ij,jhw->ihw", linear, grid()) + 0.2
    torch.testing.assert_close(spline(source, target, grid())[0, 0], expected, rtol=0, atol=1e-6)


def test_reproduces_a_similarity_with_any_number_of_points():
    # A shift for one point; for more, collinear ones too, the whole similarity.
    linear = turn(40.0, 1.3)
    line = torch.linspace(-0.5, 0.5, 5).double()[:, None] * torch.tensor([1.0, 0.4]).double()
    for target in (points(), line.view(1, 1, 5, 2)):
        source = target @ linear.T + 0.1
        for count in range(1, 6):
            common = (torch.arange(5) < count).double().view(1, 1, 5)
            found = spline(source, target, grid(), 1e-6, common)[0, 0]
            known = linear if count > 1 else torch.eye(2).double()
            offset = grid() - target[0, 0, 0].view(2, 1, 1)
            expected = torch.einsum("ij,jhw->ihw", known, offset) + source[0, 0, 0].view(2, 1, 1)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_no_point_and_missing_points_do_not_matter():
    source, target = points(), points(seed=1)
    assert spline(source, target, grid(), 1e-2, torch.zeros(1, 1, 5).double()).isfinite().all()
    common = torch.tensor([[[1.0, 1.0, 0.0, 1.0, 0.0]]]).double()
    kept = [0, 1, 3]
    expected = spline(source[:, :, kept], target[:, :, kept], grid(), 1e-2)
    torch.testing.assert_close(spline(source, target, grid(), 1e-2, common), expected)


def test_points_that_coincide_in_the_target_are_averaged():
    source, target = points(), points(seed=1)
    target[:, :, 1] = target[:, :, 0]
    found = spline(source, target, at(target), 1e-8)[0, 0, :, 0].T
    torch.testing.assert_close(found[0], source[0, 0, :2].mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[2:], source[0, 0, 2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_degenerate_points_stay_finite_and_bounded(seed):
    # float32, near coincidences, near lines, and missing points, at the ridge that is used.
    generator = torch.Generator().manual_seed(seed)
    target = 2 * torch.rand(200, 10, 5, 2, generator=generator) - 1
    target[:50, :, 1] = target[:50, :, 0] + 1e-4
    target[50:100, ..., 1] = 0.3 * target[50:100, ..., 0] + 1e-5 * target[50:100, ..., 1]
    target[100:120] = target[100:120, :, :1]
    source = (2 * torch.rand(200, 10, 5, 2, generator=generator) - 1).requires_grad_()
    target.requires_grad_()
    common = (torch.rand(200, 10, 5, generator=generator) < 0.7).float()
    found = spline_motions(source, target, common, 0.01, grid(4, 4, torch.float32))
    found.sum().backward()
    assert all(value.isfinite().all() for value in (found, source.grad, target.grad))
    assert found.abs().max() < 100


def test_gradients():
    common = torch.tensor([[[1.0, 1.0, 0.0, 1.0, 1.0]]]).double()
    inputs = [points().requires_grad_(), points(seed=1).requires_grad_()]
    assert gradcheck(lambda s, t: spline_motions(s, t, common, 1e-2, grid(3, 3)), inputs)


def test_every_joint_is_in_a_group():
    assert {joint for group in GROUPS for joint in group} == set(range(18))


def test_dropout_follows_the_progress_and_spares_the_background():
    model = small("tpsmm", dropout=0.5).train()
    masks = torch.rand(400, 11, 2, 2).softmax(1)

    def dropped(progress):
        model.progress = progress
        found = model.regularize(masks)
        torch.testing.assert_close(found.sum(1), torch.ones(400, 2, 2))
        assert (found[:, 0] > 0).all()
        return (found == 0).all(-1).all(-1).float()[:, 1:].mean()

    assert dropped(0.0) == 0
    assert dropped(0.05) == pytest.approx(0.25, abs=0.03)
    assert dropped(0.2) == pytest.approx(0.5, abs=0.03)
    assert dropped(0.35) == 0
    model.eval()
    assert dropped(0.2) == 0


def test_dropout_of_everything_leaves_the_background_even_without_weight():
    model = small("tpsmm", dropout=1.0).train()
    model.progress = 0.2
    masks = torch.zeros(1, 11, 1, 1)
    masks[:, 3] = 1
    masks.requires_grad_()
    found = model.regularize(masks)
    found.sum().backward()
    assert found.flatten().tolist() == [1.0] + [0.0] * 10
    assert masks.grad.isfinite().all()


def test_warp_loss_is_zero_at_the_truth():
    model = small("tpsmm", warp_weight=3.0)
    source = torch.rand(1, 3, 32, 32) * 2 - 1
    flow = pose_kernels.identity_flow(8, 8).unsqueeze(0)
    batch = {"source": source, "target": source}
    assert model.losses(Motion(flow=flow), batch, PyramidLoss().features)["warp"] == 0
    batch["target"] = source.flip(3)
    whole = model.losses(Motion(flow=flow), batch, PyramidLoss().features)["warp"]
    expected = sum((a - b).abs().mean() for a, b in zip(
        PyramidLoss().features(source), PyramidLoss().features(batch["target"]), strict=True))
    torch.testing.assert_close(whole, 3 * expected)


def test_two_poses_with_missing_joints_keep_their_splines_near_the_body():
    model = small("tpsmm").eval()
    motion = model(poses(8, present=0.6), poses(8, seed=1, present=0.6))
    assert motion.candidates.abs().max() < 20
