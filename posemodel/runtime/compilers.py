"""Whether what torch.compile and AOTInductor call is here: a compiler with the headers it needs."""

import os
import shlex
import shutil
import subprocess
import sysconfig

from posemodel.runtime.errors import UserError

# By language: the variable that names the compiler, and those looked for without it. They are what
# Inductor (C++) and Triton (C) call.
_COMPILERS = {"C++": ("CXX", ("g++",)), "C": ("CC", ("gcc", "clang"))}


def check_torch_compile(device_type: str) -> None:
    """That `train --compile` can work here, found out in a fraction of a second.

    Args:
        device_type: "cpu", where C++ is compiled, or "cuda", where Triton compiles its launchers.

    Raises: `UserError`.
    """
    if device_type == "cpu":
        _check("C++", ("Python.h", "omp.h"), "train without it")
    else:
        _check("C", ("Python.h",), "train without it")


def check_aot_inductor() -> None:
    """The same for `export --compile`. Raises: `UserError`."""
    _check("C++", (), "without it the program needs none")


def _check(language: str, headers: tuple[str, ...], otherwise: str) -> None:
    variable, usual = _COMPILERS[language]
    asked = os.environ.get(variable)
    command = next(filter(shutil.which, [shlex.split(asked)[0]] if asked else usual), None)
    if command is None:
        absent = (f"{variable}={asked} is not there" if asked else
                  f"there is no {' or '.join(usual)}")
        raise UserError(f"--compile takes a {language} compiler, and {absent}: install one, name "
                        f"one in the variable {variable}, or {otherwise}")
    words = [*(shlex.split(asked) if asked else [command]), "-fopenmp", "-fsyntax-only", "-x",
             language.lower(), f"-I{sysconfig.get_path('include')}", "-"]
    program = "".join(f"#include <{header}>\n" for header in headers)
    done = subprocess.run(words, input=program, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise UserError(f"--compile: {command} cannot compile a program of {', '.join(headers)} "
                        f"({said[0].strip()}): install what is missing (python3-dev, g++), or "
                        f"{otherwise}")
