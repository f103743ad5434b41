"""`python -m posemodel.doctor`: what is here, what works, and what to do about what does not.

Text to paste into a bug report: no name of a person or machine, `~` for the home directory. It
changes nothing and downloads nothing.

Exit code 0: training works, whatever else is missing; 2: a problem that stops it, or a data set
given by --data that has to be mended.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from posemodel.cli import run_main
from posemodel.errors import UserError
from posemodel.files import write_result

_DISTRIBUTION = "posetransfer"
_INSTALL = "in the project's folder: pip install -e ."
_OPTIONAL = {
    "lpips": "the metric LPIPS (pip install -e '.[eval]')",
    "torch-fidelity": "the metric FID (pip install -e '.[eval]')",
    "scikit-image": "tests of SSIM (pip install -e '.[test]')",
    "tensorboard": "scalars in TensorBoard (pip install -e '.[tb]')",
    "playwright": "tests of pages in a browser (pip install -e '.[test]')",
    "imageio-ffmpeg": "MP4 films of transfers (pip install -e '.[video]')",
}
# Variables of the environment that change what runs; no others are shown.
_VARIABLES = ("POSE_KERNELS_IMPL", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
              "GOMP_SPINCOUNT")
_GIB = 2**30
_LEAST_DISK = 1 * _GIB
_LEAST_MEMORY = 2 * _GIB
# Two processes that import torch from a slow disk and then train one step.
_PAIR_SECONDS = 60.0
# Losses of two processes and of one differ by rounding.
_PAIR_TOLERANCE = 1e-4


@dataclass
class Problem:
    """Something that does not work."""

    what: str
    remedy: str
    stops: bool
    """whether it stops training"""


@dataclass
class Checkup:
    """What is found, printed while it is found."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    kernels: dict = field(default_factory=dict)
    """what `python -m pose_kernels --json` prints"""
    losses: dict[str, float] = field(default_factory=dict)
    """of the training step on the CPU"""

    def examine(self, title: str, examination: Callable[["Checkup"], None]) -> bool:
        """Run one examination; whether it got through. What it raises is a finding."""
        self.sections[title] = []
        print(title, flush=True)
        try:
            examination(self)
        except Exception as error:  # whatever a broken installation does
            lines = str(error).splitlines() or [""]
            self.problem(f"{title}: {type(error).__name__}: {lines[0]}",
                         f"install again, {_INSTALL}; if it stays, report it with this text",
                         stops=True)
            return False
        return True

    def say(self, line: str) -> None:
        """One line of the section."""
        line = hide_home(line)
        next(reversed(self.sections.values())).append(line)
        print(f"  {line}".rstrip(), flush=True)

    def problem(self, what: str, remedy: str, *, stops: bool) -> None:
        """Note a problem, said where it is found and again at the end."""
        problem = Problem(hide_home(what), hide_home(remedy), stops)
        self.problems.append(problem)
        self.say(f"PROBLEM: {problem.what}")

    @property
    def stopped(self) -> bool:
        """Whether a problem stops training."""
        return any(problem.stops for problem in self.problems)

    def to_dict(self) -> dict:
        """For JSON."""
        return {"well": not self.problems, "problems": [asdict(one) for one in self.problems],
                "sections": self.sections, "kernels": self.kernels, "losses": self.losses}


def hide_home(text: str) -> str:
    """`text` with `~` in the place of the home directory."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?![\w.-])", "~", text)


def main(argv: list[str]) -> int:
    """Examines everything, prints it, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m posemodel.doctor", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[], metavar="ROOT",
                        help="folders of data sets to check, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    arguments = parser.parse_args(argv)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")

    start = time.monotonic()
    found = Checkup()
    found.examine("packages", packages)
    found.examine("machine", machine)
    if found.examine("torch", torch_and_devices):
        found.examine("kernels", kernels)
        found.examine("a training step", training_steps)
        found.examine("two processes", two_processes)
        found.examine("published weights (none is needed by the preset quick)", weights)
        for root in arguments.data:
            found.examine(f"data in {hide_home(root)}", lambda found, root=root: data(found, root))
    print()
    print(conclusion(found.problems))
    print(f"({time.monotonic() - start:.0f} s)")
    if arguments.json is not None:
        write_result(arguments.json, json.dumps(found.to_dict(), indent=2) + "\n")
    return 2 if found.stopped else 0


