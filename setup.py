"""Builds the two operator libraries of pose_kernels; metadata is in pyproject.toml.

`_C_cpu.so` always; `_C_cuda.so` when torch is a CUDA build and a toolkit is there, GPU or not.
Both use only the LibTorch stable ABI and nothing of Python: one build serves torch 2.10 and every
later version, and every Python.

POSE_KERNELS_BUILD=0     compile nothing: operators in PyTorch (and Triton on a GPU), no compiler
POSE_KERNELS_CUDA=0      leave the CUDA library out
TORCH_CUDA_ARCH_LIST     architectures, as everywhere with torch
CXX, MAX_JOBS            the C++ compiler; parallel compiler processes

This file is also the build backend that pip, uv and build call: setuptools', with its own answer to
what a build requires. torch is asked for only where something is compiled and none is there, and
imported only then: metadata and the sdist do without.
"""

import atexit
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.build_meta import (  # noqa: F401, hooks that stay setuptools'
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # without pip's isolation, which brings one that is new enough
    sys.exit(f"error: setuptools {setuptools.__version__} is too old: pip install --upgrade "
             "setuptools, or leave --no-build-isolation out")

# pip builds in an isolated environment whose interpreter still belongs to the user's: appending
# its packages lets the build see the user's own torch, so nothing is downloaded twice and
# versions cannot disagree.
sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
sys.path.append(site.getusersitepackages())

ROOT = Path(__file__).resolve().parent
LEAST_TORCH = (2, 10)
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the same
# Where no GPU is seen: 8.0 runs on 8.x, 9.0 on 9.x, PTX of 9.0 is compiled by the driver of any
# later one. Every architecture more takes as long again as the CPU library.
ARCHITECTURES = (80, 90)
COMPILES = os.environ.get("POSE_KERNELS_BUILD") != "0"
WITHOUT = ("Or do without: POSE_KERNELS_BUILD=0 pip install ... compiles nothing (operators in "
           "PyTorch alone, several times slower)")


# --- what a build requires ------------------------------------------------------------------------


def get_requires_for_build_sdist(config_settings=None) -> list[str]:
    return []


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    if not COMPILES:
        return []
    if importlib.util.find_spec("torch") is None:
        return ["ninja", "torch>={}.{}".format(*LEAST_TORCH)]
    try:  # now: later pip would first have downloaded another torch
        check_torch(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        pass  # a torch that was never installed, only put on the path: asked when it is imported
    return ["ninja"]


get_requires_for_build_editable = get_requires_for_build_wheel


def check_torch(version: str) -> None:
    """Ends with one line where the user's torch is too old to compile for."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_TORCH:
        least = "{}.{}".format(*LEAST_TORCH)
        sys.exit(f"error: torch {version} is too old: pose_kernels needs {least} or later. First "
                 f"pip install --upgrade torch torchvision, then this again")


def check_compiler() -> None:
    """Ends with one line where there is no C++ compiler; else CXX names it for all that follows."""
    asked = os.environ.get("CXX")
    found = next(filter(shutil.which, [shlex.split(asked)[0]] if asked else
                        ["c++", "g++", "clang++"]), None)
    if found is None:
        what = f"CXX={asked} is not there" if asked else "none of c++, g++, clang++ is there"
        sys.exit(f"error: no C++ compiler ({what}): install one (apt install g++, dnf install "
                 f"gcc-c++), or name it in CXX. {WITHOUT}")
    os.environ.setdefault("CXX", found)


def check_folder(editable: bool) -> None:
    """Ends with one line where libraries belong beside sources that cannot be written to."""
    if editable and not os.access(ROOT, os.W_OK):
        sys.exit(f"error: an editable install writes into {ROOT}, which is read-only: install "
                 f"without -e, or from a copy")


# --- what is built --------------------------------------------------------------------------------


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


def architectures(known: set[int], seen: set[int]) -> str:
    """Those of the GPUs that are seen, of the usual ones where none is, and PTX for later ones.

    Args:
        known: what nvcc compiles for, 90 for 9.0.
        seen: of this machine's GPUs. One older than the kernels does not count, one that nvcc is
            too old for gets PTX of its newest.
    """
    wanted = {number for number in seen if number >= min(ARCHITECTURES)} or set(ARCHITECTURES)
    chosen = wanted & known
    if not chosen or max(wanted) > max(known):
        chosen.add(max(known))
    return ";".join(f"{number // 10}.{number % 10}" for number in sorted(chosen)) + "+PTX"


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
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        seen = {10 * major + minor for major, minor in map(torch.cuda.get_device_capability, gpus)}
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(known, seen)
    return None, {**facts, "architectures": os.environ["TORCH_CUDA_ARCH_LIST"]}


def find(*patterns: str) -> list[str]:
    """Sources, the largest first: the parallel compilers then end at about the same time."""
    found = [path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)]
    return [str(path) for path in sorted(found, key=lambda p: (-(ROOT / p).stat().st_size, p))]


def torch_extensions(facts: dict) -> dict[str, Extension]:
    """By its name what torch's build command compiles; `facts` says why there is no CUDA."""
    # Imported after cuda_plan: it reads CUDA_HOME once.
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    warnings = ["-Wall", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-maybe-uninitialized"]
    # -g0: most Pythons hand -g down, which makes the library seven times as large.
    host = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", *warnings, TORCH_TARGET]
    common = {"include_dirs": [str(ROOT / "csrc")], "py_limited_api": True}
    cpu, cuda = "pose_kernels._C_cpu", "pose_kernels._C_cuda"
    made = {cpu: CppExtension(cpu, find("csrc/*.cpp", "csrc/cpu/*.cpp"),
                              extra_compile_args={"cxx": host}, **common)}
    if facts["cuda"]["reason"] is None:
        names = f'-DPOSE_KERNELS_ARCHITECTURES="{facts["cuda"]["architectures"]}"'
        device = ["-O3", "-std=c++17", "-DUSE_CUDA", TORCH_TARGET, names]
        flags = {"cxx": [*host, "-DUSE_CUDA"], "nvcc": device}
        made[cuda] = CUDAExtension(cuda, find("csrc/cuda/*.cu"), extra_compile_args=flags, **common)
    return made


# --- commands -------------------------------------------------------------------------------------


class Build(build_ext):
    """torch's build command, a library at a time: a CUDA build that fails must not take the CPU
    library with it."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without a suffix of Python's: there is nothing of it inside."""
        return fullname.replace(".", os.sep) + ".so"

    def run(self):
        check_folder(self.editable_mode)
        check_compiler()
        folders = {Path(self.get_ext_fullpath("pose_kernels._C_cpu")).parent}
        if self.inplace or self.editable_mode:
            folders.add(ROOT / "pose_kernels")
        super().run()
        for folder in folders:
            write_record(folder, self.facts, self.extensions)
        why = self.facts["cuda"]["reason"]
        verdict = f"cuda NOT built ({why})" if why else "cuda built"
        print(f"pose_kernels libraries: cpu built, {verdict}", file=sys.stderr, flush=True)

    def build_extensions(self):
        try:
            import torch
        except ImportError as error:
            sys.exit(f"error: torch cannot be imported ({error}): first pip install torch "
                     f"torchvision. {WITHOUT}")
        check_torch(torch.__version__)
        reason, toolkit = cuda_plan(torch)
        self.facts = {"torch": torch.__version__, "cpu": {"reason": None},
                      "cuda": {"reason": reason, **toolkit}}
        planned = torch_extensions(self.facts)
        self.extensions = [one for one in self.extensions
                           if one.name in planned and self.compile(one, planned[one.name])]
        compiler = run(*shlex.split(os.environ["CXX"]), "--version").splitlines()
        self.facts["compiler"] = compiler[0] if compiler else os.environ["CXX"]

    def compile(self, extension: Extension, planned: Extension) -> bool:
        """One library, as torch plans it; whether it was built."""
        from torch.utils.cpp_extension import BuildExtension

        vars(extension).update(vars(planned))  # what setuptools noted about it stays
        command = BuildExtension(self.distribution, no_python_abi_suffix=True)
        vars(command).update(vars(self), force=True, extensions=[extension])
        try:
            command.build_extensions()
        except (Exception, SystemExit) as error:
            name, why = extension.name.rpartition("_")[2], " ".join(str(error).split())
            if name == "cpu":
                sys.exit(f"error: the C++ library did not build ({why}); what the compiler said "
                         f"stands above. {WITHOUT}")
            self.facts[name]["reason"] = f"the build failed: {why}"
            return False
        return True


class BuildNothing(build_py):
    """Where nothing is compiled: records that, and takes earlier libraries away."""

    def run(self):
        check_folder(self.editable_mode)
        super().run()
        why = {"reason": "turned off by POSE_KERNELS_BUILD=0"}
        folder = ROOT if self.editable_mode else Path(self.build_lib)
        write_record(folder / "pose_kernels", {"cpu": why, "cuda": why}, [])
        print("pose_kernels libraries: none built (POSE_KERNELS_BUILD=0)", file=sys.stderr,
              flush=True)


def write_record(folder: Path, facts: dict, built: list[Extension]) -> None:
    """`_build_info.json`; a library of an earlier build would not match it and goes."""
    kept = {f"{one.name.rpartition('.')[2]}.so" for one in built}
    for library in folder.glob("_C_*.so"):
        if library.name not in kept:
            library.unlink()
    (folder / "_build_info.json").write_text(json.dumps(facts, indent=2) + "\n")


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries have nothing of it inside."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def scratch() -> dict:
    """Options that keep what a build leaves behind out of a folder that is read-only."""
    if os.access(ROOT, os.W_OK):
        return {}
    folder = tempfile.mkdtemp(prefix="pose_kernels-")
    atexit.register(shutil.rmtree, folder)
    return {"egg_info": {"egg_base": folder}, "build": {"build_base": folder}}


if __name__ == "__main__":
    commands = {"build_ext": Build, "bdist_wheel": Wheel}
    if not COMPILES:
        commands["build_py"] = BuildNothing
    names = ("_C_cpu", "_C_cuda") if COMPILES else ()
    setup(ext_modules=[Extension(f"pose_kernels.{name}", []) for name in names],
          cmdclass=commands, options=scratch())
