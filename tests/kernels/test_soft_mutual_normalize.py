"""soft_mutual_normalize: Eqs. 9 and 2, element by element."""

import functools

import pytest
import torch
from kernel_helpers import features, value_and_gradients

import pose_kernels


def test_element_by_element():
    C = torch.rand(1, 4, 2, 3, dtype=torch.float64)
    value = pose_kernels.soft_mutual_normalize(C)
    flat = C[0].flatten(1)
    Q = torch.empty(4, 6, dtype=torch.float64)
    for s in range(4):
        for t in range(6):
            gamma = flat[s, t] / flat[:, t].max() * flat[s, t] / flat[s].max()
            Q[s, t] = gamma * flat[s, t]
    torch.testing.assert_close(value[0].flatten(1), Q / Q.norm(dim=0))


def test_is_the_second_half_of_guided_correlation():
    inputs = features(2, 5, (3, 4), (2, 3))

    def composed(source, target):
        return pose_kernels.soft_mutual_normalize(pose_kernels.correlation_4d(source, target))

    expected = value_and_gradients(pose_kernels.guided_correlation, inputs)
    for a, b in zip(value_and_gradients(composed, inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_gradcheck(eps):
    op = functools.partial(pose_kernels.soft_mutual_normalize, eps=eps)
    assert torch.autograd.gradcheck(op, torch.rand(2, 4, 2, 3).double().requires_grad_())


def test_zeros_and_negative_rows():
    C = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    C[:, :, 0, 1] = 0
    C[:, 2] = -C[:, 2].abs()  # all maxima below eps: the floor keeps signs and numbers
    value, gradient = value_and_gradients(pose_kernels.soft_mutual_normalize, [C])
    assert (value[:, :, 0, 1] == 0).all() and (gradient[:, :, 0, 1] == 0).all()
    assert value.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() > 0


def test_half_precision_survives_the_cube():
    C = (0.02 * torch.rand(1, 64, 8, 8, dtype=torch.float64)).half()
    value = pose_kernels.soft_mutual_normalize(C)
    expected = pose_kernels.soft_mutual_normalize(C.double())
    torch.testing.assert_close(value.double(), expected, rtol=2e-3, atol=1e-5)


def test_compile_fullgraph():
    C = torch.rand(1, 4, 2, 3, dtype=torch.float64)
    op = pose_kernels.soft_mutual_normalize
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for a, b in zip(value_and_gradients(compiled, [C]), value_and_gradients(op, [C]), strict=True):
        torch.testing.assert_close(a, b)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"correlation: expected \[B, hs\*ws, ht, wt\]"):
        pose_kernels.soft_mutual_normalize(torch.rand(4, 2, 3))
    with pytest.raises(ValueError, match="eps"):
        pose_kernels.soft_mutual_normalize(torch.rand(1, 4, 2, 3), eps=-1)
