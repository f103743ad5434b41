"""Every test starts from the same seed; tests marked `gpu` need a CUDA device; all tests together
run in two processes."""

import os

import pytest
import torch

import tests.published  # noqa: F401, which keeps real weights away from all tests but one

WORKERS = 2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Where neither tests nor a number of processes (`-n`) were named: two, file by file.

    In the order of collection, for the longest files are not those with the most tests. Not where
    there is a GPU, whose memory they would share, nor under a debugger.
    """
    whole = config.args_source is config.ArgsSource.TESTPATHS
    option = config.option
    if (not whole or getattr(option, "numprocesses", 0) is not None or option.usepdb
            or "PYTEST_XDIST_WORKER" in os.environ or torch.cuda.is_available()):
        return
    option.numprocesses, option.dist, option.loadscopereorder = WORKERS, "loadfile", False
    # A test that hangs takes its process along (`faulthandler_timeout`), and again in the next one.
    option.maxworkerrestart = "1"
    # Threads of one process in the way of the other's cost more than they compute.
    threads = max(1, len(os.sched_getaffinity(0)) // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
