"""The methods of Table 1 in the trainer: the same steps, checkpoints and processes as ours."""

import copy
import json

import pytest
import torch

from posemodel.baselines import BASELINES
from posemodel.config.sections import ModelConfig
from posemodel.data.source import mannequins
from posemodel.engine.trainer import Trainer
from posemodel.runtime.errors import UserError
from tests import ranks
from tests.test_train import same
from tests.tiny import FLAGS, tiny_config

CPU = torch.device("cpu")
OWN = {"fomm": set(), "mraa": set(), "tpsmm": {"loss_warp"},
       "gfla32": {"loss_correctness", "loss_regularization"},
       "gfla64": {"loss_correctness", "loss_regularization"}}


def config_of(method, **changes):
    # GFLA's network is too deep for 32 pixels.
    size = (64, 64) if method.startswith("gfla") else (32, 32)
    changes = {"loss_joint_weight": 0.0, **changes}
    return tiny_config(model_flow=method, data_image_size=size, **changes)


def batches_of(config, count=3):
    data = mannequins(config.data, seed=0, device=CPU)
    return [data.pairs(range(2 * n, 2 * n + 2)) for n in range(count)]


def trainer(config):
    return Trainer(config, CPU, torch.float32)


@pytest.mark.parametrize("method", BASELINES)
def test_two_steps_and_a_resume(method):
    config = config_of(method)
    batches = batches_of(config)
    whole, first, second = (trainer(config) for _ in range(3))
    before = copy.deepcopy(whole.weights())
    found = [whole.step(n, batch) for n, batch in enumerate(batches, 1)]
    assert OWN[method] | {"loss_reconstruction", "loss_warped"} <= found[0].keys()
    assert not {"loss_affine", "loss_joint"} & found[0].keys()
    loss = config.loss
    expected = sum(found[0][name] for name in OWN[method]) + sum(
        getattr(loss, f"{name}_weight") * found[0][f"loss_{name}"]
        for name in ("reconstruction", "warped", "adversarial"))
    assert found[0]["loss"] == pytest.approx(expected, rel=1e-5)

    for n, batch in enumerate(batches[:2], 1):
        first.step(n, batch)
    second.load(copy.deepcopy(first.weights()), copy.deepcopy(first.state()))
    second.step(3, batches[2])
    assert same(whole.weights(), second.weights())
    # The flow's network learns, and the averaged weights follow it.
    for net in ("generator", "averaged"):
        moved = [name for name, value in whole.weights()[net].items()
                 if name.startswith("warping.") and not torch.equal(value, before[net][name])]
        assert moved, net


@pytest.mark.parametrize("method", ["fomm", "gfla64"])
def test_a_method_may_have_the_loss_on_joints(method):
    bare = config_of(method, optim_phase_one=1.0)
    config = config_of(method, optim_phase_one=1.0, loss_joint_weight=2.0)
    batch, = batches_of(config, 1)
    with_joints, without = (trainer(one).step(1, batch) for one in (config, bare))
    assert with_joints["loss"] == pytest.approx(
        without["loss"] + 2 * with_joints["loss_joint"], rel=1e-5)


@pytest.mark.parametrize("method", ["fomm", "gfla64"])
def test_a_method_may_see_the_image(method):
    config = config_of(method, model_motion_input="keypoints+image")
    batch, = batches_of(config, 1)
    blind, seeing = trainer(config_of(method)), trainer(config)
    assert seeing.parameter_counts()[method] > blind.parameter_counts()[method]
    seeing.step(1, batch)
    model = seeing.generator.eval()
    with torch.no_grad():
        poses = batch["source_pose"], batch["target_pose"]
        one, other = (model(image, *poses).flow for image in (batch["source"], batch["target"]))
    assert not torch.equal(one, other)


def test_ours_sees_the_poses_alone():
    with pytest.raises(UserError, match="--model.motion-input is 'keypoints"):
        ModelConfig(motion_input="keypoints+image")


def test_parameter_counts_name_the_method():
    one = trainer(config_of("mraa"))
    total = sum(p.numel() for p in one.generator.warping.parameters())
    assert one.parameter_counts()["mraa"] == total
    assert one.parameter_counts().keys() == {"mraa", "R", "D"}


def test_the_dropout_of_tpsmm_follows_the_course_of_training():
    config, seen = config_of("tpsmm"), []
    batch, = batches_of(config, 1)
    one = trainer(config)
    for step in (1, 11, config.steps):
        one.step(step, batch)
        seen.append(one.generator.warping.progress)
    assert seen == [0.0, 0.5, 0.95]


def test_two_processes_train_what_one_trains(tmp_path):
    flags = [*FLAGS, "--model.flow", "gfla64", "--data.image-size", "64", "64", "--steps", "3",
             "--optim.batch-size", "3", "--optim.lr", "1e-6", "--evaluate-every", "3",
             "--checkpoint-every", "3"]
    for size in (1, 2):
        codes = ranks.run([*flags, "--out", str(tmp_path / str(size))], size=size,
                          log=tmp_path / f"log{size}")
        assert codes == [0] * size, (tmp_path / f"log{size}.0").read_text()
    one, two = ([json.loads(line) for line in (tmp_path / size / "metrics.jsonl").open()]
                for size in "12")
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "loss_correctness", "loss_regularization", "loss_warped"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-7), name