def conclusion(problems: list[Problem]) -> str:
    """The last words: what is wrong, and what to do."""
    if not problems:
        return "all well"
    lines = []
    for number, problem in enumerate(problems, 1):
        effect = "stops training: " if problem.stops else ""
        lines += [f"{number}. {effect}{problem.what}", f"   do: {problem.remedy}"]
    return "\n".join(["problems", *lines])


# --- the examinations -------------------------------------------------------------------------


def packages(found: Checkup) -> None:
    """Python, what has to be installed, and what may be."""
    found.say(f"Python {platform.python_version()}, {platform.platform()}")
    for name in _VARIABLES:
        if name in os.environ:
            found.say(f"{name}={os.environ[name]}")
    try:
        needed = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        found.problem(f"the package {_DISTRIBUTION} is not installed", _INSTALL, stops=False)
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
    found.say("needed: " + ", ".join(versions))
    if lacking:
        found.problem(f"packages missing or too old: {', '.join(lacking)}", _INSTALL, stops=True)
    for name, purpose in _OPTIONAL.items():
        found.say(f"optional: {name} {_version(name) or 'not installed'}, for {purpose}")


def machine(found: Checkup) -> None:
    """Memory, disk, compilers."""
    memory = _memory()
    if memory is not None:
        total, available = memory
        found.say(f"memory: {total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB of it available")
        if available < _LEAST_MEMORY:
            found.problem(f"only {available / _GIB:.1f} GiB of memory are available",
                          f"end other programs; training takes some {_LEAST_MEMORY / _GIB:.0f} GiB",
                          stops=True)
    free = shutil.disk_usage(".").free
    found.say(f"disk: {free / _GIB:.1f} GiB free in {Path.cwd()}")
    if free < _LEAST_DISK:
        found.problem(f"only {free / _GIB:.1f} GiB free in {Path.cwd()}",
                      "make room, or train into another disk with --out", stops=True)
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        found.problem(f"cannot write into {Path.cwd()}: {error.strerror}",
                      "go to another folder, or train into one with --out", stops=True)
    for name, *command in (("C++ compiler", os.environ.get("CXX", "c++"), "--version"),
                           ("CUDA compiler", "nvcc", "--version")):
        lines = _output(*command).splitlines()
        release = [line for line in lines if "release" in line] or lines
        found.say(f"{name}: {release[0] if release else 'none found'}")


def torch_and_devices(found: Checkup) -> None:
    """Versions, CPU, GPUs."""
    import torch

    from posemodel.engine import environment

    here = environment.collect()
    found.say(f"torch {here['torch']} for CUDA {here['cuda'] or 'none'}, "
              f"torchvision {here['torchvision']}, NumPy {here['numpy']}")
    if here["git"] is not None:
        changed = ", changed since" if here["git"]["dirty"] else ""
        found.say(f"commit {here['git']['commit'][:12]}{changed}")
    found.say(f"CPU: {here['cpu']}, {here['cores']} cores, {here['threads']} threads")
    for index, name in enumerate(here["gpu"]):
        gpu = torch.cuda.get_device_properties(index)
        found.say(f"GPU {index}: {name}, {gpu.total_memory / _GIB:.0f} GiB, compute capability "
                  f"{gpu.major}.{gpu.minor}")
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found.say(f"NVIDIA driver: {driver.splitlines()[0] if driver else 'none'}")
    if driver and not here["gpu"]:
        why = (f"it is built for CUDA {here['cuda']}; the driver may be too old for that"
               if here["cuda"] else "it is a build without CUDA")
        found.problem(f"there is an NVIDIA driver, but torch finds no GPU: {why}",
                      "install the torch that https://pytorch.org/get-started names for this "
                      f"driver, then {_INSTALL}", stops=False)
    device, reason = environment.choose_device("auto")
    found.say(f"training takes {device} ({reason}), "
              f"{environment.choose_precision('auto', device)[1]}")
    found.say(f"operators there: {environment.kernels(device)}")


