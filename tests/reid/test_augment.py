"""Augmentation: counts, names, pixels, and the same bytes however often it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from market_helpers import LOST, model_file, read_as_torchreid

import pose_kernels
from posemodel.data.images import read_image
from posemodel.flow.estimator import Motion
from posemodel.inference.model import PoseTransferModel
from posemodel.reid import augment as module
from posemodel.reid.augment import AugmentPlan, augment, draw_poses, read_sources, sample_on_grey
from posemodel.reid.foreground import foreground
from tests.small_datasets import contents, refused

PEOPLE, POSES = 4, 6
IMAGES = 3 * PEOPLE


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def model(weights) -> PoseTransferModel:
    return PoseTransferModel.from_file(weights, "cpu")


def plan(**changes) -> AugmentPlan:
    return AugmentPlan(**{"poses": POSES, "on_missing": "skip", "seed": 1, "batch_size": 12,
                          **changes})


def make(model, market, out, **changes):
    return augment(model, market, out, plan(**changes), writers=3,
                   progress=lambda done, total: None)


@pytest.fixture(scope="module")
def made(model, market, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    outcome = make(model, market, out)
    assert (outcome.generated, outcome.copied, outcome.skipped) == (POSES * (IMAGES - 1), 0, 1)
    assert outcome.written == outcome.generated and outcome.bound in outcome.waited
    return out


def test_names_keep_identity_and_camera(market, made):
    names = sorted(path.name for path in (made / "train").iterdir())
    assert names[0] == "0001_c1s1_000000_01_p00.jpg" and len(names) == POSES * (IMAGES - 1)
    real = [words for words, name in zip(read_as_torchreid(market / "bounding_box_train"),
                                         sorted(os.listdir(market / "bounding_box_train")),
                                         strict=True) if name != LOST]
    assert Counter(read_as_torchreid(made / "train")) == Counter(real * POSES)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


def test_manifest_says_what_each_image_is(made, market):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["complete"] and manifest["recipe"]["poses"] == POSES
    assert manifest["counts"] == {"generated": POSES * (IMAGES - 1), "copied": 0, "skipped": 1}
    sources = read_sources(market)
    drawn = [sources.pairs.names[index] for index in draw_poses(sources.candidates, plan())]
    assert manifest["recipe"]["poses_drawn"] == {"images": drawn}
    for row in rows_of(made):
        assert row["pose"] == drawn[int(row["name"][-6:-4])]


def test_every_image_gets_the_same_poses(made, model, market, tmp_path):
    poses = {}
    for row in rows_of(made):
        poses.setdefault(row["source"], []).append(row["pose"])
    (same,) = {tuple(each) for each in poses.values()}
    assert len(poses) == IMAGES - 1 and len(set(same)) == POSES
    # However many images the model makes at a time.
    make(model, market, tmp_path / "out", batch_size=5)
    assert [row["pose"] for row in rows_of(tmp_path / "out")] == [
        row["pose"] for row in rows_of(made)]


def test_copy_makes_the_full_count(model, market, tmp_path):
    outcome = make(model, market, tmp_path / "out", on_missing="copy")
    assert outcome.generated + outcome.copied == POSES * IMAGES
    assert (outcome.copied, outcome.skipped) == (POSES, 0)
    for path in (tmp_path / "out" / "train").glob(LOST[:-4] + "_p*"):
        assert path.read_bytes() == (market / "bounding_box_train" / LOST).read_bytes()


def test_poses_are_drawn_by_the_seed():
    draws = draw_poses(np.arange(50), plan())
    assert sorted(set(draws.tolist())) == sorted(draws.tolist())
    assert (draws == draw_poses(np.arange(50), plan())).all()
    assert (draws != draw_poses(np.arange(50), plan(seed=2))).any()


def test_again_does_nothing(model, market, made):
    before = contents(made)
    assert make(model, market, made).written == 0
    assert contents(made) == before


def test_another_plan_is_refused(model, market, made):
    refused("poses: 6 there, 5 asked", make, model, market, made, poses=5)


def test_a_folder_of_other_poses_is_refused(model, market, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    for drawn in ({"images": ["other.jpg"]}, None):  # None: each image had poses of its own
        recipe = {**manifest["recipe"], "poses_drawn": drawn}
        (out / "manifest.json").write_text(json.dumps({**manifest, "recipe": recipe}))
        before = contents(out)
        refused("(other poses_drawn)", make, model, market, out)
        assert contents(out) == before


def test_stopped_and_torn(model, market, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, calls = module._write, []

    def write(folder, name, *more):
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        real(folder, name, *more)

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        make(model, market, out)
    monkeypatch.setattr(module, "_write", real)
    images = sorted((out / "train").glob("*.jpg"))
    images[3].write_bytes(images[3].read_bytes()[:100])  # as a power cut leaves it
    with (out / "images.jsonl").open("a") as file:
        file.write('{"split": "tra')
    make(model, market, out)
    assert contents(out) == contents(made)


def test_killed_and_continued_gives_the_same_bytes(model, weights, market, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"poses": 10, "batch_size": 2}
    make(model, market, whole, **changes)
    command = [sys.executable, "-m", "posemodel.reid", "augment", str(weights), "--root",
               str(market), "--out", str(stopped), "--poses", "10", "--batch-size", "2", "--seed",
               "1", "--device", "cpu", "--writers", "3"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=threads, stderr=subprocess.DEVNULL)
    try:
        while len(list((stopped / "train").glob("*.jpg"))) < 15 and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not json.loads((stopped / "manifest.json").read_text())["complete"]
    there = len(list((stopped / "train").glob("*.jpg")))
    assert 15 <= there < 10 * (IMAGES - 1)
    outcome = make(model, market, stopped, **changes)
    # A file that was in place but not yet noted is written again.
    assert 0 < outcome.written < 10 * (IMAGES - 1)
    for path in (stopped / "train").glob("*.tmp"):
        raise AssertionError(f"left behind: {path}")
    assert contents(stopped) == contents(whole)


def test_person_is_kept_and_the_rest_is_grey():
    pixels = torch.randint(256, (2, 128, 64, 3), dtype=torch.uint8)
    flow = pose_kernels.identity_flow(16, 8).expand(2, -1, -1, -1)
    person = torch.zeros(2, 1, 128, 64)
    person[:, :, 30:90, 20:40], person[:, :, 90:100, 20:40] = 1, 0.5
    made = sample_on_grey(pixels, flow, person)
    assert made.dtype == torch.uint8
    assert torch.equal(made[:, 30:90, 20:40], pixels[:, 30:90, 20:40])
    assert (made[:, :30] == 128).all() and (made[..., 40:, :] == 128).all()
    half = (pixels[:, 90:100, 20:40].float() + 128) / 2
    assert (made[:, 90:100, 20:40] - half).abs().max() <= 0.5


def test_flow_is_applied_from_target_to_source():
    pixels = torch.randint(256, (1, 128, 64, 3), dtype=torch.uint8)
    flow = pose_kernels.identity_flow(16, 8)[None].clone()
    flow[:, 1] += 2 * 16 / 128  # looks 16 rows further down
    made = sample_on_grey(pixels, flow, torch.ones(1, 1, 128, 64))
    assert (made[:, :112].int() - pixels[:, 16:].int()).abs().max() <= 1


class ShiftModel:
    """Stands for a model that moves the neck of the source to that of the target."""

    size, device, step = (64, 32), torch.device("cpu"), 0

    def __init__(self):
        self.generator = self

    def state_dict(self):
        return {}

    def warping(self, source, target):
        shift = source[:, 1, :2] - target[:, 1, :2]
        return Motion(flow=pose_kernels.identity_flow(16, 8) + shift[:, :, None, None])


def test_each_image_is_made_of_its_own_source_and_pose(market, tmp_path):
    make(ShiftModel(), market, tmp_path / "out", batch_size=18)  # three sources at a time
    pairs = read_sources(market).pairs
    poses = torch.from_numpy(pairs.joints.copy())
    poses[..., :2] = ((2 * poses[..., :2] + 1) / torch.tensor([64.0, 128.0]) - 1) * poses[..., 2:]
    for row in rows_of(tmp_path / "out")[::5]:
        source, pose = (poses[pairs.names.index(row[key])][None] for key in ("source", "pose"))
        pixels = torch.from_numpy(read_image(pairs.folder / row["source"]))[None]
        expected = sample_on_grey(pixels, ShiftModel().warping(source, pose).flow,
                                  foreground(pose, (128, 64)))[0]
        found = read_image(tmp_path / "out" / "train" / row["name"])
        assert found.astype(float) == pytest.approx(expected.numpy(), abs=60)  # JPEG of noise
        assert np.abs(found.astype(float) - expected.numpy()).mean() < 3


def test_a_model_of_another_shape_is_refused(market, tmp_path):
    square = PoseTransferModel.from_file(model_file(tmp_path / "square.safetensors", (64, 64)),
                                         "cpu")
    refused("128:64", make, square, market, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_poses(model, market, tmp_path):
    refused("only 11 images have both shoulders", make, model, market, tmp_path / "out", poses=12)
