"""Examinations that compute: the operators, a training step, two processes."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time

from posemodel.doctor.checkup import INSTALL, Checkup

# Two processes that import torch from a slow disk and then train one step.
_PAIR_SECONDS = 60.0
# Losses of two processes and of one differ by rounding.
_PAIR_TOLERANCE = 1e-4


def kernels(checkup: Checkup) -> None:
    """What is built, and whether each implementation computes the right thing."""
    import torch

    from pose_kernels import __main__ as self_check
    from pose_kernels import _library

    checkup.kernels = self_check.report()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        self_check.show(checkup.kernels)
    for line in text.getvalue().splitlines():
        checkup.say(line)
    libraries = checkup.kernels["libraries"]
    if not libraries["cpu"]["loaded"]:
        checkup.problem(f"no compiled kernels: {libraries['cpu']['reason']}",
                        f"{INSTALL} (needs a C++17 compiler); without them training is several "
                        "times slower", stops=False)
    if torch.cuda.is_available():
        if libraries["cuda"]["loaded"]:
            built = _library.build_info.get("cuda", {}).get("architectures", "")
            for index in range(torch.cuda.device_count()):
                capability = torch.cuda.get_device_capability(index)
                if not runs_on(capability, built):
                    wanted = "{}.{}".format(*capability)
                    checkup.problem(f"the CUDA kernels are built for {built}, not for GPU {index} "
                                    f"of compute capability {wanted}",
                                    f"{INSTALL}, with TORCH_CUDA_ARCH_LIST={wanted} before pip",
                                    stops=True)
        else:
            checkup.problem(f"no CUDA kernels for this GPU: {libraries['cuda']['reason']}",
                            f"{INSTALL} (needs nvcc); without them Triton's are used", stops=False)
    for row in checkup.kernels["implementations"]:
        for check in row["checks"]:
            if not check["passed"]:
                why = check.get("exception") or "its result or gradient is wrong"
                checkup.problem(f"{row['op']} as {row['impl']} on {check['device']}: {why}",
                                f"install again, {INSTALL}; until then POSE_KERNELS_IMPL=reference "
                                "trains without it", stops=True)


def training_steps(checkup: Checkup) -> None:
    """One step of a small model on every device."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        try:
            losses = training_step(torch.device(device))
        except Exception as error:  # out of memory, no code for this GPU, a loss that is not finite
            lines = str(error).splitlines() or [""]
            checkup.problem(f"a training step on {device}: {type(error).__name__}: {lines[0]}",
                            "train on another --device; if all else here is well, report this text",
                            stops=True)
            continue
        if device == "cpu":
            checkup.losses = losses
        checkup.say(f"{device}: " + ", ".join(f"{name} {value:.4g}" for name, value
                                              in losses.items() if name.startswith("loss")))


def two_processes(checkup: Checkup) -> None:
    """The same step shared by two processes, as torchrun would start them."""
    import torch

    _pair(checkup, "cpu")
    if torch.cuda.device_count() >= 2:
        _pair(checkup, "cuda")
    else:
        checkup.say("cuda: not tried, fewer than two GPUs")


def runs_on(capability: tuple[int, int], built: str) -> bool:
    """Whether a GPU runs kernels that are built for, say, "8.0;9.0+PTX": code for its generation
    that is not newer than itself, or PTX that is not."""
    for major, minor, ptx in re.findall(r"(\d+)\.(\d)a?(\+PTX)?", built):
        compiled = int(major), int(minor)
        if compiled <= capability and (compiled[0] == capability[0] or ptx):
            return True
    return False


def training_step(device, world=None) -> dict[str, float]:
    """The losses of the first step of a model of milliseconds, in float32, all losses on."""
    import torch

    from posemodel.config.sections import Config, DataConfig, LossConfig, ModelConfig, OptimConfig
    from posemodel.data.source import open_training_data
    from posemodel.engine.trainer import Trainer
    from posemodel.runtime.distributed import ALONE

    config = Config(data=DataConfig(image_size=(32, 32)),
                    model=ModelConfig(encoder_channels=(8, 8, 8), feature_channels=8,
                                      flow_channels=(8, 8, 8, 8, 8), refine_width=4,
                                      refine_blocks=1, discriminator_width=4),
                    loss=LossConfig(adversarial_weight=0.1),
                    optim=OptimConfig(batch_size=4, phase_one=0.0))
    trainer = Trainer(config, device, torch.float32, world or ALONE)
    batch = open_training_data(config.data, device, trainer.pairs, seed=config.seed).batch(1)
    return trainer.step(1, batch)


def half_a_step(kind: str) -> None:
    """In one of two processes: a sum over both, then a training step; prints both as JSON."""
    import torch
    import torch.distributed as dist

    from posemodel.runtime import distributed

    with distributed.join(timeout=_PAIR_SECONDS) as world:
        device = torch.device(kind, world.local_rank) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        total = torch.full((1,), 1.0 + world.rank, device=device)
        dist.all_reduce(total, group=world.group)
        print(json.dumps({"sum": total.item(), "losses": training_step(device, world)}))


def _pair(checkup: Checkup, kind: str) -> None:
    library = "NCCL" if kind == "cuda" else "gloo"
    code = f"from posemodel.doctor.computation import half_a_step; half_a_step({kind!r})"
    answers, complaint = run_pair(code, seconds=_PAIR_SECONDS)
    remedy = ("one process trains without it; for several see that a firewall or container lets "
              "processes of this machine talk to each other")
    if complaint:
        checkup.problem(f"two processes ({library}): {complaint}", remedy, stops=False)
        return
    steps = [json.loads(answer.splitlines()[-1]) for answer in answers]
    sums = [step["sum"] for step in steps]
    alone = checkup.losses if kind == "cpu" else steps[0]["losses"]
    apart = max(abs(step["losses"][name] - value) / max(1e-6, abs(value))
                for step in steps for name, value in alone.items())
    if sums != [3.0, 3.0] or not apart < _PAIR_TOLERANCE:
        checkup.problem(f"two processes ({library}) sum 1 and 2 to {sums} and get losses that "
                        f"differ by {apart:.1e} from those of one", remedy, stops=False)
        return
    checkup.say(f"{kind}: {library} works; losses as with one process, to {apart:.0e}")


def run_pair(code: str, *, seconds: float) -> tuple[list[str], str]:
    """Python code in two processes that know of each other as under torchrun. Returns: what each of
    them printed, and what went wrong, empty if nothing did. Both have ended within `seconds`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                        "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", code], text=True, errors="replace",
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                 for rank in range(2)]
    # A process whose partner has failed would wait for it.
    deadline = time.monotonic() + seconds
    while (time.monotonic() < deadline and any(process.poll() is None for process in processes)
           and not any(process.poll() for process in processes)):
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
    answers = [process.communicate() for process in processes]
    for code, (_, errors) in zip(codes, answers, strict=True):
        if code:
            lines = errors.strip().splitlines() or [f"exit code {code}"]
            return [], lines[-1]
    if None in codes:
        return [], f"no answer within {seconds:g} s"
    return [printed for printed, _ in answers], ""
