"""The baseline from command line to table, and its parts against definitions."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from market_helpers import small_augmented

from posemodel.reid import __main__ as command
from posemodel.reid.batches import Batches
from posemodel.reid.config import ReidConfig
from posemodel.reid.market import open_split
from posemodel.reid.network import ReidNetwork, batch_hard_triplet, load_imagenet
from posemodel.reid.runs import evaluate, extract, load_network, rate, read_config, training_crops
from posemodel.reid.table import BETTER, METRICS, OPEN, PAPER, WORSE, compare_runs, table
from posemodel.runtime.weights import VARIABLE, tensors_sha256
from tests.published import without_network
from tests.small_datasets import refused

TRAIN = ("--steps 2 --backbone resnet10 --image-size 32 32 --batch-identities 2 --batch-images 2 "
         "--workers 2 --device cpu").split()


@pytest.fixture(scope="module")
def augmented(market, tmp_path_factory) -> Path:
    return small_augmented(tmp_path_factory.mktemp("augmented"), market, poses=3, on_missing="skip")


def train(market, out, *more):
    return command.main(["train", "--root", str(market), "--out", str(out), *TRAIN, *more])


def stored(run, seed, name="evaluation.json"):
    return json.loads((run / f"seed_{seed}" / name).read_text())


@pytest.fixture(scope="module")
def runs(market, augmented, tmp_path_factory) -> tuple[Path, Path]:
    """Real, and real and generated, two seeds each, evaluated."""
    root = tmp_path_factory.mktemp("runs")
    for name, more in (("real", []), ("both", ["--augmented", str(augmented)])):
        assert train(market, root / name, "--seeds", "0", "1", *more) == 0
        assert command.main(["evaluate", str(root / name), "--device", "cpu"]) == 0
    return root / "real", root / "both"


def test_run_folder(runs, market):
    for run in runs:
        config = read_config(run)
        assert config.root == str(market) and config.steps == 2
        for seed in (0, 1):
            row = stored(run, seed)
            # 4 of 4 queries; 12 and a distractor of 14, without junk.
            assert (row["queries"], row["queries_with_match"], row["gallery"]) == (4, 4, 13)
            assert 0 < row["step"]["mAP"] <= 1 and row["step"]["rank10"] >= row["step"]["rank1"]
            assert stored(run, seed, "log.jsonl")["step"] == 2


def test_same_command_again_trains_what_is_missing(runs, market, capsys):
    stamp = (runs[0] / "seed_0" / "weights.safetensors").stat().st_mtime_ns
    train(market, runs[0], "--seeds", "0")
    assert "there already" in capsys.readouterr().out
    assert (runs[0] / "seed_0" / "weights.safetensors").stat().st_mtime_ns == stamp


def test_another_command_is_refused(runs, market):
    refused("steps: 2 there, 3 asked", train, market, runs[0], "--steps", "3")


def test_seeds_repeat_and_differ(runs, market, tmp_path):
    train(market, tmp_path / "run", "--seeds", "0")
    first, again, other = (
        hashlib.sha256((run / f"seed_{seed}" / "weights.safetensors").read_bytes()).hexdigest()
        for run, seed in ((runs[0], 0), (tmp_path / "run", 0), (runs[0], 1)))
    assert first == again and first != other


def test_features_are_the_same_in_any_order(runs, market):
    config = read_config(runs[0])
    network = load_network(config, runs[0] / "seed_0")
    gallery = open_split(market, "gallery")
    cpu = torch.device("cpu")
    features = extract(network, gallery, config.image_size, cpu, workers=2)
    back = np.arange(len(gallery.names))[::-1].copy()
    again = extract(network, gallery.take(back), config.image_size, cpu, workers=1)
    torch.testing.assert_close(again, features[torch.from_numpy(back)], atol=1e-4, rtol=1e-4)


def test_table(runs):
    text = table(compare_runs(*runs))
    assert text.count("| mAP |") == 2 and "2 and 2 seeds" in text
    assert "| *61.7* | *63.8* |" in text and "33.3 % of all comparisons" in text
    scores = [stored(runs[0], seed)["step"]["mAP"] for seed in (0, 1)]
    assert f"| mAP | {100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f} |" in text


def test_table_command(runs, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert command.main(["table", *map(str, runs), "--json", str(path)]) == 0
    said, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found["table"] in said and found["note"] in said and "63.2 ± 0.83" in said
    for convention, rows in found["conventions"].items():
        for name, row in rows.items():
            for side, run in zip(("real", "both"), runs, strict=True):
                assert row[side] == [100 * stored(run, seed)[convention][name] for seed in (0, 1)]
            assert row["difference"] == pytest.approx(np.mean(row["both"]) - np.mean(row["real"]))
            assert tuple(row["paper"].values()) == PAPER[name]


@pytest.mark.parametrize("real, both, says", [
    ((1, 2, 3), (4, 5, 6), BETTER), ((4, 5, 6), (1, 2, 3), WORSE), ((1, 2, 3), (3, 4, 5), OPEN),
    ((1, 2, 5), (4, 6, 7), OPEN), ((1,), (4,), OPEN), ((1, 2), (4,), OPEN)])
def test_a_difference_is_said_where_all_seeds_are_apart(runs, tmp_path, real, both, says):
    others = []
    for run, values in zip(runs, (real, both), strict=True):
        others.append(tmp_path / run.name)
        for seed, value in enumerate(values):
            shutil.copytree(run / "seed_0", others[-1] / f"seed_{seed}")
            scores = dict.fromkeys(METRICS, value / 100)
            row = stored(run, 0) | {"step": scores, "trapezoid": scores}
            (others[-1] / f"seed_{seed}" / "evaluation.json").write_text(json.dumps(row))
        shutil.copy(run / "config.json", others[-1])
    found = compare_runs(*others)
    assert {row["says"] for rows in found["conventions"].values() for row in rows.values()} \
        == {says}
    text = table(found)
    assert text.count(f" | {says} | ") == 2 * len(METRICS)
    assert ("One seed tells nothing" in text) == (1 in (len(real), len(both)))


def test_table_of_runs_that_cannot_be_compared(runs, tmp_path):
    refused("the second of real and generated", compare_runs, runs[0], runs[0])
    other = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "steps": 1}))
    refused("differ in steps", compare_runs, other, runs[1])


def test_evaluation_is_asked_for(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "run")
    (other / "seed_1" / "evaluation.json").unlink()
    refused("make it with python -m posemodel.reid evaluate", compare_runs, other, runs[1])


def test_damaged_weights(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "run")
    (other / "seed_1" / "weights.safetensors").write_bytes(b"no")
    refused("seed_1/weights.safetensors: no weights of this run", evaluate, other, root=None,
            device="cpu", workers=1, say=lambda line: None)


def test_fewer_images_and_poses(runs):
    real, generated = training_crops(replace(read_config(runs[1]), max_images=2, max_poses=1))
    assert len(real.names) == 4 * 2
    # One image of the eight has no joints.
    assert len(generated.names) == 7
    assert all(name.endswith("_p00.jpg") for name in generated.names)


# --- parts ---------------------------------------------------------------------------------------


def batches_of(real, generated, *, workers, identities=3) -> Batches:
    config = ReidConfig(root="", batch_identities=identities, batch_images=4, image_size=(32, 32))
    return Batches(real, generated, config, seed=0, workers=workers)


def test_batches_hold_p_identities_with_k_images(runs):
    real, generated = training_crops(read_config(runs[1]))
    batches = batches_of(real, generated, workers=2)
    shares = []
    for step in range(1, 80):
        files, classes = batches.draw(step)
        assert len(files) == 12 and (np.bincount(classes, minlength=4) % 4 == 0).all()
        assert len(set(classes.tolist())) == 3
        for path, index in zip(files, classes, strict=True):
            assert int(path.name[:4]) == batches.persons[index]
        shares.append(np.mean(["_p" in path.name for path in files]))
    assert 0.4 < np.mean(shares) < 0.6


def test_batches_do_not_depend_on_the_threads(runs):
    real, generated = training_crops(read_config(runs[1]))
    one, many = (list(batches_of(real, generated, workers=workers).stream(5)) for workers in (1, 4))
    assert len(one) == 5
    for (pixels, classes), (others, same) in zip(one, many, strict=True):
        assert torch.equal(pixels, others) and torch.equal(classes, same)
    assert one[0][0].shape == (12, 32, 32, 3) and not torch.equal(one[0][0], one[1][0])


def test_too_few_identities(runs):
    real, _ = training_crops(read_config(runs[0]))
    refused("only 4 identities", batches_of, real, None, workers=1, identities=5)


def test_triplet_loss_is_its_definition():
    features, persons = torch.randn(12, 5), torch.arange(4).repeat_interleave(3)
    total = 0.0
    for anchor in range(12):
        distance = (features - features[anchor]).norm(dim=1)
        positive = distance[persons == persons[anchor]].max()
        negative = distance[persons != persons[anchor]].min()
        total += max(0.0, float(0.3 + positive - negative))
    assert batch_hard_triplet(features, persons, 0.3).item() == pytest.approx(total / 12, abs=1e-4)


def test_triplet_loss_of_equal_features_has_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), 0.3).backward()
    assert torch.isfinite(features.grad).all()


def test_learning_rate(runs):
    config = replace(read_config(runs[0]), steps=120, lr=1.0)
    found = [rate(step, config) for step in (1, 5, 10, 40, 41, 70, 71, 120)]
    assert found == pytest.approx([0.1, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("backbone, width", [("resnet18", 512), ("resnet50", 2048)])
def test_last_stage_keeps_its_resolution(backbone, width, tmp_path):
    network = ReidNetwork(backbone=backbone, identities=3).eval()
    seen = []
    network.backbone.layer4.register_forward_hook(lambda *call: seen.append(call[2].shape))
    before, after = network(torch.zeros(1, 64, 32, 3, dtype=torch.uint8))
    assert seen == [(1, width, 4, 2)] and before.shape == after.shape == (1, width)
    state = {name: torch.full_like(tensor, 0.5) if tensor.is_floating_point() else tensor
             for name, tensor in network.backbone.state_dict().items()}
    torch.save({**state, "fc.weight": torch.zeros(1000, width)}, tmp_path / "weights.pth")
    said = load_imagenet(network, backbone, str(tmp_path / "weights.pth"))
    assert "weights.pth" in said
    assert (network.backbone.conv1.weight == 0.5).all()
    other = "resnet50" if backbone == "resnet18" else "resnet18"
    refused("not torchvision's weights", load_imagenet, ReidNetwork(backbone=other, identities=3),
            other, str(tmp_path / "weights.pth"))


def test_without_weights_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = ReidNetwork(backbone="resnet18", identities=3)
    assert load_imagenet(network, "resnet18", "auto").startswith("from scratch: no resnet18")
    assert "no published weights" in load_imagenet(network, "resnet10", "auto")


def test_weights_from_a_folder(tmp_path, monkeypatch):
    without_network(monkeypatch, tmp_path / "hub")
    network = ReidNetwork(backbone="resnet18", identities=3)
    refused(f"--weights {tmp_path}: no resnet18-f37072fd.pth in {tmp_path}", load_imagenet, network,
            "resnet18", str(tmp_path))
    state = {**network.backbone.state_dict(), "fc.weight": torch.zeros(1000, 512)}
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    for weights in (str(tmp_path), str(tmp_path / "resnet18-f37072fd.pth"), "auto"):
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        refused("its SHA-256 begins with", load_imagenet, network, "resnet18", weights)
    (tmp_path / "resnet18-f37072fd.pth").rename(tmp_path / "mine.pth")
    del state["fc.weight"]
    assert tensors_sha256(state) in load_imagenet(network, "resnet18", str(tmp_path / "mine.pth"))
