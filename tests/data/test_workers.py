"""Processes that decode images: too little shared memory, deaths, silence."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from posemodel.data import pair_loader, workers
from posemodel.data.__main__ import main as data_main
from tests.data.test_pair_loader import loader, pair_set, training
from tests.small_datasets import refused
from tests.tiny import FLAGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pairs(tmp_path):
    return pair_set(tmp_path)


def first_of(pairs, monkeypatch, what, *, timeout=60.0):
    """Training batches of two workers, of which each image does `what` in the place of being
    read."""
    monkeypatch.setattr(pair_loader, "read_image", lambda path: what())
    some = training(pairs, workers=2)
    some.loader.timeout = timeout
    return some


def test_too_little_shared_memory_is_one_line(pairs, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space "
                           "left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    some = training(pairs, workers=2)
    refused(r"no shared memory for a batch of 0\.1 MiB \(No space left on device \(28\)\): give "
            "--data.workers 0, .*--shm-size", some.batch, 1)
    assert training(pairs, workers=0).batch(1)["pair"].shape == (6,)


def _own_shared_memory() -> bool:
    try:
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
                              capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@pytest.mark.parametrize(("room", "line"), [("512k", "no shared memory for a batch of"),
                                            ("4k", "cannot start 2 processes")])
def test_training_with_a_tiny_shared_memory_ends_in_one_line(room, line, tmp_path):
    if not _own_shared_memory():
        pytest.skip("no /dev/shm of one's own can be mounted here")
    root = tmp_path / "data"
    assert data_main(["synthesize", str(root), "--layout", "market", "--pairs", "20",
                      "--test-pairs", "6", "--image-rows", "128"]) == 0
    at = FLAGS.index("--data.image-size")
    words = [*FLAGS[:at], *FLAGS[at + 3:], "--data.image-size", "128", "64", "--data.kind",
             "market", "--data.root", str(root), "--optim.batch-size", "8", "--steps", "20",
             "--out", str(tmp_path / "run")]
    script = f'mount -t tmpfs -o size={room} tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m",
                           "posemodel.train", *words], cwd=ROOT, timeout=60, text=True,
                          capture_output=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert line in done.stderr and "--data.workers 0" in done.stderr


def test_more_workers_than_cores_are_no_reason_to_warn(pairs, recwarn):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        training(pairs, workers=2).batch(1)
    finally:
        os.sched_setaffinity(0, cores)
    assert not [each for each in recwarn if "worker" in str(each.message)]


def test_a_worker_that_dies_is_one_line(pairs, monkeypatch):
    some = first_of(pairs, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    refused("a process that decodes images has ended .*--data.workers 0", some.batch, 1)
    assert multiprocessing.active_children() == []


def test_a_worker_killed_while_it_looks_whether_to_end_keeps_nobody_waiting(pairs, monkeypatch):
    """With `multiprocessing.Event` it keeps the lock of the flag that torch then wants to set."""
    here, ask = os.getpid(), workers.Flag.is_set
    monkeypatch.setattr(workers.Flag, "is_set", lambda flag: (
        ask(flag) if os.getpid() == here else os.kill(os.getpid(), signal.SIGKILL)))
    refused("a process that decodes images has ended", training(pairs, workers=2).batch, 1)
    assert multiprocessing.active_children() == []


def test_a_death_that_nobody_waits_for_interrupts_nothing(pairs):
    some = training(pairs, workers=2)
    some.batch(1)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(0.3)  # a step
    with pytest.raises(ValueError, match="has ended"):
        for step in range(2, 20):
            some.batch(step)


@pytest.mark.parametrize("hang", ["read", "stopped"])
def test_a_worker_that_hangs_is_one_line(hang, pairs, monkeypatch):
    def what():
        os.kill(os.getpid(), signal.SIGSTOP) if hang == "stopped" else time.sleep(1000)

    some = first_of(pairs, monkeypatch, what, timeout=0.5)
    began = time.monotonic()
    refused("no batch came .* within 0.5 s: .*--timeout, or give --data.workers 0", some.batch, 1)
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


def test_workers_that_hang_end_with_the_data(pairs, monkeypatch):
    some = training(pairs, workers=2)
    some.batch(1)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    some.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - began < 5


def test_processes_that_cannot_be_started_are_one_line(pairs, monkeypatch):
    def none():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers.multiprocessing, "Lock", none)
    refused("cannot start 2 processes that decode images .No space left on device",
            training(pairs, workers=2).batch, 1)


def test_a_limit_belongs_to_a_batch_and_not_to_the_whole_stream(pairs):
    some = loader(pairs, workers=1, timeout=2.0)
    count = 0
    for _ in some.stream([[0, 1]] * 6):
        time.sleep(0.5)
        count += 1
    assert count == 6
