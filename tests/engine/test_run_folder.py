"""The run folder: what makes it, what it refuses, and that it never damages what is there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posemodel.config.presets import quick
from posemodel.engine.run_folder import RunFolder
from posemodel.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    config = quick()
    config.steps, config.evaluate_every = 900, 300
    config.out = str(tmp_path / "runs" / "one")
    return config


def everything(path: Path) -> dict:
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_new_folder(config):
    with RunFolder.open(config, ["--steps", "9", "--out", "a b"]) as run:
        assert not run.resumed and not run.is_done
        assert run.path == Path(config.out) and run.checkpoints.is_dir()
        assert run.sample_path(500) == run.path / "samples" / "step_000500.png"
        assert run.sample_path(500).parent.is_dir()
        assert json.loads((run.path / "config.json").read_text())["steps"] == config.steps
        environment = json.loads((run.path / "env.json").read_text())
        assert environment["torch"] == torch.__version__
        assert environment["pose_kernels"]["flow_sample"]["reference"] == "available"
        assert "python -m posemodel.train --steps 9 --out 'a b'  # 20" in run.last_command()


def test_same_config_continues_and_commands_add_up(config):
    RunFolder.open(config, ["first"]).close()
    with RunFolder.open(config, ["second"]) as run:
        assert run.resumed
        lines = (run.path / "command.txt").read_text().splitlines()
        assert [line.split()[3] for line in lines] == ["first", "second"]


def test_free_fields_change_and_are_said(config, capsys):
    RunFolder.open(config, []).close()
    config.evaluate_every = 50
    with RunFolder.open(config, []) as run:
        assert run.resumed
    assert "evaluate_every: 300 -> 50" in capsys.readouterr().out
    assert RunFolder.open_existing(config.out).config == config


def test_another_number_of_processes_is_said(config, capsys):
    for processes in (1, 2, 2):
        with RunFolder.open(config, [], processes) as run:
            assert run.read_environment()["processes"] == processes
    said = capsys.readouterr().out
    assert said.count("processes: 1 -> 2") == said.count("equal to within rounding") == 1


@pytest.mark.parametrize("write", [
    lambda run: run.log("hello"), lambda run: run.append_metrics({"step": 1}),
    lambda run: run.append_evaluation({"step": 1}), lambda run: run.mark_done()])
def test_full_disk_is_one_line(write, config):
    with RunFolder.open(config, []) as run:
        for name in ("log.txt", "metrics.jsonl", "eval.jsonl", "DONE.tmp"):
            (run.path / name).unlink(missing_ok=True)
            (run.path / name).symlink_to("/dev/full")
        with pytest.raises(UserError, match="No space left on device.*continues") as caught:
            write(run)
        assert "\n" not in str(caught.value)


def test_drift_is_refused_and_nothing_is_touched(config):
    RunFolder.open(config, []).close()
    before = everything(Path(config.out))
    config.steps, config.optim.lr = 1200, 0.5
    with pytest.raises(UserError) as caught:
        RunFolder.open(config, [])
    message = str(caught.value)
    assert "steps: 900 -> 1200" in message and "optim.lr: 0.001 -> 0.5" in message
    assert "the whole course" in message and "another --out" in message and "command.txt" in message
    after = everything(Path(config.out))
    after.pop(Path("lock")), before.pop(Path("lock"))
    assert after == before
    with RunFolder.open(RunFolder.open_existing(config.out).config, []) as run:
        assert run.resumed


def test_long_drift_is_cut(config):
    RunFolder.open(config, []).close()
    for name in ("reconstruction_weight", "warped_weight", "affine_weight", "joint_weight",
                 "affine_background", "adversarial_weight", "r1_weight"):
        setattr(config.loss, name, 0.123)
    with pytest.raises(UserError, match="; and 2 more"):
        RunFolder.open(config, [])


def test_foreign_folder_is_left_alone(config):
    path = Path(config.out)
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no run folder.*nothing was touched"):
        RunFolder.open(config, [])
    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]


def test_start_that_was_killed_before_its_config_can_be_repeated(config):
    path = Path(config.out)
    path.mkdir(parents=True)
    (path / "lock").write_text("123")
    (path / "config.json.tmp").write_text('{"pre')
    with RunFolder.open(config, []) as run:
        assert not run.resumed


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 3}', "\x00\xff"])
def test_damaged_config_is_refused(config, content):
    path = Path(config.out)
    path.mkdir(parents=True)
    (path / "config.json").write_text(content)
    for start in (lambda: RunFolder.open(config, []), lambda: RunFolder.open_existing(path)):
        with pytest.raises(UserError, match="nothing was changed"):
            start()
    assert (path / "config.json").read_text() == content


def test_unwritable_places_are_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing/here")):
        config.out = str(place)
        with pytest.raises(UserError, match="cannot write there"):
            RunFolder.open(config, [])


def test_open_existing_reads_and_never_writes(config, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open_existing(tmp_path)
    with RunFolder.open(config, []) as run:
        run.append_metrics({"step": 1})
        looking = RunFolder.open_existing(run.path)  # while another process trains
        assert looking.read_metrics() == [{"step": 1}]
        before = everything(run.path)
        looking.log("only to the terminal")
        for write in (lambda: looking.append_metrics({}), lambda: looking.append_evaluation({}),
                      lambda: looking.truncate_to(0), looking.mark_done):
            with pytest.raises(RuntimeError):
                write()
        assert everything(run.path) == before


def test_rows_are_strict_json(config):
    with RunFolder.open(config, []) as run:
        run.append_metrics({"step": 1, "loss": float("nan"), "lr": torch.tensor(0.5)})
        run.append_evaluation({"step": 1, "by_turn": {"0-30": {"ssim": float("-inf")}},
                               "list": (1, float("inf"))})
        for line in (run.path / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the file"))
        assert run.read_metrics() == [{"step": 1, "loss": None, "lr": 0.5}]
        assert run.read_evaluations() == [
            {"step": 1, "by_turn": {"0-30": {"ssim": None}}, "list": [1, None]}]


def test_truncate_drops_later_and_torn_lines(config):
    with RunFolder.open(config, []) as run:
        for step in (10, 20, 30):
            run.append_metrics({"step": step})
        run.append_evaluation({"step": 30})
        run.mark_done()
        assert run.is_done
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 20, "lo')
        run.truncate_to(20)
        run.append_metrics({"step": 30, "again": True})
        assert run.read_metrics() == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]
        assert run.read_evaluations() == [] and not run.is_done


def test_log_goes_to_terminal_and_file(config, capsys):
    with RunFolder.open(config, ["--seed", "1"]) as run:
        run.log("hello\nworld")
    assert capsys.readouterr().out == "hello\nworld\n"
    lines = (run.path / "log.txt").read_text().splitlines()
    assert lines[0].startswith("--- python -m posemodel.train --seed 1")
    assert lines[1:] == ["hello", "world"]


_HOLDER = """
import os, sys, time
from posemodel.engine.run_folder import RunFolder
from posemodel.config.presets import quick
config = quick()
config.steps, config.evaluate_every = 900, 300
config.out = sys.argv[1]
run = RunFolder.open(config, [])
worker = os.fork()
if worker == 0:
    time.sleep(60)
print(os.getpid(), worker, flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time_and_no_lock_outlives_its_process(config):
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, config.out], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)
    worker = None
    try:
        pid, worker = map(int, holder.stdout.readline().split())
        with pytest.raises(UserError, match=rf"another process \(pid {pid}\)"):
            RunFolder.open(config, [])
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # a data worker that lives on does not hold the folder
        with RunFolder.open(config, []) as run:
            assert run.resumed
    finally:
        holder.kill()
        if worker:
            os.kill(worker, signal.SIGKILL)


def test_closing_gives_the_folder_free(config):
    first = RunFolder.open(config, [])
    with pytest.raises(UserError, match="another process"):
        RunFolder.open(config, [])
    first.close()
    RunFolder.open(config, []).close()
