import pytest
import torch
import torch.nn.functional as F
from baseline_helpers import grid, small
from torch.autograd import gradcheck

import pose_kernels
from posemodel.baselines.gfla import affine_regularization, sampling_correctness
from posemodel.losses.perceptual import VGG16, VGG19, PerceptualLoss
from posemodel.losses.pyramid import PyramidLoss
from posemodel.runtime.errors import UserError
from tests.tiny import random_poses as poses


def shifted(height, width, x, y, dtype=torch.float64):
    """Flow that samples x columns and y rows away."""
    step = torch.tensor([2 * x / width, 2 * y / height], dtype=dtype).view(2, 1, 1)
    return (grid(height, width, dtype) + step).unsqueeze(0)


def smooth_features(channels=24, size=(12, 10)):
    coarse = torch.rand(1, channels, 5, 4).double()
    return F.interpolate(coarse, size=size, mode="bicubic").clamp_min(0)


# --- affine regularisation ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
def test_regularization_is_zero_for_affine_flows_and_positive_for_a_bend(size):
    linear = torch.randn(2, 2).double()
    affine = torch.einsum("ij,jhw->ihw", linear, grid(9, 12)) + 0.7
    assert affine_regularization(affine.unsqueeze(0), size) < 1e-24
    bent = grid(9, 12).clone()
    bent[0] += 0.1 * bent[1].square()
    assert affine_regularization(bent.unsqueeze(0), size) > 1e-4


def test_regularization_is_the_residual_of_the_least_squares_fit_in_cells():
    flow = torch.randn(1, 2, 5, 7).double()
    cells = flow * torch.tensor([3.5, 2.5]).view(2, 1, 1)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    plane = torch.stack([x, y, torch.ones(3, 3)], -1).view(9, 3).double()
    expected = []
    for row in range(3):
        for column in range(5):
            values = cells[0, :, row:row + 3, column:column + 3].reshape(2, 9).T
            fit = plane @ torch.linalg.lstsq(plane, values).solution
            expected.append((values - fit).square().sum())
    torch.testing.assert_close(affine_regularization(flow, 3), torch.stack(expected).mean())


def test_regularization_gradients():
    flow = torch.randn(1, 2, 5, 6).double().requires_grad_()
    assert gradcheck(lambda f: affine_regularization(f, 3), [flow])


# --- sampling correctness -------------------------------------------------------------------------


def test_correctness_is_least_at_the_best_match():
    source = smooth_features()
    # The target shows at (row, column) what the source has at (row + 1, column + 2).
    target = source.roll((-1, -2), (2, 3))
    losses = {(x, y): float(sampling_correctness(shifted(12, 10, x, y), source, target))
              for x in (-2, 0, 1, 2, 3) for y in (-1, 0, 1, 2)}
    assert min(losses, key=losses.get) == (2, 1)


def test_correctness_is_zero_where_all_places_match_and_at_most_that_of_no_match():
    flow = shifted(6, 6, 1, 0)
    same = torch.ones(1, 4, 6, 6).double()
    assert sampling_correctness(flow, same, same).abs() < 1e-7
    assert float(sampling_correctness(flow, torch.zeros_like(same), same)) == pytest.approx(
        1 - torch.tensor(-1.0).exp().item(), abs=1e-6)


def test_correctness_measures_against_the_best_of_all_positions():
    # cos with the constant source is 1 / sqrt 2 everywhere, which is also the best there is.
    source = torch.zeros(1, 2, 6, 6).double()
    source[:, 0] = 1
    target = torch.ones(1, 2, 6, 6).double()
    assert sampling_correctness(shifted(6, 6, 0, 0), source, target).abs() < 1e-6
    source[:, 1, 0, 0] = 1  # one position that fits: the others are now worth 1 / sqrt 2
    far = sampling_correctness(torch.full((1, 2, 6, 6), 0.9).double(), source, target)
    expected = torch.tensor(-0.5**0.5).exp() - torch.tensor(-1.0).exp()
    assert float(far) == pytest.approx(float(expected), abs=1e-6)


