import torch

import pose_kernels
from posemodel.flow.affine import affine_flow
from posemodel.flow.visibility import affine_score, correlation_score, cycle_score, peak_score

AFFINE = torch.tensor([[[0.9, 0.2, 0.05], [-0.1, 1.1, -0.08]]])


def test_an_affine_flow_is_at_distance_zero_inside():
    score = affine_score(affine_flow(AFFINE, 16, 12))
    assert score.shape == (1, 1, 16, 12)
    assert score[..., 1:-1, 1:-1].abs().max() < 1e-5


def test_a_bend_is_found_where_it_is():
    flow = affine_flow(AFFINE, 16, 16)
    flow[..., :8] += torch.tensor([0.3, 0.0]).view(1, 2, 1, 1)
    score = affine_score(flow)[0, 0, 1:-1, 1:-1]
    assert score[:, 6:8].max() < -0.1                  # columns 7 and 8 of the flow
    assert score[:, :5].abs().max() < 1e-4 and score[:, 9:].abs().max() < 1e-4


def test_a_flow_and_its_inverse_close_the_cycle():
    inverse = torch.linalg.inv(AFFINE[:, :, :2])
    back = torch.cat([inverse, -inverse @ AFFINE[:, :, 2:]], dim=2)
    forward_flow, backward_flow = affine_flow(AFFINE, 32, 32), affine_flow(back, 32, 32)
    score = cycle_score(forward_flow, backward_flow)
    inside = (forward_flow.abs() < 0.95).all(1, keepdim=True)
    assert score[inside].abs().max() < 1e-3
    off = cycle_score(forward_flow, backward_flow + torch.tensor([2 / 16, 0]).view(1, 2, 1, 1))
    assert torch.allclose(off[inside], torch.tensor(-2.0), atol=1e-3)


def test_peak_is_the_largest_entry_of_each_target_position():
    source, target = torch.rand(2, 5, 4, 4), torch.rand(2, 5, 3, 4)
    guided = pose_kernels.guided_correlation(source, target)
    assert torch.equal(peak_score(guided)[:, 0], guided.max(dim=1).values)


def test_correlation_remembers_how_good_the_best_match_is():
    source = torch.nn.functional.normalize(torch.rand(2, 5, 4, 4), dim=1)
    target = torch.nn.functional.normalize(torch.randn(2, 5, 3, 4), dim=1)
    target[:, :, 1, 2] = source[:, :, 3, 0]
    score = correlation_score(source, target)
    assert score.shape == (2, 1, 3, 4)
    assert torch.allclose(score[:, 0, 1, 2], torch.ones(2))
    brute = torch.einsum("bmij,bmkl->bijkl", source, target).amax((1, 2))
    assert torch.allclose(score[:, 0], brute, atol=1e-6)
