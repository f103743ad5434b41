"""The processes that decode images: how they start, answer, fail and end.

Nobody waits for one forever. One that cannot allocate shared memory says so in the place of a
batch, one that dies is noticed, one that does not answer in time is ended; each is one line
that says how to go on. They only read, so ending them loses nothing.
"""

import contextlib
import copy
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from posemodel.runtime.errors import UserError

# Seconds that a worker goes on after SIGTERM; torchrun grants a job as many.
_GRACE = 30
# Semaphores of a queue; there is one for each worker, and two more things of the kind.
_LOCKS = 5
# Seconds that one which was killed has to disappear.
_END = 5
# What torch says where a worker has died, and where it has run out of file descriptors.
_DIED, _NO_FILES = ("DataLoader worker (pid", "Pin memory thread"), "Too many open files"
_WITHOUT = "give --data.workers 0, which needs no other process"


class Flag:
    """What tells workers to end, in the place of `multiprocessing.Event`.

    That one has a lock, which a worker takes whenever it looks. Killed at that moment it keeps the
    lock, and whoever sets the flag then waits forever. One byte needs none.
    """

    def __init__(self):
        self._value = RawValue("b")

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)


class NoSharedMemory(RuntimeError):
    """A batch does not fit into the shared memory that is left; the message says what to do."""


def start_worker(_index: int) -> None:
    """The first thing that a worker does."""
    # Ctrl-C and torchrun signal a whole group of processes; the training process alone decides.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster signals each process, while the training one needs batches to end its step.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    # What was inherited is the training process's to clean up; other loaders, for example.
    gc.freeze()


def shared(values: Tensor) -> Tensor:
    """In a worker: the same in shared memory, as it travels; elsewhere as it is.

    Left to the queue, this would happen in a thread of the worker's, whose failure nobody hears of.
    Raises: `NoSharedMemory`.
    """
    if get_worker_info() is None:
        return values
    try:
        return values.share_memory_()
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise NoSharedMemory(
            f"no shared memory for a batch of {values.nbytes / 2**20:.1f} MiB ({reason}): give "
            "--data.workers 0, which needs none, or enlarge /dev/shm (of a container: "
            "--shm-size 1g)") from error


def parts(loader: DataLoader, *, limit: float) -> Iterator[dict]:
    """What a loader gives. Its processes end with this iterator, whatever state they are in.

    Args:
        limit: seconds that a batch may take.

    Raises: `UserError` where a worker cannot be started, dies or does not answer in time.
    """
    if not loader.num_workers:
        yield from loader
        return
    before = set(multiprocessing.active_children())
    try:
        # Semaphores lie in shared memory, too. Where there is no room for them, the loader would
        # fail half made, which prints a traceback when it is cleared away.
        _probe = [multiprocessing.Lock() for _ in range(_LOCKS * (loader.num_workers + 2))]
        del _probe
        loader.multiprocessing_context = _context()
        with _deaths_unheard():
            stream = iter(loader)
    except OSError as error:
        raise UserError(f"cannot start {loader.num_workers} processes that decode images "
                        f"({error.strerror or error}; is /dev/shm full?): {_WITHOUT}") from error
    workers = set(multiprocessing.active_children()) - before
    try:
        while (part := _next(stream, workers, limit)) is not None:
            yield part
    finally:
        with _deaths_unheard():
            _end(workers)


def _next(stream: Iterator[dict], workers: set[BaseProcess], limit: float) -> dict | None:
    late = threading.Event()

    def give_up() -> None:
        late.set()
        # Their death wakes whoever waits for them, at whatever point of the conversation.
        for worker in workers:
            worker.kill()

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        return next(stream, None)
    except (RuntimeError, OSError, EOFError) as error:
        if late.is_set():
            raise UserError(f"no batch came from the processes that decode images within {limit:g} "
                            "s: see that the disk with the images answers; wait longer with "
                            f"--timeout, or {_WITHOUT}") from error
        reason = str(error).strip()
        if reason.startswith(_DIED):
            raise UserError(f"a process that decodes images has ended ({reason}): see that there "
                            f"is enough memory for all of them, or {_WITHOUT}") from error
        if _NO_FILES in reason:
            raise UserError(f"too many open files for {len(workers)} processes that decode images: "
                            f"raise the limit with ulimit -n, or {_WITHOUT}") from error
        raise
    finally:
        timer.cancel()


def _context() -> BaseContext:
    """How processes are started here, with a flag that can be set whoever was killed."""
    context = copy.copy(multiprocessing.get_context())
    context.Event = Flag
    return context


def _end(workers: set[BaseProcess]) -> None:
    """Ends processes, also those that hang or are stopped."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_END)


@contextlib.contextmanager
def _deaths_unheard() -> Iterator[None]:
    """Keeps out torch's way to hear of a worker's death, an exception in the main thread wherever
    that is, in the middle of a step too. Whoever waits for the worker finds out by himself, within
    five seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
