"""Where a run runs: what it records about the machine, and which device and precision it takes."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from posemodel.runtime.distributed import ALONE, World
from posemodel.runtime.errors import UserError


def collect(processes: int = 1) -> dict:
    """What env.json holds: enough to know later what a result was made with."""
    return {
        "processes": processes, "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": _cores(), "threads": torch.get_num_threads(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
        "gpu": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "torch": torch.__version__, "cuda": torch.version.cuda,
        "torchvision": _version("torchvision"), "numpy": _version("numpy"),
        "git": _git(Path(__file__).resolve().parents[2])}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run computes and how, each with the reason for it."""

    device: torch.device
    device_reason: str
    dtype: torch.dtype
    dtype_reason: str


def choose_machine(device: str, precision: str, tf32: bool, world: World = ALONE) -> Machine:
    """Device and precision of a run; allows TF32 in this process or not. Raises: `UserError` for
    what is not here."""
    place, device_reason = choose_device(device, world)
    if place.index is not None and place.type == "cuda":
        torch.cuda.set_device(place)
    dtype, dtype_reason = choose_precision(precision, place)
    return Machine(device=place, device_reason=device_reason, dtype=dtype,
                   dtype_reason=dtype_reason + set_tf32(tf32, place))


def choose_device(name: str, world: World = ALONE) -> tuple[torch.device, str]:
    """The device called `name`, "auto" for the best one here, and why it was taken.

    Of several processes on one machine each takes the GPU of its own number. Raises: `UserError`
    for one that is not here.
    """
    device, reason = _find_device(name)
    if world.size == 1:
        return device, reason
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device {name}: {world.size} processes cannot share one GPU; give "
                            "--device cuda, and each takes one of its own")
        gpus = torch.cuda.device_count()
        if world.local_rank >= gpus:
            raise UserError(f"process {world.local_rank} of this machine has no GPU of its own: "
                            f"there are {gpus}; start fewer processes, or give --device cpu")
        device = torch.device("cuda", world.local_rank)
    return device, f"{reason}; {world.size} processes"


def _find_device(name: str) -> tuple[torch.device, str]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = "available: " + ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    if name == "auto":
        if gpus:
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name(0)}"
        return torch.device("cpu"), f"auto: no CUDA device here; {_cores()} cores"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; {available}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported here; {available}")
    if device.type == "cuda" and not gpus:
        raise UserError(f"--device {name}: no CUDA device is available here; {available}")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(f"--device {name}: there is no such GPU; {available}")
    return device, "as asked"


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype called `name`, "auto" for the fastest safe one on `device`, and why.
    Raises: `UserError` for float16 on a CPU, which has neither the range nor the speed."""
    fast = _fast_bfloat16(device)
    if name == "auto":
        if fast:
            return torch.bfloat16, f"auto: {fast}"
        return torch.float32, f"auto: this {_kind(device)} has no fast bfloat16 instructions"
    if name == "float16" and device.type == "cpu":
        raise UserError("--precision float16: not on a CPU; use float32 or bfloat16")
    if name == "bfloat16" and not fast:
        return torch.bfloat16, f"as asked; slow: this {_kind(device)} has no instructions for it"
    return getattr(torch, name), "as asked"


def set_tf32(allowed: bool, device: torch.device) -> str:
    """Allow TF32 products in this process or not; what to say about it, nothing on a CPU.

    Everything that autocast leaves in float32 is meant: losses, BatchNorm and other sums are never
    computed in TF32, only convolutions, matrix products and the correlation.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        return ""
    if not allowed:
        return "; float32 products in full, as asked"
    return "; float32 products in TF32, whose 10 bits of mantissa are 3 more than bfloat16's"


def _kind(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


def _fast_bfloat16(device: torch.device) -> str:
    """What makes bfloat16 fast on `device`; empty if nothing does."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else ""
    flags = set(_cpu_info("flags").split()) | set(_cpu_info("Features").split())
    for flag, label in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16"),
                        ("bf16", "Arm BF16")):
        if flag in flags:
            return f"the CPU has {label}"
    return ""


def _cpu_info(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cores() -> int:
    # The cores that this process may use: a container's share, not the whole machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    # Asking the installed package is much faster than importing it.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(checkout: Path) -> dict | None:
    """Commit and state of the checkout that this file lies in; None where it is no checkout."""
    if not (checkout / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        # No optional locks: looking must not disturb someone who is working in the checkout.
        command = ["git", "--no-optional-locks", "-C", str(checkout), *words]
        try:
            answer = subprocess.run(command, capture_output=True, text=True,
                                    errors="replace", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain")
    if commit is None:
        return None
    return {"commit": commit, "dirty": changes != ""}
