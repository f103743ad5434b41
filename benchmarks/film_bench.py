"""A real person: the methods of Table 1 on one's own film, for the same time, background kept.

    python -m posemodel.data film CLIP... --out data/me
    python benchmarks/film_bench.py data/me --weights DIR --minutes 5 --json docs/film.json
    python benchmarks/film_bench.py --read docs/film.json            # the table again

Each row is an ordinary run of `posemodel.train person` under --out; the same command again goes on
where it stopped. `shipped` is the package's model before the first step, `ours` starts from it,
`ours anew` and the methods of Table 1 start from nothing. A few steps are timed first, with the
same threads and right before the run, and the run then has as many steps as fit into the minutes.
All lay the moved person over the photograph's own background by the same mask, and are measured on
the same test pairs, by which nothing is chosen: target from the last fifth of a shot, source from
before it. With --seeds N, rows are means of N runs, and the spread is theirs.

The rows "from mannequins" (--methods 'ours from mannequins' 'fomm from mannequins' ...) first train
on generated people with the same sizes and losses, for --mannequin-minutes, each method for as long
as the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

RIVALS = {name: ["--model.flow", name] for name in ("fomm", "mraa", "tpsmm", "gfla32")}
METHODS = {"ours": [], "ours anew": ["--init", ""],
           **{name: ["--init", "", *flags] for name, flags in RIVALS.items()}}
FROM_MANNEQUINS = {f"{name} from mannequins": flags
                   for name, flags in {"ours": [], **RIVALS}.items()}
MANNEQUINS = ["--data.kind", "mannequins", "--data.turn", "180", "--data.background", "still",
              "--data.hidden-joints", "drop", "--init", ""]
COLUMNS = {"l1": "l1", "person_l1": "l1, person", "lpips_alex": "LPIPS-Alex",
           "lpips_vgg": "LPIPS-VGG"}
TIMED = 24  # steps
SKIPPED = 8  # of them, while memory is found and workers start


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("root", nargs="?", help="data set of posemodel.data film")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print a table that was written")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *FROM_MANNEQUINS],
                        default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=5.0, help="of training (default: 5)")
    parser.add_argument("--mannequin-minutes", type=float, default=10.0, metavar="M",
                        help="of training before it, of the rows from mannequins (default: 10)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/film"), help="default: runs/film")
    parser.add_argument("--weights", default="", metavar="DIR", help="published weights; with "
                        "VGG-16 among them the loss is --loss.reconstruction vgg16")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[],
                        help="further flags of posemodel.train, last")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.read is not None:
        print(table(json.loads(arguments.read.read_text())))
        return 0
    minutes = min(arguments.minutes, arguments.mannequin_minutes)
    if arguments.root is None or minutes <= 0 or arguments.seeds < 1:
        parser.error("give the folder of a data set, minutes above 0 and --seeds of at least 1")
    report = Path(arguments.root) / "film.json"
    if not report.is_file():  # now, and not when all is trained
        parser.error(f"{report} is missing, which posemodel.data film writes: make the set with it")
    clips = json.loads(report.read_text())  # what became of each
    rows = {name: [result(arguments, name, seed) for seed in range(arguments.seeds)]
            for name in arguments.methods}
    content = {"command": ["python", *sys.argv], "minutes": arguments.minutes,
               "mannequin_minutes": arguments.mannequin_minutes, "clips": clips, "rows": rows}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    return 0


def result(arguments: argparse.Namespace, name: str, seed: int) -> dict:
    """What a run makes of the test pairs, what its starting weights do, its steps and the
    milliseconds of each."""
    folder = arguments.out / f"{name.replace(' ', '-')}-{seed}"
    shared = ["--seed", str(seed),
              *(["--weights", arguments.weights, "--loss.reconstruction", "vgg16"]
                if arguments.weights else []), *arguments.flags]
    first = None
    if name in FROM_MANNEQUINS:
        first = folder.with_name(f"{folder.name}-before")
        trained(first, [*MANNEQUINS, *FROM_MANNEQUINS[name], *shared], arguments.mannequin_minutes)
        flags = [*FROM_MANNEQUINS[name], "--init", str(first)]
    else:
        flags = METHODS[name]
    trained(folder, ["--data.root", arguments.root, *flags, *shared], arguments.minutes)
    run("posemodel.evaluate", folder, "--split", "test")  # at once where it was measured before
    row = json.loads((folder / "evaluation.json").read_text())
    return {"seed": seed, "steps": row["step"], "step_ms": median_ms(folder),
            "mannequin_steps": first and steps_of(first),
            "environment": json.loads((folder / "env.json").read_text()),
            "before": before(folder), "after": kept(row)}


def trained(folder: Path, flags: list[str], minutes: float) -> None:
    """A run of as many steps as fit into the minutes, to its end."""
    if not (folder / "DONE").exists():
        steps = planned_steps(folder, flags, minutes)
        train(folder, [*flags, "--steps", str(steps), "--evaluate-every", str(steps)])


def steps_of(folder: Path) -> int:
    """Of a run, as it was started."""
    return json.loads((folder / "config.json").read_text())["steps"]


def before(folder: Path) -> dict | None:
    """What the weights that a run starts from make of its test pairs; None: it starts from
    nothing."""
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.trainer import Trainer
    from posemodel.evaluation.held_out import evaluate, instruments_of_run
    from posemodel.runtime.distributed import ALONE
    from posemodel.runtime.environment import choose_machine

    config = RunFolder.open_existing(folder).config
    if not config.init:
        return None
    machine = choose_machine(config.device, config.precision, config.tf32, ALONE)
    trainer = Trainer(config, machine.device, machine.dtype, ALONE)
    trainer.start_from(config.init)
    return kept(evaluate(trainer.averaged, config, machine.device, machine.dtype, split="test",
                         instruments=instruments_of_run(config, machine.device)))


def kept(row: dict) -> dict:
    """The numbers of an evaluation that the table has, and what they depend on."""
    names = [f"{image}_{column}" for image in ("copy", "warped", "refined") for column in COLUMNS]
    return {name: row.get(name) for name in [*names, "pairs", "split", "lpips", "holes"]}


def planned_steps(folder: Path, flags: list[str], minutes: float) -> int:
    """Steps that fit into the minutes, by a few of them in a run that is thrown away; a run that
    was stopped has those that it was started with."""
    if (folder / "config.json").exists():
        return steps_of(folder)
    timed = folder.with_name(f"{folder.name}-timed")
    train(timed, [*flags, "--steps", str(TIMED), "--evaluate-every", str(TIMED), "--log-every", "1",
                  "--data.evaluation-pairs", "1"])
    return max(TIMED, round(60_000 * minutes / median_ms(timed)))


def median_ms(folder: Path) -> float:
    """Of a step of a run, without the first ones."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["step_ms"] for row in rows if row["step"] > SKIPPED)


