"""`python -m posemodel.reproduce table5`: re-identification, from the data set to the table.

The commands of docs/reid.md one after the other. Each of them can be given again and finds what is
there, so that the whole can.
"""

import argparse
import csv
import io
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from posemodel.config.presets import PRESETS
from posemodel.reproduce.commands import add_places, run_command
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result, writing

NAME = "table5"
PROGRAM = f"python -m posemodel.reproduce {NAME}"
GENERATED = "mannequins"

_REID = "posemodel.reid"
_ROWS, _COLUMNS = 6, 8  # training images and poses on the picture
_SIZE = (64, 32)  # of the flow's images, where the preset is not of Market-1501


def main(argv: list[str]) -> int:
    """Table 5: what images made by the flow are worth to re-identification. Trains the flow, writes
    every training image in poses drawn once, trains a baseline on the real images and on both,
    ranks the queries, writes the table.

    The same command again continues.
    """
    arguments = _parser().parse_args(argv)
    for flag, least in (("budget", 1), ("seeds", 1), ("poses", 1), ("reid_steps", 1)):
        value = getattr(arguments, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: expected at least {least}")
    if min(arguments.max_images) < 0 or len(set(arguments.max_images)) < len(arguments.max_images):
        raise UserError(f"--max-images {' '.join(map(str, arguments.max_images))}: expected "
                        "different numbers, 0 or more")
    chain = Chain(arguments)
    if arguments.dry_run:
        for words in chain.commands():
            print(shlex.join(["python", "-m", *words]))
        return 0
    chain.run()
    about = chain.about(f"{PROGRAM} {shlex.join(argv)}".strip())
    blocks = [{"images": most, **json.loads(chain.numbers(most).read_text(encoding="utf-8"))}
              for most in arguments.max_images]
    page = to_markdown(about, blocks)
    for ending, text in ((".csv", to_csv(blocks)), (".json", to_json(about, blocks)),
                         (".md", page)):
        write_result(arguments.out / f"{NAME}{ending}", text)
    write_sheet(chain, arguments.out / f"{NAME}.png")
    print(f"\n{page}\nwritten: {arguments.out / NAME}.md, .csv, .json, .png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=main.__doc__)
    parser.add_argument("--data", default=GENERATED, metavar="mannequins|ROOT",
                        help="generated people, or the folder of Market-1501 (default: mannequins)")
    for name, value, meaning in (("identities", 80, "to train with, and as many others to test"),
                                 ("cameras", 6, "2 to 6"),
                                 ("images", 2, "of each identity under each camera")):
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N",
                            help=f"of the generated people: {meaning} (default: {value})")
    flow = parser.add_argument_group("the flow")
    flow.add_argument("--preset", choices=PRESETS, default="quick", help="(default: quick)")
    flow.add_argument("--budget", type=int, metavar="STEPS",
                      help="training steps (default: the preset's)")
    flow.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"),
                      help="pixels, H = 2 W (default: those of the preset market, else 64 32)")
    flow.add_argument("--poses", type=int, default=25, metavar="N",
                      help="drawn once and given to every image (default: 25)")
    flow.add_argument("--on-missing", choices=("skip", "copy"), default="copy",
                      help="images without a joint: leave them out, or copy each once for every "
                           "pose, as the paper's number of images has it (default: copy)")
    reid = parser.add_argument_group("re-identification")
    reid.add_argument("--backbone", default="resnet10", metavar="NAME",
                      help="resnet50, resnet18 or resnet10 (default: resnet10)")
    reid.add_argument("--reid-steps", type=int, default=400, metavar="STEPS",
                      help="training steps of each run (default: 400)")
    reid.add_argument("--reid-image-size", type=int, nargs=2, default=(64, 32), metavar=("H", "W"),
                      help="pixels (default: 64 32)")
    reid.add_argument("--batch-identities", type=int, default=8, metavar="P",
                      help="of a batch, with 4 images each (default: 8)")
    reid.add_argument("--max-images", type=int, nargs="+", default=[0], metavar="N",
                      help="real images of each identity, a part of the table for each number; "
                           "0: all (default: 0)")
    reid.add_argument("--seeds", type=int, default=3, metavar="N",
                      help="runs without and with generated images, with seeds from 0 (default: 3)")
    add_places(parser, weights_for="perceptual losses and the backbone")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return parser


