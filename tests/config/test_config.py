"""The config classes by themselves: checks, the way through JSON and back, drift."""

import json
import math
import re
from dataclasses import replace

import pytest

from posemodel.config.presets import PRESETS, quick
from posemodel.config.sections import Config, DataConfig, LossConfig, ModelConfig, OptimConfig
from posemodel.config.stored import FREE_ON_RESUME, drift, free_changes, from_dict, to_dict
from posemodel.runtime.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset):
    config = PRESETS[preset]()
    assert config.preset == preset
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_presets_share_nothing():
    one, other = quick(), quick()
    one.optim.lr = 7.0
    assert other.optim.lr != 7.0


SECTIONS = {"": Config, "data": DataConfig, "model": ModelConfig, "loss": LossConfig,
            "optim": OptimConfig}


@pytest.mark.parametrize(("section", "fields"), [  # the first field's flag is named
    ("data", {"image_size": (30, 64)}), ("data", {"image_size": (64, 66)}),
    ("data", {"turn": 181.0}), ("data", {"evaluation_pairs": 0}), ("data", {"root": "somewhere"}),
    ("data", {"flip": True}), ("data", {"rotate": 90.0, "kind": "market"}),
    ("data", {"scale": -0.1, "kind": "market"}), ("data", {"shift": math.nan, "kind": "market"}),
    ("data", {"pairs_per_epoch": -1, "kind": "market"}),
    ("data", {"workers": -1, "kind": "market"}), ("data", {"fit": "stretch", "kind": "market"}),
    ("model", {"pose_sigma": math.nan}), ("model", {"limb_sigma": -1.0}),
    ("model", {"flow_stride": 3}), ("model", {"flow_depth": 7}),
    ("model", {"flow_channels": (8, 8), "flow_depth": 6}),
    ("model", {"skip": True, "refine": False}), ("loss", {"affine_weight": -1.0}),
    ("loss", {"joint_weight": -1.0}), ("loss", {"affine_background": 1.1}),
    ("loss", {"r1_weight": -1.0}), ("optim", {"lr": math.inf}), ("optim", {"betas": (0.9, 1.0)}),
    ("optim", {"batch_size": 0}), ("", {"steps": 0}), ("", {"log_every": 0})])
def test_impossible_values_name_their_flag(section, fields):
    name, value = next(iter(fields.items()))
    flag = f"{section}.{name}".removeprefix(".").replace("_", "-")
    with pytest.raises(UserError, match=re.escape(f"--{flag} is {value!r}, expected")) as caught:
        SECTIONS[section](**fields)
    assert "\n" not in str(caught.value)
    assert name != "root" or "--data.kind deepfashion" in str(caught.value)


@pytest.mark.parametrize("path, value", [
    ("steps", "900"), ("steps", 9.5), ("steps", True), ("device", 0), ("precision", "float8"),
    ("data.image_size", [64]), ("data.image_size", 64), ("data.image_size", [64.0, 64.0]),
    ("model.encoder_channels", [32, "64"]), ("optim.lr", "fast"), ("loss", None)])
def test_wrong_types_in_a_file_are_named(path, value):
    values = to_dict(quick())
    section, _, name = path.rpartition(".")
    (values[section] if section else values)[name] = value
    with pytest.raises(UserError, match=name):
        from_dict(values)


def test_whole_numbers_pass_as_floats():
    values = to_dict(quick())
    values["optim"]["lr"] = 1
    assert from_dict(values).optim.lr == 1.0


def test_unknown_and_missing_fields_are_named():
    values = to_dict(quick())
    values["optim"]["momentum"] = values["optim"].pop("lr")
    with pytest.raises(UserError, match=r"unknown \['momentum'\], missing \['lr'\]"):
        from_dict(values)


@pytest.mark.parametrize("file, folder", [("", ""), ("vgg19-dcbb9e9d.pth", "."),
                                          ("/data/own/vgg19-dcbb9e9d.pth", "/data/own")])
def test_a_file_from_before_the_folder_of_weights(file, folder):
    wanted = quick()
    wanted.loss.weights_folder = folder
    values = to_dict(wanted)
    del values["loss"]["weights_folder"]
    values["loss"]["vgg_weights"] = file
    assert from_dict(values) == wanted
    assert drift(from_dict(values), quick()) == []
    values["loss"]["weights_folder"] = "both"
    with pytest.raises(UserError, match=r"unknown \['vgg_weights'\]"):
        from_dict(values)


@pytest.mark.parametrize(("flow", "weight"), [("ours", 1.0), ("fomm", 0.0)])
def test_a_file_from_before_other_methods_could_have_the_loss_on_joints_is_read(flow, weight):
    config = quick()
    config.model.flow = flow
    values = to_dict(config)
    del values["loss"]["affine_norm"], values["optim"]["milestones"]
    read = from_dict(values)
    assert (read.loss.joint_weight, read.loss.affine_norm) == (weight, "mean")
    assert read.optim == config.optim


@pytest.mark.parametrize(("before", "now"), [(True, "paper"), (False, "none")])
def test_a_file_from_before_r_had_several_forms_is_read(before, now):
    wanted = quick()
    wanted.model.refine = now
    values = to_dict(wanted)
    values["model"]["refine"] = before
    del values["init"]
    assert from_dict(values) == wanted
    assert values["model"]["refine"] is before, "the caller's own values stay as they are"


def test_drift_names_what_may_not_change():
    saved, wanted = quick(), quick()
    saved.steps = 900
    wanted.steps, wanted.model.flow_depth = 1000, 3
    assert drift(saved, wanted) == ["steps: 900 -> 1000", "model.flow_depth: 6 -> 3"]


@pytest.mark.parametrize(("changes", "free"), [
    ({}, True), ({"optim.schedule": "cosine"}, False), ({"model.flow": "tpsmm"}, False),
    ({"loss.adversarial_weight": 0.1}, True),  # phase one is all
    ({"loss.adversarial_weight": 0.1, "optim.phase_one": 0.5}, False),
    ({"loss.adversarial_weight": 0.1, "optim.phase_one": 0.0}, True),
    ({"optim.phase_two_rest": 0.1, "optim.phase_one": 0.5}, False),
    ({"optim.phase_one": 0.5}, True)])
def test_steps_may_grow_where_they_do_not_change_what_came_before(changes, free):
    saved, wanted = quick(), quick()
    changes = {"optim.schedule": "constant", "optim.phase_one": 1.0,
               "loss.adversarial_weight": 0.0} | changes
    for name, value in changes.items():
        section, _, field = name.partition(".")
        for config in (saved, wanted):
            setattr(getattr(config, section), field, value)
    wanted.steps = saved.steps + 10
    line = f"steps: {saved.steps} -> {wanted.steps}"
    assert (drift(saved, wanted), free_changes(saved, wanted)) == (
        ([], [line]) if free else ([line], []))
    assert drift(wanted, saved) == [f"steps: {wanted.steps} -> {saved.steps}"]


def test_free_fields_may_change_and_exist():
    wanted = replace(quick(), device="cpu", out="elsewhere", log_every=1)
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
