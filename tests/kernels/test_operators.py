"""What every operator promises, in every implementation that runs here.

Torch's own machinery (opcheck, compile, export, autocast), layouts, gradients one by one, empty
batches, values that are not finite, repeatability.
"""

import functools
import importlib
import itertools
import os
import subprocess
import sys

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    TOLERANCE,
    assert_errors,
    assert_same_bits_every_time,
    cases,
    implementations,
    leaves,
    relative_error,
    takes,
    value_and_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode

import pose_kernels
from pose_kernels import _library

CASES = cases()
PAIRS = [(name, impl) for name in CASES for impl in implementations(name)]
FUSED = [(name, impl) for name, impl in PAIRS if impl != "reference"]


def differentiable(pairs):
    return [pair for pair in pairs if CASES[pair[0]].differentiable]


every_pair = pytest.mark.parametrize(("name", "impl"), PAIRS)
every_fused = pytest.mark.parametrize(("name", "impl"), FUSED)
every_gradient = pytest.mark.parametrize(("name", "impl"), differentiable(PAIRS))
every_fused_gradient = pytest.mark.parametrize(("name", "impl"), differentiable(FUSED))


def operator(name, impl, **options):
    return functools.partial(getattr(pose_kernels, name), impl=impl, **options)


def assert_close(found, expected, rtol=1e-10, atol=1e-11):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_pair
def test_against_the_reference_in_float64(name, impl, dtype):
    inputs = CASES[name].inputs(2, dtype)
    oracle = value_and_gradients(operator(name, "reference"), [x.double() for x in inputs])
    found = value_and_gradients(operator(name, impl), inputs)
    assert all(x.count_nonzero() > 0 for x in oracle)
    assert_errors(found, oracle, dtype, CASES[name].slack if dtype.itemsize == 2 else 2)


@pytest.mark.parametrize(("name", "impl", "sizes"), [
    (name, impl, sizes) for name, impl in FUSED for sizes in CASES[name].unusual])
def test_large_results_and_many_features(name, impl, sizes):
    inputs = CASES[name].inputs(1, torch.float32, **sizes)
    oracle = value_and_gradients(operator(name, "reference"), [x.double() for x in inputs])
    assert_errors(value_and_gradients(operator(name, impl), inputs), oracle, torch.float32)


