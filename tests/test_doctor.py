"""What the doctor finds, what it makes of it, and that it tells nobody's secrets."""

import json
import os
import re
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from posemodel.doctor import __main__ as doctor
from posemodel.doctor import computation, installation
from posemodel.doctor.checkup import Checkup, hide_home
from posemodel.runtime import backbones
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import tensors_sha256
from tests.published import tensors, without_network, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkup():
    return Checkup()


@pytest.fixture
def quick_examinations(monkeypatch):
    """Those that compute are left out."""
    for name in ("torch_and_devices", "kernels", "training_steps", "two_processes", "weights"):
        monkeypatch.setattr(doctor, name, lambda checkup, *folder: None)


def told(checkup):
    return "\n".join(line for lines in checkup.sections.values() for line in lines)


def test_every_optional_package_is_known():
    project = (ROOT / "pyproject.toml").read_text()
    extras = dict(re.findall(r"^(eval|video|tb|pose) = (\[.*\])$", project, re.MULTILINE))
    assert extras.keys() == {"eval", "video", "tb", "pose"}
    for names in extras.values():
        assert set(json.loads(names)) <= installation._OPTIONAL.keys()


def test_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code = doctor.main(["--json", str(tmp_path / "findings.json")])
    printed = capsys.readouterr().out
    assert code == 0, printed
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert findings["losses"]["loss_affine"] > 0 and findings["kernels"]["passed"]
    assert list(findings["sections"])[:4] == ["packages", "machine", "torch", "kernels"]
    for text in ("gloo works; losses as with one process", "guided_correlation_conv2d  cpp",
                 "memory:", "needed: torch", "optional: tensorboard", "vgg19-dcbb9e9d.pth",
                 "alexnet-owt-7be5be79.pth", "inception"):
        assert text in printed, text
    assert not (tmp_path / "hub").exists(), "something was downloaded"
    assert "hunter2" not in printed and str(Path.home()) + os.sep not in printed
    if findings["well"]:
        assert re.search(r"\nall well\n\(\d+ s\)\n$", printed)
    else:
        assert "\nproblems\n1. " in printed


def test_problems_are_numbered_with_what_to_do(quick_examinations, monkeypatch, capsys):
    def broken(checkup):
        checkup.problem("no wheels", "mend them", stops=False)
        raise RuntimeError("gave way\nin two lines")

    monkeypatch.setattr(doctor, "kernels", broken)
    monkeypatch.setattr(doctor, "weights", lambda checkup, _: checkup.say("still examined"))
    assert doctor.main([]) == 2
    printed = capsys.readouterr().out
    last = printed[printed.index("\nproblems\n"):].splitlines()
    assert "still examined" in printed and "all well" not in printed
    assert last[2:6] == ["1. no wheels", "   do: mend them",
                         "2. stops training: kernels: RuntimeError: gave way", last[5]]
    assert last[5].startswith("   do: install again")


def test_what_does_not_stop_training_is_no_failure(quick_examinations, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "weights", lambda checkup, _: checkup.problem("damaged", "delete it", stops=False))
    assert doctor.main([]) == 0
    assert "1. damaged\n   do: delete it" in capsys.readouterr().out


def test_without_torch_nothing_more_is_tried(quick_examinations, monkeypatch, capsys):
    def absent(checkup):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(doctor, "torch_and_devices", absent)
    monkeypatch.setattr(doctor, "kernels", lambda checkup: pytest.fail("tried"))
    assert doctor.main([]) == 2
    assert "stops training: torch: ModuleNotFoundError" in capsys.readouterr().out


def test_packages(checkup, monkeypatch):
    versions = {"torch": "2.9.1", "numpy": "2.0.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: [
        "torch>=2.10", "numpy", "tyro", "lpips; extra == 'eval'"])
    assert checkup.examine("packages", installation.packages)
    problem, = checkup.problems
    assert problem.stops and "torch>=2.10 (here: 2.9.1), tyro (here: none)" in problem.what
    assert "numpy" not in problem.what and "lpips" not in problem.what
    assert "optional: lpips not installed, for the metric LPIPS" in told(checkup)


@pytest.mark.parametrize("what", ["disk", "memory", "shared memory", "folder"])
def test_too_little_room(what, checkup, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "_memory", lambda: (2**35, 2**35))
    if what == "disk":
        monkeypatch.setattr(installation, "_LEAST_DISK", 2**80)
    elif what == "memory":
        monkeypatch.setattr(installation, "_memory", lambda: (2**35, 2**29))
    elif what == "shared memory":
        monkeypatch.setattr(installation, "_SHARED", tmp_path)
        monkeypatch.setattr(installation, "_LEAST_SHARED", 2**80)
    else:
        def refused(dir):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(installation.tempfile, "TemporaryFile", refused)
    checkup.examine("machine", installation.machine)
    problem, = checkup.problems
    assert problem.stops == (what != "shared memory")
    assert {"disk": "free in", "memory": "0.5 GiB of memory", "folder": "cannot write into",
            "shared memory": "of shared memory are free"}[what] in problem.what


