import pytest
import torch
import torch.nn.functional as F

import pose_kernels
from posemodel.model import expected_match as module
from posemodel.model.expected_match import expected_match, expected_match_in


def maps(source=(6, 5), target=(7, 4), batch=2, channels=8):
    return [F.normalize(torch.randn(batch, channels, *size), dim=1) for size in (source, target)]


def stored(source, target, eps):
    """The same from the stored map, in float64, by autograd through the equations."""
    return of_map(pose_kernels.guided_correlation(
        source.double(), target.double(), eps, impl="reference"), source.shape[2:])


def of_map(guided, source_size):
    """The same by autograd, in float64."""
    places = pose_kernels.identity_flow(*source_size, dtype=torch.float64).flatten(1)
    return torch.einsum("cs,bsij->bcij", places, guided.double().square())


@pytest.fixture(params=[64, 5], ids=["one band", "bands of five"])
def bands(request, monkeypatch):
    monkeypatch.setattr(module, "BAND_TARGETS", request.param)
    monkeypatch.setitem(module.BAND_BYTES, "cpu", 1)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_equals_the_stored_map_with_gradients(eps):
    # An eps of 0.3 lies above some row maxima and some norms: the floors are met too.
    source, target = (z.requires_grad_() for z in maps(channels=8 if eps < 0.1 else 40))
    if eps > 0.1:
        C = torch.einsum("bks,bkt->bst", source.flatten(2), target.flatten(2))
        floored = C.amax(2) < eps
        assert floored.any() and not floored.all()
    found, wanted = expected_match(source, target, eps), stored(source, target, eps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [source, target], upstream)
    expected = torch.autograd.grad(wanted, [source, target], upstream.double())
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_no_match_at_all_is_the_middle_with_finite_gradients():
    source, target = (torch.zeros(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    match = expected_match(source, target, 1e-5)
    assert not match.any()
    gradients = torch.autograd.grad(match.sum(), [source, target])
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("of_features", [True, False])
def test_autocast_and_inference_change_nothing(of_features):
    inputs = [z.requires_grad_(of_features) for z in maps()]
    if not of_features:
        inputs = [pose_kernels.guided_correlation(*inputs)]
    match, last = (expected_match, 1e-5) if of_features else (expected_match_in, (6, 5))
    expected = match(*inputs, last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match(*inputs, last), expected)
    with torch.inference_mode():
        assert torch.equal(match(*inputs, last), expected)


def test_no_map_is_kept_for_backward():
    source, target = (z.requires_grad_() for z in maps((32, 32), (32, 32), batch=1))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()})
            or x, lambda x: x):
        expected_match(source, target, 1e-5).sum().backward()
    assert sum(kept.values()) < 32**4  # bytes; the map has four times as many


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_from_the_map_with_its_gradient(dtype, layout):
    guided = pose_kernels.guided_correlation(*maps()).to(dtype)
    guided = guided.contiguous(memory_format=layout).requires_grad_()
    found, wanted = expected_match_in(guided, (6, 5)), of_map(guided, (6, 5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(found)
    gradient, = torch.autograd.grad(found, guided, upstream)
    expected, = torch.autograd.grad(wanted, guided, upstream.double())
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_from_the_map_nothing_of_it_is_kept_but_the_map():
    guided = pose_kernels.guided_correlation(*maps()).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        expected_match_in(guided, (6, 5))
    assert [x.data_ptr() for x in kept if x.numel() >= guided.numel()] == [guided.data_ptr()]


def test_from_an_empty_batch():
    guided = torch.zeros(0, 30, 7, 4, requires_grad=True)
    match = expected_match_in(guided, (6, 5))
    assert match.shape == (0, 2, 7, 4)
    gradient, = torch.autograd.grad(match.sum(), guided)
    assert gradient.shape == guided.shape


def test_from_the_map_as_a_graph_for_any_batch():
    class Match(torch.nn.Module):
        def forward(self, guided):
            return expected_match_in(guided, (6, 5))

    guided = pose_kernels.guided_correlation(*maps(batch=3))
    program = torch.export.export(
        Match(), (guided[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).module()
    for batch in (1, 3):
        torch.testing.assert_close(program(guided[:batch]),
                                   expected_match_in(guided[:batch], (6, 5)))
