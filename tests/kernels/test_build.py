"""The two libraries, every vector width this machine has, and `python -m pose_kernels`."""

import json
import os
import subprocess
import sys

import pytest
import torch

import pose_kernels
import pose_kernels.__main__ as command
from pose_kernels import _dispatch, _library

needs_cpu_library = pytest.mark.skipif(_library.cpu_reason is not None,
                                       reason=str(_library.cpu_reason))

LEVELS = ("baseline", "avx2", "avx512", "bf16", "amx")


def self_check(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "pose_kernels", *arguments],
                          env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_missing_library_has_a_reason():
    for reason in (_library.cpu_reason, _library.cuda_reason):
        assert reason is None or len(reason.splitlines()) == 1


@pytest.mark.parametrize("cuda, says", [("12.8", "2.14.1 for 12.8"), (None, "2.14.1 for none")])
def test_a_library_for_another_cuda_is_not_loaded(cuda, says, monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_here", tmp_path)
    monkeypatch.setattr(_library, "build_info", {"cuda": {"nvcc": "13.0"}})
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (tmp_path / "_C_cuda.so").touch()
    assert _library._load("cuda") == f"_C_cuda.so is built for CUDA 13.0, torch {says}"


def test_a_library_that_does_not_load_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_here", tmp_path)
    (tmp_path / "_C_cpu.so").write_text("no library")
    reason = _library._load("cpu")
    assert reason.startswith("_C_cpu.so does not load: ") and "Could not load this" not in reason


def test_triton_takes_a_c_compiler(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    for name in ("CC", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_library, "triton_interpreted", False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _library._without_triton().startswith("Triton takes a C compiler (gcc, clang or ")
    (tmp_path / "clang").touch(0o755)
    assert _library._without_triton() is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(_library, "triton_interpreted", True)
    assert _library._without_triton() is None


@pytest.mark.skipif(_library.cuda_reason is not None, reason=str(_library.cuda_reason))
def test_cuda_library_answers_without_a_gpu():
    info = torch.ops.pose_kernels.cuda_build_info()
    assert info.startswith("nvcc ") and "architectures" in info


@needs_cpu_library
@pytest.mark.parametrize("level", LEVELS[:-1])
def test_self_check_at_lower_vector_widths(level):
    """The widest one is what all other tests run on."""
    done = self_check("--json", POSE_KERNELS_SIMD=level)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    machine = LEVELS[torch.ops.pose_kernels.simd_level()]
    assert found["simd"] == min(level, machine, key=LEVELS.index) and found["passed"]
    checked = {(r["op"], r["impl"]) for r in found["implementations"] if r["checks"]}
    assert {(op, "cpp") for op in pose_kernels.implementations()} <= checked


@needs_cpu_library
def test_an_unknown_vector_width_is_an_error():
    done = self_check(POSE_KERNELS_SIMD="avx3")
    assert done.returncode == 1
    assert f"POSE_KERNELS_SIMD: expected {', '.join(LEVELS[:-1])} or amx, got avx3" in done.stderr


def assert_fails(says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pose_kernels"])
    assert command.main() == 1
    assert says in capsys.readouterr().out


def test_self_check_fails_loudly(monkeypatch, capsys):
    monkeypatch.setattr(command, "TOLERANCE", (0.0, 0.0))
    assert_fails("FAILED", monkeypatch, capsys)


def test_an_implementation_that_raises_is_reported(monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setitem(_dispatch._functions["correlation_4d"], "cpp", broken)
    assert_fails("FAILED: RuntimeError: no such kernel\n", monkeypatch, capsys)
