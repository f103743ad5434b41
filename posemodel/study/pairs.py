"""The pictures of a study: test pairs of runs, or image folders with the same file names."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posemodel.data.images import read_image
from posemodel.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

    from posemodel.data.source import HeldOut
    from posemodel.engine.run_folder import RunFolder

_KINDS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_BATCH = 8

Pictures = dict[str | tuple[str, str], np.ndarray]


def parse_methods(words: list[str]) -> dict[str, Path]:
    """`name=path` words. Raises: `UserError`."""
    methods: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise UserError(f"--methods {word}: expected NAME=RUN_OR_FOLDER")
        if name in methods:
            raise UserError(f"--methods: {name} is there twice")
        if not Path(path).is_dir():
            raise UserError(f"--methods {word}: there is no folder {path}")
        methods[name] = Path(path)
    if len(methods) < 2:
        raise UserError("--methods: a comparison takes at least two")
    return methods


def collect_pairs(methods: dict[str, Path], *, count: int, seed: int, show: str,
                  source: Path | None, target: Path | None, device: str) -> dict[str, Pictures]:
    """`count` pairs, chosen at random from those that all methods have, by name.

    Returns: for each pair its "source", its "target" and a `("result", method)` for each method,
    `[H, W, 3]` uint8. Raises: `UserError`.
    """
    if count < 1:
        raise UserError(f"--pairs {count}: expected at least 1")
    runs = {name: path for name, path in methods.items() if (path / "config.json").is_file()}
    folders = {("result", name): path for name, path in methods.items() if name not in runs}
    if runs and (source or target):
        raise UserError("--source and --target are for studies without a run; here they come from "
                        "the run's test pairs")
    if not runs:
        if source is None or target is None:
            raise UserError("no method is a run: give the folders of the persons and of the real "
                            "pictures with --source and --target")
        folders |= {"source": source, "target": target}
    files = {name: _image_files(path) for name, path in folders.items()}
    available = _numbers(next(iter(runs.values()))) if runs else None
    for stems in files.values():
        available = set(stems) if available is None else available & set(stems)
    if len(available) < count:
        hint = ("; beside a run, images are named by the number of the test pair, 000000.png "
                "and so on") if runs and files else ""
        fewer = f"; --pairs {len(available)} takes them all" if available else ""
        raise UserError(f"--pairs {count}: the methods have {len(available)} pairs in "
                        f"common{fewer}{hint}")
    chosen = sorted(random.Random(seed).sample(sorted(available), count))
    pairs: dict[str, Pictures] = {
        name: {key: read_image(stems[name]) for key, stems in files.items()} for name in chosen}
    if runs:
        _add_runs(pairs, runs, show, device)
    return pairs


def _image_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _KINDS:
            if path.stem in files:
                raise UserError(f"{folder} has both {files[path.stem].name} and {path.name}")
            files[path.stem] = path
    if not files:
        raise UserError(f"{folder} has no images and is no run folder")
    return files


def _numbers(run: Path) -> set[str]:
    import torch

    _, held_out = _open(run, torch.device("cpu"))
    return {_name(pair) for batch in held_out.batches for pair in batch}


def _open(path: Path, device: "torch.device") -> "tuple[RunFolder, HeldOut]":
    from posemodel.data.source import open_held_out
    from posemodel.engine.run_folder import RunFolder

    run = RunFolder.open_existing(path)
    data = run.config.data
    return run, open_held_out(data, device, data.evaluation_pairs, split="test",
                              positions=run.config.flow_positions)


def _add_runs(pairs: dict[str, Pictures], runs: dict[str, Path], show: str, device: str) -> None:
    """Every run on the same test pairs, those of the first one."""
    import torch

    from posemodel.engine.trained import load_trained
    from posemodel.pictures.pixels import to_pictures
    from posemodel.runtime.environment import choose_device

    here, _ = choose_device(device)
    numbers = np.array(sorted(map(int, pairs)))
    batches = [numbers[first : first + _BATCH] for first in range(0, len(numbers), _BATCH)]
    which: dict[tuple, str] = {}
    for name, path in runs.items():
        run, held_out = _open(path, here)
        data = run.config.data
        which.setdefault((data.kind, data.image_size, data.fit, data.turn, data.background,
                          data.hidden_joints, held_out.fingerprint()), name)
        if len(which) > 1:
            raise UserError(f"the runs {' and '.join(which.values())} have different test "
                            "pairs: their --data settings differ")
        model, _ = load_trained(run, here)
        for batch in held_out.stream(batches):
            with torch.inference_mode():
                made = model(batch["source"], batch["source_pose"], batch["target_pose"])
            shown = {"source": batch["source"], "target": batch["target"],
                     ("result", name): made.image if show == "refined" else made.warped}
            shown = {key: to_pictures(images) for key, images in shown.items()}
            for k, pair in enumerate(batch["pair"].tolist()):
                pairs[_name(pair)].update({key: images[k] for key, images in shown.items()})
        missing = [pair for pair, pictures in pairs.items() if ("result", name) not in pictures]
        if missing:
            raise UserError(f"{path}: {len(missing)} of its test pairs cannot be read; check "
                            "the data set with python -m posemodel.data check")


def _name(pair: int) -> str:
    return f"{pair:06d}"

