"""Compiles the CUDA sources for the CPU: once per content of the sources, into build/emulation."""

import hashlib
import os
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# No fused multiply-adds: where it matters the sources ask for exact operations, plain ones here.
FLAGS = ["-std=c++17", "-DPOSE_KERNELS_EMULATE", "-ffp-contract=off", "-Wall",
         "-Wno-unknown-pragmas"]


def operators(folder: str) -> list[str]:
    """The sources in a folder, one per operator."""
    return sorted(str(p.relative_to(HERE)) for p in (HERE / folder).glob("*.cpp"))


def compile_once(target: str, sources: list[str], flags: list[str],
                 libraries: tuple[str, ...] = ()) -> Path:
    """The path of the compiled `target`, whose name gets a hash of everything it depends on."""
    import torch

    include = Path(torch.__file__).parent / "include"
    headers = [*HERE.glob("*.h"), *(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").glob("*.cuh")]
    depends = [*(HERE / s for s in sources), *headers]
    command = ["g++", *FLAGS, *flags, f"-I{HERE}", f"-I{ROOT / 'csrc'}", f"-isystem{include}"]
    key = hashlib.sha256(repr((command, torch.__version__, sysconfig.get_platform())).encode())
    for path in sorted(depends):
        key.update(path.read_bytes())
    stem, suffix = os.path.splitext(target)
    output = ROOT / "build" / "emulation" / f"{stem}-{key.hexdigest()[:16]}{suffix}"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        part = output.with_suffix(f".{os.getpid()}.part")
        # As one translation unit: the headers cost more time than the sources do.
        command += ["-x", "c++", "-", "-o", str(part), *libraries]
        one = "".join(f'#include "{source}"\n' for source in sources)
        done = subprocess.run(command, input=one, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        part.rename(output)
    return output


def wrappers() -> Path:
    """The library of csrc/cuda/*.cu whole, whose operators are those of CPU tensors; needs g++."""
    import torch

    libraries = Path(torch.__file__).parent / "lib"
    sources = ["wrappers.h", *sorted(map(str, (ROOT / "csrc/cuda").glob("*.cu"))), "probes.cpp"]
    flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden",
             "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return compile_once("wrappers.so", sources, flags, (f"-L{libraries}", "-ltorch_cpu", "-lc10"))


def sanitized_program() -> Path:
    """A program that runs every kernel under AddressSanitizer and UBSan."""
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-fno-sanitize=null,vptr,object-size,return"]  # twice the time to compile
    return compile_once("run_sanitized", ["run_sanitized.cpp", *operators("sanitized")], flags)
