"""`--compile` without what it calls: one line, before anything is written."""

import os
import shutil
import sys

import pytest

from posemodel.runtime import compilers
from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from posemodel.train import main as train_main
from tests.tiny import FLAGS


def says(device_type="cpu"):
    with pytest.raises(UserError) as raised:
        compilers.check_torch_compile(device_type)
    message = str(raised.value)
    assert len(message.splitlines()) == 1 and message.endswith("or train without it")
    return message


@pytest.fixture
def no_compilers(tmp_path, monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_no_compiler(no_compilers, monkeypatch):
    assert "--compile takes a C++ compiler, and there is no g++: install one" in says()
    assert "a C compiler, and there is no gcc or clang: install one" in says("cuda")
    monkeypatch.setenv("CXX", "clang++-99 -stdlib=libc++")
    assert "CXX=clang++-99 -stdlib=libc++ is not there" in says()
    with pytest.raises(UserError, match="without it the program needs none"):
        compilers.check_aot_inductor()


def test_a_compiler_that_lacks_something(no_compilers):
    broken = no_compilers / "g++"
    broken.write_text("#!/bin/sh\necho '<stdin>:1:10: fatal error: Python.h: No such file' >&2\n"
                      "exit 1\n")
    broken.chmod(0o755)
    assert "cannot compile a program of Python.h, omp.h (<stdin>:1:10: fatal error: Python.h: No " \
        "such file): install what is missing" in says()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_compiler_that_works(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    compilers.check_torch_compile("cpu")
    monkeypatch.setenv("CXX", f"{shutil.which('g++')} -O1")
    compilers.check_torch_compile("cpu")
    compilers.check_aot_inductor()


def test_training_leaves_no_folder(no_compilers, monkeypatch, capsys):
    out = no_compilers / "runs" / "compiled"
    monkeypatch.setattr(sys, "argv", ["train", *FLAGS, "--out", str(out), "--compile"])
    with pytest.raises(SystemExit) as stop:
        run_main(train_main)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not out.parent.exists()
    assert printed.err.startswith("error: --compile takes a C++ compiler")
    assert len(printed.err.splitlines()) == 1 and os.environ["PATH"] == str(no_compilers)
