"""Clocks, memory, ceilings, and what a file of results says about its machine and its code."""

import ctypes
import gc
import math
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch
from command import OUT_OF_MEMORY

import pose_kernels
from pose_kernels import _library

MIB = 2**20
ERROR = "error"


class Clock:
    """Milliseconds of one call.

    On a GPU between two events, after a buffer larger than the L2 cache was written: nothing that
    an earlier call left there is found again. The writes keep the GPU busy for about half a
    millisecond in which the CPU queues the call, so that gaps between kernels count only where the
    CPU cannot keep up. On a CPU by the wall clock, and no cache is flushed.
    """

    def __init__(self, device: torch.device):
        self.device, self.flush_bytes = device, 0
        if device.type == "cuda":
            l2 = torch.cuda.get_device_properties(device).L2_cache_size
            self.flush_bytes = max(4 * l2, 512 * MIB)
            self.buffer = torch.empty(self.flush_bytes, dtype=torch.uint8, device=device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def milliseconds(self, call) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        start, end = self.events
        for value in range(4):
            self.buffer.fill_(value)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def bandwidth(clock: Clock) -> float:
    """Bytes per second, read plus written, of the fastest copy of a large tensor."""
    cpu = clock.device.type == "cpu"
    values = (64 if cpu else 256) * MIB  # float32
    source = torch.empty(values, device=clock.device).uniform_()
    copy = torch.empty_like(source)
    best = min(clock.milliseconds(lambda: copy.copy_(source)) for _ in range(6 if cpu else 12))
    return 2 * source.nbytes / (best / 1e3)


def product_rate(dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second of the fastest square matrix product of growing size."""
    cpu = clock.device.type == "cpu"
    best = 0.0
    for side in (256, 512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
        torch.mm(a, b)
        ms = min(clock.milliseconds(lambda a=a, b=b: torch.mm(a, b)) for _ in range(4))
        best = max(best, 2 * side**3 / (ms / 1e3))
        if ms > (60 if cpu else 200):
            break
    return best


def quartiles(values: list[float]) -> list[float]:
    """Median, 25th, 75th percentile."""
    ends = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values
    return [statistics.median(values), ends[0], ends[-1]]


def attempt(call):
    """(result, None), or (None, (status, reason)) where the call does not get through."""
    try:
        return call(), None
    except (torch.OutOfMemoryError, MemoryError):
        failure = (OUT_OF_MEMORY, "")
    except Exception as error:
        # What the CPU's allocator says has no class of its own.
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            failure = (OUT_OF_MEMORY, "")
        else:
            lines = str(error).strip().splitlines() or [""]
            failure = (ERROR, f"{type(error).__name__}: {lines[0]}"[:160])
    gc.collect()  # the traceback held the tensors until here
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None, failure


def available_bytes(device: torch.device) -> float:
    """Memory that a call may take; infinite where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    limits = [math.inf]
    try:
        limits.append(1024 * _field("/proc/meminfo", "MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:  # a container's own limit
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return min(limits)


def _field(path: str, name: str) -> int:
    with open(path) as file:
        return int(next(line for line in file if line.startswith(name)).split()[1])


def peak_bytes(call, device: torch.device) -> float | None:
    """Peak memory of the call beyond what was there before; None where the system cannot say.

    On a GPU the allocator's peak, on a CPU the growth of the process's resident memory: results,
    gradients and scratch, not the inputs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls left with malloc
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark starts again from what is resident now
        before = _field("/proc/self/status", "VmRSS")
    except (OSError, AttributeError, StopIteration):
        call()
        return None
    call()
    return 1024 * max(_field("/proc/self/status", "VmHWM") - before, 0)


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the CPU, which `platform` does not know on Linux."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def driver() -> str | None:
    versions = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else None


def commit(folder: Path, paths: tuple[str, ...]) -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether anything under the paths differs from it."""
    head = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--", *paths)
    return head, None if changed is None else bool(changed)


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def origin(options, device: torch.device, packages: tuple[str, ...]) -> dict:
    """When, where, and with which code and options a benchmark of these packages runs."""
    head, changed = commit(Path(pose_kernels.__file__).resolve().parents[1],
                           (*packages, "csrc", "setup.py", "benchmarks", ":!benchmarks/results"))
    return {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(device), "device": device.type,
        "driver": driver() if device.type == "cuda" else None, "threads": torch.get_num_threads(),
        "versions": {"pose_kernels": pose_kernels.__version__, "torch": torch.__version__,
                     "triton": triton_version(), "cuda": torch.version.cuda,
                     "python": platform.python_version()},
        "commit": options.commit or head, "changed": None if options.commit else changed,
        "build": _library.build_info,
        "options": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
    }
