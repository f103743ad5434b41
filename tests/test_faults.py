"""Real faults, in real processes: kills at random moments, ranks that die, hang, diverge or meet a
NaN, signals, a full disk."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from posemodel.runtime import checkpoint
from posemodel.runtime.errors import UserError
from posemodel.train import main as train_main
from tests import ranks
from tests.tiny import FLAGS

ROOT = Path(__file__).resolve().parents[1]
# How often the long test kills; 30 and more for a thorough look.
KILLS = int(os.environ.get("POSEMODEL_KILLS", 5))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(run):
    """The steps of the checkpoints that can be used; a folder left half written would fail this."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    assert all(checkpoint._is_valid(folder) for folder in folders)
    assert not list((run / "checkpoints").glob(".tmp*"))
    return [int(folder.name.removeprefix("step_")) for folder in folders]


def step_of(checkpoints):
    return [int(path.name[5:11]) for path in checkpoints.glob("step_*")]


def weights(run):
    return checkpoint.load_latest(run / "checkpoints").weights


def same(a, b):
    return a.keys() == b.keys() and all(
        a[net].keys() == b[net].keys() and all(a[net][name].equal(b[net][name]) for name in a[net])
        for net in a)


def wait_for(condition, *processes, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit and all(process.is_alive() for process in processes)
        time.sleep(0.01)


# --- one process ----------------------------------------------------------------------------------


def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    # A checkpoint in every step, so that about every second kill hits one being written.
    flags = [*FLAGS, "--steps", "20", "--checkpoint-every", "1", "--evaluate-every", "10",
             "--loss.adversarial-weight", "0.1", "--optim.phase-one", "0.5"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert ranks.run([*flags, "--out", str(whole)], log=tmp_path / "log") == [0]
    flags, kills, moments = [*flags, "--out", str(run)], 0, random.Random(0)
    while kills < KILLS:
        # Up to three steps after it has begun again, then anywhere in what follows.
        target = max(step_of(run / "checkpoints"), default=0) + moments.randint(0, 3)
        (process,) = ranks.start(flags, log=tmp_path / "log")
        while process.is_alive() and max(step_of(run / "checkpoints"), default=0) < target:
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.2))
        process.kill()
        code = ranks.end(process)
        assert code in (0, -signal.SIGKILL), (tmp_path / "log.0").read_text()
        kills += code != 0
        if code == 0:
            assert same(weights(whole), weights(run))
            shutil.rmtree(run)
    assert ranks.run(flags, log=tmp_path / "log") == [0], (tmp_path / "log.0").read_text()
    assert same(weights(whole), weights(run))
    assert lines(whole / "eval.jsonl") == lines(run / "eval.jsonl")
    losses = [[row["loss"] for row in lines(folder / "metrics.jsonl")] for folder in (whole, run)]
    assert len(losses[0]) == 20 and losses[0] == losses[1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "step_000006.png"])
def test_full_disk_outside_of_checkpoints(name, tmp_path, monkeypatch):
    run, opened = tmp_path / "run", Path.open
    flags = [*FLAGS, "--out", str(run)]

    def full(path, mode="r", *rest, **options):
        if path.name == name and mode != "r" and steps(run)[-1:] >= [4]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    if name.endswith(".png"):
        monkeypatch.setattr("PIL.Image.Image.save", lambda image, path, *rest, **options: full(
            Path(path), "w"))
    with pytest.raises(UserError, match="cannot write into .*No space left on device.*continues"):
        train_main(flags)
    assert steps(run)[-1] >= 4
    monkeypatch.undo()
    assert train_main(flags) == 0
    assert len(lines(run / "eval.jsonl")) == 2 and len(lines(run / "metrics.jsonl")) == 6


def test_a_disk_that_is_read_only(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="--out .*: cannot write there .Read-only file system"):
        train_main([*FLAGS, "--out", str(run)])
    assert not run.exists()


def hanging_evaluation(step, _rank):
    from posemodel.engine import journal

    original = journal.write_samples

    def hang(*model, title, split):
        if title == f"step {step}":
            time.sleep(1000)
        original(*model, title=title, split=split)

    journal.write_samples = hang


def hanging_start(_rank):
    from posemodel.engine.trainer import Trainer

    def hang(*_):
        print("hanging", flush=True)
        time.sleep(1000)

    Trainer.__init__ = hang