class Chain:
    """The commands, and where each leaves what it makes."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        preset = PRESETS[arguments.preset]()
        own = preset.data.image_size if preset.data.kind == "market" else _SIZE
        self.size = tuple(arguments.image_size or own)
        self.steps = arguments.budget or preset.steps
        self.folder = arguments.out / NAME
        people = "-".join(map(str, (arguments.identities, arguments.cameras, arguments.images)))
        self.data = self.folder / f"market-{people}" if self.generated else Path(arguments.data)
        self.flow = self.folder / f"flow-{self.steps}"
        self.augmented = self.folder / f"augmented-{self.steps}-{arguments.poses}"

    @property
    def generated(self) -> bool:
        """Whether the data set is one of generated people."""
        return self.arguments.data == GENERATED

    def runs(self, most: int) -> tuple[Path, Path]:
        """Folders of the runs on `most` real images of an identity: without, with generated ones.

        What is in no name is refused by the folder's own record, where it differs.
        """
        name = f"{most or 'all'}-{self.arguments.reid_steps}"
        both = f"both-{name}-of-{self.steps}-{self.arguments.poses}"
        return self.folder / f"real-{name}", self.folder / both

    def numbers(self, most: int) -> Path:
        """Where `reid table` leaves the numbers of these two runs."""
        return self.folder / f"{self.runs(most)[1].name}.json"

    def commands(self) -> Iterator[list[str]]:
        """Module and words of each, in their order."""
        arguments, device = self.arguments, ("--device", self.arguments.device)
        weights = ("--weights", arguments.weights) if arguments.weights else ()
        if self.generated and not self.data.exists():  # it is there as a whole or not at all
            yield _words(_REID, "synthesize", self.data, "--identities", arguments.identities,
                         "--cameras", arguments.cameras, "--images", arguments.images)
        yield _words("posemodel.train", arguments.preset, "--data.kind", "market", "--data.root",
                     self.data, "--data.image-size", *self.size, "--steps", self.steps, "--out",
                     self.flow, *device, *weights)
        yield _words(_REID, "augment", self.flow, "--root", self.data, "--out", self.augmented,
                     "--poses", arguments.poses, "--on-missing", arguments.on_missing, *device)
        for most in arguments.max_images:
            real, both = self.runs(most)
            for run, more in ((real, ()), (both, ("--augmented", self.augmented))):
                yield _words(_REID, "train", "--root", self.data, "--out", run, *more,
                             "--max-images", most, "--steps", arguments.reid_steps, "--backbone",
                             arguments.backbone, "--image-size", *arguments.reid_image_size,
                             "--batch-identities", arguments.batch_identities, "--seeds",
                             *range(arguments.seeds), *device, *weights)
                yield _words(_REID, "evaluate", run, *device)
            yield _words(_REID, "table", real, both, "--json", self.numbers(most))

    def run(self) -> None:
        """All of them. Raises: `UserError` when one fails."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for words in self.commands():
            print(shlex.join(["python", "-m", *words]), flush=True)
            run_command(*words, threads=len(os.sched_getaffinity(0)))

    def about(self, command: str) -> dict:
        """What the table is of, when all is done."""
        from posemodel.runtime.environment import collect

        arguments, here = self.arguments, collect()
        manifest = json.loads((self.augmented / "manifest.json").read_text(encoding="utf-8"))
        people = {name: getattr(arguments, name) for name in ("identities", "cameras", "images")}
        return {"command": command, "data": arguments.data,
                "people": people if self.generated else None,
                "flow": {"preset": arguments.preset, "steps": self.steps, "size": self.size},
                "generated": {"poses": arguments.poses, "on_missing": arguments.on_missing,
                              **manifest["counts"],
                              "poses_of": manifest["recipe"]["poses_drawn"]["images"]},
                "baseline": {"backbone": arguments.backbone, "steps": arguments.reid_steps,
                             "size": arguments.reid_image_size,
                             "batch_identities": arguments.batch_identities},
                "seeds": arguments.seeds,
                "version": {name: here[name] for name in ("git", "torch", "torchvision")}}


