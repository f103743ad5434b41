"""Memory in large pages, where the C library has to be told before a process begins."""

import os
import platform
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_large_pages() -> None:
    """Begin this command anew, as the same process, with its heap in large pages.

    A training step on a CPU takes and gives back hundreds of tensors of megabytes. In pages of
    4 KiB a good part of it goes to faults and to the search of page tables, most of all in a
    virtual machine. glibc asks for large ones only if its tunable says so when the process starts.
    Nothing is done where that has no effect (another C library, a kernel that gives large pages to
    all or to none), where the user has set the tunable, or where this is not a command of the
    package itself, such as in a test or under a debugger.
    """
    if not _is_own_command() or not _has_effect():
        return
    others = os.environ.get("GLIBC_TUNABLES")
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [others, f"{_TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_own_command() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("posemodel.") and bool(sys.executable)


def _has_effect() -> bool:
    library, version = platform.libc_ver()
    if library != "glibc" or _numbers(version) < (2, 35):
        return False
    if _TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        return "[madvise]" in _MODE.read_text(encoding="ascii")
    except OSError:  # a kernel without large pages
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
