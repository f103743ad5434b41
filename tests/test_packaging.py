"""What setup.py packs, asks for, compiles for and says; nothing is compiled but by a stand-in.

That real libraries work where they are installed is for `.ci/run`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("csrc", "docs", "tests", "benchmarks", ".ci", "pose_kernels", "posemodel")
FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md",
         "pyproject.toml", "setup.py")
BUILT = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json", "*.pyc")


def copy_of_the_sources(to: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, to / name, ignore=BUILT)
    for name in FILES:
        shutil.copy(ROOT / name, to / name)
    return to


@pytest.fixture
def sources(tmp_path):
    return copy_of_the_sources(tmp_path / "sources")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python of its own in which there is setuptools, and neither torch nor a compiler."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    packages, = folder.glob("lib/python*/site-packages")
    there = Path(setuptools.__file__).parents[1]
    for one in [*there.glob("setuptools*"), *there.glob("_distutils_hack")]:
        (packages / one.name).symlink_to(one)
    return folder / "bin" / "python"


def hook(name, *arguments, sources, python=sys.executable, path=None, prefix=(), **variables):
    """What a hook of the backend returns; everything that it printed if it ends otherwise."""
    code = f"import json, setup; print('\\n' + json.dumps(setup.{name}(*{arguments!r})))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(
        ("POSE_KERNELS", "PYTHON", "CXX", "TORCH_"))}
    done = subprocess.run(
        [*prefix, python, "-c", code], cwd=sources, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, env={**kept, "PATH": str(path or os.environ["PATH"]),
        "HOME": str(sources.parent), "PYTHONDONTWRITEBYTECODE": "1", **variables})
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done


def last_line(done):
    """Of a hook that fails, whose last line says why: no traceback."""
    assert not isinstance(done, str | list), done
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    return done.stdout.splitlines()[-1]


def names_in(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return set(opened.namelist())
    with tarfile.open(archive) as opened:
        return {one.name.partition("/")[2] for one in opened.getmembers() if one.isfile()}


@pytest.fixture
def compiler(tmp_path):
    """Writes an empty file for each that it shall make, and notes its words."""
    path = tmp_path / "a compiler"
    path.mkdir()
    path /= "c++"
    path.write_text('#!/bin/sh\necho "$@" >> "$0.log"\n'
                    'while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done; true\n')
    path.chmod(0o755)
    return path


def with_compiler(compiler, **more):
    return {"path": f"{compiler.parent}:{os.environ['PATH']}", "POSE_KERNELS_CUDA": "0", **more}


# --- what is asked for ----------------------------------------------------------------------------


def test_only_compiling_takes_torch(bare, sources, tmp_path):
    ask = {"sources": sources, "python": bare, "path": tmp_path}
    for kind in ("wheel", "editable"):
        assert hook(f"get_requires_for_build_{kind}", **ask) == ["ninja", "torch>=2.10"]
        assert hook(f"get_requires_for_build_{kind}", **ask, POSE_KERNELS_BUILD="0") == []
    assert hook("get_requires_for_build_sdist", **ask) == []
    (tmp_path / "out").mkdir()
    folder = hook("prepare_metadata_for_build_wheel", str(tmp_path / "out"), **ask)
    text = (tmp_path / "out" / folder / "METADATA").read_text()
    assert "Requires-Dist: torch>=2.10\n" in text and "Pose transfer using a single" in text
    # Whoever builds with torch has no use for another.
    assert hook("get_requires_for_build_wheel", sources=sources) == ["ninja"]


def test_torch_that_is_too_old(bare, sources, tmp_path):
    """Said before pip downloads another, and where it was not asked, before compiling."""
    packages = tmp_path / "packages"
    for name, text in {"torch/__init__.py": "__version__ = '2.9.1+cpu'\n",
                       "torch-2.9.1.dist-info/METADATA": "Name: torch\nVersion: 2.9.1\n"}.items():
        (packages / name).parent.mkdir(parents=True)
        (packages / name).write_text(text)
    old = {"sources": sources, "python": bare, "PYTHONPATH": str(packages)}
    for done, version in ((hook("get_requires_for_build_editable", **old), "2.9.1"),
                          (hook("build_wheel", str(tmp_path), **old), "2.9.1+cpu")):
        assert last_line(done) == (
            f"error: torch {version} is too old: pose_kernels needs 2.10 or later. First pip "
            "install --upgrade torch torchvision, then this again")
    assert hook("get_requires_for_build_wheel", **old, POSE_KERNELS_BUILD="0") == []


def test_no_torch_where_none_was_asked_for(bare, sources, compiler, tmp_path):
    done = hook("build_wheel", str(tmp_path), sources=sources, python=bare,
                **with_compiler(compiler))
    assert last_line(done).startswith("error: torch cannot be imported (No module named 'torch')")


def test_setuptools_that_is_too_old(bare, sources, tmp_path):
    packages = tmp_path / "packages" / "setuptools"
    (packages / "command").mkdir(parents=True)
    (packages / "__init__.py").write_text("__version__, Extension, setup = '65.5', 0, 0\n")
    for name in ("build_meta", "command/__init__", "command/build_ext", "command/build_py"):
        (packages / f"{name}.py").write_text(
            "build_editable = build_sdist = build_wheel = prepare_metadata_for_build_editable = "
            "prepare_metadata_for_build_wheel = build_ext = build_py = None\n")
    done = hook("build_wheel", str(tmp_path), sources=sources, python=bare,
                PYTHONPATH=str(packages.parent))
    assert last_line(done).startswith("error: setuptools 65.5 is too old: pip install --upgrade")


# --- compilers ------------------------------------------------------------------------------------


def test_no_compiler(sources, tmp_path):
    ask = {"sources": sources, "path": tmp_path}
    line = last_line(hook("build_wheel", str(tmp_path), **ask))
    assert line.startswith("error: no C++ compiler (none of c++, g++, clang++ is there): install ")
    assert "POSE_KERNELS_BUILD=0" in line
    line = last_line(hook("build_wheel", str(tmp_path), **ask, CXX="/opt/g++-15"))
    assert line.startswith("error: no C++ compiler (CXX=/opt/g++-15 is not there): ")


def test_a_compiler_that_fails(sources, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\ncase "$*" in *" -c "*) exit 1;; *) echo 12.2.0;; esac\n')
    broken.chmod(0o755)
    done = hook("build_wheel", str(tmp_path), sources=sources, CXX=str(broken), MAX_JOBS="1")
    assert last_line(done).startswith("error: the C++ library did not build (")
    assert "POSE_KERNELS_BUILD=0" in last_line(done)


@pytest.mark.parametrize("known, seen, expected", [
    ({75, 80, 86, 90, 100, 120}, set(), "8.0;9.0+PTX"),
    ({75, 80, 86}, set(), "8.0;8.6+PTX"),
    ({100, 120}, set(), "12.0+PTX"),
    ({75, 80, 86, 90}, {86}, "8.6+PTX"),
    ({75, 80, 90, 100, 120}, {90, 120}, "9.0;12.0+PTX"),
    ({75, 80, 90}, {80, 120}, "8.0;9.0+PTX"),
    ({75, 80, 90}, {120}, "9.0+PTX"),
    ({75, 80, 90}, {75}, "8.0;9.0+PTX")])
def test_architectures(known, seen, expected):
    spec = importlib.util.spec_from_file_location("pose_kernels_setup", ROOT / "setup.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.architectures(known, seen) == expected


# --- what is packed -------------------------------------------------------------------------------


def test_the_sdist_is_whole(bare, sources, tmp_path):
    """Made where there is neither torch nor nvcc, beside libraries of this machine."""
    expected = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert {"csrc/cuda/flow_sample.cu", "csrc/cuda/sort.cuh", "csrc/cpu/winograd.inl", ".ci/run",
            "tests/tiny.py", "docs/quick.png"} <= expected
    (sources / "pose_kernels" / "_C_cpu.so").touch()
    (sources / "pose_kernels" / "_build_info.json").touch()
    name = hook("build_sdist", str(tmp_path), sources=sources, python=bare, path=tmp_path)
    found = names_in(tmp_path / name)
    assert not expected - found
    made = {"PKG-INFO", "setup.cfg"}
    assert {one for one in found - expected if ".egg-info/" not in one} == made


def test_the_wheel_is_for_every_python(sources, compiler, tmp_path):
    (sources / "pose_kernels" / "_C_cuda.so").touch()  # of an earlier build
    name = hook("build_wheel", str(tmp_path), sources=sources, **with_compiler(compiler))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert name == f"posetransfer-0.1.0-py3-none-{platform}.whl"
    found = names_in(tmp_path / name)
    assert {one for one in found if ".so" in one} == {"pose_kernels/_C_cpu.so"}
    assert {"pose_kernels/py.typed", "posemodel/py.typed", "posemodel/demo/index.html"} <= found
    assert not {one.partition("/")[0] for one in found} - {
        "pose_kernels", "posemodel", "posetransfer-0.1.0.dist-info"}
    with zipfile.ZipFile(tmp_path / name) as wheel:
        facts = json.loads(wheel.read("pose_kernels/_build_info.json"))
    assert facts["cpu"] == {"reason": None}
    assert facts["cuda"] == {"reason": "turned off by POSE_KERNELS_CUDA=0"}
    # Python hands -g down, and what comes last counts.
    compiled = [line.split() for line in Path(f"{compiler}.log").read_text().splitlines()
                if " -c " in line]
    assert len(compiled) == len([*sources.glob("csrc/*.cpp"), *sources.glob("csrc/cpu/*.cpp")])
    assert all([one for one in words if one.startswith("-g")][-1] == "-g0" for words in compiled)


def test_an_editable_install_leaves_the_libraries_beside_the_sources(sources, compiler, tmp_path):
    folder = sources / "pose_kernels"
    (folder / "_C_cuda.so").touch()
    hook("build_editable", str(tmp_path), sources=sources, **with_compiler(compiler))
    assert [one.name for one in folder.glob("*.so")] == ["_C_cpu.so"]
    assert json.loads((folder / "_build_info.json").read_text())["cpu"] == {"reason": None}
    hook("build_editable", str(tmp_path), sources=sources, POSE_KERNELS_BUILD="0")
    assert not list(folder.glob("*.so"))


def test_a_wheel_without_libraries_works(bare, sources, tmp_path):
    name = hook("build_wheel", str(tmp_path), sources=sources, python=bare, path=tmp_path,
                POSE_KERNELS_BUILD="0")
    assert name == "posetransfer-0.1.0-py3-none-any.whl"
    installed = tmp_path / "installed"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(installed)
    for path in [installed, *installed.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run([sys.executable, "-m", "pose_kernels", "--json"], cwd=tmp_path, text=True,
                          env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["passed"]
    for library in found["libraries"].values():
        assert "turned off by POSE_KERNELS_BUILD=0" in library["reason"]
    checked = {row["op"] for row in found["implementations"] if row["checks"]}
    assert checked == {row["op"] for row in found["implementations"]}


def test_sources_that_are_read_only(sources, compiler, tmp_path):
    prefix = ()
    if os.geteuid() == 0:  # who may write everywhere, but for this
        prefix = ("setpriv", "--bounding-set", "-dac_override")
        if shutil.which(prefix[0]) is None:
            pytest.skip("root, and no setpriv")
    folders = [sources, *(path for path in sources.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    build = {"sources": sources, "prefix": prefix, **with_compiler(compiler)}
    try:
        name = hook("build_wheel", str(tmp_path), **build)
        assert "pose_kernels/_C_cpu.so" in names_in(tmp_path / name)
        for more in ({}, {"POSE_KERNELS_BUILD": "0"}):
            line = last_line(hook("build_editable", str(tmp_path), **build, **more))
            assert line == (f"error: an editable install writes into {sources}, which is "
                            "read-only: install without -e, or from a copy")
    finally:
        for path in folders:
            path.chmod(0o755)
