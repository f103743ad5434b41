"""`python -m posemodel.evaluate`: protocols, values of each pair, interruptions, processes."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from posemodel.evaluate import main as evaluate_main
from posemodel.evaluation import fid, measures, records
from posemodel.evaluation import test_set as protocol_evaluation
from posemodel.evaluation.lpips import NO_WEIGHTS, NOT_ASKED
from posemodel.evaluation.test_set import folder_name, protocol_for
from posemodel.runtime import backbones
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import VARIABLE, tensors_sha256
from posemodel.train import main as train_main
from tests.published import tensors, without_network, write
from tests.small_datasets import make_fashion
from tests.tiny import FLAGS

ROOT = Path(__file__).resolve().parents[1]
PAIRS = 40  # three batches
CONTRACT = {
    "step", "pairs", "copy_l1", "warped_l1", "refined_l1", "epe_zero", "epe_visible", "ssim",
    "visibility_auc_affine", "visibility_auc_cycle", "visibility_auc_peak", "by_turn"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train_main([*FLAGS, "--steps", "2", "--evaluate-every", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv(VARIABLE, raising=False)


def words(run, tmp_path):
    return [str(run), "--device", "cpu", "--pairs", str(PAIRS), "--json",
            str(tmp_path / "numbers.json"), "--picture", str(tmp_path / "sheet.png")]


def evaluate(run, tmp_path, *flags):
    assert evaluate_main([*words(run, tmp_path), *flags]) == 0
    return json.loads((tmp_path / "numbers.json").read_text())


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    return evaluate(run, tmp_path_factory.mktemp("whole"))


def test_the_contract_the_protocol_and_where_the_values_are(whole):
    assert CONTRACT <= whole.keys() and whole["pairs"] == PAIRS
    record = whole["protocol"]
    assert record["name"] == "paper-32x32" and record["image"] == "warped"
    assert record["pairs"] == PAIRS and record["ssim"]["ssim"]["window"] == "gaussian"
    assert {"commit", "torch", "pillow"} <= record.keys()
    assert record["device"] == "cpu" and record["precision"] == "float32"
    table, _ = records.read(whole["values"])
    assert table["pair"].tolist() == list(range(PAIRS))
    assert whole["warped_l1"] == records.means(table)["warped_l1"]


def test_values_of_test_and_validation_pairs_never_mix(run, whole, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("posemodel.evaluation.samples.write_samples",
                        lambda *_, split, **__: seen.append(split))
    there = {path.name for path in run.iterdir()}
    for split in ("test", "validation"):
        assert evaluate_main([str(run), "--device", "cpu", "--pairs", str(PAIRS), *(
            [] if split == "test" else ["--split", split])]) == 0
    assert seen == ["test", "validation"]
    assert {path.name for path in run.iterdir()} - there == {"evaluation.json", "validation.json"}
    test, validation = (json.loads((run / f"{name}.json").read_text())
                        for name in ("evaluation", "validation"))
    assert test == whole and test["split"] == test["protocol"]["split"] == "test"
    assert validation["split"] == validation["protocol"]["split"] == "validation"
    assert validation["values"] != test["values"]
    one, two = (records.read(row["values"])[0]["copy_l1"] for row in (test, validation))
    assert len(one) == len(two) == PAIRS and not set(one) & set(two)
    # What the values were measured on is told by their folder, and by nothing else that differs.
    assert {**validation["protocol"], "split": "test"} == test["protocol"]


def test_the_precision_is_the_runs_and_is_recorded(tmp_path, whole):
    run = tmp_path / "half"
    assert train_main([*FLAGS, "--steps", "2", "--evaluate-every", "2", "--precision", "bfloat16",
                       "--out", str(run)]) == 0
    record = evaluate(run, tmp_path)["protocol"]
    assert record["precision"] == "bfloat16"
    # Under another precision the numbers are others, and so is their folder.
    assert {**record, "precision": "float32"} == whole["protocol"]


def test_the_protocol_measures_what_the_metrics_do(whole):
    # Two ways to the same numbers.
    measures, copy = whole["measures"], whole["measures_copy"]
    assert measures["l1"] == pytest.approx(whole["warped_l1"], rel=1e-5)
    assert measures["l1_32"] == pytest.approx(whole["warped_l1_32"], rel=1e-5)
    assert whole["measures_refined"]["l1"] == pytest.approx(whole["refined_l1"], rel=1e-5)
    parts = whole["by_turn"].values()
    mean = sum(part["measures"]["ssim"] * part["pairs"] for part in parts if part["pairs"]) / PAIRS
    assert measures["ssim"] == pytest.approx(mean, rel=1e-9)
    assert copy["l1"] == pytest.approx(whole["copy_l1"], rel=1e-5)
    assert whole["flow"]["visibility"]["affine"]["auc"] == whole["visibility_auc_affine"]
    table, _ = records.read(whole["values"])
    assert table["epe"] == pytest.approx(table["epe_visible"], nan_ok=True)


def test_missing_weights_are_one_line_each(run, tmp_path, capsys):
    evaluate(run, tmp_path, "--protocol", "gfla", "--pairs", "2")
    said = capsys.readouterr().out
    assert said.count("left out") == 3
    assert "LPIPS-alex left out: " in said and "LPIPS-vgg left out: " in said
    assert "FID left out: generated people" in said
    assert "protocol gfla, refined image" in said
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["lpips"] == {"alex": NO_WEIGHTS, "vgg": NO_WEIGHTS}
    assert found["protocol"]["lpips_weights"] == {}
    assert not any("lpips_" in name for part in (found, found["measures"]) for name in part)
    assert said.count("not measured: no weights at hand") == 2


def test_an_interruption_changes_no_bit(run, whole, tmp_path, monkeypatch):
    folder = Path(whole["values"])
    copy = folder.with_name("set-aside")
    folder.rename(copy)
    inspected = []
    real = measures.inspect

    def inspect(model, batch, dtype):
        if len(inspected) == 2 and len(batch["pair"]) == 8:
            raise KeyboardInterrupt
        inspected.append(batch["pair"].tolist())
        return real(model, batch, dtype)

    monkeypatch.setattr(measures, "inspect", inspect)
    monkeypatch.setattr(protocol_evaluation, "_SECONDS_BETWEEN_COMMITS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, tmp_path)
    inspected.append("again")
    again = evaluate(run, tmp_path)
    assert inspected[3:] == [list(range(32, 40))]
    assert (folder / "rows-0.jsonl").read_bytes() == (copy / "rows-0.jsonl").read_bytes()
    assert again == whole
    # A third time there is nothing left to do.
    assert evaluate(run, tmp_path) == whole and len(inspected) == 4


def test_two_processes_give_the_numbers_of_one(run, whole, tmp_path):
    folder = Path(whole["values"])
    one, _ = records.read(folder)
    folder.rename(folder.with_name("of-one"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "posemodel.evaluate", *words(run, tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={
        **os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port)}) for rank in range(2)]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[1] == "" and "40 test pairs" in said[0]
    two, _ = records.read(folder)
    assert (folder / "rows-1.jsonl").stat().st_size > 0 and two.keys() == one.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    found = json.loads((tmp_path / "numbers.json").read_text())
    for name in ("warped_l1", "epe_visible", "visibility_auc_affine", "visibility_auc_peak"):
        assert found[name] == pytest.approx(whole[name], rel=1e-6), name


def test_lpips_where_it_is_at_hand(run, tmp_path, monkeypatch):
    class Distance:
        def __init__(self, net, device, folder):
            self.scale, self.record = {"alex": 1, "vgg": 3}[net], {"of": net}

        def __call__(self, image, target):
            return self.scale * (image - target).abs().flatten(1).mean(1)

        def distances(self, images, target):
            return [self(image, target) for image in images]

    monkeypatch.setattr("posemodel.evaluation.lpips.missing", lambda net, folder: "")
    monkeypatch.setattr("posemodel.evaluation.lpips.Lpips", Distance)
    found = evaluate(run, tmp_path)
    assert found["measures"]["lpips_vgg"] == pytest.approx(3 * found["measures"]["lpips_alex"])
    assert found["measures"]["lpips_alex"] == pytest.approx(found["warped_l1"] / 127.5, rel=1e-5)
    assert found["copy_lpips_alex"] == pytest.approx(found["copy_l1"] / 127.5, rel=1e-5)
    for name in ("copy", "warped", "refined"):
        assert found[f"{name}_lpips_vgg"] == pytest.approx(3 * found[f"{name}_lpips_alex"])
    records = {"alex": {"of": "alex"}, "vgg": {"of": "vgg"}}
    assert found["lpips"] == found["protocol"]["lpips_weights"] == records
    assert "lpips_alex" in found["by_turn"]["0-30"]["measures"]
    alone = evaluate(run, tmp_path, "--lpips", "vgg")
    assert alone["values"] != found["values"] and alone["lpips"]["alex"] == NOT_ASKED
    assert alone["measures"]["lpips_vgg"] == found["measures"]["lpips_vgg"]


def test_weights_of_a_folder_are_recorded(run, tmp_path, capsys):
    write(tmp_path, backbones.ALEXNET)
    found = evaluate(run, tmp_path, "--weights", str(tmp_path), "--pairs", "2")
    said = capsys.readouterr().out
    record = found["protocol"]["lpips_weights"]["alex"]
    assert record["sha256"] == tensors_sha256(tensors(backbones.ALEXNET))
    assert found["lpips"] == {"alex": record, "vgg": NO_WEIGHTS}
    assert found["measures"]["lpips_alex"] == pytest.approx(found["warped_lpips_alex"], rel=1e-4)
    assert found["measures_refined"]["lpips_alex"] == pytest.approx(found["refined_lpips_alex"],
                                                                    rel=1e-4)
    assert "refined image, LPIPS-Alex" in said and "LPIPS-vgg left out" in said
    # Other weights give other numbers, and those another folder.
    (tmp_path / "other").mkdir()
    bias = {"features.10.bias": torch.ones(256)}
    write(tmp_path / "other", backbones.ALEXNET, **bias)
    other = evaluate(run, tmp_path, "--weights", str(tmp_path / "other"), "--pairs", "2")
    assert other["values"] != found["values"]
    assert other["measures"]["lpips_alex"] != found["measures"]["lpips_alex"]


@pytest.mark.parametrize("flags, says", [
    (["--weights", "/nowhere"], "--weights /nowhere: no such folder"),
    (["--lpips", "vgg"], "LPIPS-vgg needs vgg16-397923af.pth"),
    (["--weights", "."], "alexnet-features.pth: no file of PyTorch weights")])
def test_weights_that_cannot_be_had_are_one_line(flags, says, run, tmp_path, monkeypatch):
    without_network(monkeypatch, tmp_path / "cache")
    (tmp_path / "alexnet-features.pth").write_text("half a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        evaluate(run.resolve(), tmp_path, *flags)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_masks_of_the_market_protocol(run, tmp_path):
    found = evaluate(run, tmp_path, "--protocol", "market", "--pairs", "3")
    assert found["protocol"]["size"] == [128, 64]
    # Outside of the mask both images are black.
    assert found["measures"]["mask_ssim"] > found["measures"]["ssim"]


def test_fid_of_a_data_set_on_disk(tmp_path, monkeypatch):
    root = make_fashion(tmp_path / "data")
    out = tmp_path / "run"
    assert train_main([*FLAGS, "--steps", "1", "--out", str(out), "--data.kind", "deepfashion",
                       "--data.root", str(root), "--data.workers", "0"]) == 0

    class Colours:
        name, digest = "fid-inception", "colours"

        def __init__(self, name, device, folder):
            assert name == "fid-inception"

        def __call__(self, images):
            assert images.shape[1:] == (3, 256, 256) and images.max() > 1
            return images.mean((2, 3))

    monkeypatch.setattr(fid, "InceptionFeatures", Colours)
    monkeypatch.setattr(fid, "missing", lambda name, folder: "")
    found = evaluate(out, tmp_path, "--protocol", "gfla")
    train = len(list((root / "train").glob("*.jpg")))
    record = found["protocol"]
    assert record["fid_reference_images"] == train and record["fid_file_sha256"] == "colours"
    assert record["fid_images"] == record["pairs"] == found["pairs"] > 2
    assert math.isfinite(found["measures"]["fid"]) and found["measures"]["fid"] > 0
    assert found["flow"] is None and found["epe_visible"] is None
    table, _ = records.read(found["values"])
    # Three images of each person: their pairs belong together.
    assert 1 < len(set(table["person"])) < len(table["person"])


def test_a_protocol_for_other_images():
    assert protocol_for("paper", (64, 32)).name == "paper-64x32"
    with pytest.raises(UserError, match="--protocol patn: images of 64 x 32 are too narrow"):
        protocol_for("patn", (64, 32))


def test_other_numbers_have_another_folder():
    about = {"protocol": {"name": "paper"}, "step": 3, "device": "cpu"}
    assert folder_name(about) == folder_name(dict(about))
    assert folder_name(about) != folder_name({**about, "device": "cuda"})
    assert folder_name(about).startswith("paper-step3-")
