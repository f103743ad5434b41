"""The config classes by themselves: checks, the way through JSON and back, drift."""

import json

import pytest

from posemodel.config import (
    FREE_ON_RESUME,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    drift,
    free_changes,
    from_dict,
    to_dict,
)
from posemodel.presets import PRESETS, quick


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset):
    config = PRESETS[preset]()
    assert config.preset == preset
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_presets_share_nothing():
    one, other = quick(), quick()
    one.optim.lr = 7.0
    assert other.optim.lr != 7.0


@pytest.mark.parametrize("make, flag", [
    (lambda: DataConfig(image_size=(30, 64)), "--data.image-size"),
    (lambda: DataConfig(image_size=(64, 66)), "--data.image-size"),
    (lambda: DataConfig(turn=181.0), "--data.turn"),
    (lambda: DataConfig(evaluation_pairs=0), "--data.evaluation-pairs"),
    (lambda: DataConfig(root="somewhere"), "--data.root is 'somewhere', .*--data.kind deepfashion"),
    (lambda: DataConfig(flip=True), "--data.flip"),
    (lambda: DataConfig(kind="market", rotate=90.0), "--data.rotate"),
    (lambda: DataConfig(kind="market", scale=-0.1), "--data.scale"),
    (lambda: DataConfig(kind="market", shift=float("nan")), "--data.shift"),
    (lambda: DataConfig(kind="market", pairs_per_epoch=-1), "--data.pairs-per-epoch"),
    (lambda: DataConfig(kind="market", workers=-1), "--data.workers"),
    (lambda: DataConfig(kind="market", fit="stretch"), "--data.fit"),
    (lambda: ModelConfig(pose_sigma=float("nan")), "--model.pose-sigma"),
    (lambda: ModelConfig(discriminator_sigma=-1.0), "--model.discriminator-sigma"),
    (lambda: ModelConfig(limb_sigma=-1.0), "--model.limb-sigma"),
    (lambda: ModelConfig(flow_stride=3), "--model.flow-stride"),
    (lambda: ModelConfig(flow_depth=7), "--model.flow-depth"),
    (lambda: ModelConfig(flow_depth=6, flow_channels=(8, 8)), "--model.flow-channels"),
    (lambda: ModelConfig(refine=False, skip=True), "--model.skip"),
    (lambda: LossConfig(affine_weight=-1.0), "--loss.affine-weight"),
    (lambda: LossConfig(joint_weight=-1.0), "--loss.joint-weight"),
    (lambda: LossConfig(affine_background=1.1), "--loss.affine-background"),
    (lambda: LossConfig(r1_weight=-1.0), "--loss.r1-weight"),
    (lambda: LossConfig(r1_every=0), "--loss.r1-every"),
    (lambda: LossConfig(affine_rotation=90.0), "--loss.affine-rotation"),
    (lambda: LossConfig(affine_scale=1.0), "--loss.affine-scale"),
    (lambda: OptimConfig(lr=float("inf")), "--optim.lr"),
    (lambda: OptimConfig(betas=(0.9, 1.0)), "--optim.betas"),
    (lambda: OptimConfig(batch_size=0), "--optim.batch-size"),
    (lambda: Config(steps=0), "--steps"),
    (lambda: Config(keep_checkpoints=1), "--keep-checkpoints"),
    (lambda: Config(log_every=0), "--log-every"),
])
def test_impossible_values_name_their_flag(make, flag):
    with pytest.raises(ConfigError, match=flag) as caught:
        make()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path, value", [
    ("steps", "900"),
    ("steps", 9.5),
    ("steps", True),
    ("device", 0),
    ("precision", "float8"),
    ("data.image_size", [64]),
    ("data.image_size", 64),
    ("data.image_size", [64.0, 64.0]),
    ("model.encoder_channels", [32, "64"]),
    ("optim.lr", "fast"),
    ("loss", None),
])
def test_wrong_types_in_a_file_are_named(path, value):
    values = to_dict(quick())
    *sections, name = path.split(".")
    table = values
    for section in sections:
        table = table[section]
    table[name] = value
    with pytest.raises(ConfigError, match=name):
        from_dict(values)


def test_whole_numbers_pass_as_floats():
    values = to_dict(quick())
    values["optim"]["lr"] = 1
    assert from_dict(values).optim.lr == 1.0


def test_unknown_and_missing_fields_are_named():
    values = to_dict(quick())
    values["optim"]["momentum"] = values["optim"].pop("lr")
    with pytest.raises(ConfigError, match=r"unknown \['momentum'\], missing \['lr'\]"):
        from_dict(values)


def test_an_older_file_has_what_its_run_had():
    values = to_dict(quick())
    model = values["model"]
    del model["flow_stride"], model["discriminator_sigma"], model["limb_sigma"]
    del values["loss"]["joint_weight"], values["loss"]["affine_background"]
    model["pose_sigma"] = 7.0
    loss, found = from_dict(values).loss, from_dict(values).model
    assert (loss.joint_weight, loss.affine_background) == (0, 1)
    assert (found.flow_stride, found.discriminator_sigma, found.limb_sigma) == (4, 7.0, 0)
    assert "flow_stride" not in model and "discriminator_sigma" not in model
    model |= {"flow_stride": 2, "discriminator_sigma": 3.0}
    found = from_dict(values).model
    assert (found.flow_stride, found.discriminator_sigma) == (2, 3.0)


def test_drift_names_what_may_not_change():
    saved, wanted = quick(), quick()
    saved.steps = 900
    wanted.steps, wanted.model.flow_depth = 1000, 3
    assert drift(saved, wanted) == ["steps: 900 -> 1000", "model.flow_depth: 6 -> 3"]


def test_free_fields_may_change_and_exist():
    wanted = quick()
    wanted.device, wanted.out, wanted.log_every = "cpu", "elsewhere", 1
    assert drift(quick(), wanted) == []
    wanted = quick()
    wanted.data.root, wanted.data.workers = "/elsewhere", 7
    assert drift(quick(), wanted) == []
    assert free_changes(quick(), wanted) == ["data.root: '' -> '/elsewhere'",
                                             "data.workers: 2 -> 7"]
    values = to_dict(quick())
    for name in FREE_ON_RESUME:
        section, _, field = name.rpartition(".")
        assert field in (values[section] if section else values)
