"""What the paper leaves open, tried on mannequins: one table, from runs of `posemodel.train`.

    python benchmarks/experiments.py                         # every variant, one seed
    python benchmarks/experiments.py default affine-0 --seeds 3

Each run is an ordinary run folder under --out; the same command again goes on where it stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    "sigma-6": "--model.pose-sigma 6",
    "features-35": "--model.feature-channels 35",
    "head-wide": "--model.flow-channels 96 96 64 48 32",
    "flow-residual": "--model.flow-parametrization residual",
    "flow-absolute": "--model.flow-parametrization absolute",
    # Nothing but the paper's losses, and no match to start from: with and without the affine task.
    "bare": BARE,
    "bare-affine-0": BARE + " --loss.affine-weight 0",
    "affine-0": "--loss.affine-weight 0",
    "affine-3": "--loss.affine-weight 3",
    "affine-10": "--loss.affine-weight 10",
    "warped-0": "--loss.warped-weight 0",
    "warped-0-affine-0": "--loss.warped-weight 0 --loss.affine-weight 0",
    "warped-3": "--loss.warped-weight 3",
    "norm-channel": "--model.feature-norm channel",
    "norm-none": "--model.feature-norm none",
    "alternate": "--optim.tasks alternate --steps {twice}",
    "batch-4": "--optim.batch-size 4 --steps {twice}",
    "batch-16": "--optim.batch-size 16 --steps {half}",
    "lr-5e-4": "--optim.lr 5e-4",
    "lr-2e-3": "--optim.lr 2e-3",
    "ema-0": "--optim.ema 0",
    "depth-1": "--model.flow-depth 1",
    "depth-3": "--model.flow-depth 3",
    "encoder-wide": "--model.encoder-channels 32 64 64 64 64 64 64",
    "refine-quarter": "--model.refine-downsamplings 2",
    "refine-wide": "--model.refine-width 32",
    "gan-0": "--loss.adversarial-weight 0",
    "gan-0.1": "--loss.adversarial-weight 0.1 --optim.phase-one 0.6",
}

COLUMNS = {
    "warped / copy": lambda row: row["warped_l1"] / row["copy_l1"],
    "refined / copy": lambda row: row["refined_l1"] / row["copy_l1"],
    "EPE / zero": lambda row: row["epe_visible"] / row["epe_zero"],
    "SSIM": lambda row: row["ssim"],
    "AUC affine": lambda row: row["visibility_auc_affine"],
    "AUC cycle": lambda row: row["visibility_auc_cycle"],
    "AUC correlation": lambda row: row["visibility_auc_correlation"],
    "AUC peak": lambda row: row["visibility_auc_peak"],
}


def train(name: str, seed: int, arguments: argparse.Namespace) -> dict:
    """One run; returns its last evaluation."""
    steps = arguments.steps
    out = Path(arguments.out) / f"{name}-{steps}-{seed}"
    flags = VARIANTS[name].format(twice=2 * steps, half=steps // 2).split()
    if "--steps" not in flags:
        flags += ["--steps", str(steps)]
    command = [sys.executable, "-m", "posemodel.train", arguments.preset, *flags, "--seed",
               str(seed), "--out", str(out)]
    # Several single-threaded runs side by side finish sooner than one after the other.
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads((out / "eval.jsonl").read_text().splitlines()[-1])


def line(name: str, rows: list[dict]) -> str:
    """A row of the Markdown table: the mean over seeds, and the spread where there are several."""
    cells = []
    for value in COLUMNS.values():
        values = [value(row) for row in rows]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    flags = VARIANTS[name].replace("{twice}", "2 x").replace("{half}", "1/2 x")
    return f"| {name} | {f'`{flags}`' if flags else ''} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--out", default="runs/experiments")
    arguments = parser.parse_args()
    names = arguments.variants or list(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"no variant is called {', '.join(unknown)}; variants: {', '.join(VARIANTS)}")
    print("| variant | flags | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {name: [pool.submit(train, name, seed, arguments)
                       for seed in range(arguments.seeds)] for name in names}
        for name, futures in runs.items():
            print(line(name, [future.result() for future in futures]), flush=True)


if __name__ == "__main__":
    main()
