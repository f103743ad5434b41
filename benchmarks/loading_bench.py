"""How fast pairs come, and what holds them up: ``python benchmarks/loading_bench.py``.

From disk: generated people are written as JPEG files into a temporary folder, and read from the
system's cache. Files of photographs hold more detail and take longer to decode. ``mannequins`` are
the same people made anew for every batch, as training on them does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from posemodel.data.augmentation import Augmentation, augment, draw
from posemodel.data.images import read_image
from posemodel.data.layouts import LAYOUTS
from posemodel.data.pair_loader import PairLoader
from posemodel.data.reading import open_pairs
from posemodel.data.synthesize import SynthesisPlan, synthesize
from posemodel.mannequins.pairs import BACKGROUNDS, Mannequins
from posemodel.poses.maps import pose_maps
from posemodel.runtime.output import surviving

#: Rows and columns of the images of a layout on disk.
SIZES = {kind: layout.frame for kind, layout in LAYOUTS.items()}
GFLA = Augmentation(flip=True, rotate=5.0, scale=0.05, shift=0.04)


class Hop(torch.utils.data.Dataset):
    """The pixels of one batch again and again: nothing but the way between two processes."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pixels.clone()


def seconds(call, least: float, device: torch.device) -> float:
    """Median time of a call, repeated for at least so many seconds."""
    times = []
    call()
    while sum(times) < least or len(times) < 3:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def stages(loader: PairLoader, batch_size: int, least: float) -> dict[str, float]:
    """Milliseconds for a pair: `decode` and `resize` in a worker, the others where it is trained.

    `transfer` is the way from a worker to float pixels on the device.
    """
    pairs, device = loader.pairs, loader.device
    chosen = np.arange(batch_size) % len(pairs.pairs)
    paths = [pairs.path(image) for image in pairs.pairs[chosen].flatten()]
    files = [read_image(path) for path in paths]
    part = loader.images[chosen]
    batch = loader.on_device(part)
    height, width = loader.view.image_size
    draws = draw(GFLA, seed=0, positions=range(batch_size), aspect=width / height)
    sent = iter(DataLoader(Hop(part["images"]), sampler=range(10**9), batch_size=None,
                           num_workers=1, pin_memory=device.type == "cuda"))
    calls = {
        "decode": lambda: [read_image(path) for path in paths],
        "resize": lambda: [loader.view.picture(file) for file in files],
        "transfer": lambda: loader.on_device({**part, "images": next(sent)}),
        "augment": lambda: augment(batch, draws),
        "pose maps": lambda: [pose_maps(batch[f"{name}_pose"], (height, width), 6.0)
                              for name in ("source", "target")],
    }
    return {name: 1e3 * seconds(call, least, device) / batch_size for name, call in calls.items()}


def stream_rate(loader: PairLoader, batch_size: int, least: float) -> float:
    """Pairs per second of `PairLoader.stream`, after the first batches."""
    batches = (np.arange(first, first + batch_size) % len(loader.pairs.pairs)
               for first in range(0, 10**9, batch_size))
    stream = loader.stream(batches)
    for _ in range(2 * loader.workers + 1):
        next(stream)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < least:
        next(stream)
        count += batch_size
    return count / spent


def measure_mannequins(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Pairs per second of `Mannequins.pairs`, by the side of the images."""
    firsts = itertools.count(0, args.batch)
    rates = {}
    for side in args.sizes:
        data = Mannequins(size=(side, side), background=args.background, device=device)

        def make(data: Mannequins = data) -> None:
            first = next(firsts)
            data.pairs(range(first, first + args.batch))

        rates[str(side)] = args.batch / seconds(make, args.seconds, device)
    return rates


def measure_layout(kind: str, args: argparse.Namespace, device: torch.device) -> dict:
    """Everything about one layout; the images are made for it and deleted again."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / kind
        synthesize(root, SynthesisPlan(layout=kind, pairs=args.pairs, test_pairs=2, seed=0,
                                       held_out_seed=1), progress=lambda done, total: None)
        pairs = open_pairs(root, "train")
        loaders = {workers: PairLoader(pairs, image_size=SIZES[kind], workers=workers,
                                       device=device) for workers in args.workers}
        alone = PairLoader(pairs, image_size=SIZES[kind], device=device)
        return {
            "file_bytes": statistics.mean(pairs.path(i).stat().st_size
                                          for i in range(len(pairs.names))),
            "ms_per_pair": stages(alone, args.batch, args.seconds),
            "pairs_per_second": {str(workers): stream_rate(loader, args.batch, args.seconds)
                                 for workers, loader in loaders.items()},
        }


def bound(ms: dict[str, float]) -> str:
    """What holds the loading up, in one line."""
    worker = ms["decode"] + ms["resize"]
    trainer = ms["transfer"] + ms["augment"]
    slower = max(("decode", "resize"), key=ms.get)
    return (f"a core delivers {1e3 / worker:.0f} pairs/s, {ms[slower] / worker:.0%} of its time is "
            f"{slower}; the training process can take {1e3 / trainer:.0f} pairs/s, so that more "
            f"than {max(1, round(worker / trainer))} workers gain nothing")


def report_layout(kind: str, figures: dict) -> str:
    """The figures of one layout as lines."""
    height, width = SIZES[kind]
    ms, rates = figures["ms_per_pair"], figures["pairs_per_second"]
    lines = [f"{kind}, {height} x {width}, files of {figures['file_bytes'] / 1024:.0f} KiB"]
    lines += [f"  {name:<10}{value:8.3f} ms a pair" for name, value in ms.items()]
    lines += [f"  {workers} workers{rate:9.1f} pairs/s, {2 * rate:.1f} images/s"
              for workers, rate in rates.items()]
    lines.append(f"  pose maps of {1e3 / ms['pose maps']:.0f} pairs a second")
    return "\n".join([*lines, f"  {bound(ms)}"])


def report_mannequins(rates: dict[str, float]) -> str:
    return "\n".join(["mannequins, made anew", *(f"  {side} x {side}{rate:9.1f} pairs/s"
                                                 for side, rate in rates.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = (*SIZES, "mannequins")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--pairs", type=int, default=64, help="pairs written to disk")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256],
                        help="sides of the images of mannequins")
    parser.add_argument("--background", choices=BACKGROUNDS, default="white",
                        help="of mannequins")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each figure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the training process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    figures = {}
    for kind in args.kinds:
        if kind == "mannequins":
            figures[kind] = measure_mannequins(args, device)
            print(report_mannequins(figures[kind]), flush=True)
        else:
            figures[kind] = measure_layout(kind, args, device)
            print(report_layout(kind, figures[kind]), flush=True)
    if args.json is not None:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    with surviving():
        main()