def kernels(found: Checkup) -> None:
    """What is built, and whether each implementation computes the right thing."""
    import torch

    from pose_kernels import __main__ as self_check
    from pose_kernels import _library

    found.kernels = self_check.report()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        self_check.show(found.kernels)
    for line in text.getvalue().splitlines():
        found.say(line)
    libraries = found.kernels["libraries"]
    if not libraries["cpu"]["loaded"]:
        found.problem(f"no compiled kernels: {libraries['cpu']['reason']}",
                      f"{_INSTALL} (needs a C++17 compiler); without them training is several "
                      "times slower", stops=False)
    if torch.cuda.is_available():
        if libraries["cuda"]["loaded"]:
            built = _library.build_info.get("cuda", {}).get("architectures", "")
            for index in range(torch.cuda.device_count()):
                capability = torch.cuda.get_device_capability(index)
                if not runs_on(capability, built):
                    wanted = "{}.{}".format(*capability)
                    found.problem(f"the CUDA kernels are built for {built}, not for GPU {index} "
                                  f"of compute capability {wanted}",
                                  f"{_INSTALL}, with TORCH_CUDA_ARCH_LIST={wanted} before pip",
                                  stops=True)
        else:
            found.problem(f"no CUDA kernels for this GPU: {libraries['cuda']['reason']}",
                          f"{_INSTALL} (needs nvcc); without them Triton's are used",
                          stops=False)
    for row in found.kernels["implementations"]:
        for check in row["checks"]:
            if not check["passed"]:
                why = check.get("exception") or "its result or gradient is wrong"
                found.problem(f"{row['op']} as {row['impl']} on {check['device']}: {why}",
                              f"install again, {_INSTALL}; until then POSE_KERNELS_IMPL=reference "
                              "trains without it", stops=True)


