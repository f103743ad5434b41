"""out_dtype= and out= of the operators that return a map."""

import functools

import pytest
import torch
from kernel_helpers import (
    TOLERANCE,
    cases,
    implementations,
    relative_error,
    takes,
    value_and_gradients,
)

import pose_kernels

CASES = {name: case for name, case in cases().items() if takes(name, "out")}
every_pair = pytest.mark.parametrize(
    ("name", "impl"), [(name, impl) for name in CASES for impl in implementations(name)])
NARROWER = [(torch.float32, torch.float16), (torch.float32, torch.bfloat16),
            (torch.float64, torch.float32), (torch.float64, torch.bfloat16)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def operator(name, impl, **options):
    return functools.partial(getattr(pose_kernels, name), impl=impl, **options)


def new_out(name, inputs, dtype, layout):
    shape = operator(name, "reference")(*(x.to("meta") for x in inputs)).shape
    return torch.full(shape, torch.nan, dtype=dtype).to(memory_format=layout)


def test_every_map_has_both():
    assert set(CASES) == {"correlation_4d", "soft_mutual_normalize", "guided_correlation"}
    assert all(takes(name, "out_dtype") for name in CASES)


@pytest.mark.parametrize(("dtype", "out_dtype"), NARROWER, ids=str)
@every_pair
def test_a_narrower_map_is_rounded_once(name, impl, dtype, out_dtype):
    """Its gradient is as narrow, those of the inputs are not."""
    inputs = CASES[name].inputs(2, dtype)
    for options in ({}, {"memory_format": torch.channels_last})[: 1 + takes(name, "memory_format")]:
        op = operator(name, impl, **options)
        narrow = functools.partial(op, out_dtype=out_dtype)
        if impl == "triton":  # its interpreter truncates to bfloat16
            assert relative_error(narrow(*inputs), op(*inputs)) < TOLERANCE[out_dtype][0]
        else:
            assert torch.equal(narrow(*inputs), op(*inputs).to(out_dtype))
        found = value_and_gradients(narrow, inputs)
        assert [x.dtype for x in found] == [out_dtype] + [dtype] * len(inputs)
        upstream = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1),
                               dtype=torch.float64).to(out_dtype).double()
        oracle = value_and_gradients(operator(name, "reference"), [x.double() for x in inputs],
                                     upstream)
        for gradient, expected in zip(found[1:], oracle[1:], strict=True):
            assert relative_error(gradient, expected) < 2 * TOLERANCE[torch.float32][1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtypes", [(d, d) for d in TOLERANCE] + NARROWER, ids=str)
@every_pair
def test_a_result_in_given_memory(name, impl, dtypes, layout):
    """The same bits, in the memory and the layout that were given."""
    inputs = CASES[name].inputs(2, dtypes[0])
    op = operator(name, impl, out_dtype=dtypes[1])
    out = new_out(name, inputs, dtypes[1], layout)
    strides, memory = out.stride(), out.data_ptr()
    with torch.no_grad():
        result = op(*(x.requires_grad_() for x in inputs), out=out)
    assert result is out and (out.stride(), out.data_ptr()) == (strides, memory)
    assert torch.equal(out, op(*inputs))
    odd = torch.empty(out.numel() + 1, dtype=dtypes[1])[1:].view(out.shape)  # not aligned
    with torch.no_grad():
        assert torch.equal(op(*inputs, out=odd), out)
        empty = CASES[name].inputs(0, dtypes[0])
        assert op(*empty, out=out[:0]).shape == (0, *out.shape[1:])


@every_pair
def test_compile(name, impl):
    torch.compiler.reset()
    inputs = CASES[name].inputs(2, torch.float32)
    narrow = operator(name, impl, out_dtype=torch.bfloat16)
    compiled = torch.compile(narrow, fullgraph=True, backend="aot_eager")
    for a, b in zip(value_and_gradients(compiled, inputs), value_and_gradients(narrow, inputs),
                    strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    out = new_out(name, inputs, torch.bfloat16, torch.contiguous_format)
    assert compiled(*inputs, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, narrow(*inputs))


@pytest.mark.parametrize("name", CASES)
def test_errors_name_the_argument(name):
    inputs = CASES[name].inputs(2, torch.float32)
    op, out = operator(name, None), new_out(name, inputs, torch.float32, torch.contiguous_format)
    for error, words, options in [
            (TypeError, "out_dtype: expected a torch.dtype, got str", {"out_dtype": "half"}),
            (ValueError, "out_dtype: expected torch.float32 or torch.float16 or torch.bfloat16 for",
             {"out_dtype": torch.float64}),
            (TypeError, "out: expected a tensor or None, got list", {"out": [1]}),
            (ValueError, r"out: expected shape \[2, 12, 4, 5\], got", {"out": out[:1]}),
            (ValueError, "out: expected torch.float32, got torch.float16", {"out": out.half()}),
            (ValueError, "out: expected torch.float16, got torch.float32",
             {"out": out, "out_dtype": torch.float16}),
            (ValueError, "out: expected device cpu, got meta", {"out": out.to("meta")}),
            (ValueError, "out: expected a contiguous or channels-last tensor, got strides",
             {"out": out.transpose(0, 1).contiguous().transpose(0, 1)}),
            (RuntimeError, "out: a result written into given memory has no gradient",
             {"out": out.clone().requires_grad_()})]:
        with pytest.raises(error, match=words):
            op(*inputs, **options)
    half = [x.bfloat16() for x in inputs]
    with pytest.raises(ValueError, match="out_dtype: expected torch.bfloat16 for inputs of"):
        op(*half, out_dtype=torch.float16)
    with pytest.raises(RuntimeError, match="call this under torch.no_grad"):
        op(*(x.clone().requires_grad_() for x in inputs), out=out)
    with pytest.raises(RuntimeError, match="out: torch.func cannot transform"):
        torch.func.vmap(lambda *x: op(*x, out=out))(*(torch.stack([x, x]) for x in inputs))
    if takes(name, "memory_format"):
        with pytest.raises(ValueError, match="out: expected a channels-last tensor"):
            op(*inputs, out=out, memory_format=torch.channels_last)
    else:
        with pytest.raises(ValueError, match="out: expected memory of its own"):
            op(*inputs, out=inputs[0])
