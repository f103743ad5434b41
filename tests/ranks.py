"""Training processes for the tests, forked from a server that has imported torch once."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["posemodel.engine.journal", "torch._dynamo", "tests.tiny"])


def start(argv: list[str], *, size: int = 1, log: Path,
          before: Callable[[int], None] | None = None) -> list[multiprocessing.Process]:
    """`python -m posemodel.train ARGV` in each of `size` processes, as torchrun would start them.

    What rank n prints goes to LOG.n. `before(rank)`, a function of a module, runs first: it may
    break something. A single process has as many threads as this one, since the bits of torch's
    convolutions may depend on them; several have one each.
    """
    threads = torch.get_num_threads() if size == 1 else 1
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        _server.Process(target=_train, args=(rank, threads, job, argv, f"{log}.{rank}", before))
        for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def run(argv: list[str], **options) -> list[int]:
    """The same, waiting for the end; returns the exit codes, minus the signal for a killed one."""
    return [end(process) for process in start(argv, **options)]


def end(process: multiprocessing.Process, seconds: float = 240) -> int:
    """The exit code, once there is one; a process that does not end in time is killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"still at work after {seconds} s")
    return process.exitcode


def _train(rank: int, threads: int, job: dict, argv: list[str], log: str, before) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    from posemodel.runtime.main import run_main
    from posemodel.train import main

    torch.set_num_threads(threads)
    if before is not None:
        before(rank)
    sys.argv = ["train", *argv]
    run_main(main)