def train(folder: Path, flags: list[str]) -> None:
    """One run; ends the program where it fails."""
    run("posemodel.train", "person", *flags, "--out", folder)


def run(module: str, *words) -> None:
    """A command of the package; ends the program where it fails."""
    command = [sys.executable, "-m", module, *map(str, words)]
    print(" ".join(command), flush=True)
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


def table(content: dict) -> str:
    """In Markdown."""
    rows = content["rows"]
    heads = [*COLUMNS.values(), "warped LPIPS-Alex", "steps", "ms a step"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]

    def line(name: str, values: list[dict], image: str, extra: list[str]) -> None:
        cells = [mean([row[f"{image}_{column}"] for row in values]) for column in COLUMNS]
        cells.append(mean([row["warped_lpips_alex"] for row in values]) if image != "copy" else "")
        lines.append(f"| {name} | " + " | ".join([*cells, *extra]) + " |")

    first = next(iter(rows.values()))
    line("copying the source", [first[0]["after"]], "copy", ["", ""])
    before = [row["before"] for row in rows.get("ours", []) if row["before"]]
    if before:
        line("the package's model, unchanged", before[:1], "refined", ["0", ""])
    for name, runs in rows.items():
        if name in FROM_MANNEQUINS:
            line(f"{name.removesuffix(' from mannequins')}, mannequins alone",
                 [run["before"] for run in runs], "refined",
                 [mean([run["mannequin_steps"] for run in runs], 0), ""])
        line(name, [run["after"] for run in runs], "refined",
             [mean([run["steps"] for run in runs], 0), mean([run["step_ms"] for run in runs], 0)])
    return "\n".join(lines)


def mean(values: list[float | None], digits: int | None = None) -> str:
    """And the spread, where there are several."""
    if None in values:
        return "-"
    digits = (3 if max(values) < 1 else 1) if digits is None else digits
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
