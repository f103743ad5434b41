"""Synthesize, check, train and evaluate from disk; nothing but the pairs decides the weights."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel.data.__main__ import main as data_main
from posemodel.data.pair_loader import PairImages, PairOrder
from posemodel.data.reading import open_pairs
from posemodel.data.source import open_training_data
from posemodel.engine.trainer import Trainer
from posemodel.evaluate import main as evaluate_main
from posemodel.runtime.main import run_main
from posemodel.train import main as train_main
from tests.test_train import ROOT, lines, same, stopped, weights
from tests.tiny import FLAGS, tiny_config

CPU = torch.device("cpu")
SIZES = {"deepfashion": ("64", "64"), "market": ("64", "32")}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A small data set in each layout."""
    folder = tmp_path_factory.mktemp("data")
    for kind in SIZES:
        assert data_main(["synthesize", str(folder / kind), "--layout", kind, "--pairs", "12",
                          "--test-pairs", "6", "--image-rows", "64"]) == 0
        assert data_main(["check", str(folder / kind)]) == 0
    return {kind: folder / kind for kind in SIZES}


def flags(kind, root, out, *more):
    size = FLAGS.index("--data.image-size") + 1
    changed = [*FLAGS[:size], *SIZES[kind], *FLAGS[size + 2:]]
    return [*changed, "--data.kind", kind, "--data.root", str(root), "--data.flip",
            "--data.rotate", "5", "--out", str(out), *more]


