"""From a command's `main` to an exit code."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from posemodel.runtime.errors import UserError
from posemodel.runtime.large_pages import restart_with_large_pages
from posemodel.runtime.output import surviving


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command and exit: 0 done, 2 the user's mistake in one line, 130 Ctrl-C, 1 our fault or
    a place to print to that cannot be written."""
    restart_with_large_pages()
    # OpenMP threads spin while they wait for each other. By default a second busy process on the
    # machine makes training ten times slower; this way it gets its share and no more. It has to be
    # said before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with surviving() as stdout:
        try:
            code = main(sys.argv[1:])
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        stdout.flush()
        if stdout.failure is not None:
            print("error: not all that was to be printed could be written "
                  f"({stdout.failure.strerror})", file=sys.stderr)
            code = code or 1
    sys.exit(code)