def test_the_gradient_reaches_a_match_that_bilinear_sampling_does_not_see():
    source = torch.zeros(1, 2, 9, 9).double()
    source[:, 0] = 1
    source[0, :, 4, 4] = torch.tensor([0.0, 1.0])
    target = torch.zeros(1, 2, 9, 9).double()
    target[:, 1] = 1
    at = torch.tensor([(2 * (4 + 1.6) + 1) / 9 - 1, (2 * 4.0 + 1) / 9 - 1]).double()
    flow = at.view(1, 2, 1, 1).expand(1, 2, 9, 9).clone().requires_grad_()
    sampling_correctness(flow, source, target).backward()
    assert (flow.grad[:, 0] > 1e-4).all()  # descent moves left, towards the match
    bilinear = pose_kernels.flow_sample(source, flow)
    assert not bilinear[:, 1].any()


def test_correctness_gradients():
    source, target = smooth_features(size=(5, 6)), smooth_features(size=(5, 6)).flip(2)
    flow = (shifted(5, 6, 0.3, 0.6) + 0.02 * torch.randn(1, 2, 5, 6)).requires_grad_()
    with torch.no_grad():
        assert sampling_correctness(flow, source, target).dtype == torch.float64
    assert gradcheck(lambda f: sampling_correctness(f, source, target), [flow])


def test_features_learn_nothing():
    source = torch.rand(1, 4, 6, 6).requires_grad_()
    flow = shifted(6, 6, 1, 1, torch.float32).requires_grad_()
    sampling_correctness(flow, source, source).backward()
    assert source.grad is None and flow.grad.any()


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cell"), [("gfla32", 8), ("gfla64", 4)])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_flows_at_two_resolutions_start_as_the_identity(name, cell, size):
    motion = small(name, size).eval()(poses(2), poses(2, seed=1))
    for flow, side in zip((*motion.flows, motion.flow), (8, 4, cell), strict=True):
        expected = pose_kernels.identity_flow(size[0] // side, size[1] // side)
        assert torch.equal(flow, expected.expand(2, -1, -1, -1))


def test_both_scales_have_the_same_weights():
    coarse, fine = small("gfla32").eval(), small("gfla64").eval()
    for head in coarse.heads:
        torch.nn.init.normal_(head[1].weight)
    fine.load_state_dict(coarse.state_dict())
    a, b = (one(poses(2), poses(2, seed=1)) for one in (coarse, fine))
    assert torch.equal(a.flow, b.flows[0]) and torch.equal(b.flow, a.flows[1])


def test_losses_compare_each_flow_at_its_own_resolution():
    model = small("gfla64", correctness_weight=2.0, regularization_weight=0.5).eval()
    for head in model.heads:
        torch.nn.init.normal_(head[1].weight, std=0.1)
    motion = model(poses(2), poses(2, seed=1))
    batch = {name: torch.rand(2, 3, 32, 32) * 2 - 1 for name in ("source", "target")}
    found = model.losses(motion, batch, PyramidLoss().features)
    (source4, source8), (target4, target8) = (
        PyramidLoss().features(batch[name]) for name in ("source", "target"))
    expected = sampling_correctness(motion.flows[0], source8, target8) + sampling_correctness(
        motion.flows[1], source4, target4)
    torch.testing.assert_close(found["correctness"], 2 * expected)
    bend = affine_regularization(motion.flows[0], 3) + affine_regularization(motion.flows[1], 5)
    torch.testing.assert_close(found["regularization"], 0.5 * bend)


@pytest.mark.parametrize("form", [VGG16, VGG19], ids=["vgg16", "vgg19"])
def test_every_reconstruction_loss_has_maps_of_both_resolutions(form):
    features = PerceptualLoss(form.network.layers().to_empty(device="cpu"), form).features
    model = small("gfla64").eval()
    batch = {name: torch.rand(2, 3, 32, 32) * 2 - 1 for name in ("source", "target")}
    found = model.losses(model(poses(2), poses(2, seed=1)), batch, features)
    assert set(found) == {"correctness", "regularization"}


@pytest.mark.parametrize("size", [(48, 40), (16, 32)])
def test_a_size_that_the_levels_do_not_fit_is_a_user_error(size):
    with pytest.raises(UserError, match="levels is 4"):
        small("gfla64", size)
