"""Every Triton kernel compiles ahead of time, exactly as it would be launched: no GPU is needed.

The operators run with a launcher that only notes what it is given. `pytest -rP` shows registers and
shared memory of every kernel.
"""

import functools
import importlib
import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from kernel_helpers import cases

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from pose_kernels.triton import common  # noqa: E402

#: Shared memory that a program may have: on sm_80 what GPUs of its kind with little have.
SHARED_MEMORY = {80: 99 << 10, 90: 227 << 10}
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16",
            torch.bfloat16: "*bf16", torch.int64: "*i64"}


def all_operators(dtype, *shape, last=False):
    """Calls every operator, forward and backward. Nothing is computed: memory is never touched."""
    new = functools.partial(torch.empty, dtype=dtype)
    for op, case in cases().items():
        if importlib.util.find_spec(f"pose_kernels.triton.{op}") is None:
            continue  # made of other operators
        module = importlib.import_module(f"pose_kernels.triton.{op}")
        for name, arguments in case.calls(module, new, *shape, last):
            getattr(module, name)(*arguments)


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
    # A launch refuses any other keyword.
    assert set(sizes) <= {p.name for p in kernel.params} | {"num_warps", "num_stages"}
    options = {name: sizes[name] for name in ("num_warps", "num_stages") if name in sizes}
    return triton.compile(ASTSource(kernel, signature, constants, attributes),
                          target=GPUTarget("cuda", arch, 32), options=options)


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


def launches_of(call):
    """What `call` would launch, every kernel once for each way to compile it; nothing runs."""
    launches = {}

    def note(kernel, programs, *arguments, **sizes):
        assert 0 < programs < 2**31
        kinds = [x.dtype if isinstance(x, torch.Tensor) else x for x in arguments]
        launches.setdefault((kernel.fn.__name__, str((kinds, sizes))), (kernel, arguments, sizes))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(common, "launch", note)
        call()
    return [(name, *launch) for (name, _), launch in launches.items()]


def assert_compile(launches, arch, spills=False):
    for name, kernel, arguments, sizes in launches:
        compiled = compile_like_a_launch(kernel, arguments, sizes, arch)
        assert compiled.asm["cubin"]
        shared, used = compiled.metadata.shared, resources(compiled.asm["cubin"])
        print(f"{name:24} sm_{arch} {used} shared {shared} {sizes}")
        assert shared <= SHARED_MEMORY[arch], name
        if used and not spills:
            assert used["STACK"] == 0, f"{name} spills registers"


def without_variants(launches):
    """Of a kernel with the same blocks: the one that does most. What is left out here has another
    dtype of a map, or a branch less, and is compiled for float32 on sm_80."""
    def branches(sizes):
        return {name: sizes.get(name, 0) for name in ("WANTED", "POWER", "BAND")}

    kept = {}
    for name, kernel, arguments, sizes in sorted(
            launches, key=lambda launch: -sum(branches(launch[3]).values())):
        blocks = {key: value for key, value in sizes.items() if key not in branches(sizes)}
        kept.setdefault((name, str(blocks)), (name, kernel, arguments, sizes))
    return list(kept.values())


@pytest.mark.parametrize(("dtype", "shape", "last", "arch"), [
    (torch.float32, PAPER, False, 80), (torch.float32, PAPER, False, 90),
    (torch.bfloat16, PAPER, True, 80), (torch.bfloat16, PAPER, True, 90),
    (torch.float32, (1, 20, (1, 1), (1, 1)), False, 80),  # sizes of 1 become constants
    (torch.float32, (4, 67, (64, 64), (64, 64)), False, 80),  # features are walked in steps
    (torch.float64, (1, 3, (2, 3), (1, 1)), False, 90),
], ids=str)
def test_kernels_compile(dtype, shape, last, arch):
    launches = launches_of(lambda: all_operators(dtype, *shape, last=last))
    if (dtype, shape, arch) != (torch.float32, PAPER, 80):
        launches = without_variants(launches)
    assert_compile(launches, arch, spills=dtype == torch.float64)


@pytest.mark.parametrize(("dtype", "m", "outputs", "arch"), [
    (torch.float32, 35, 128, 80), (torch.float32, 35, 128, 90),
    (torch.float32, 67, 32, 80),  # features are walked in steps, outputs are not
    (torch.float16, 35, 130, 80)], ids=str)
def test_sums_of_many_outputs_compile(dtype, m, outputs, arch):
    batch, _, source, target = PAPER
    z = [torch.empty(batch, m, *size, dtype=dtype) for size in (source, target)]
    values = torch.empty(batch, outputs, source[0] * source[1], dtype=dtype)
    module = importlib.import_module("pose_kernels.triton.guided_readout")

    def call():
        result, *statistics = module.guided_readout(*z, values, 1, 1e-5, False)
        module.guided_readout_backward(result, *z, values, result, *statistics, 1, 1e-5, False,
                                       True, True, True)

    launches = launches_of(call)
    assert {"readout", "values_gradient", "source_gradient", "target_gradient"} <= {
        name for name, *_ in launches}
    assert_compile(launches, arch)