def test_the_gpu_tests_may_ask_for_determinism(monkeypatch):
    """Matrix products of a GPU refuse it without this, and read it once."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    importlib.reload(importlib.import_module("test_gpu"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


@every_gradient
def test_gradcheck(name, impl):
    inputs = [x.requires_grad_() for x in CASES[name].inputs(1, torch.float64)]
    assert torch.autograd.gradcheck(operator(name, impl), inputs, fast_mode=True)


@every_fused_gradient
def test_one_gradient_at_a_time(name, impl):
    inputs = CASES[name].inputs(2, torch.float64)
    every = value_and_gradients(operator(name, impl), inputs)
    for wanted in range(len(inputs)):
        alone = [x.detach().clone() for x in inputs]
        alone[wanted].requires_grad_()
        value = operator(name, impl)(*alone)
        generator = torch.Generator().manual_seed(1)
        value.backward(torch.randn(value.shape, generator=generator, dtype=torch.float64))
        for i, x in enumerate(alone):
            if i == wanted:
                torch.testing.assert_close(x.grad, every[1 + wanted], rtol=1e-12, atol=1e-12)
            else:
                assert x.grad is None


@every_fused_gradient
def test_work_that_nobody_asked_for_is_not_done(name, impl):
    """A frozen input costs neither its product nor its memory: its gradient is an empty tensor from
    the operator on, and from the parts that the operator is made of."""
    class Returned(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if function._opname == f"{name}_backward":
                found.append(result if isinstance(result, tuple) else (result,))
            return result

    inputs = CASES[name].inputs(2, torch.float64)
    for wanted in itertools.product((False, True), repeat=len(inputs)):
        if any(wanted):
            leaves = [x.clone().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
            value, found = operator(name, impl)(*leaves).sum(), []
            with Returned():
                value.backward()
            (gradients,) = found
            for x, gradient, w in zip(inputs, gradients, wanted, strict=False):
                assert gradient.shape == (x.shape if w else (0,))


def strided(x):
    """The same values, every other one of a larger tensor that is full of NaN."""
    larger = torch.full([2 * n for n in x.shape], float("nan"), dtype=x.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


@every_fused
def test_layouts_of_the_inputs(name, impl):
    inputs = CASES[name].inputs(2, torch.float64)
    expected = value_and_gradients(operator(name, impl), inputs)

    def channels_last(x):
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    for change in (channels_last, strided):
        changed = [change(x) for x in inputs]
        assert not changed[0].is_contiguous()
        assert_close(value_and_gradients(operator(name, impl), changed), expected, 1e-12, 1e-12)


@every_fused_gradient
def test_layouts_of_the_upstream_gradient(name, impl):
    inputs = [x.requires_grad_() for x in CASES[name].inputs(2, torch.float64)]
    value = operator(name, impl)(*inputs)
    plain = torch.randn(value.shape, dtype=torch.float64)
    expected = torch.autograd.grad(value, inputs, plain, retain_graph=True)
    for upstream in (plain.to(memory_format=torch.channels_last), strided(plain),
                     plain.transpose(2, 3).contiguous().transpose(2, 3)):
        found = torch.autograd.grad(value, inputs, upstream, retain_graph=True)
        assert_close(found, expected, 1e-12, 1e-12)
    # `.sum()` hands over a gradient whose strides are all zero.
    ones = torch.autograd.grad(value, inputs, torch.ones_like(plain), retain_graph=True)
    assert_close(torch.autograd.grad(value.sum(), inputs), ones, 1e-12, 1e-12)


@pytest.mark.parametrize(("name", "impl"), [pair for pair in FUSED if CASES[pair[0]].activations])
def test_gradients_have_the_layout_of_what_a_layer_made(name, impl):
    inputs = CASES[name].inputs(2, torch.float64)
    last = range(CASES[name].activations)  # after them weights
    inputs = [(x.to(memory_format=torch.channels_last) if i in last else x).requires_grad_()
              for i, x in enumerate(inputs)]
    torch.compiler.reset()  # all operators share the code of functools.partial
    call = operator(name, impl)
    for form in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        grads = torch.autograd.grad(form(*inputs).square().sum(), inputs)
        for i, grad in enumerate(grads):
            wanted = torch.channels_last if i in last else torch.contiguous_format
            assert grad.is_contiguous(memory_format=wanted), i


@pytest.mark.parametrize("name", [name for name in CASES if takes(name, "memory_format")])
def test_channels_last_result(name):
    for impl in implementations(name):
        torch.compiler.reset()
        inputs = CASES[name].inputs(2, torch.float64)
        expected = value_and_gradients(operator(name, impl), inputs)
        last = operator(name, impl, memory_format=torch.channels_last)
        found = value_and_gradients(last, inputs)
        assert last(*inputs).is_contiguous(memory_format=torch.channels_last)
        assert_close(found, expected)
        compiled = torch.compile(last, fullgraph=True, backend="aot_eager")
        assert compiled(*inputs).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="memory_format: expected torch.contiguous_format or"):
        operator(name, None, memory_format=torch.channels_last_3d)(*inputs)


@every_pair
def test_empty_batch(name, impl):
    full = value_and_gradients(operator(name, impl), CASES[name].inputs(1, torch.float32))
    inputs = CASES[name].inputs(0, torch.float32)
    found = value_and_gradients(operator(name, impl), inputs)
    for i, (x, y) in enumerate(zip(found, full, strict=True)):
        batched = i == 0 or not CASES[name].differentiable or inputs[i - 1].shape[0] == 0
        assert x.shape == ((0, *y.shape[1:]) if batched else y.shape)
        assert batched or (x == 0).all()


@every_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_every_time(name, impl, dtype):
    inputs = CASES[name].inputs(2, dtype, **CASES[name].large)
    assert_same_bits_every_time(operator(name, impl), inputs)


@pytest.mark.parametrize(("name", "impl"), [
    pair for pair in differentiable(FUSED) if not CASES[pair[0]].differentiable_twice])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_second_derivatives_say_no(name, impl, layout):
    inputs = [(x.to(memory_format=layout) if x.dim() == 4 else x).requires_grad_()
              for x in CASES[name].inputs(1, torch.float64)]
    value = operator(name, impl)(*inputs)
    gradient = torch.autograd.grad(value.square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=f"{name}: second derivatives need impl='ref"):
        gradient.sum().backward()

    def first(x):
        return torch.func.grad(lambda x: operator(name, impl)(x, *inputs[1:]).square().sum())(x)

    with pytest.raises(NotImplementedError, match=f"{name}: second derivatives need impl='ref"):
        torch.func.grad(lambda x: first(x).sum())(inputs[0])


@every_gradient
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_functional_gradient(name, impl, layout):
    inputs = [x.to(memory_format=layout) if x.dim() == 4 else x
              for x in CASES[name].inputs(2, torch.float64)]
    every = tuple(range(len(inputs)))

    def loss(*inputs):
        return operator(name, impl)(*inputs).pow(2).sum()

    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for wanted in (every, *((i,) for i in every)):
        found = torch.func.grad(loss, wanted)(*inputs)
        assert_close(found, tuple(expected[i] for i in wanted), 1e-12, 1e-12)
        if impl != "reference":
            assert [x.stride() for x in found] == [expected[i].stride() for i in wanted]


@pytest.mark.parametrize(("name", "impl"), [
    pair for pair in differentiable(FUSED) if not CASES[pair[0]].differentiable_twice])
def test_vmap_says_no(name, impl):
    """Of the operator and of its gradient, from the public function and from torch.ops."""
    inputs = CASES[name].inputs(1, torch.float64)
    many = [torch.stack([x, x]) for x in inputs]
    says = pytest.raises(NotImplementedError, match=f"{name}: no vmap rule; give it the samples")
    for function in (operator(name, impl),
                     torch.func.grad(lambda *x: operator(name, impl)(*x).sum())):
        with says:
            torch.func.vmap(function)(*many)
    with says:
        torch.func.jacrev(operator(name, impl))(*inputs)
    ops = torch.ops.pose_kernels_triton if impl == "triton" else torch.ops.pose_kernels
    for part, (first, *rest) in CASES[name].calls(ops, torch.randn, 1, 5, (3, 4), (4, 5), False):
        if part in (name, f"{name}_backward"):
            with says:
                in_dims = (0, *[None] * len(rest))
                torch.func.vmap(getattr(ops, part), in_dims)(torch.stack([first, first]), *rest)
    torch.func.vmap(operator(name, "reference"))(*many)


@every_fused_gradient
def test_forward_mode_says_no(name, impl):
    inputs = CASES[name].inputs(1, torch.float64)
    tangents = [torch.ones_like(x) for x in inputs]
    with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives need"):
        torch.func.jvp(operator(name, impl), tuple(inputs), tuple(tangents))
    with torch.autograd.forward_ad.dual_level():  # nobody asks for one here
        operator(name, impl)(*inputs)
    torch.func.jvp(operator(name, "reference"), tuple(inputs), tuple(tangents))


@pytest.mark.parametrize("name", CASES)
def test_meta_tensors_have_shapes(name):
    inputs = CASES[name].inputs(2, torch.float32)
    found, expected = (operator(name, "reference")(*(x.to(device) for x in inputs))
                       for device in ("meta", "cpu"))
    pairs = [(found, expected)]
    if not CASES[name].differentiable:
        pairs = zip(found, expected, strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


@every_fused_gradient
def test_nothing_4d_is_saved(name, impl):
    """Of the correlation map, that is; soft_mutual_normalize was given one and keeps that."""
    inputs = [x.requires_grad_() for x in CASES[name].inputs(2, torch.float64)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        value = operator(name, impl)(*inputs)
    given = {x.data_ptr() for x in (*inputs, value)}
    assert saved and sum(x.numel() for x in saved if x.data_ptr() not in given) <= 2 * 3 * 20


@every_pair
def test_compile_fullgraph(name, impl):
    torch.compiler.reset()  # all operators share the code of functools.partial
    inputs = CASES[name].inputs(2, torch.float64)
    compiled = torch.compile(operator(name, impl), fullgraph=True, backend="aot_eager")
    expected = value_and_gradients(operator(name, impl), inputs)
    assert_close(value_and_gradients(compiled, inputs), expected)


@every_fused
def test_export_with_a_free_batch(name, impl):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return operator(name, impl)(*inputs)

    inputs = tuple(CASES[name].inputs(2, torch.float64))
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} if x.shape[0] == 2 else None for x in inputs)
    program = torch.export.export(Module(), inputs, dynamic_shapes=(shapes,))
    other = (*CASES[name].inputs(3, torch.float64)[:2], *inputs[2:])
    assert_close([program.module()(*other)], [operator(name, impl)(*other)])


@every_fused_gradient
def test_autocast(name, impl):
    """The map and locations stay precise; the convolution follows autocast as torch's own does."""
    inputs = CASES[name].inputs(2, torch.float32)

    def under_autocast(impl):
        return torch.autocast("cpu", dtype=torch.bfloat16)(operator(name, impl))

    found = value_and_gradients(under_autocast(impl), inputs)
    expected = value_and_gradients(under_autocast("reference"), inputs)
    convolution = CASES[name].follows_autocast
    assert found[0].dtype == expected[0].dtype == (torch.bfloat16 if convolution else torch.float32)
    assert [x.dtype for x in found[1:]] == [torch.float32] * len(inputs)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(a, b) < (2e-2 if convolution else TOLERANCE[torch.float32][min(i, 1)])
    if takes(name, "target"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = operator(name, impl)(inputs[0].bfloat16(), *inputs[1:])
        assert mixed.dtype == found[0].dtype


@every_gradient
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spreads(name, impl, bad):
    """No hang, no crash, and what depends on it is not finite, as in the reference."""
    inputs = CASES[name].inputs(2, torch.float64)
    inputs[0][0, 2, 1, 1] = bad
    found = value_and_gradients(operator(name, impl), inputs)
    expected = value_and_gradients(operator(name, "reference"), inputs)
    assert not found[0].isfinite().all()
    assert torch.equal(found[0].isfinite(), expected[0].isfinite())
    assert found[0][1].isfinite().all()  # another sample


@every_fused
def test_uninitialised_memory_is_never_read(name, impl):
    """Deterministic mode fills fresh tensors with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        for inputs in (CASES[name].inputs(2, torch.float32), CASES[name].inputs(0, torch.float32)):
            for x in value_and_gradients(operator(name, impl), inputs):
                assert x.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_scratch_memory_is_never_read_before_it_is_written():
    """Every fresh byte of malloc is 0x7f: a number near the largest there is."""
    done = subprocess.run([sys.executable, "-m", "pose_kernels", "--json"],
                          env={**os.environ, "MALLOC_PERTURB_": "128", "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("cpp" not in implementations("flow_sample"), reason="no CPU library")
def test_opcheck():
    """Every operator that a library implements for CPU tensors."""
    ops, seen = torch.ops.pose_kernels, set()
    for name, case in CASES.items():
        for last in (False, True) if takes(name, "memory_format") else (False,):
            for part, arguments in case.calls(ops, torch.randn, 2, 5, (3, 4), (4, 5), last):
                seen.add(part)
                if part in CASES:
                    arguments = leaves(arguments)
                torch.library.opcheck(getattr(ops, part).default, arguments)
    assert seen == set(_library.defined)


TF32 = """
import torch
from pose_kernels import _checks
matmul = torch.backends.cuda.matmul
gpu = type("Gpu", (), {"is_cuda": True})
traced = torch.compile(lambda x: x + _checks.allow_tf32(gpu), fullgraph=True, backend="eager")
def old_name(on): matmul.allow_tf32 = on
def precision(on): torch.set_float32_matmul_precision("high" if on else "highest")
def new_name(on): matmul.fp32_precision = "tf32" if on else "ieee"
for switch in (new_name, old_name, precision):  # once the new name was set, reading the old raises
    for on in (False, True, False):
        switch(on)
        assert _checks.allow_tf32(gpu) == on
        assert traced(torch.zeros(())) == on
"""


def test_tf32_is_read_by_all_of_its_names():
    """Also while tracing, where a change traces again; in a process of its own."""
    subprocess.run([sys.executable, "-c", TF32], check=True)
