"""flow_sample: exact identities, affine up to the border, grid_sample at equal sizes."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import (
    TOLERANCE,
    Case,
    image_and_flow,
    image_and_flow_not_finite,
    implementations,
    relative_error,
    value_and_gradients,
)

import pose_kernels
from pose_kernels import identity_flow

IMPLS = implementations("flow_sample")
FUSED = [name for name in IMPLS if name != "reference"]
MODES = ("border", "zeros")


def op(impl, size=None, padding_mode="border"):
    return functools.partial(pose_kernels.flow_sample, size=size, padding_mode=padding_mode,
                             impl=impl)


def inputs(batch, dtype, noise=0.1, **sizes):
    return image_and_flow(batch, noise=noise, dtype=dtype, **sizes)


def calls(ops, new, batch, m, source_size, target_size, last):
    image, flow = new(batch, m, *source_size), new(batch, 2, *target_size)
    for x, size, zeros in ((image, source_size, False), (image[:, :3], (24, 20), True)):
        yield "flow_sample", (x, flow, *size, zeros)
        grad = ops.flow_sample(x, flow, *size, zeros)
        for deterministic, *wanted in ((False, True, True), (True, True, False),
                                       (False, False, True)):
            yield "flow_sample_backward", (grad, x, flow, zeros, deterministic, *wanted)


# A location in half precision is far coarser than what is sampled there.
CASE = Case(inputs, calls, medium={"channels": 5, "image": (33, 29), "flow": (7, 9)},
            large={"image": (65, 40), "flow": (16, 10), "noise": 0.5}, slack=50,
            unusual=({"channels": 4001, "image": (16, 17), "flow": (7, 9)},))
COARSENESSES = [(1, 1), (1, 7), (2, 2), (3, 5), (8, 8), (9, 13), (11, 3), (37, 41), (64, 64)]


@pytest.mark.parametrize("flow_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_identity_of_any_coarseness_is_exact(impl, flow_dtype):
    for image_size, coarse, mode in itertools.product([(9, 13), (64, 48)], COARSENESSES, MODES):
        image = torch.randn(2, 3, *image_size)
        flow = identity_flow(*coarse, dtype=flow_dtype).expand(2, -1, -1, -1)
        assert torch.equal(op(impl, padding_mode=mode)(image, flow), image)


@pytest.mark.parametrize("impl", IMPLS)
def test_affine_flow_is_affine_up_to_the_border(impl):
    """Sampling an image that is linear in x and y reads the sampling location itself."""
    A = torch.tensor([[0.7, 0.2], [-0.1, 0.6]], dtype=torch.float64)
    b = torch.tensor([0.05, -0.1], dtype=torch.float64)

    def affine(height, width):
        grid = identity_flow(height, width, dtype=torch.float64)
        return (torch.einsum("dc,chw->dhw", A, grid) + b[:, None, None])[None]

    image = identity_flow(50, 40, dtype=torch.float64)[None]  # its value is its location
    for coarse in [(2, 2), (3, 8), (16, 16), (50, 40), (64, 64)]:
        value = op(impl)(image, affine(*coarse))
        torch.testing.assert_close(value, affine(50, 40), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_grid_sample(impl, mode):
    """At equal sizes, values and gradients; the wide flow leaves the image on all sides."""

    def torchs(image, flow):
        grid = flow.permute(0, 2, 3, 1)
        return F.grid_sample(image, grid, padding_mode=mode, align_corners=False)

    for size in [(9, 13), (1, 1), (1, 6), (20, 2)]:
        inputs = image_and_flow(image=size, flow=size, noise=0.7)
        found = value_and_gradients(op(impl, padding_mode=mode), inputs)
        torch.testing.assert_close(found, value_and_gradients(torchs, inputs), rtol=1e-6, atol=1e-9)
    image, flow = image_and_flow(image=(32, 32), flow=(32, 32), noise=0.7, dtype=torch.float32)
    smooth = F.avg_pool2d(image, 5, 1, 2)
    value = op(impl, padding_mode=mode)(smooth, flow)
    torch.testing.assert_close(value, torchs(smooth, flow), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("impl", FUSED)
def test_against_the_reference(impl, mode):
    images = [(9, 13), (1, 1), (1, 5), (33, 7)]
    flows, sizes = [(9, 13), (4, 5), (1, 1), (20, 3)], [None, (7, 7), (1, 1), (18, 40)]
    for image, flow, size in itertools.product(images, flows, sizes):
        inputs = image_and_flow(image=image, flow=flow, noise=0.5)
        found = value_and_gradients(op(impl, size, mode), inputs)
        expected = value_and_gradients(op("reference", size, mode), inputs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("flow_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_dtypes(impl, dtype, flow_dtype):
    """Image and flow may differ: locations are always worked out in float32 or float64."""
    image, flow = image_and_flow(image=(10, 10), flow=(4, 4), noise=0.05)
    inputs = [image.to(dtype), flow.to(flow_dtype)]
    # As the op: a low-precision flow is read against the identity of that same precision.
    grid = identity_flow(4, 4, dtype=flow_dtype).double()
    wide = [inputs[0].double(), inputs[1].double() - grid + identity_flow(4, 4).double()]
    oracle = value_and_gradients(op("reference"), wide)
    found = value_and_gradients(op(impl), inputs)
    assert [x.dtype for x in found] == [dtype, dtype, flow_dtype]
    worst = max(dtype, flow_dtype, key=lambda d: TOLERANCE[d][1])
    limit = [10 * TOLERANCE[dtype][0], 10 * TOLERANCE[worst][1], 10 * TOLERANCE[worst][1]]
    if flow_dtype == torch.float32 or dtype == torch.float64:
        limit = [max(x, 2e-5) for x in limit]
    for a, b, most in zip(found, oracle, limit, strict=True):
        assert relative_error(a, b) < most


@pytest.mark.parametrize(("flow", "size"), [((3, 4), None), ((5, 4), None), ((2, 1), (4, 6))])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl, mode, flow, size):
    inputs = image_and_flow(batch=1, channels=2, image=(5, 4), flow=flow, noise=0.3)
    inputs[1] += 0.013  # off the kinks at whole pixels
    assert torch.autograd.gradcheck(op(impl, size, mode), [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_exist_and_are_not_zero(impl):
    image, flow = image_and_flow(noise=0)  # also exactly at the identity, where training starts
    _, image_gradient, flow_gradient = value_and_gradients(op(impl), [image, flow])
    assert (image_gradient != 0).all()
    assert (flow_gradient != 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("impl", IMPLS)
def test_not_a_number_and_infinity(impl, mode):
    image, flow = image_and_flow_not_finite()
    value = op(impl, padding_mode=mode)(image, flow)
    assert value[0, 1, 3, 4].isnan() and not value[0, 0].isnan().any()
    assert value[1, :, 2, 5].isnan().all()
    if mode == "zeros":
        assert (value[1, :, 6, 6] == 0).all() and (value[1, :, 7, 7] == 0).all()
    else:
        assert torch.equal(value[1, 1:, 6, 6], image[1, 1:, 7, 6])
        assert torch.equal(value[1, 1:, 7, 7], image[1, 1:, 7, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_keeps_locations_precise(impl):
    image, flow = image_and_flow(image=(32, 32), flow=(32, 32), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op(impl)(image, flow), op(impl)(image, flow.float()))
        assert op(impl)(image.bfloat16(), flow).dtype == torch.bfloat16


def test_identity_flow():
    flow = identity_flow(3, 4)
    assert flow.dtype == torch.float32 and flow.shape == (2, 3, 4)
    torch.testing.assert_close(flow[0, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(flow[1, :, 0], torch.tensor([-2 / 3, 0, 2 / 3]))
    theta = torch.eye(2, 3, dtype=torch.float64)[None]
    grid = F.affine_grid(theta, [1, 1, 5, 7], align_corners=False).permute(0, 3, 1, 2)[0]
    torch.testing.assert_close(identity_flow(5, 7, dtype=torch.float64), grid)
    with pytest.raises(ValueError, match="height: expected a positive integer, got 0"):
        identity_flow(0, 4)
    with pytest.raises(TypeError, match="width: expected a positive integer, got float"):
        identity_flow(3, 4.0)
    with pytest.raises(TypeError, match="dtype: expected float32"):
        identity_flow(3, 4, dtype=torch.int64)


@pytest.mark.parametrize("change, error, words", [
    (lambda i, f: (i[0], f), ValueError, r"image: expected \[B, C, H, W\], got shape"),
    (lambda i, f: (i, f[:, :1]), ValueError, r"flow: expected \[B, 2, h, w\], got shape"),
    (lambda i, f: (i, f[:1]), ValueError, "flow: expected batch 2 as image"),
    (lambda i, f: (i.int(), f), TypeError, "image: expected float32"),
    (lambda i, f: (i, f.to("meta")), ValueError, "flow: expected device cpu as image"),
    (lambda i, f: (i, f, (0, 3)), ValueError, "size: expected two positive integers"),
    (lambda i, f: (i, f, 5), ValueError, "size: expected two positive integers .*, got 5"),
    (lambda i, f: (i, f, (5.0, 5)), ValueError, "size: expected two positive integers"),
    (lambda i, f: (i, f, None, "wrap"), ValueError, "padding_mode: expected one of border"),
])
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        pose_kernels.flow_sample(*change(*image_and_flow()))
