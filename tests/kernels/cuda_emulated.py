"""The operators of csrc/cuda/*.cu whole, executed on the CPU: what the public suite does not ask.

Run by `test_cuda_wrappers.py`, with the plugin `emulated_cuda`.
"""

import importlib

import pytest
import torch
from kernel_helpers import (
    TOLERANCE,
    assert_errors,
    cases,
    features,
    implementations,
    relative_error,
    takes,
    value_and_gradients,
)

import pose_kernels
from pose_kernels import _checks, _convolution, _library

ops = torch.ops.pose_kernels
CASES = cases()
CONVOLUTION = "guided_correlation_conv2d"
#: What TF32 products are good for: 10 bits, and cubes.
TF32_TOLERANCE = (3e-3, 2e-2)


def function_of(op, impl, **options):
    return lambda *inputs: getattr(pose_kernels, op)(*inputs, impl=impl, **options)


def every_call(batch=2):
    """Name and arguments of every operator that csrc/cuda implements, and of those made of them."""
    for op, case in CASES.items():
        for last in (False, True) if takes(op, "memory_format") else (False,):
            for name, arguments in case.calls(ops, torch.randn, batch, 5, (3, 4), (4, 5), last):
                if not name.startswith("winograd"):  # the CPU's alone
                    yield name, arguments


def test_nothing_else_is_here():
    for op in CASES:
        assert implementations(op) == ["cuda", "reference"]
    assert "emulated" in ops.cuda_build_info()
    with pytest.raises(NotImplementedError):
        ops.winograd_weight_gradient(torch.randn(4, 12, 18), torch.randn(6, 12, 3, 3))


def test_opcheck():
    """What the schemas say is written to, and shapes for tracing: of every operator there is."""
    seen = set()
    for name, arguments in every_call():
        seen.add(name)
        torch.library.opcheck(getattr(ops, name).default, arguments,
                              test_utils=("test_schema", "test_faketensor"))
    assert seen == {name for name in _library.defined if not name.startswith("winograd")}


@pytest.mark.parametrize("op", [
    op for op in CASES if takes(op, "target") and CASES[op].differentiable])
def test_tf32(op, monkeypatch):
    """Less exact, as asked for: the switch arrives at the products, forward and backward."""
    inputs = CASES[op].inputs(2, torch.float32, m=19)
    oracle = value_and_gradients(function_of(op, "reference"), [x.double() for x in inputs])
    monkeypatch.setattr(_checks, "allow_tf32", lambda tensor: True)
    found = value_and_gradients(function_of(op, "cuda"), inputs)
    errors = [relative_error(a, b) for a, b in zip(found, oracle, strict=True)]
    for i, error in enumerate(errors[:3]):  # of value and features
        assert TOLERANCE[torch.float32][min(i, 1)] < error < TF32_TOLERANCE[min(i, 1)]


def outputs_of(name, arguments, tf32):
    """What an operator returns and what it writes to, without what is empty or an index."""
    schema = getattr(ops, name).default._schema.arguments
    given = [tf32 if a.name == "tf32" else x.clone() if isinstance(x, torch.Tensor) else x
             for a, x in zip(schema, arguments, strict=True)]
    found = getattr(ops, name)(*given)
    found = [found] if isinstance(found, torch.Tensor) else list(found or ())
    found += [x for a, x in zip(schema, given, strict=True) if a.is_write]
    return [x for x in found if x.numel() > 0 and x.is_floating_point()]


def test_every_operator_hands_on_the_switch_for_tf32():
    switched = set()
    for name, arguments in every_call():
        if any(a.name == "tf32" for a in getattr(ops, name).default._schema.arguments):
            switched.add(name)
            outputs = (outputs_of(name, arguments, tf32) for tf32 in (False, True))
            assert not any(torch.equal(a, b) for a, b in zip(*outputs, strict=True)), name
    assert {"guided_correlation_band", CONVOLUTION} < switched


