"""Device and precision: what is taken, why, and what is refused."""

import json

import pytest
import torch

from posemodel.runtime import environment
from posemodel.runtime.distributed import World
from posemodel.runtime.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "Some GPU")


def test_environment_is_plain_json():
    assert json.loads(json.dumps(environment.collect()))["torch"] == torch.__version__


def test_device_without_gpu(no_gpu):
    device, reason = environment.choose_device("auto")
    assert device == CPU and "no CUDA device" in reason
    assert environment.choose_device("cpu") == (CPU, "as asked")
    with pytest.raises(UserError) as caught:
        environment.choose_device("cuda")
    assert str(caught.value) == "--device cuda: no CUDA device is available here; available: cpu"


def test_device_with_gpu(one_gpu):
    assert environment.choose_device("auto") == (torch.device("cuda"), "auto: Some GPU")
    assert environment.choose_device("cuda:0")[0] == torch.device("cuda:0")
    with pytest.raises(UserError, match="no such GPU; available: cpu, cuda:0"):
        environment.choose_device("cuda:1")


def test_each_process_takes_a_gpu_of_its_own(one_gpu):
    first, second = (World(rank=2 + n, local_rank=n, size=4) for n in (0, 1))
    assert environment.choose_device("auto", first) == \
        (torch.device("cuda:0"), "auto: Some GPU; 4 processes")
    assert environment.choose_device("cpu", second) == (CPU, "as asked; 4 processes")
    with pytest.raises(UserError, match="process 1 of this machine has no GPU.*there are 1; start"):
        environment.choose_device("cuda", second)
    with pytest.raises(UserError, match="--device cuda:0: 4 processes cannot share"):
        environment.choose_device("cuda:0", first)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cuda:-1"])
def test_no_device(name, no_gpu):
    with pytest.raises(UserError, match="available: cpu"):
        environment.choose_device(name)


@pytest.mark.parametrize("flags, dtype", [("fpu avx2 avx512f avx512_bf16", torch.bfloat16),
                                          ("fpu amx_bf16 amx_tile", torch.bfloat16),
                                          ("fpu avx2 avx512f", torch.float32), ("", torch.float32)])
def test_automatic_precision_on_a_cpu(flags, dtype, monkeypatch):
    monkeypatch.setattr(environment, "_cpu_info", lambda key: flags if key == "flags" else "")
    chosen, reason = environment.choose_precision("auto", CPU)
    assert chosen == dtype and reason.startswith("auto: ")


@pytest.mark.parametrize("capability, dtype", [((9, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_automatic_precision_on_a_gpu(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert environment.choose_precision("auto", torch.device("cuda"))[0] == dtype


def test_asked_precision(monkeypatch):
    monkeypatch.setattr(environment, "_cpu_info", lambda key: "")
    assert environment.choose_precision("float32", CPU) == (torch.float32, "as asked")
    assert "slow" in environment.choose_precision("bfloat16", CPU)[1]
    with pytest.raises(UserError, match="--precision float16"):
        environment.choose_precision("float16", CPU)


def test_tf32_is_set_and_said(monkeypatch):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    gpu = torch.device("cuda")
    try:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        for allowed, says in ((True, "in TF32"), (False, "in full")):
            assert says in environment.set_tf32(allowed, gpu)
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert environment.set_tf32(True, gpu) == environment.set_tf32(True, CPU) == ""
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
