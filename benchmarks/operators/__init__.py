"""What corr_bench.py compares, one file per operator, called as the operator: its inputs, its
useful work, and the forms to write it in. A file that is put here is found and measured.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from operation import Operation

NAMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def operator(name: str) -> "Operation":
    """The `OPERATOR` of its file, which loads torch."""
    return import_module(f"operators.{name}").OPERATOR
