"""The command line of `train`: what it understands, what it says to mistakes, how fast."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from posemodel.config.flags import FIRST, WITHOUT_FLAG, config_text, parse_train
from posemodel.config.presets import PRESETS, overnight, quick
from posemodel.config.sections import Config
from posemodel.config.stored import from_dict, to_dict
from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main

ROOT = Path(__file__).parents[2]

# Scripts rely on these. Adding one is a decision: change this list in the same commit.
FLAGS = """
--out --init --steps --seed --device --precision --tf32 --compile --timeout --evaluate-every
--checkpoint-every --log-every --config --dry-run
--data.kind --data.root --data.image-size --data.fit --data.workers
--data.flip --data.rotate --data.scale --data.shift --data.turn --data.background
--data.hidden-joints --data.evaluation-pairs
--model.flow --model.motion-input --model.flow-stride --model.pose-sigma --model.limb-sigma
--model.encoder-channels --model.feature-channels --model.feature-norm --model.flow-depth
--model.flow-channels --model.head-kernel --model.flow-parametrization --model.refine
--model.refine-width --model.refine-downsamplings --model.skip
--loss.reconstruction --weights --loss.warped-weight --loss.affine-weight
--loss.joint-weight --loss.affine-background --loss.adversarial --loss.adversarial-weight
--loss.feature-matching-weight --loss.r1-weight
--optim.batch-size --optim.accumulate --optim.tasks --optim.lr --optim.schedule
--optim.phase-one --optim.lr-discriminator --optim.ema --optim.clip
""".split()


def help_text(capsys, flag: str = "--help") -> str:
    with pytest.raises(SystemExit) as stop:
        parse_train([flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_of(text: str) -> list[str]:
    return re.findall(r"^\W{1,3}(--[a-z][a-z0-9.-]*)", text, re.MULTILINE)


def exit_of(argv: list[str], capsys, monkeypatch) -> tuple[int, str]:
    """Exit code and stderr of the whole command."""
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    with pytest.raises(SystemExit) as stop:
        run_main(lambda words: parse_train(words) and 0)
    return stop.value.code, capsys.readouterr().err


def test_bare_command_is_the_quick_preset():
    request = parse_train([])
    assert request.config == replace(quick(), out="runs/quick") and type(request.config) is Config
    assert not request.dry_run


def test_preset_and_flags():
    config = parse_train(["overnight", "--optim.lr", "1e-4", "--data.image-size", "64", "32",
                          "--out=elsewhere", "--model.flow-depth=1"]).config
    assert config.steps == overnight().steps
    assert (config.optim.lr, config.data.image_size) == (1e-4, (64, 32))
    assert (config.out, config.model.flow_depth) == ("elsewhere", 1)
    assert parse_train(["overnight"]).config.out == "runs/overnight"
    assert parse_train(["--optim.lr", "3.0"]).config.optim.lr == 3.0
    assert quick().optim.lr != 3.0, "parsing leaves the presets alone"


def test_config_file_is_a_starting_point(tmp_path):
    config = replace(overnight(), out=str(tmp_path / "run"), seed=5)
    file = tmp_path / "config.json"
    file.write_text(config_text(config))
    assert parse_train(["--config", str(file)]).config == config
    changed = parse_train([f"--config={file}", "--seed", "6"]).config
    assert (changed.seed, changed.steps) == (6, config.steps)


@pytest.mark.parametrize("content, says", [
    (None, "No such file"), ("{", "no JSON file"), ('{"steps": 3}', "another version")])
def test_unusable_config_file(tmp_path, content, says):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=says):
        parse_train(["--config", str(file)])
    with pytest.raises(UserError, match="give one of them"):
        parse_train(["quick", "--config", str(file)])


def test_dry_run_prints_a_config_that_can_be_read_again(capsys):
    request = parse_train(["--dry-run", "--steps", "7"])
    printed = capsys.readouterr().out
    assert request.dry_run
    assert from_dict(json.loads(printed)) == request.config
    assert '"image_size": [64, 64]' in printed


def test_list_of_flags_does_not_change_unnoticed(capsys):
    assert flags_of(help_text(capsys, "--help-all")) == FLAGS
    assert len(FLAGS) <= 62


def test_help_shows_the_flags_that_people_use_first(capsys):
    shown = flags_of(help_text(capsys))
    assert len(shown) == 20 and set(shown) < set(FLAGS)
    assert {name.replace("_", "-") for name in FIRST} == \
        {flag.removeprefix("--") for flag in shown} - {"config", "dry-run"}


def test_the_folder_of_weights_is_one_flag_without_its_section():
    loss = parse_train(["--weights", "my/weights", "--loss.reconstruction", "vgg16"]).config.loss
    assert (loss.weights_folder, loss.reconstruction) == ("my/weights", "vgg16")


def test_a_field_without_a_flag_is_set_by_a_file(tmp_path, capsys):
    values = to_dict(quick())
    assert all(name.rpartition(".")[2] in values[name.partition(".")[0]] for name in WITHOUT_FLAG)
    values["optim"]["betas"] = [0.3, 0.4]
    (tmp_path / "config.json").write_text(json.dumps(values))
    request = parse_train(["--config", str(tmp_path / "config.json"), "--optim.lr", "0.5"])
    assert (request.config.optim.betas, request.config.optim.lr) == ((0.3, 0.4), 0.5)
    with pytest.raises(SystemExit) as stop:
        parse_train(["--optim.betas", "0.3", "0.4"])
    assert stop.value.code == 2


def test_help_starts_with_the_bare_command_and_the_presets(capsys):
    head = help_text(capsys).split("-h, --help")[0]
    assert "python -m posemodel.train" in head and "runs/quick" in head
    for name, preset in PRESETS.items():
        assert re.search(rf"^  {name} +{re.escape(preset.__doc__.splitlines()[0])}", head, re.M)


@pytest.mark.parametrize("argv, says", [
    (["overnigt"], "error: no preset is called 'overnigt'; did you mean overnight? presets: quick"),
    (["--data.turn", "500"], "error: --data.turn is 500.0, expected degrees from 0 to 180"),
    (["--steps", "0"], "error: --steps is 0, expected at least 1"),
    (["--config"], "error: --config")])
def test_mistakes_get_one_line(argv, says, capsys, monkeypatch):
    code, stderr = exit_of(argv, capsys, monkeypatch)
    assert code == 2
    assert stderr.startswith(says)
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("argv, says", [
    (["--stpes", "5"], "--steps"), (["--optim.ir", "5"], "--optim.lr"),
    (["--dryrun"], "--dry-run"), (["--optim.schedule", "linear"], "cosine"),
    (["--steps", "many"], "--steps"), (["quick", "overnight"], "overnight"),
    (["--preset", "paper"], "--preset")])
def test_misspelt_flags_and_values(argv, says, capsys, monkeypatch):
    code, stderr = exit_of(argv, capsys, monkeypatch)
    assert code == 2
    assert says in stderr and "Traceback" not in stderr


def failing(error):
    def main(argv):
        raise error
    return main


@pytest.mark.parametrize("raised, code, says", [
    (UserError("two\nlines"), 2, "error: two lines\n"), (UserError("no"), 2, "error: no\n"),
    (KeyboardInterrupt(), 130, "interrupted\n")])
def test_exit_codes(raised, code, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        run_main(failing(raised))
    assert (stop.value.code, capsys.readouterr().err) == (code, says)


def test_our_own_faults_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(ValueError, match="a bug"):
        run_main(failing(ValueError("a bug")))


@pytest.mark.parametrize("argv, code", [(["--help"], 0), (["--stpes", "5"], 2), (["quik"], 2)])
def test_answers_without_loading_torch(argv, code):
    script = ("import sys; from posemodel.runtime.main import run_main\n"
              "from posemodel import train\n"
              "try: run_main(train.main)\n"
              "except SystemExit as stop: code = stop.code\n"
              "heavy = {'torch', 'numpy', 'matplotlib', 'PIL'} & sys.modules.keys()\n"
              "sys.exit(f'loaded {heavy}' if heavy else code)")
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == code, done.stderr
