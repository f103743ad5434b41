"""Loads the two compiled libraries, and knows why one is missing.

They are apart because a library linked to CUDA does not load under a CPU build of torch. Loading
never touches a GPU.
"""

import json
from pathlib import Path

import torch

_here = Path(__file__).parent


def _read_build_info() -> dict:
    try:
        return json.loads((_here / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


#: What setup.py built: versions, architectures, and per library None or the reason why it was not
# built.
build_info = _read_build_info()


def _load(name: str) -> str | None:
    """Load ``_C_<name>``: None when it worked, otherwise the reason in one sentence."""
    path = _here / f"_C_{name}.so"
    if not path.exists():
        built = build_info.get(name, {}).get("reason")
        return f"{path.name} is not built" + (
            f": {built}" if built else " (run `pip install -e .`)"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    return None


cpu_reason = _load("cpu")
# The CUDA library implements operators that the CPU library declares.
cuda_reason = _load("cuda") if cpu_reason is None else f"it needs the CPU library: {cpu_reason}"
