"""Builds the two operator libraries of pose_kernels; metadata is in pyproject.toml.

`_C_cpu.so` always; `_C_cuda.so` when torch is a CUDA build and a toolkit is there, GPU or not.
Both use only the LibTorch stable ABI, so one build serves torch 2.10 and every later version.

POSE_KERNELS_CUDA=0      leave the CUDA library out
TORCH_CUDA_ARCH_LIST     architectures, as everywhere with torch
MAX_JOBS                 parallel compiler processes
"""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

# pip builds in an isolated environment whose interpreter still belongs to the user's: appending
# its packages lets the build see the user's own torch, so nothing is downloaded twice and
# versions cannot disagree.
sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
sys.path.append(site.getusersitepackages())

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10
ARCHITECTURES = {80: "8.0", 86: "8.6", 90: "9.0", 100: "10.0"}


def run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False).stdout


def cuda_root() -> str | None:
    """The toolkit's root, also where `nvcc` on the PATH is a wrapper that lives elsewhere."""
    if os.environ.get("CUDA_HOME"):
        return os.environ["CUDA_HOME"]
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
    return os.path.realpath(top[1].strip()) if top else str(Path(nvcc).resolve().parent.parent)


def cuda_plan(torch) -> tuple[str | None, dict]:
    """(why there is no CUDA library or None, what is known about the toolkit)."""
    if os.environ.get("POSE_KERNELS_CUDA") == "0":
        return "turned off by POSE_KERNELS_CUDA=0", {}
    if not torch.version.cuda:
        return f"torch {torch.__version__} is not a CUDA build", {}
    root = cuda_root()
    if root is None:
        return f"no nvcc found (torch needs CUDA {torch.version.cuda})", {}
    nvcc = os.path.join(root, "bin", "nvcc")
    release = os.path.exists(nvcc) and re.search(r"release ([\d.]+)", run(nvcc, "--version"))
    if not release:
        return f"no working nvcc in {root}", {}
    facts = {"nvcc": release[1]}
    if release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc {release[1]} does not match torch's CUDA {torch.version.cuda}", facts
    os.environ["CUDA_HOME"] = root
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):  # torch fails without one where no GPU is seen
        known = {int(n) for n in re.findall(r"compute_(\d+)", run(nvcc, "--list-gpu-arch"))}
        chosen = [name for number, name in ARCHITECTURES.items() if number in known]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(chosen or [f"{max(known) / 10:.1f}"]) + "+PTX"
    return None, {**facts, "architectures": os.environ["TORCH_CUDA_ARCH_LIST"]}


def extensions(torch):
    """Extension modules, and the build command that records in _build_info.json what it built."""
    reason, toolkit = cuda_plan(torch)
    # Imported after cuda_plan: it reads CUDA_HOME once.
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    def find(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for one in patterns for p in ROOT.glob(one))

    warnings = ["-Wall", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-maybe-uninitialized"]
    host = ["-O3", "-std=c++17", "-fvisibility=hidden", *warnings, TORCH_TARGET]
    common = {
        "include_dirs": [str(ROOT / "csrc")],
        "depends": find("csrc/**/*.h", "csrc/**/*.inl", "csrc/**/*.cuh"),
        "py_limited_api": True,
    }
    sources, flags = find("csrc/*.cpp", "csrc/cpu/*.cpp"), {"cxx": host}
    modules = [CppExtension("pose_kernels._C_cpu", sources, extra_compile_args=flags, **common)]
    if reason is None:
        names = f'-DPOSE_KERNELS_ARCHITECTURES="{toolkit["architectures"]}"'
        device = ["-O3", "-std=c++17", "-DUSE_CUDA", TORCH_TARGET, names]
        sources, flags = find("csrc/cuda/*.cu"), {"cxx": [*host, "-DUSE_CUDA"], "nvcc": device}
        name = "pose_kernels._C_cuda"
        modules.append(CUDAExtension(name, sources, extra_compile_args=flags, **common))
    cpu, cuda = {"reason": None}, {"reason": reason, **toolkit}
    return modules, build_command(BuildExtension, {
        "torch": torch.__version__, "cpu": cpu, "cuda": cuda})


def build_command(base: type, facts: dict) -> type:
    """torch's build command, with `facts` about what it is going to build."""

    class Build(base):
        """A library at a time: a CUDA build that fails must not take the CPU library with it."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, no_python_abi_suffix=True, **kwargs)

        def build_extensions(self):
            wanted, self.extensions = self.extensions, []
            for extension in wanted:
                name = extension.name.rpartition("_")[2]
                built, self.extensions = self.extensions, [extension]
                try:
                    super().build_extensions()
                    built.append(extension)
                except (Exception, SystemExit) as error:
                    if name == "cpu":
                        raise
                    facts[name]["reason"] = " ".join(f"the build failed: {error}".split())
                self.extensions = built  # what is not here is not looked for afterwards

        def run(self):
            folders = {Path(self.get_ext_fullpath("pose_kernels._C_cpu")).parent}
            if self.inplace or self.editable_mode:
                folders.add(ROOT / "pose_kernels")
            for folder in folders:  # a library of an earlier build would not match
                (folder / "_C_cuda.so").unlink(missing_ok=True)
            super().run()
            facts["compiler"] = run(os.environ.get("CXX", "c++"), "--version").splitlines()[0]
            for folder in folders:
                (folder / "_build_info.json").write_text(json.dumps(facts, indent=2) + "\n")
            why = facts["cuda"]["reason"]
            verdict = f"cuda NOT built ({why})" if why else "cuda built"
            print(f"pose_kernels libraries: cpu built, {verdict}", file=sys.stderr, flush=True)

    return Build


readme = ROOT / "README.md"
arguments = {"long_description_content_type": "text/markdown"}
arguments["long_description"] = readme.read_text() if readme.exists() else ""
try:
    import torch
except ImportError:  # first pass only: pip installs it into the build environment and comes back
    arguments["setup_requires"] = ["torch>=2.10"]
else:
    arguments["ext_modules"], build = extensions(torch)
    arguments["cmdclass"] = {"build_ext": build}
setup(**arguments)