@pytest.fixture(scope="module")
def runs(roots, tmp_path_factory):
    """A whole run on each data set, without workers."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, root in roots.items():
        assert train_main(flags(kind, root, folder / kind, "--data.workers", "0")) == 0
    return {kind: folder / kind for kind in roots}


@pytest.mark.parametrize("kind", SIZES)
def test_a_run_on_a_data_set_measures_images_and_nothing_that_needs_the_truth(kind, runs, tmp_path,
                                                                             capsys):
    rows = lines(runs[kind] / "eval.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    row = rows[-1]
    assert row["data"] == kind and row["pairs"] == 4
    # There is no validation list here, which the run says once.
    assert {each["split"] for each in rows} == {"test"}
    log = (runs[kind] / "log.txt").read_text()
    assert log.count("no validation list: evaluations on the way use test pairs") == 1
    for name in ("copy_l1", "warped_l1", "refined_l1", "ssim", "copy_l1_32"):
        assert row[name] > 0, name
    assert {name for name, value in row.items() if value is None} == {
        "epe_zero", "epe_visible", "copy_background_off", "warped_background_off",
        "refined_background_off", "by_turn", "visibility_auc_affine", "visibility_auc_cycle",
        "visibility_auc_peak", "visibility_auc_correlation", "reconstruction_weights",
        "holes"}
    report = (runs[kind] / "report.html").read_text()
    assert "visibility found" not in report and "flow error" not in report
    assert Image.open(runs[kind] / "samples" / "step_000006.png").width > 700

    numbers = tmp_path / "numbers.json"
    assert evaluate_main([str(runs[kind]), "--device", "cpu", "--pairs", "100", "--json",
                          str(numbers), "--picture", str(tmp_path / "sheet.png")]) == 0
    found = json.loads(numbers.read_text())
    assert found["pairs"] == 6 and found["copy_l1"] > 0
    table = capsys.readouterr().out
    assert "6 test pairs" in table and "flow error" not in table and "None" not in table


def test_a_moved_data_set_is_found_by_evaluate(roots, runs, tmp_path):
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(roots["market"])
    values = {}
    for name, more in (("there", []), ("moved", ["--root", str(elsewhere)])):
        path = tmp_path / f"{name}.json"
        assert evaluate_main([str(runs["market"]), "--device", "cpu", "--json", str(path),
                              "--picture", str(tmp_path / "sheet.png"), *more]) == 0
        values[name] = json.loads(path.read_text())
    assert values["there"] == values["moved"]


def test_workers_change_no_weight(roots, runs, tmp_path):
    out = tmp_path / "run"
    assert train_main(flags("market", roots["market"], out, "--data.workers", "3")) == 0
    assert same(weights(runs["market"]), weights(out))
    assert lines(out / "eval.jsonl") == lines(runs["market"] / "eval.jsonl")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_run_stopped_in_the_middle_goes_on_to_the_same_bits(name, roots, runs, tmp_path):
    out = tmp_path / "run"
    words = flags("market", roots["market"], out, "--data.workers", "1")
    code = stopped(words, out, after=3, number=getattr(signal, name))
    assert train_main(flags("market", roots["market"], out, "--data.workers", "0")) == 0
    assert same(weights(runs["market"]), weights(out))
    if code:
        assert "changed since the last start: data.workers: 1 -> 0" in (out / "log.txt").read_text()


def train_while_the_third_batch_hangs():
    """The command, with workers that get stuck as on a disk that does not answer."""
    original, served = PairImages.__getitem__, []

    def hang(images, wanted):
        served.append(wanted)
        if len(served) == 3:
            time.sleep(1000)
        return original(images, wanted)

    PairImages.__getitem__ = hang
    run_main(train_main)


def test_a_signal_works_while_a_worker_hangs_and_nothing_is_lost(roots, runs, tmp_path):
    out = tmp_path / "run"
    words = flags("market", roots["market"], out, "--checkpoint-every", "100",
                  "--data.workers", "1")
    # Not by tests.ranks: workers of its processes would not be forked, and know of no hanging.
    code = "from tests import test_train_from_disk as t; t.train_while_the_third_batch_hangs()"
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 100
    while not metrics.exists() or len(lines(metrics)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - began < 10
    assert said.endswith("stopped by SIGTERM after step 2; the same command continues\n")
    assert "Traceback" not in said
    assert train_main(flags("market", roots["market"], out, "--data.workers", "0")) == 0
    assert same(weights(runs["market"]), weights(out))
    assert lines(out / "eval.jsonl") == lines(runs["market"] / "eval.jsonl")


@pytest.mark.parametrize("kind", SIZES)
def test_pairs_from_disk_train_the_same_weights_as_pairs_in_memory(kind, roots, tmp_path):
    """The oracle knows nothing of the loader but the order of the pairs."""
    size = tuple(map(int, SIZES[kind]))
    config = tiny_config(data_kind=kind, data_root=str(roots[kind]), data_image_size=size,
                         data_workers=2)
    pairs = open_pairs(roots[kind], "train", kind=kind)
    border = 10 if kind == "deepfashion" else 0  # 40 columns of 256
    images = [np.pad(np.array(Image.open(pairs.path(index))), ((0, 0), (border,) * 2, (0, 0)),
                     constant_values=255) for index in range(len(pairs.names))]
    height, width = pairs.frame
    poses = pairs.joints.copy()
    poses[..., 0] = (2 * poses[..., 0] + 1) / width - 1
    poses[..., 1] = (2 * poses[..., 1] + 1) / height - 1
    poses *= poses[..., 2:]
    order = PairOrder(len(pairs.pairs), pairs_per_epoch=0, seed=config.seed)

    def in_memory(trainer, step):
        ends = pairs.pairs[order.indices(trainer.pairs(step))]
        batch = {}
        for side, name in enumerate(("source", "target")):
            pixels = np.stack([images[index] for index in ends[:, side]]).transpose(0, 3, 1, 2)
            batch[name] = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1
            batch[f"{name}_pose"] = torch.from_numpy(poses[ends[:, side]])
        return batch

    one, other = (Trainer(config, CPU, torch.float32) for _ in range(2))
    data = open_training_data(config.data, CPU, one.pairs, seed=config.seed)
    for step in range(1, 4):
        one.step(step, data.batch(step))
        other.step(step, in_memory(other, step))
    assert same(one.weights(), other.weights())
