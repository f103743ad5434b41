import pytest
import torch

import pose_kernels
from posemodel.flow.filling import SPREAD, certainty_of_spread, fill_flow

SIZES = ((8, 8), (7, 12), (1, 5))


def still(size):
    return pose_kernels.identity_flow(*size, dtype=torch.float64)[None]


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_certain_stays(size):
    flow, certainty = random(2, 2, *size), (random(2, 1, *size, seed=1) < 0.3).double()
    filled = fill_flow(flow, certainty)
    kept = certainty.expand_as(flow) == 1
    torch.testing.assert_close(filled[kept], flow[kept])
    assert kept.all() or not torch.equal(filled, flow)


@pytest.mark.parametrize("size", SIZES)
def test_one_displacement_of_all_goes_everywhere(size):
    """However certain each place is, and whatever the flow is where nothing is."""
    shift = torch.tensor([0.3, -0.2], dtype=torch.float64).view(1, 2, 1, 1)
    certainty = 0.1 + 0.9 * random(1, 1, *size)
    torch.testing.assert_close(fill_flow(still(size) + shift, certainty), still(size) + shift)
    known = torch.zeros_like(certainty)
    known[..., 0, 0] = 1
    flow = torch.where(known > 0, still(size) + shift, random(1, 2, *size))
    torch.testing.assert_close(fill_flow(flow, known), (still(size) + shift).expand_as(flow))


def test_where_nothing_is_certain_nothing_moves():
    assert torch.equal(fill_flow(random(1, 2, 8, 6), torch.zeros(1, 1, 8, 6).double()),
                       still((8, 6)))


def test_a_gap_is_filled_from_its_rim():
    """Between what is known, and nearer to what is nearer."""
    moved = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    moved[:, 0, :, 8:] = 1
    certainty = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    certainty[..., 4:12] = 0
    row = (fill_flow(still((16, 16)) + moved, certainty) - still((16, 16)))[0, 0, 8]
    assert (row[:4] == 0).all() and torch.allclose(row[12:], torch.ones(4).double())
    assert (row.diff() >= -1e-12).all() and 0 < row[7] < row[8] < 1


def test_gradients_go_to_the_flow_and_its_certainty():
    flow, certainty = random(1, 2, 5, 6).requires_grad_(), random(1, 1, 5, 6, seed=1)
    assert torch.autograd.gradcheck(fill_flow, (flow, certainty.requires_grad_()))


def test_certainty_falls_with_the_spread():
    spread = torch.tensor([0, SPREAD, 10 * SPREAD])
    torch.testing.assert_close(certainty_of_spread(spread.square()),
                               torch.tensor([1, 0.5, 1e-4]), atol=1e-6, rtol=1e-6)