def test_every_operator_takes_an_empty_batch():
    for name, arguments in every_call(batch=0):
        found = getattr(ops, name)(*arguments)
        for x in (found,) if isinstance(found, torch.Tensor) else found or ():
            assert x.numel() == 0 or (x == 0).all()  # the gradient of a weight


#: Arguments that may have another dtype than those beside them.
OWN_DTYPE = {("flow_sample", "image"), ("flow_sample", "flow"), ("flow_sample_backward", "flow"),
             ("guided_correlation_band", "out"), ("guided_correlation_band_backward", "grad"),
             ("correlation_4d_backward", "grad"), ("guided_correlation_backward", "grad"),
             ("correlation_4d_out", "out"), ("guided_correlation_out", "out"),
             ("soft_mutual_normalize_out", "out"), ("soft_mutual_normalize_backward", "grad"),
             ("guided_readout", "values")}


def spoiled(x, own_dtype):
    """What no operator may take in place of x, which stands beside others."""
    yield x.to(torch.int32)
    yield x[None]
    yield torch.cat([x, x[:1]])
    if not own_dtype:
        yield x.half() if x.is_floating_point() else x.double()


def test_arguments_that_do_not_fit_are_refused():
    """Whoever calls an operator through torch.ops gets an error, never a read outside."""
    for name, arguments in every_call():
        made_of_others = name.startswith((CONVOLUTION, "guided_readout_pair"))
        if made_of_others or name == "soft_mutual_normalize":
            continue  # the second takes whatever is a map
        for i, argument in enumerate(getattr(ops, name).default._schema.arguments):
            if not isinstance(arguments[i], torch.Tensor) or arguments[i].numel() == 0:
                continue  # the second: a gradient that is not asked for
            for bad in spoiled(arguments[i], (name, argument.name) in OWN_DTYPE):
                more_outputs = name == "guided_readout" and bad.shape == (7, 12)
                if more_outputs and argument.name == "values" and bad.is_floating_point():
                    continue
                with pytest.raises(RuntimeError, match=": expected|: unexpected"):
                    getattr(ops, name)(*arguments[:i], bad, *arguments[i + 1 :])
    for bad in (torch.zeros(2, 3, 4, 5, dtype=torch.int32), torch.zeros(2, 3, 4)):
        with pytest.raises(RuntimeError, match=": expected|: unexpected"):
            ops.soft_mutual_normalize(bad, 1e-5, torch.float32)


def test_bands_that_do_not_fit_are_refused():
    of_bands = ("guided_correlation_band", "guided_correlation_row_max")
    for name, arguments in every_call():
        for i, x in enumerate(arguments):
            if isinstance(x, torch.Tensor) and x.numel() > 0 and name.startswith(of_bands):
                strided = torch.stack([x, x], dim=-1)[..., 0]
                with pytest.raises(RuntimeError, match="expected contiguous tensors"):
                    getattr(ops, name)(*arguments[:i], strided, *arguments[i + 1 :])


@pytest.mark.parametrize("op", ["correlation_4d", "guided_correlation"])
def test_more_positions_than_32_bits_count_are_refused(op):
    few = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    many = few.new_empty(1, 1, 1 << 15, 1 << 15)  # never touched, and so no memory
    for pair in ((few, many), (many, few)):
        with pytest.raises(RuntimeError, match="2\\^30 positions and more are not supported"):
            function_of(op, "cuda")(*pair)


