import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel.evaluate import main as evaluate_main
from posemodel.evaluation.lpips import NO_WEIGHTS
from posemodel.runtime.backbones import ALEXNET, VGG16
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import tensors_sha256
from posemodel.train import main as train_main
from tests.published import tensors, write
from tests.tiny import FLAGS

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"step", "copy_l1", "warped_l1", "refined_l1", "epe_zero", "epe_visible", "ssim",
        "visibility_auc_affine", "visibility_auc_cycle", "visibility_auc_peak", "by_turn", "pairs",
        "reconstruction_loss"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run):
    from safetensors.torch import load
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    # Read, not mapped: a test damages these files later.
    return {f.name: load(f.read_bytes()) for f in newest.glob("*.safetensors")}


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*")
            if path.is_file() and path.name != "lock"}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[net][name].equal(b[net][name]) for net in a for name in a[net])


def within(smaller, larger):
    """The part of a table of tables that another one has as well."""
    return {key: within(value, larger[key]) if isinstance(value, dict) else larger[key]
            for key, value in smaller.items()}


def stopped(flags, out, *, after, number):
    """The exit code of a run in processes of its own that get a signal after so many steps."""
    process = subprocess.Popen([sys.executable, "-m", "posemodel.train", *flags], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and metrics.read_text().count("\n") >= after):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    # As torchrun does: the whole group of processes gets the signal.
    os.killpg(process.pid, number)
    code = process.wait(timeout=60)
    # On a fast machine the run may have ended before the signal came.
    assert code in (0, 143 if number == signal.SIGTERM else -number)
    return code


def command(*words, **options):
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, text=True, capture_output=True,
                          check=False, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run of six steps, with the adversarial loss in the second half."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train_main(train_flags(out)) == 0
    return out


def train_flags(out):
    return [*FLAGS, "--loss.adversarial-weight", "0.1", "--optim.phase-one", "0.5",
            "--out", str(out)]