def _words(*words) -> list[str]:
    return [str(word) for word in words]


def to_markdown(about: dict, blocks: list[dict]) -> str:
    """The page for people."""
    parts = ["# Table 5: re-identification without and with generated images",
             f"Made by `{about['command']}`.", _made_of(about)]
    for block in blocks:
        heading = {0: "All real images", 1: "One real image of each identity"}.get(
            block["images"], f"{block['images']} real images of each identity")
        parts += [f"## {heading}", block["table"]]
    return "\n\n".join([*parts, "## The paper's numbers", blocks[0]["note"], "## Pictures",
                        f"![training images and what is made of them]({NAME}.png)"]) + "\n"


def _made_of(about: dict) -> str:
    people, flow, generated = about["people"], about["flow"], about["generated"]
    baseline, git = about["baseline"], about["version"]["git"]
    data = about["data"] if people is None else (
        f"generated people ({people['identities']} identities under {people['cameras']} cameras, "
        f"{people['images']} images each)")
    count, poses = generated["generated"] + generated["copied"], generated["poses"]
    version = "unknown" if git is None else git["commit"][:10] + " dirty" * git["dirty"]
    return (f"On {data}. The flow: preset `{flow['preset']}`, {flow['steps']} steps at "
            f"{_by(flow['size'])}. {count // poses:,} training images x {poses} poses, drawn once "
            f"and given to every image, are {count:,} images, {generated['copied']:,} of them "
            f"copies of images without a joint; {generated['skipped']:,} such images were left "
            f"out. The baseline: {baseline['backbone']}, {baseline['steps']} steps at "
            f"{_by(baseline['size'])}, batches of {baseline['batch_identities']} identities with 4 "
            f"images, half of them generated where there are such. Version {version}.")


def _by(size) -> str:
    return " x ".join(map(str, size))


def to_csv(blocks: list[dict]) -> str:
    """A line for each number, in percent; `images` is the real images of an identity, 0 for all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "images", "precision", "run", "measure", "seed", "value", "paper"])
    for block in blocks:
        for convention, rows in block["conventions"].items():
            for measure, row in rows.items():
                for run in ("real", "both"):
                    for seed, value in enumerate(row[run]):
                        writer.writerow([NAME, block["images"], convention, run, measure, seed,
                                         repr(value), row["paper"][run]])
    return text.getvalue()


def to_json(about: dict, blocks: list[dict]) -> str:
    """Everything, for programs; what is text stands on the page."""
    numbers = [{key: value for key, value in block.items() if key not in ("table", "note")}
               for block in blocks]
    return json.dumps({"table": NAME, **about, "parts": numbers}, indent=2, allow_nan=False) + "\n"


def write_sheet(chain: Chain, path: Path) -> None:
    """Some training images in the first poses, below the images that these poses are from."""
    import numpy as np

    from posemodel.data.dataset_folder import read_rows
    from posemodel.data.images import read_image
    from posemodel.data.reading import open_pairs
    from posemodel.pictures.sheet import contact_sheet

    made: dict[str, list[dict]] = {}
    for row in read_rows(chain.augmented):      # by name: all poses of one image in their order
        if row["pose"] is not None:
            made.setdefault(row["source"], []).append(row)
    sources = sorted(made)[:: max(1, len(made) // _ROWS)][:_ROWS]
    real = open_pairs(chain.data, "train", kind="market").folder
    pictures = [read_image(real / source) for source in sources]
    columns = [("training image", [np.full_like(pictures[0], 255), *pictures])]
    for number, row in enumerate(made[sources[0]][:_COLUMNS]):
        images = [made[source][number]["name"] for source in sources]
        columns.append((f"pose {number}", [
            read_image(real / row["pose"]),
            *(read_image(chain.augmented / "train" / name) for name in images)]))
    contact_sheet(columns, path, title="Training images in poses drawn once (first row)")