def training_steps(found: Checkup) -> None:
    """One step of a small model on every device."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        try:
            losses = training_step(torch.device(device))
        except Exception as error:  # out of memory, no code for this GPU, a loss that is not finite
            lines = str(error).splitlines() or [""]
            found.problem(f"a training step on {device}: {type(error).__name__}: {lines[0]}",
                          "train on another --device; if all else here is well, report this text",
                          stops=True)
            continue
        if device == "cpu":
            found.losses = losses
        found.say(f"{device}: " + ", ".join(f"{name} {value:.4g}" for name, value in losses.items()
                                            if name.startswith("loss")))


def two_processes(found: Checkup) -> None:
    """The same step shared by two processes, as torchrun would start them."""
    import torch

    _pair(found, "cpu")
    if torch.cuda.device_count() >= 2:
        _pair(found, "cuda")
    else:
        found.say("cuda: not tried, fewer than two GPUs")


def weights(found: Checkup) -> None:
    """Whether what others have published is at hand, undamaged."""
    from posemodel import lpips_metric
    from posemodel.evaluation import fid
    from posemodel.files import sha256
    from posemodel.losses.perceptual import VGG19
    from posemodel.weights import named_hash

    files = {
        "VGG-19, for --loss.reconstruction vgg19 (paper, market, hires)": VGG19,
        **{f"{net}, for LPIPS": one for net, one in lpips_metric.BACKBONES.items()},
        **{f"{name}, for FID": one for name, one in fid.FEATURES.items()},
    }
    for what, one in files.items():
        if one.missing():
            found.say(f"{what}: {one.missing()}")
            continue
        wanted = named_hash(one.path)
        digest = sha256(one.path)
        if digest.startswith(wanted):
            found.say(f"{what}: {one.path}, SHA-256 right")
        else:
            found.problem(f"{what}: {one.path} is damaged: its SHA-256 begins with {digest[:8]}, "
                          f"not with {wanted}", f"delete it, and get it again from {one.url}",
                          stops=False)


def data(found: Checkup, root: str) -> None:
    """A data set on disk, as `python -m posemodel.data check` looks at it."""
    from posemodel.data.check import check, describe

    remedy = f"see python -m posemodel.data check {root}"
    try:
        findings = check(Path(root))
    except UserError as error:
        found.problem(str(error), remedy, stops=True)
        return
    for line in describe(findings).splitlines():
        found.say(line)
    for problem in findings.problems:
        found.problem(problem, remedy, stops=True)


def runs_on(capability: tuple[int, int], built: str) -> bool:
    """Whether a GPU runs kernels that are built for, say, "8.0;9.0+PTX": code for its generation
    that is not newer than itself, or PTX that is not."""
    for major, minor, ptx in re.findall(r"(\d+)\.(\d)a?(\+PTX)?", built):
        compiled = int(major), int(minor)
        if compiled <= capability and (compiled[0] == capability[0] or ptx):
            return True
    return False


# --- the small model --------------------------------------------------------------------------


def training_step(device, world=None) -> dict[str, float]:
    """The losses of the first step of a model of milliseconds, in float32, all losses on."""
    import torch

    from posemodel.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig
    from posemodel.engine.data_source import open_training_data
    from posemodel.engine.distributed import ALONE
    from posemodel.engine.trainer import Trainer

    config = Config(
        data=DataConfig(image_size=(32, 32)),
        model=ModelConfig(encoder_channels=(8, 8, 8), feature_channels=8,
                          flow_channels=(8, 8, 8, 8, 8), refine_width=4, refine_blocks=1,
                          discriminator_width=4),
        loss=LossConfig(adversarial_weight=0.1),
        optim=OptimConfig(batch_size=4, phase_one=0.0),
    )
    trainer = Trainer(config, device, torch.float32, world or ALONE)
    batch = open_training_data(config, device, trainer.pairs).batch(1)
    return trainer.step(1, batch)


def half_a_step(kind: str) -> None:
    """In one of two processes: a sum over both, then a training step; prints both as JSON."""
    import torch
    import torch.distributed as dist

    from posemodel.engine import distributed

    with distributed.join(timeout=_PAIR_SECONDS) as world:
        device = torch.device(kind, world.local_rank) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        total = torch.full((1,), 1.0 + world.rank, device=device)
        dist.all_reduce(total, group=world.group)
        print(json.dumps({"sum": total.item(), "losses": training_step(device, world)}))


def _pair(found: Checkup, kind: str) -> None:
    library = "NCCL" if kind == "cuda" else "gloo"
    answers, complaint = run_pair(f"from posemodel import doctor; doctor.half_a_step({kind!r})",
                                  seconds=_PAIR_SECONDS)
    remedy = ("one process trains without it; for several see that a firewall or container lets "
              "processes of this machine talk to each other")
    if complaint:
        found.problem(f"two processes ({library}): {complaint}", remedy, stops=False)
        return
    losses = [json.loads(answer.splitlines()[-1]) for answer in answers]
    sums = [one["sum"] for one in losses]
    alone = found.losses if kind == "cpu" else losses[0]["losses"]
    apart = max(abs(one["losses"][name] - value) / max(1e-6, abs(value))
                for one in losses for name, value in alone.items())
    if sums != [3.0, 3.0] or not apart < _PAIR_TOLERANCE:
        found.problem(f"two processes ({library}) sum 1 and 2 to {sums} and get losses that differ "
                      f"by {apart:.1e} from those of one", remedy, stops=False)
        return
    found.say(f"{kind}: {library} works; losses as with one process, to {apart:.0e}")


def run_pair(code: str, *, seconds: float) -> tuple[list[str], str]:
    """Python code in two processes that know of each other as under torchrun.

    Returns: what each of them printed, and what went wrong, empty if nothing did. Both have ended
    within `seconds`.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                        "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE,
                         env=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)]
    # A process whose partner has failed would wait for it.
    deadline = time.monotonic() + seconds
    while (time.monotonic() < deadline and any(one.poll() is None for one in processes)
           and not any(one.poll() for one in processes)):
        time.sleep(0.05)
    codes = [one.poll() for one in processes]
    for one in processes:
        one.kill()
    answers = [one.communicate() for one in processes]
    for code, (_, errors) in zip(codes, answers, strict=True):
        if code:
            lines = errors.strip().splitlines() or [f"exit code {code}"]
            return [], lines[-1]
    if None in codes:
        return [], f"no answer within {seconds:g} s"
    return [printed for printed, _ in answers], ""


# --- small things -----------------------------------------------------------------------------


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
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    run_main(main)