def test_a_wrong_kernel_stops(checkup, monkeypatch):
    from pose_kernels import __main__ as self_check

    monkeypatch.setattr(self_check, "TOLERANCE", (0.0, 0.0))
    checkup.examine("kernels", computation.kernels)
    wrong = [problem for problem in checkup.problems if "flow_sample as reference" in problem.what]
    assert len(wrong) == 1 and wrong[0].stops and "result or gradient is wrong" in wrong[0].what


@pytest.mark.parametrize("capability, built, runs", [
    ((9, 0), "8.0;8.6;9.0", True), ((8, 9), "8.0;8.6;9.0", True),
    ((7, 5), "8.0;8.6;9.0+PTX", False), ((10, 0), "8.0;9.0", False),
    ((12, 0), "8.0;10.0+PTX", True), ((8, 0), "8.6", False), ((9, 0), "8.0 9.0a", True)])
def test_which_gpus_the_kernels_run_on(capability, built, runs):
    assert computation.runs_on(capability, built) is runs


def test_a_step_that_fails_stops(checkup, monkeypatch):
    def fails(device, world=None):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(computation, "training_step", fails)
    checkup.examine("a training step", computation.training_steps)
    assert checkup.stopped and "on cpu: RuntimeError: no kernel image" in checkup.problems[0].what


def test_a_pair_that_hangs_or_fails_ends():
    start = time.monotonic()
    assert computation.run_pair("import time; time.sleep(60)", seconds=0.5) == \
        ([], "no answer within 0.5 s")
    # The partner of a process that fails is not waited for.
    answers, complaint = computation.run_pair(
        "import os, time; time.sleep(60) if os.environ['RANK'] == '0' else 1 / 0", seconds=50)
    assert answers == [] and complaint == "ZeroDivisionError: division by zero"
    assert time.monotonic() - start < 40
    answers, complaint = computation.run_pair(
        "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])", seconds=50)
    assert (answers, complaint) == (["0 2\n", "1 2\n"], "")


@pytest.mark.parametrize("total, loss, works", [(3.0, 1.0, True), (2.0, 1.0, False),
                                                (3.0, 1.01, False), (3.0, float("nan"), False)])
def test_what_a_pair_answers_is_judged(total, loss, works, checkup, monkeypatch):
    answer = json.dumps({"sum": total, "losses": {"loss": loss}})
    monkeypatch.setattr(computation, "run_pair", lambda code, seconds: ([answer, answer], ""))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    checkup.losses = {"loss": 1.0}
    checkup.examine("two processes", computation.two_processes)
    assert (not checkup.problems) is works and not checkup.stopped


def test_damaged_weights(checkup, tmp_path, monkeypatch):
    cache = without_network(monkeypatch, tmp_path)
    (cache / "vgg19-dcbb9e9d.pth").write_bytes(b"half a file")
    checkup.examine("weights", installation.weights)
    problem, = checkup.problems
    assert "vgg19-dcbb9e9d.pth" in problem.what and "damaged" in problem.what and not problem.stops
    assert "download.pytorch.org" in problem.remedy
    assert "AlexNet: missing, needed by LPIPS-Alex: no alexnet-owt-7be5be79.pth in" in told(checkup)


def test_weights_in_a_folder_of_ones_own(checkup, tmp_path, monkeypatch):
    without_network(monkeypatch, tmp_path / "hub")
    write(tmp_path, backbones.ALEXNET)
    write(tmp_path, backbones.VGG19, backbones.VGG16.plain)
    checkup.examine("weights", lambda checkup: installation.weights(checkup, str(tmp_path)))
    digest = tensors_sha256(tensors(backbones.ALEXNET))
    # A line for each network: one that is right, one that is another, and the rest.
    right, wrong, *missing = told(checkup).splitlines()
    assert right == f"AlexNet: {tmp_path}/alexnet-features.pth, SHA-256 of its tensors " \
                    f"{digest[:12]}, for LPIPS-Alex"
    assert wrong.startswith(f"PROBLEM: VGG-16: {tmp_path}/vgg16-features.pth: ")
    assert len(missing) == 6 and all(": missing, needed by " in line for line in missing)
    problem, = checkup.problems
    assert not problem.stops and backbones.VGG16.url in problem.remedy


def test_a_folder_of_weights_that_is_not_there(quick_examinations, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "weights", installation.weights)
    assert doctor.main(["--weights", "/nowhere"]) == 2
    assert "stops training: --weights /nowhere: no such folder" in capsys.readouterr().out


def test_data(checkup, tmp_path):
    checkup.examine("data", lambda checkup: installation.data(checkup, str(tmp_path)))
    assert checkup.stopped and "posemodel.data check" in checkup.problems[0].remedy


def test_home_is_hidden(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))
    assert hide_home("in /home/anna/x, /home/anna") == "in ~/x, ~"
    assert hide_home("/home/annabel /home/anna.b") == "/home/annabel /home/anna.b"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert hide_home("/data") == "/data"


def test_no_folder_for_the_findings(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        doctor.main(["--json", str(tmp_path / "no" / "findings.json")])
