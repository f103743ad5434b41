"""A command's memory in large pages: begun anew where that helps, left alone where it does not."""

import os
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from posemodel.runtime import large_pages


class Restarted(Exception):
    pass


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`python -W error -m posemodel.train --seed 1`, where large pages are to be asked for."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("posemodel.train", None))
    monkeypatch.setattr(sys, "orig_argv",
                        ["python", "-W", "error", "-m", "posemodel.train", "--seed", "1"])
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(large_pages, "_MODE", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    calls = []

    def execute(program, words):
        calls.append((program, words))
        raise Restarted

    monkeypatch.setattr(os, "execv", execute)
    return calls


def test_the_same_command_with_the_same_words(command):
    with pytest.raises(Restarted):
        large_pages.restart_with_large_pages()
    assert command == [(sys.executable, [sys.executable, "-W", "error", "-m", "posemodel.train",
                                         "--seed", "1"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    large_pages.restart_with_large_pages()  # what it does then: nothing
    assert len(command) == 1


def test_the_users_own_tunables_stay(command, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    with pytest.raises(Restarted):
        large_pages.restart_with_large_pages()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("case", ["user", "always", "never", "no kernel", "musl", "old", "program",
                                  "script"])
def test_nothing_where_it_has_no_effect(case, command, monkeypatch, tmp_path):
    mode = tmp_path / "enabled"
    if case == "user":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    elif case == "always":
        mode.write_text("[always] madvise never\n")
    elif case == "never":
        mode.write_text("always madvise [never]\n")
    elif case == "no kernel":
        mode.unlink()
    elif case == "musl":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    elif case == "old":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.34"))
    elif case == "program":
        other = ModuleSpec("pytest.__main__", None)
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", other)
    else:
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    large_pages.restart_with_large_pages()
    assert command == []


# `python -m posemodel.data --help`, which prints in place of starting itself again.
TRACED = """
import os, runpy, sys
os.execv = lambda program, words: print(words[1:], os.environ["GLIBC_TUNABLES"])
sys.orig_argv = ["python", "-m", "posemodel.data", "--help"]
sys.argv = ["data", "--help"]
runpy.run_module("posemodel.data", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(not large_pages._has_effect(), reason="large pages are not to be had by asking")
def test_a_command_asks_first():
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True,
                          check=True, env={**os.environ, "GLIBC_TUNABLES": ""})
    assert done.stdout.startswith("['-m', 'posemodel.data', '--help'] glibc.malloc.hugetlb=1\n")
