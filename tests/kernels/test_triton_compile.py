"""Every Triton kernel compiles ahead of time, exactly as it would be launched: no GPU is needed.

The operators run with a launcher that only notes what it is given. `pytest -rP` shows registers and
shared memory of every kernel.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from pose_kernels.triton import (  # noqa: E402
    common,
    correlation_4d,
    flow_sample,
    guided_correlation,
    soft_mutual_normalize,
)

#: Shared memory that a program may have: on sm_80 what GPUs of its kind with little have.
SHARED_MEMORY = {80: 99 << 10, 90: 227 << 10}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


def all_operators(dtype, batch, m, source_size, target_size, *, last=False):
    """Calls every operator, forward and backward. Nothing is computed: memory is never touched."""
    eps = 1e-5
    source, target = (torch.empty(batch, m, *n, dtype=dtype) for n in (source_size, target_size))
    op = guided_correlation
    Q, *statistics = op.guided_correlation(source, target, eps, False, last)
    op.guided_correlation_backward(Q, source, target, *statistics, eps, False)
    row_max, row_argmax, norm = statistics
    if dtype == row_max.dtype:  # bands know no other features
        z_s, z_t = source.flatten(2), target.flatten(2)
        dz_s, dz_t = z_s.clone(), z_t.clone()
        op.guided_correlation_row_max(z_s, z_t, eps, False)
        op.guided_correlation_band(z_s, z_t, row_max, eps, False, 0, Q.flatten(2), norm)
        op.guided_correlation_band_backward(
            Q.flatten(2), z_s, z_t, row_max, norm, eps, False, 0, dz_s, dz_t, row_max
        )
        op.guided_correlation_row_max_backward(
            z_s, z_t, row_max, row_argmax, eps, row_max, dz_s, dz_t
        )
    correlation_4d.correlation_4d(source, target, False, last)
    correlation_4d.correlation_4d_backward(Q, source, target, False, True, True)
    soft_mutual_normalize.soft_mutual_normalize(Q, eps)
    soft_mutual_normalize.soft_mutual_normalize_backward(Q, Q, row_max, row_argmax, norm, eps)
    flow = torch.empty(batch, 2, *target_size, dtype=dtype)
    for image, size in [(source, source_size), (source[:, :3], (24, 20))]:
        out = flow_sample.flow_sample(image, flow, *size, False)
        flow_sample.flow_sample_backward(out, image, flow, True, True, True)
    torch.use_deterministic_algorithms(True)
    try:
        flow_sample.flow_sample_backward(out, image, flow, True, True, False)
    finally:
        torch.use_deterministic_algorithms(False)


def compile_like_a_launch(kernel, arguments, sizes, arch):
    """As the launcher specialises: a size of 1 is a constant, multiples of 16 are known to be."""
    signature, constants, attributes = {}, {}, {}
    arguments = iter(arguments)
    for number, parameter in enumerate(kernel.params):
        name = parameter.name
        value = sizes[name] if parameter.is_constexpr else next(arguments)
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and special):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            value = value.data_ptr()
        elif isinstance(value, float):
            signature[name] = "fp64"
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if value % 16 == 0 and special:
            attributes[(number,)] = [["tt.divisibility", 16]]
    assert next(arguments, None) is None
    options = {name: sizes[name] for name in ("num_warps", "num_stages") if name in sizes}
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options=options,
    )


def resources(cubin):
    """Registers and bytes of stack, which only spilled registers use here; {} without the tool."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


PAPER = (4, 35, (64, 64), (64, 64))  # with this batch blocks are as for any larger one


@pytest.mark.parametrize(
    ("dtype", "shape", "last", "arch"),
    [
        (torch.float32, PAPER, False, 80),
        (torch.float32, PAPER, False, 90),
        (torch.bfloat16, PAPER, True, 80),
        (torch.bfloat16, PAPER, True, 90),
        (torch.float32, (1, 200, (1, 1), (1, 1)), False, 80),  # sizes of 1 become constants
        (torch.float64, (1, 3, (2, 3), (1, 1)), False, 90),
    ],
    ids=str,
)
def test_kernels_compile(monkeypatch, dtype, shape, last, arch):
    launches = {}

    def note(kernel, programs, *arguments, **sizes):
        assert 0 < programs < 2**31
        kinds = [x.dtype if isinstance(x, torch.Tensor) else x for x in arguments]
        launches.setdefault((kernel.fn.__name__, str((kinds, sizes))), (kernel, arguments, sizes))

    monkeypatch.setattr(common, "launch", note)
    all_operators(dtype, *shape, last=last)
    monkeypatch.undo()
    for (name, _), (kernel, arguments, sizes) in launches.items():
        compiled = compile_like_a_launch(kernel, arguments, sizes, arch)
        assert compiled.asm["cubin"]
        shared, used = compiled.metadata.shared, resources(compiled.asm["cubin"])
        print(f"{name:24} sm_{arch} {used} shared {shared} {sizes}")
        assert shared <= SHARED_MEMORY[arch], name
        if used and dtype != torch.float64:
            assert used["STACK"] == 0, f"{name} spills registers"
