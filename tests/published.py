"""Files of published weights, of the right shapes and of small random values, and no network."""

import os
from pathlib import Path

import pytest
import torch

from posemodel.runtime.backbones import Backbone
from posemodel.runtime.weights import VARIABLE

REAL = os.environ.pop(VARIABLE, "")
"""a folder of real weights, where the variable names one; no other test is to find them"""

def tensors(network: Backbone, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights that keep the size of the signal. The values of a filter's window are one and the
    same, so that a file of them is small."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in network.layers().state_dict().items():
        shape = value.shape
        if len(shape) == 1:
            found[f"features.{name}"] = 0.1 * torch.randn(shape, generator=generator)
            continue
        window = torch.randn(*shape[:2], 1, 1, generator=generator)
        scale = (2 / shape[1]) ** 0.5 / (shape[2] * shape[3]) ** 0.75
        found[f"features.{name}"] = (scale * window).expand(shape)
    return found


def write(folder: Path, network: Backbone, name: str = "", **changes: torch.Tensor | None) -> Path:
    """A file of them, by its plain name or another; a change of None leaves a tensor out."""
    file = folder / (name or network.plain)
    values = {**tensors(network), **changes}
    torch.save({name: value for name, value in values.items() if value is not None}, file)
    return file


def without_network(monkeypatch: pytest.MonkeyPatch, hub: Path) -> Path:
    """An empty cache of torch hub, no download, no variable; returns the folder of the cache."""
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.delenv(VARIABLE, raising=False)
    cache = hub / "checkpoints"
    cache.mkdir(parents=True)
    return cache
