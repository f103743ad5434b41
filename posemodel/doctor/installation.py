"""Examinations of what is here: packages, machine, devices, published weights, data sets."""

import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from posemodel.doctor.checkup import INSTALL, Checkup
from posemodel.runtime.errors import UserError

_DISTRIBUTION = "posetransfer"
_OPTIONAL = {"lpips": "the metric LPIPS (pip install -e '.[eval]')",
             "torch-fidelity": "the metric FID (pip install -e '.[eval]')",
             "scikit-image": "tests of SSIM (pip install -e '.[test]')",
             "tensorboard": "scalars in TensorBoard (pip install -e '.[tb]')",
             "playwright": "tests of pages in a browser (pip install -e '.[test]')",
             "imageio-ffmpeg": "films, read and written (pip install -e '.[video]')",
             "mediapipe": "joints and masks found in pictures (pip install -e '.[pose]')",
             "opencv-contrib-python": "edges and patterns continued behind a person "
                                      "(pip install -e '.[pose]')"}
# Variables of the environment that change what runs; no others are shown.
_VARIABLES = ("POSE_KERNELS_IMPL", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
              "GOMP_SPINCOUNT", "POSEMODEL_WEIGHTS")
_GIB = 2**30
_LEAST_DISK = 1 * _GIB
_LEAST_MEMORY = 2 * _GIB
# What the batches of two workers take at 512 pixels.
_LEAST_SHARED = 64 * 2**20
_SHARED = Path("/dev/shm")