def test_run_folder_is_complete(run):
    for name in ("config.json", "command.txt", "env.json", "log.txt", "metrics.jsonl", "eval.jsonl",
                 "report.html", "DONE", "samples/step_000006.png"):
        assert (run / name).stat().st_size > 0 or name == "DONE", name
    metrics = lines(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert "loss_discriminator" not in metrics[2] and "loss_discriminator" in metrics[3]
    evaluations = lines(run / "eval.jsonl")
    assert [row["step"] for row in evaluations] == [3, 6]
    assert evaluations[-1].keys() >= KEYS
    assert {row["split"] for row in evaluations} == {"validation"}
    assert "4 validation pairs" in (run / "log.txt").read_text()
    assert "4 validation pairs" in (run / "report.html").read_text()
    assert evaluations[-1]["reconstruction_loss"] == "pyramid l1 (no perceptual network)"
    assert sum(row["pairs"] for row in evaluations[-1]["by_turn"].values()) == 4
    sheet = Image.open(run / "samples" / "step_000006.png")
    assert sheet.width > 900 and sheet.height > 500


def test_evaluate_repeats_the_numbers_of_training(run, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    sheet = tmp_path / "sheet.png"
    assert evaluate_main([str(run), "--device", "cpu", "--split", "validation", "--json",
                          str(numbers), "--picture", str(sheet)]) == 0
    found, trained = json.loads(numbers.read_text()), lines(run / "eval.jsonl")[-1]
    for name in ("reconstruction_loss", "reconstruction_weights"):
        trained.pop(name)
    # An evaluation by itself measures more, by protocol and by part of the body.
    assert within(trained, found) == trained
    assert "refined image" in capsys.readouterr().out
    # So is the picture, but for its title: the same pairs.
    of_training = np.array(Image.open(run / "samples" / "step_000006.png"))
    assert (np.array(Image.open(sheet)) == of_training).all()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for network in (ALEXNET, VGG16):
        write(folder, network)
    return folder


def test_a_run_says_which_weights_made_its_numbers(published, tmp_path, capsys):
    out = tmp_path / "vgg16"
    flags = [*FLAGS, "--steps", "2", "--evaluate-every", "1", "--out", str(out),
             "--loss.reconstruction", "vgg16", "--weights", str(published)]
    assert train_main(flags) == 0
    shown = capsys.readouterr().out
    assert "pyramid l1 and VGG-16 perceptual, two scales on the refined image" in shown
    first, last = lines(out / "eval.jsonl")
    used = {name: value for name, value in tensors(VGG16).items() if int(name.split(".")[1]) < 16}
    weights = {"network": "vgg16", "layers": ["relu1_2", "relu2_2", "relu3_3"],
               "sha256": tensors_sha256(used)}
    assert first["reconstruction_weights"] == last["reconstruction_weights"] == weights
    assert json.loads((out / "env.json").read_text())["reconstruction_weights"] == weights
    # By AlexNet every time, by VGG-16, which takes long, at the end.
    for name in ("copy", "warped", "refined"):
        assert first[f"{name}_lpips_alex"] > 0 and last[f"{name}_lpips_vgg"] > 0
        assert f"{name}_lpips_vgg" not in first
    assert first["lpips"]["vgg"] == "not measured: only at the last step"
    assert last["lpips"]["vgg"]["sha256"] == tensors_sha256(tensors(VGG16))
    assert "refined image, LPIPS-VGG" in shown
    report = (out / "report.html").read_text()
    assert "refined image, LPIPS-VGG" in report and "LPIPS-Alex" in report
    # The command for later measures with the same weights, to the same numbers.
    assert evaluate_main([str(out), "--device", "cpu", "--split", "validation"]) == 0
    found = json.loads((out / "validation.json").read_text())
    for name in ("reconstruction_loss", "reconstruction_weights"):
        last.pop(name)
    assert within(last, found) == last


def test_other_weights_in_the_same_place_are_said(published, tmp_path, capsys):
    own, out = tmp_path / "own", tmp_path / "run"
    own.mkdir()
    flags = [*FLAGS, "--steps", "1", "--out", str(out), "--loss.reconstruction", "vgg16"]
    assert train_main([*flags, "--weights", str(published)]) == 0
    write(own, VGG16, **{"features.0.bias": torch.ones(64)})
    capsys.readouterr()
    assert train_main([*flags, "--weights", str(own)]) == 0
    said = capsys.readouterr().out
    assert "changed since the last start: loss.weights_folder" in said
    assert "changed since the last start: reconstruction_weights" in said


def test_without_weights_the_result_says_so(run):
    row = lines(run / "eval.jsonl")[-1]
    assert row["lpips"] == dict.fromkeys(("alex", "vgg"), NO_WEIGHTS)
    assert not any("lpips_" in name for name in row) and row["reconstruction_weights"] is None
    assert f"LPIPS-Alex                   {NO_WEIGHTS}" in (run / "log.txt").read_text()
    assert NO_WEIGHTS in (run / "report.html").read_text()


def test_a_damaged_file_is_refused_though_nobody_asked(tmp_path):
    (tmp_path / ALEXNET.plain).write_bytes(b"half a file")
    with pytest.raises(UserError, match="alexnet-features.pth: no file of PyTorch weights"):
        train_main([*FLAGS, "--out", str(tmp_path / "run"), "--weights", str(tmp_path)])
    assert not (tmp_path / "run").exists()


def test_the_same_command_again_has_nothing_left_to_do(run):
    files = [run / "metrics.jsonl", run / "eval.jsonl"]
    before, weight = [file.read_text() for file in files], weights(run)
    assert train_main(train_flags(run)) == 0
    assert before == [file.read_text() for file in files]
    assert same(weight, weights(run))


def test_a_run_killed_by_a_signal_continues_to_the_same_bits(run, tmp_path):
    out = tmp_path / "stopped"
    flags = train_flags(out)
    if stopped(flags, out, after=1, number=signal.SIGTERM):
        assert not (out / "DONE").exists()
        assert "the same command continues" in (out / "log.txt").read_text()
    assert train_main(flags) == 0
    assert same(weights(run), weights(out))
    drop = ("pairs_per_second", "step_ms", "data_ms")
    strip = [[{k: v for k, v in row.items() if k not in drop} for row in lines(r / "metrics.jsonl")]
             for r in (run, out)]
    assert strip[0] == strip[1]
    assert lines(run / "eval.jsonl") == lines(out / "eval.jsonl")


def test_a_corrupt_checkpoint_is_skipped_by_name_and_the_run_continues(tmp_path, capsys):
    out = tmp_path / "corrupt"
    flags = train_flags(out)
    assert train_main(flags) == 0
    expected = weights(out)
    newest = out / "checkpoints" / "step_000006" / "generator.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    capsys.readouterr()
    assert evaluate_main([str(out), "--device", "cpu"]) == 0
    assert "step_000006" in capsys.readouterr().out
    assert train_main(flags) == 0
    assert "step_000006" in capsys.readouterr().out
    assert same(expected, weights(out))


@pytest.mark.parametrize(("words", "says"), [
    (["quik"], "did you mean quick"), (["--sedd", "3"], "--seed"),
    (["--steps", "0"], "--steps is 0"), (["--device", "cuda:77"], "--device cuda:77"),
    (["--loss.reconstruction", "vgg19", "--weights", "nowhere"],
     "--weights nowhere: no such folder")])
def test_a_users_mistake_is_one_line_and_exit_code_2(words, says, tmp_path):
    out = [] if words == ["quik"] else ["--out", str(tmp_path / "run")]
    done = command("posemodel.train", *words, *out)
    assert not (tmp_path / "run").exists()
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    if not words[0].startswith("--sedd"):
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_of_another_configuration_is_left_alone(run):
    before = contents(run)
    done = command("posemodel.train", *train_flags(run), "--optim.lr", "0.5")
    assert done.returncode == 2 and "optim.lr" in done.stderr
    assert before == contents(run)


def test_evaluate_of_no_run_is_one_line(tmp_path):
    done = command("posemodel.evaluate", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