@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_breaks_off_an_evaluation_which_is_made_later(step, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_main([*FLAGS, "--out", str(whole)]) == 0
    flags = [*FLAGS, "--checkpoint-every", "100", "--out", str(run)]
    (process,) = ranks.start(flags, log=tmp_path / "log", before=partial(hanging_evaluation, step))
    wait_for(lambda: len(lines(run / "metrics.jsonl")) == step, process)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert ranks.end(process, seconds=60) == 143 and time.monotonic() - began < 10
    assert steps(run) == [step] and not (run / "DONE").exists()
    assert train_main(flags) == 0
    assert same(weights(whole), weights(run)) and (run / "DONE").exists()
    assert lines(whole / "eval.jsonl") == lines(run / "eval.jsonl")


def test_a_signal_before_the_first_step_ends_at_once_and_leaves_nothing(tmp_path):
    (process,) = ranks.start([*FLAGS, "--out", str(tmp_path / "run")], log=tmp_path / "log",
                             before=hanging_start)
    log = tmp_path / "log.0"
    wait_for(lambda: log.exists() and "hanging" in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    assert ranks.end(process, seconds=10) == 143
    assert log.read_text().splitlines()[1:] == [
        "SIGTERM: ended before a step was made; what was saved is as it was"]
    assert not (tmp_path / "run").exists()


# --- two processes --------------------------------------------------------------------------------
# Faults that a rank brings about itself, in step 3; checkpoints are those of step 2.


def _in_step(number, fault):
    from posemodel.engine.trainer import Trainer

    original = Trainer.step

    def step(self, step, batch):
        if number in (step, None):
            fault(self, batch)
        return original(self, step, batch)

    Trainer.step = step


FAULTS = {
    "nan": lambda trainer, batch: batch["target"][0, 0, 0, 0].fill_(float("nan")),
    "kill": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda *_: os.kill(os.getpid(), signal.SIGSTOP),
    "drift": lambda trainer, _: next(trainer.averaged.parameters()).add_(1e-6)}


def faulty(where, fault, rank):
    if rank == where:
        _in_step(3, FAULTS[fault])


def full_disk_in_step_4(rank):
    if rank == 0:
        write = checkpoint._write

        def full(path, content):
            if path.name == "generator.safetensors" and b'"step":"4"' in content[:100_000]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, content)

        checkpoint._write = full


def slow_steps(_rank):
    _in_step(None, lambda *_: time.sleep(0.1))


def job(tmp_path, before, *flags):
    run = tmp_path / "run"
    return run, ranks.start([*FLAGS, *flags, "--out", str(run)], size=2, before=before,
                            log=tmp_path / "log")


def said(tmp_path, rank):
    text = (tmp_path / f"log.{rank}").read_text()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_nan_in_one_process_stops_both_before_the_step(tmp_path):
    run, processes = job(tmp_path, partial(faulty, 1, "nan"), "--optim.batch-size", "4")
    assert [ranks.end(process) for process in processes] == [1, 1]
    for rank in (0, 1):
        (line,) = said(tmp_path, rank)
        assert "the loss of step 3 is nan" in line and "pairs 10 to 11;" in line, line
    assert steps(run) == [2] and [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]
    assert not (run / "DONE").exists()


@pytest.mark.parametrize("fault, left, code", [
    ("kill", 0, -signal.SIGKILL), ("hang", 0, None), ("hang", 1, None)])
def test_a_process_that_dies_or_hangs_ends_the_job(fault, left, code, tmp_path):
    run, processes = job(tmp_path, partial(faulty, 1 - left, fault), "--timeout", "3")
    other = processes[1 - left]
    try:
        began = time.monotonic()
        assert ranks.end(processes[left], seconds=100) == 1
        (line,) = said(tmp_path, left)
        assert f"process {left} of 2 lost contact" in line and "same command continues" in line
        if code is not None:
            assert ranks.end(other) == code
        assert time.monotonic() - began < 100
    finally:
        other.kill()
        other.join()
    assert steps(run) == [2]


def test_processes_that_drifted_apart_save_nothing(tmp_path):
    run, processes = job(tmp_path, partial(faulty, 1, "drift"))
    assert [ranks.end(process) for process in processes] == [1, 1]
    assert "no longer have the same weights" in (tmp_path / "log.0").read_text()
    assert steps(run) == [2]


def test_full_disk_ends_all_and_keeps_what_was_saved(tmp_path):
    run, processes = job(tmp_path, full_disk_in_step_4)
    assert [ranks.end(process) for process in processes] == [2, 2]
    (line,) = said(tmp_path, 0)
    assert "step_000004: No space left on device" in line and said(tmp_path, 1) == []
    assert steps(run) == [2]


def test_a_signal_to_one_process_stops_and_saves_all(tmp_path):
    flags = ["--steps", "100", "--checkpoint-every", "100", "--evaluate-every", "100"]
    run, processes = job(tmp_path, slow_steps, *flags)
    wait_for(lambda: len(lines(run / "metrics.jsonl")) >= 2, *processes)
    # Both have one folder, and nobody else gets it.
    with pytest.raises(UserError, match=rf"another process \(pid {processes[0].pid}\)"):
        train_main([*FLAGS, *flags, "--out", str(run)])
    os.kill(processes[1].pid, signal.SIGINT)
    assert [ranks.end(process) for process in processes] == [130, 130]
    (stopped,) = steps(run)
    assert 2 <= stopped < 100 and lines(run / "metrics.jsonl")[-1]["step"] == stopped
    assert f"stopped by SIGINT after step {stopped}" in (run / "log.txt").read_text()


def test_torchrun_starts_stops_and_continues(tmp_path):
    run = tmp_path / "run"
    flags = [*FLAGS, "--steps", "300", "--checkpoint-every", "300", "--evaluate-every", "300",
             "--out", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone",
                                "--nproc-per-node", "2", "-m", "posemodel.train", *flags], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 90
    while not lines(run / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "SIGTERM: saving after this step" in errors
    (stopped,) = steps(run)
    assert f"stopped by SIGTERM after step {stopped}" in (run / "log.txt").read_text()
    assert lines(run / "metrics.jsonl")[-1]["step"] == stopped < 300
