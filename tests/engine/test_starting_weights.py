"""A new run from the weights of another one."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from posemodel.engine.run_folder import RunFolder
from posemodel.engine.starting_weights import read_weights, start_from
from posemodel.engine.trainer import Trainer
from posemodel.inference import PoseTransferModel
from posemodel.inference.programs import write_weights
from posemodel.model.scene import Scene
from posemodel.runtime import checkpoint
from posemodel.runtime.errors import UserError
from posemodel.train import main
from tests.small_runs import tiny_generator, write_tiny_run
from tests.tiny import FLAGS, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "first")


def equal(states):
    one, other = states
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_every_network_starts_from_a_run_and_is_averaged_from_there(run):
    trainer = Trainer(tiny_config(), torch.device("cpu"), torch.float32)
    assert not equal([trainer.generator.state_dict(), tiny_generator().state_dict()])
    lines = trainer.start_from(str(run))
    assert lines == [f"{name} starts from {run}" for name in ("M", "C_l", "R")]
    for net in (trainer.generator, trainer.averaged):
        assert equal([net.state_dict(), tiny_generator().state_dict()])


def test_a_network_of_other_shapes_starts_anew_and_is_named(run):
    generator = tiny_generator(model_refine_width=6)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    lines = start_from(generator, read_weights(run, print), "it")
    assert lines[:2] == ["M starts from it", "C_l starts from it"]
    assert lines[2].startswith("R starts anew: ") and "other shapes" in lines[2]
    after = generator.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if "refinement" in name)


def test_a_file_in_16_bits_is_read_in_32(run, tmp_path):
    file = tmp_path / "half.safetensors"
    write_weights(PoseTransferModel.from_run(run, "cpu"), file, about="", half=True)
    weights = read_weights(file, print)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    lines = start_from(tiny_generator(), weights, "it")
    assert all("starts from it" in line for line in lines)


@pytest.mark.parametrize("blocks", [0, 2])
def test_an_r_that_sees_the_pose_starts_with_the_images_of_one_that_does_not(blocks):
    shape = dict(model_refine_downsamplings=2, model_refine_blocks=blocks)
    blind = tiny_generator(model_refine="detail", **shape)
    posed = tiny_generator(model_refine="posed", **shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the last layer starts at zero, which would hide every other one
        for weight in blind.refinement.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    lines = start_from(posed, blind.state_dict(), "it")
    assert lines[-1] == "R starts from it"
    source = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    flow = torch.rand(2, 2, 8, 8, generator=generator) * 2 - 1
    pose = torch.cat([torch.rand(2, 18, 2, generator=generator) * 16, torch.ones(2, 18, 1)], -1)
    scene = Scene((source[:, :1] > 0).float(), source.flip(-1))
    for each in (None, scene):
        one, other = (net.train().refinement(source, flow, pose, each) for net in (blind, posed))
        torch.testing.assert_close(one, other)
        assert one.std() > .1
    other.sum().backward()
    for name, weight in posed.refinement.decoder.named_parameters():
        if name.endswith("0.0.weight") or name.startswith("last"):
            assert weight.grad.abs().sum() > 0, name


def test_where_nothing_fits_it_is_refused(run):
    with pytest.raises(UserError, match="none of these networks"):
        start_from(tiny_generator(model_encoder_channels=(6, 6, 6), model_feature_channels=5,
                                  model_flow_channels=(6,) * 5, model_refine_width=6),
                   read_weights(run, print), "it")


@pytest.mark.parametrize(("content", "says"), [(None, "."), (b"no", "safetensors")])
def test_unusable_origins(tmp_path, content, says):
    path = tmp_path / "origin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_weights(path, print)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path):
    run = write_tiny_run(tmp_path / "run")
    weights = {"averaged": tiny_generator(model_refine_width=6).state_dict()}
    checkpoint.save(run / "checkpoints", 8, weights=weights, state={}, config={})
    (run / "checkpoints" / "step_000008" / "averaged.safetensors").write_bytes(b"cut short")
    trainer = Trainer(tiny_config(), torch.device("cpu"), torch.float32)
    first, *others = trainer.start_from(str(run))
    assert first.startswith("warning: checkpoint step_000008 skipped") and len(others) == 3
    assert equal([trainer.generator.state_dict(), tiny_generator().state_dict()])


def test_the_command_starts_from_weights_once_and_then_continues(run, tmp_path, capsys):
    command = [*FLAGS, "--init", str(run), "--out", str(tmp_path / "second")]
    assert main([*command, "--steps", "2"]) == 0
    log = (tmp_path / "second" / "log.txt").read_text()
    assert f"M starts from {run}" in log
    # The folder is complete: nothing of its origin is read again.
    assert main([*command, "--steps", "2"]) == 0
    assert (tmp_path / "second" / "log.txt").read_text().count("M starts from") == 1


def test_the_package_s_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = PoseTransferModel.shipped("cpu").generator.state_dict()
    assert equal([read_weights(Path("shipped"), print), shipped])
    run = write_tiny_run(tmp_path / "shipped")  # one's own folder of that name goes first
    assert equal([read_weights(Path("shipped"), print), tiny_generator().state_dict()]), run
def printed_command(words) -> list[str]:
    """The words of the command that a refusal prints."""
    with pytest.raises(UserError) as refused:
        main(words)
    said = str(refused.value)
    assert "\n" not in said
    command = re.search(r"from its weights: python -m posemodel\.train (.*); or continue", said)
    return shlex.split(command[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, its learning rate a cosine."""
    out = tmp_path_factory.mktemp("trained") / "a run"
    assert main([*FLAGS, "--steps", "2", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("changed", [
    ["--steps", "5"], ["--optim.batch-size", "4", "--optim.accumulate=2"],
    ["--precision", "bfloat16", "--optim.lr", "1e-4"]])
def test_a_refusal_prints_the_command_of_a_new_run_from_the_old_weights(changed, trained, capsys):
    words = [*FLAGS, "--steps", "2", "--out", str(trained), *changed]
    command = printed_command(words)
    # What is longer makes the steps that are lacking.
    assert command[-6:-2] == ["--steps", "3" if "5" in changed else "2", "--init", str(trained)]
    assert command.count("--out") == command.count("--steps") == 1
    out = Path(command[-1])
    assert out.parent == trained.parent and not out.exists()
    capsys.readouterr()
    assert main(command) == 0
    assert f"M starts from {trained}" in capsys.readouterr().out
    assert (out / "DONE").exists()
    assert Path(printed_command(words)[-1]) != out  # that name is taken now


def test_without_weights_no_command_is_printed(tmp_path):
    config = tiny_config()
    config.out = str(tmp_path / "run")
    RunFolder.open(config, []).close()
    config.optim.lr = 0.5
    with pytest.raises(UserError, match="Start a new one with another --out; or continue"):
        RunFolder.open(config, [])


def test_with_a_constant_rate_a_run_grows_to_the_bits_of_a_longer_one(tmp_path, capsys):
    flags = [*FLAGS, "--optim.schedule", "constant", "--optim.phase-one", "1"]
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    assert main([*flags, "--out", str(whole)]) == 0
    assert main([*flags, "--steps", "4", "--out", str(grown)]) == 0 and (grown / "DONE").exists()
    capsys.readouterr()
    assert main([*flags, "--out", str(grown)]) == 0
    assert "changed since the last start: steps: 4 -> 6" in capsys.readouterr().out
    one, other = (checkpoint.load_latest(run / "checkpoints").weights for run in (whole, grown))
    assert all(equal([one[name], other[name]]) for name in one)
    assert [json.loads(line)["step"] for line in (grown / "eval.jsonl").read_text().splitlines()
            ] == [3, 4, 6]
    with pytest.raises(UserError, match="steps: 6 -> 4"):
        main([*flags, "--steps", "4", "--out", str(grown)])
