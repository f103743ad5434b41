"""What the paper leaves open, tried on mannequins: one table, from runs of `posemodel.train`.

    python benchmarks/experiments.py                         # every variant, one seed
    python benchmarks/experiments.py default affine-0 --seeds 3
    python benchmarks/experiments.py refine-paper+head-3 head-3+steps-400 --json docs/NAME.json
    python benchmarks/experiments.py --read docs/NAME.json

Each run is an ordinary run folder under --out; the same command again goes on where it stopped.
Variants joined by + are one run with the flags of all. --json keeps every run's last evaluation,
and what made it. They are measured on validation pairs, for defaults are chosen by them: results to
show are measured again, on test pairs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from posemodel.config.presets import quick

JOINTS_ALONE = "--model.limb-sigma 0 --loss.joint-weight 0 --loss.affine-background 1"
BARE = "--model.flow-parametrization residual --loss.warped-weight 0 " + JOINTS_ALONE

# Name -> flags of `posemodel.train`, what is changed in the preset.
VARIANTS = {
    "default": "",
    # The defaults before the joint loss, and before the finer grid of small images; then each of
    # what came with them taken back.
    "joints-alone": JOINTS_ALONE,
    "grid-16": "--model.flow-stride 4 --model.pose-sigma 6 --model.feature-channels 35 "
               "--model.flow-channels 96 96 64 48 32 " + JOINTS_ALONE,
    "joint-0": "--loss.joint-weight 0",
    "joint-3": "--loss.joint-weight 3",
    "background-1": "--loss.affine-background 1",
    "limbs-0": "--model.limb-sigma 0",
    "limbs-15": "--model.limb-sigma 15",
    "stride-4": "--model.flow-stride 4",
    "stride-2": "--model.flow-stride 2 --model.refine-downsamplings 1",     # of paper-small
    "sigma-6": "--model.pose-sigma 6",
    "features-35": "--model.feature-channels 35",
    "head-wide": "--model.flow-channels 96 96 64 48 32",
    "flow-matching": "--model.flow-parametrization matching",
    "flow-residual": "--model.flow-parametrization residual",
    "flow-absolute": "--model.flow-parametrization absolute",
    # No match to start from and no loss that the paper has not, but for the pyramid in the place of
    # VGG-19; both tasks in each step. With and without the affine one.
    "bare": BARE,
    "bare-affine-0": BARE + " --loss.affine-weight 0",
    "affine-0": "--loss.affine-weight 0",
    # Of paper-small: the mean over x and y of 16 x 16 cells in the place of their sum.
    "affine-mean": "--loss.affine-weight 1.953125e-06",
    "affine-0.3": "--loss.affine-weight 0.3",
    "affine-3": "--loss.affine-weight 3",
    "affine-10": "--loss.affine-weight 10",
    "warped-0": "--loss.warped-weight 0",
    "warped-0-affine-0": "--loss.warped-weight 0 --loss.affine-weight 0",
    "warped-3": "--loss.warped-weight 3",
    "norm-channel": "--model.feature-norm channel",
    "norm-none": "--model.feature-norm none",
    "alternate": "--optim.tasks alternate --steps {twice}",
    "both-tasks": "--optim.tasks joint",
    # No adversarial part, and the loss on joints to the end; gan-0 has neither in phase two.
    "joint-to-the-end": "--optim.phase-one 1",
    "batch-4": "--optim.batch-size 4 --steps {twice}",
    "batch-16": "--optim.batch-size 16 --steps {half}",
    "lr-3e-4": "--optim.lr 3e-4",
    "lr-5e-4": "--optim.lr 5e-4",
    "lr-2e-3": "--optim.lr 2e-3",
    "lr-3e-3": "--optim.lr 3e-3",
    "ema-0": "--optim.ema 0",
    "depth-1": "--model.flow-depth 1",
    "depth-3": "--model.flow-depth 3",
    "encoder-wide": "--model.encoder-channels 32 64 64 64 64 64 64",
    "head-3": "--model.head-kernel 3",
    "refine-paper": "--model.refine paper --model.refine-downsamplings 1",
    "refine-detail": "--model.refine detail",     # blind to the pose
    "refine-narrow": "--model.refine-width 8",
    "refine-wide": "--model.refine-width 24",
    "refine-half": "--model.refine-downsamplings 1",
    "vgg16": "--loss.reconstruction vgg16",
    "vgg16-features": "--loss.reconstruction vgg16-features",
    "background-0": "--loss.affine-background 0",
    "background-0.3": "--loss.affine-background 0.3",
    "pixels-128": "--data.image-size 128 128",
    "still": "--data.background still",
    **{method: f"--model.flow {method}" for method in ("fomm", "mraa", "tpsmm", "gfla32",
                                                       "gfla64")},
    "gan-0": "--loss.adversarial-weight 0",
    "gan-0.1": "--loss.adversarial-weight 0.1 --optim.phase-one 0.6",
    "gan-r1": "--loss.adversarial hinge --loss.adversarial-weight 0.1 --loss.r1-weight 1 "
              "--optim.phase-one 0.6",
}

STEPS = "steps-"
"""steps-N is a variant too"""

COLUMNS = {
    "warped l1": ("warped_l1", 2), "refined l1": ("refined_l1", 2), "SSIM": ("ssim", 3),
    "flow error, px": ("epe_visible", 2), "LPIPS-Alex, warped": ("warped_lpips_alex", 3),
    "LPIPS-Alex, refined": ("refined_lpips_alex", 3),
    "background off, warped": ("warped_background_off", 4),
    "background off, refined": ("refined_background_off", 4),
    "AUC affine": ("visibility_auc_affine", 3), "AUC cycle": ("visibility_auc_cycle", 3),
    "AUC correlation": ("visibility_auc_correlation", 3),
}
"""title -> key of an evaluation, digits"""


def flags_of(name: str, steps: int) -> list[str]:
    """The flags of `posemodel.train` of a variant, or of several joined by +.
    Raises: `ValueError` for one that does not exist."""
    flags, count = [], str(steps)
    for part in name.split("+"):
        if part.startswith(STEPS) and part.removeprefix(STEPS).isdigit():
            words = ["--steps", part.removeprefix(STEPS)]
        elif part in VARIANTS:
            words = VARIANTS[part].format(twice=2 * steps, half=steps // 2).split()
        else:
            raise ValueError(f"no variant is called {part}; variants: {', '.join(VARIANTS)}, "
                             f"{STEPS}N")
        if "--steps" in words:
            at = words.index("--steps")
            count = words[at + 1]
            del words[at : at + 2]
        flags += words
    # The table has the last evaluation alone.
    return [*flags, "--steps", count, "--evaluate-every", count]


def train(name: str, seed: int, arguments: argparse.Namespace) -> dict:
    """One run; returns its row: variant, seed, command, last evaluation."""
    flags = [arguments.preset, *flags_of(name, arguments.steps), "--seed", str(seed)]
    out = Path(arguments.out) / f"{name}-{arguments.steps}-{seed}"
    places = ["--weights", arguments.weights] if arguments.weights else []
    command = [sys.executable, "-m", "posemodel.train", *flags, *places, "--out", str(out)]
    # Several single-threaded runs side by side finish sooner than one after the other.
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    row = json.loads((out / "eval.jsonl").read_text().splitlines()[-1])
    # Without its parts, by turn and by body part.
    row = {key: value for key, value in row.items()
           if key == "lpips" or not isinstance(value, dict)}
    return {"variant": name, "seed": seed,
            "command": " ".join(["python -m posemodel.train", *flags]), "evaluation": row}


def line(name: str, rows: list[dict]) -> str:
    """A row of the Markdown table: the mean over seeds, and the spread where there are several."""
    cells = []
    for key, digits in COLUMNS.values():
        values = [row["evaluation"].get(key) for row in rows]
        if None in values:
            cells.append("")
            continue
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


def show(rows: list[dict]) -> None:
    """The table of what --json kept."""
    print(HEAD)
    for name in dict.fromkeys(row["variant"] for row in rows):
        print(line(name, [row for row in rows if row["variant"] == name]))


HEAD = "| variant | " + " | ".join(COLUMNS) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}, {STEPS}N, or "
                        "several joined by + (default: each of them alone)")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=quick().steps)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--weights", default="", help="folder of published weights, for LPIPS")
    parser.add_argument("--out", default="runs/experiments")
    parser.add_argument("--json", type=Path, help="write every run's last evaluation")
    parser.add_argument("--read", type=Path, help="show what --json wrote; train nothing")
    arguments = parser.parse_args()
    if arguments.read:
        show(json.loads(arguments.read.read_text())["rows"])
        return
    if arguments.json and arguments.json.exists():
        parser.error(f"{arguments.json} exists; remove it, or give another name")
    names = arguments.variants or list(VARIANTS)
    try:
        for name in names:
            flags_of(name, arguments.steps)
    except ValueError as error:
        parser.error(str(error))
    print(HEAD, flush=True)
    made = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {name: [pool.submit(train, name, seed, arguments)
                       for seed in range(arguments.seeds)] for name in names}
        for name, futures in runs.items():
            rows = [future.result() for future in futures]
            made += rows
            print(line(name, rows), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
