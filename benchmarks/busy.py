"""Cores that are busy with something else, while a benchmark measures."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Says that it runs, then computes for as long as the process that started it lives.
_WORK = """
import os
print(flush=True)
while os.getppid() == {parent}:
    sum(range(100_000))
"""


@contextlib.contextmanager
def busy(cores: int) -> Iterator[None]:
    """So many processes that compute all the time, at this one's priority, until the block is left
    in whatever way. All of them run when it is entered.

    Raises: RuntimeError when one ended before the block did: what was measured was something else.
    """
    command = [sys.executable, "-c", _WORK.format(parent=os.getpid())]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(cores):
            # A Ctrl-C at the terminal reaches them too; a traceback of theirs says nothing.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            process.stdout.readline()
        yield
        ended = [process.returncode for process in processes if process.poll() is not None]
        if ended:
            raise RuntimeError(f"processes that keep cores busy ended with codes {ended}")