def bands_of(dtype, outputs):
    module = importlib.import_module(f"pose_kernels.{CONVOLUTION}")
    weight = torch.randn(outputs, 12, 3, 3).to(dtype)
    return module, module._Bands(*features(1, 5, (3, 4), (8, 40), dtype), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_plan_of_a_convolution_is_a_gpus(dtype, monkeypatch):
    module, bands = bands_of(dtype, outputs=64)
    assert isinstance(bands.form, _convolution.Direct)
    assert bands.operand == dtype and bands.wide == torch.float32
    assert bands.rows == 8 and bands.parts == [slice(0, 64)]
    monkeypatch.setitem(module.BAND_BYTES, "cuda", 7 * 40 * 12 * dtype.itemsize)
    monkeypatch.setitem(module.WEIGHT_BYTES, "cuda", 48 * 9 * 12 * 4)
    _, bands = bands_of(dtype, outputs=64)
    assert bands.rows == 7 and bands.parts == [slice(0, 48), slice(48, 64)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bands_and_parts_of_16_bits(dtype, monkeypatch):
    """Operands of 16 bits, sums of 32, over uneven bands and parts."""
    module = importlib.import_module(f"pose_kernels.{CONVOLUTION}")
    inputs = CASES[CONVOLUTION].inputs(2, dtype, target=(7, 5), outputs=5)
    oracle = value_and_gradients(function_of(CONVOLUTION, "reference"),
                                 [x.double() for x in inputs])
    monkeypatch.setattr(module, "BAND_COLUMNS", 1)
    monkeypatch.setitem(module.BAND_BYTES, "cuda", 3 * 5 * 12 * 2)
    monkeypatch.setitem(module.WEIGHT_BYTES, "cuda", 2 * 9 * 12 * 4)
    assert_errors(value_and_gradients(function_of(CONVOLUTION, "cuda"), inputs), oracle, dtype, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_librarys_convolution_reads_a_band_with_its_halo(dtype, monkeypatch):
    """Channels-last, in the operand's type, zeros around: nothing is left to pad or to reorder."""
    module = importlib.import_module(f"pose_kernels.{CONVOLUTION}")
    source, target, weight, bias = CASES[CONVOLUTION].inputs(1, dtype, target=(7, 5))
    Q = function_of("guided_correlation", "cuda")(source, target)
    around = torch.nn.functional.pad(Q, (1, 1, 1, 1))
    read, convolve = [], _convolution.Library._convolve
    monkeypatch.setattr(_convolution.Library, "_convolve",
                        lambda form, x, U: read.append((x, U)) or convolve(form, x, U))
    monkeypatch.setattr(module, "BAND_COLUMNS", 1)
    monkeypatch.setitem(module.BAND_BYTES, "cuda", 3 * 5 * 12 * dtype.itemsize)
    function_of(CONVOLUTION, "cuda")(source, target, weight, bias)
    assert [x.shape[2] for x, _ in read] == [5, 5, 3]
    for i, (x, U) in enumerate(read):
        assert x.dtype == U.dtype == dtype and x.shape[1] == U.shape[1] == 12
        assert x.stride(1) == U.stride(1) == 1 and x.stride(3) == U.stride(3) == 12
        if i == len(read) - 1:  # the others' memory is used again
            torch.testing.assert_close(x, around[:, :, 3 * i : 3 * i + 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bands_may_be_channels_last(dtype):
    """The same bits in either layout, forward and backward."""
    source, target = (x.flatten(2) for x in features(1, 5, (3, 5), (4, 9), dtype))
    row_max, _ = ops.guided_correlation_row_max(source, target, 1e-5, False)
    upstream, found = torch.randn(1, 15, 22).to(dtype), []
    for memory in (torch.empty(1, 15, 22, dtype=dtype), torch.empty(1, 22, 15, dtype=dtype).mT):
        norm = torch.ones(1, 36)
        ops.guided_correlation_band(source, target, row_max, 1e-5, False, 9, memory, norm)
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in (source, target, row_max)]
        grad = torch.empty_like(memory).copy_(upstream)
        assert grad.stride() == memory.stride()
        ops.guided_correlation_band_backward(grad, source, target, row_max, norm, 1e-5, False, 9,
                                             *sums)
        found.append([memory, norm, *sums])
    assert not found[1][0].is_contiguous()
    torch.testing.assert_close(*found, rtol=0, atol=0)
    for a in found[1][2:]:
        assert a.abs().sum() > 0
