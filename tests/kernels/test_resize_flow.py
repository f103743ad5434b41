import pytest
import torch

import pose_kernels


@pytest.mark.parametrize("size", [(8, 8), (32, 48), (5, 3), (1, 1)])
def test_affine_flows_stay_affine_up_to_the_border(size):
    linear = torch.tensor([[0.8, 0.1], [-0.2, 1.1]], dtype=torch.float64)
    shift = torch.tensor([0.2, -0.05], dtype=torch.float64)

    def affine(height, width):
        grid = pose_kernels.identity_flow(height, width, dtype=torch.float64)
        return (linear @ grid.flatten(1) + shift[:, None]).view(1, 2, height, width)

    assert torch.allclose(pose_kernels.resize_flow(affine(8, 8), size), affine(*size), atol=1e-12)


def test_it_is_the_flow_that_flow_sample_uses():
    generator = torch.Generator().manual_seed(0)
    flow = pose_kernels.identity_flow(6, 5, dtype=torch.float64)
    flow = flow + 0.2 * torch.randn(2, 2, 6, 5, generator=generator, dtype=torch.float64)
    image = torch.rand(2, 3, 24, 20, generator=generator, dtype=torch.float64)
    fine = pose_kernels.resize_flow(flow, (24, 20))
    assert torch.allclose(pose_kernels.flow_sample(image, fine),
                          pose_kernels.flow_sample(image, flow), atol=1e-12)


def test_gradient_reaches_every_coarse_cell():
    flow = torch.rand(1, 2, 3, 4, requires_grad=True)
    (pose_kernels.resize_flow(flow, (12, 12)) * torch.rand(1, 2, 12, 12)).sum().backward()
    assert (flow.grad != 0).all()


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match="flow"):
        pose_kernels.resize_flow(torch.rand(1, 3, 4, 4), (8, 8))
