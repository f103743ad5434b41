import pytest
import torch
from baseline_helpers import grid, small, turn
from torch.autograd import gradcheck

import pose_kernels
from posemodel.baselines.dense_motion import affine_motions, gaussian_maps, similarity
from tests.tiny import random_poses as poses

METHODS = ("fomm", "mraa", "tpsmm")


def test_similarity_finds_a_rotation_and_scale():
    vectors = torch.randn(3, 5, 2).double()
    expected = turn(130.0, 1.7)
    found = similarity(vectors @ expected.T, vectors, torch.ones(3, 5).double(), 1e-12)
    torch.testing.assert_close(found, expected.expand(3, 2, 2))


def test_similarity_without_vectors_is_the_identity():
    vectors = torch.randn(5, 2).double()
    for weight, size in ((0.0, 1.0), (1.0, 0.0)):
        found = similarity(size * vectors, size * vectors.flip(0),
                           torch.full((5,), weight).double(), 1e-3)
        assert torch.equal(found, torch.eye(2).double())


def test_similarity_gradients():
    inputs = [torch.randn(2, 3, 2).double().requires_grad_() for _ in range(2)]
    assert gradcheck(lambda s, t: similarity(s, t, torch.ones(2, 3).double(), 1e-2), inputs)


def test_affine_motion_takes_its_point_and_its_linear_part():
    linear = torch.randn(1, 2, 2, 2).double()
    source, target = torch.randn(2, 1, 2, 2).double()
    z = torch.randn(2, 1, 3).double()
    found = affine_motions(linear, source, target, z)
    for k in range(2):
        expected = linear[0, k] @ (z[:, 0] - target[0, k, :, None]) + source[0, k, :, None]
        torch.testing.assert_close(found[0, k, :, 0], expected)


def test_map_of_a_joint_is_its_gaussian_and_that_of_a_missing_one_is_empty():
    at = torch.tensor([[[0.25, -0.25], [0.0, 0.0]]]).double()
    maps = gaussian_maps(at, torch.tensor([[1.0, 0.0]]), 0.04, grid(16, 16))
    square = (grid(16, 16) - at[0, 0].view(2, 1, 1)).square().sum(0)
    torch.testing.assert_close(maps[0, 0], torch.exp(-square / 0.08))
    assert not maps[0, 1].any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("size", "stride"), [
    ((32, 32), 4), ((64, 32), 4), ((40, 24), 4), ((36, 32), 2)])
def test_masks_sum_to_one_and_mix_the_candidates(name, size, stride):
    source, target = poses(3, present=0.6), poses(3, seed=1, present=0.6)
    motion = small(name, size, stride=stride).eval()(source, target)
    height, width = size[0] // stride, size[1] // stride
    assert motion.flow.shape == (3, 2, height, width)
    torch.testing.assert_close(motion.masks.sum(1), torch.ones(3, height, width))
    mixed = torch.einsum("bkhw,bkchw->bchw", motion.masks, motion.candidates)
    torch.testing.assert_close(motion.flow, mixed)


@pytest.mark.parametrize("name", ["mraa", "tpsmm"])
def test_background_affine_is_one_affine_map_and_depends_on_the_poses(name):
    model = small(name).eval()
    torch.nn.init.normal_(model.background.last.weight, std=0.1)
    flows = model(poses(2), poses(2, seed=1)).candidates[:, 0]
    at = torch.cat([grid(dtype=torch.float32), torch.ones(1, 8, 8)]).flatten(1).T
    fit = torch.linalg.lstsq(at.expand(2, -1, -1), flows.flatten(2).mT).solution
    torch.testing.assert_close(at @ fit, flows.flatten(2).mT, rtol=1e-4, atol=1e-5)
    assert (fit[0] - fit[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_no_common_joint_leaves_the_background_alone_which_starts_as_the_identity(name):
    model = small(name)
    there, half, other, gone = *(poses(2) for _ in range(3)), torch.zeros(2, 18, 3)
    half[:, ::2] = other[:, 1::2] = 0
    for source, target in ((gone, gone), (there, gone), (gone, there), (half, other)):
        motion = model.eval()(source, target)
        assert torch.equal(motion.masks[:, 0], torch.ones(2, 8, 8))
        torch.testing.assert_close(motion.flow,
                                   pose_kernels.identity_flow(8, 8).expand(2, 2, 8, 8))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mark", [-1.0, 0.0, float("nan")])
def test_coordinates_of_a_missing_joint_do_not_matter(name, mark):
    model = small(name).eval()
    source, target = poses(2, present=0.6), poses(2, seed=1, present=0.6)
    expected = model(source, target).flow
    for pose in (source, target):
        pose[..., :2][pose[..., 2] == 0] = mark
    assert torch.equal(model(source, target).flow, expected)


@pytest.mark.parametrize("name", METHODS)
def test_all_joints_moved_alike_move_every_candidate_alike(name):
    target = poses(2, seed=3)
    target[..., :2] *= 0.5
    source = target.clone()
    source[..., :2] += torch.tensor([0.25, -0.125])
    found = small(name).eval()(source, target).candidates[:, 1:]
    expected = pose_kernels.identity_flow(8, 8) + torch.tensor([0.25, -0.125]).view(2, 1, 1)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_turned_body_is_turned_rigidly_in_a_narrow_image(name):
    # 64 x 32 pixels: the body turns by 20 degrees as pixels see it.
    stretch = torch.tensor([0.5, 1.0])
    target = poses(1, seed=2)
    target[..., :2] *= 0.4
    source = target.clone()
    rotation = turn(20.0).float()
    source[..., :2] = (target[..., :2] * stretch) @ rotation.T / stretch
    ridge = {"tpsmm": {"ridge": 1e-6}, "fomm": {"limb_ridge": 1e-3}, "mraa": {}}[name]
    found = small(name, (64, 32), **ridge).eval()(source, target).candidates[:, 1:]
    z = pose_kernels.identity_flow(16, 8) * stretch.view(2, 1, 1)
    expected = torch.einsum("ij,jhw->ihw", rotation, z) / stretch.view(2, 1, 1)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_image_option_shows_the_network_the_source(name):
    model = small(name, motion_input="keypoints+image").eval()
    source, target = poses(2), poses(2, seed=1)
    image = torch.rand(2, 3, 32, 32)
    first = model(source, target, image).flow
    assert not torch.allclose(first, model(source, target, 1 - image).flow)
    for one, args in ((model, ()), (small(name), (image,))):
        with pytest.raises(ValueError, match="source_image"):
            one(source, target, *args)