def packages(checkup: Checkup) -> None:
    """Python, what has to be installed, and what may be."""
    checkup.say(f"Python {platform.python_version()}, {platform.platform()}")
    for name in _VARIABLES:
        if name in os.environ:
            checkup.say(f"{name}={os.environ[name]}")
    try:
        needed = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        checkup.problem(f"the package {_DISTRIBUTION} is not installed", INSTALL, stops=False)
        needed = []
    from packaging.requirements import Requirement

    versions, lacking = [], []
    for requirement in map(Requirement, needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        versions.append(f"{requirement.name} {version or 'missing'}")
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{requirement} (here: {version or 'none'})")
    checkup.say("needed: " + ", ".join(versions))
    if lacking:
        checkup.problem(f"packages missing or too old: {', '.join(lacking)}", INSTALL, stops=True)
    for name, purpose in _OPTIONAL.items():
        checkup.say(f"optional: {name} {_version(name) or 'not installed'}, for {purpose}")


def machine(checkup: Checkup) -> None:
    """Memory, disk, compilers."""
    memory = _memory()
    if memory is not None:
        total, available = memory
        checkup.say(f"memory: {total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB of it available")
        if available < _LEAST_MEMORY:
            checkup.problem(f"only {available / _GIB:.1f} GiB of memory are available",
                            "end other programs; training takes some "
                            f"{_LEAST_MEMORY / _GIB:.0f} GiB", stops=True)
    if _SHARED.is_dir():
        shared = shutil.disk_usage(_SHARED).free
        checkup.say(f"shared memory: {shared / 2**20:,.0f} MiB free in {_SHARED}")
        if shared < _LEAST_SHARED:
            checkup.problem(
                f"only {shared / 2**20:.1f} MiB of shared memory are free: the processes that "
                "decode images may not get theirs", "train from disk with --data.workers 0, or "
                f"enlarge {_SHARED} (of a container: --shm-size 1g)", stops=False)
    free = shutil.disk_usage(".").free
    checkup.say(f"disk: {free / _GIB:.1f} GiB free in {Path.cwd()}")
    if free < _LEAST_DISK:
        checkup.problem(f"only {free / _GIB:.1f} GiB free in {Path.cwd()}",
                        "make room, or train into another disk with --out", stops=True)
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        checkup.problem(f"cannot write into {Path.cwd()}: {error.strerror}",
                        "go to another folder, or train into one with --out", stops=True)
    for name, *command in (("C++ compiler", os.environ.get("CXX", "c++"), "--version"),
                           ("CUDA compiler", "nvcc", "--version")):
        lines = _output(*command).splitlines()
        release = [line for line in lines if "release" in line] or lines
        checkup.say(f"{name}: {release[0] if release else 'none found'}")


def torch_and_devices(checkup: Checkup) -> None:
    """Versions, CPU, GPUs."""
    import torch

    from posemodel.engine.run_folder import kernels_on
    from posemodel.runtime import environment

    here = environment.collect()
    checkup.say(f"torch {here['torch']} for CUDA {here['cuda'] or 'none'}, "
                f"torchvision {here['torchvision']}, NumPy {here['numpy']}")
    if here["git"] is not None:
        changed = ", changed since" if here["git"]["dirty"] else ""
        checkup.say(f"commit {here['git']['commit'][:12]}{changed}")
    checkup.say(f"CPU: {here['cpu']}, {here['cores']} cores, {here['threads']} threads")
    for index, name in enumerate(here["gpu"]):
        gpu = torch.cuda.get_device_properties(index)
        checkup.say(f"GPU {index}: {name}, {gpu.total_memory / _GIB:.0f} GiB, compute capability "
                    f"{gpu.major}.{gpu.minor}")
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    checkup.say(f"NVIDIA driver: {driver.splitlines()[0] if driver else 'none'}")
    if driver and not here["gpu"]:
        why = (f"it is built for CUDA {here['cuda']}; the driver may be too old for that"
               if here["cuda"] else "it is a build without CUDA")
        checkup.problem(f"there is an NVIDIA driver, but torch finds no GPU: {why}",
                        "install the torch that https://pytorch.org/get-started names for this "
                        f"driver, then {INSTALL}", stops=False)
    device, reason = environment.choose_device("auto")
    checkup.say(f"training takes {device} ({reason}), "
                f"{environment.choose_precision('auto', device)[1]}")
    checkup.say(f"operators there: {kernels_on(device)}")


def weights(checkup: Checkup, folder: str = "") -> None:
    """Whether what others have published is at hand, undamaged: a line for each network.

    Args:
        folder: of `--weights`, looked into first.
    """
    from posemodel.evaluation.fid import FEATURES
    from posemodel.poses.estimator import POSE_LANDMARKER
    from posemodel.runtime import backbones
    from posemodel.runtime.files import sha256
    from posemodel.runtime.weights import own_folders, read_weights, tensors_sha256

    try:
        own_folders(folder)
    except UserError as error:
        checkup.problem(str(error), "make that folder, or name another one", stops=True)
        return
    files = {
        "AlexNet": (backbones.ALEXNET, "LPIPS-Alex"),
        "VGG-16": (backbones.VGG16, "LPIPS-VGG and --loss.reconstruction vgg16"),
        "VGG-19": (backbones.VGG19, "--loss.reconstruction vgg19 (paper, market, hires)"),
        **{name: (file, "FID") for name, file in FEATURES.items()},
        **{name: (file, "a re-identification baseline that starts from ImageNet weights")
           for name, file in backbones.RESNETS.items()}}
    for name, (file, use) in files.items():
        if file.missing(folder):
            checkup.say(f"{name}: missing, needed by {use}: {file.missing(folder)}")
            continue
        try:
            path = file.find(folder)
            tensors = file.load(folder) if isinstance(file, backbones.Backbone) \
                else read_weights(path)
        except UserError as error:
            checkup.problem(f"{name}: {error}", f"get it again from {file.url}, or delete it",
                            stops=False)
            continue
        checkup.say(f"{name}: {path}, SHA-256 of its tensors {tensors_sha256(tensors)[:12]}, for "
                    f"{use}")
    why = POSE_LANDMARKER.missing(folder)
    checkup.say(f"MediaPipe's PoseLandmarker: missing, needed by joints of pictures: {why}" if why
                else f"MediaPipe's PoseLandmarker: {POSE_LANDMARKER.look(folder)}, SHA-256 "
                     f"{sha256(POSE_LANDMARKER.look(folder))[:12]}, for joints of pictures")


def data(checkup: Checkup, root: str) -> None:
    """A data set on disk, as `python -m posemodel.data check` looks at it."""
    from posemodel.data.check import check, describe

    remedy = f"see python -m posemodel.data check {root}"
    try:
        findings = check(Path(root))
    except UserError as error:
        checkup.problem(str(error), remedy, stops=True)
        return
    for line in describe(findings).splitlines():
        checkup.say(line)
    for problem in findings.problems:
        checkup.problem(problem, remedy, stops=True)


def _memory() -> tuple[int, int] | None:
    """Bytes of memory of the machine, and those available; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {name: 1024 * int(rest.split()[0]) for name, _, rest in
              (line.partition(":") for line in lines)}
    return values["MemTotal"], values["MemAvailable"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """What a command prints; empty if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                              timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
