"""`python -m posemodel.reproduce table5`: the chain from a data set to the page, at a tiny size."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.reid import __main__ as reid
from posemodel.reproduce import __main__ as reproduce
from posemodel.reproduce import table5
from posemodel.runtime.errors import UserError
from posemodel.train import main as train_main
from tests.small_datasets import contents

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--identities 2 --cameras 2 --images 1 --budget 1 --poses 2 --reid-steps 1 "
        "--reid-image-size 32 32 --batch-identities 2 --seeds 2 --max-images 0 1 --device cpu")
PAPER = {"real": ["61.7", "82.1", "90.2", "92.7"], "both": ["63.8", "83.8", "93.0", "95.4"]}


def command(out: Path, *more: str) -> int:
    return reproduce.main(["table5", *TINY.split(), "--out", str(out), *more])


def call(module: str, *words: str, threads: int) -> None:
    """A command in this process, whose torch is there already."""
    main = {"posemodel.train": train_main, "posemodel.reid": reid.main}[module]
    assert threads >= 1 and main(list(words)) == 0


@pytest.fixture
def in_process(monkeypatch):
    """Says which commands were given; `stop` is the name of one that does not end any more."""
    given, stop = [], set()

    def run(module, *words, threads):
        name = words[0] if module == "posemodel.reid" else "flow"
        if name in stop:
            raise KeyboardInterrupt
        given.append(name)
        call(module, *words, threads=threads)

    monkeypatch.setattr(table5, "run_command", run)
    for module in ("engine.journal", "evaluation.samples"):  # sample sheets are not tested here
        monkeypatch.setattr(f"posemodel.{module}.write_samples", lambda *_, **__: None)
    return given, stop


def test_the_chain_is_stopped_and_goes_on(in_process, tmp_path, capsys):
    given, stop = in_process
    stop.add("evaluate")
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path)
    assert given == ["synthesize", "flow", "augment", "train"]
    assert not list(tmp_path.glob("table5.*"))
    made = contents(tmp_path / "table5" / "augmented-1-2")
    stop.clear(), given.clear()

    assert command(tmp_path) == 0
    part = ["train", "evaluate", "train", "evaluate", "table"]
    assert given == ["flow", "augment", *part, *part]
    said = capsys.readouterr().out
    assert "seed_0: there already" in said      # of the first run on real images
    assert contents(tmp_path / "table5" / "augmented-1-2") == made
    found = json.loads((tmp_path / "table5.json").read_text())
    page = (tmp_path / "table5.md").read_text()
    assert page in said and f"table5 {TINY}" in page and found["command"] in page
    check(tmp_path, found, page)

    # Other sizes are other runs, or refused; nothing is mixed.
    before = {path.name: path.read_bytes() for path in tmp_path.glob("table5.*")}
    with pytest.raises(UserError, match="real-all-1 holds another run of posemodel.reid train "
                       r"\(image_size: \[32, 32\] there, \[32, 36\] asked"):
        command(tmp_path, "--reid-image-size", "32", "36")
    with pytest.raises(UserError, match="other poses_drawn|on_missing: 'copy' there"):
        command(tmp_path, "--on-missing", "skip")
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("table5.*")}


def check(out: Path, found: dict, page: str) -> None:
    """The files say the same, and it is what the runs say."""
    manifest = json.loads((out / "table5" / "augmented-1-2" / "manifest.json").read_text())
    drawn = manifest["recipe"]["poses_drawn"]["images"]
    assert found["generated"]["poses_of"] == drawn and len(drawn) == 2
    assert found["generated"]["generated"] + found["generated"]["copied"] == 4 * 2
    assert "4 training images x 2 poses, drawn once and given to every image, are 8 images" in page
    assert "## All real images" in page and "## One real image of each identity" in page
    rows = list(csv.DictReader((out / "table5.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 4 * 2  # parts, conventions, runs, measures, seeds
    assert [part["images"] for part in found["parts"]] == [0, 1]
    for part in found["parts"]:
        for run in ("real", "both"):
            for seed in (0, 1):
                scores = json.loads((Path(part[run]) / f"seed_{seed}" / "evaluation.json")
                                    .read_text())
                for convention in ("step", "trapezoid"):
                    mine = [row for row in rows if (row["images"], row["precision"], row["run"],
                                                    row["seed"])
                            == (str(part["images"]), convention, run, str(seed))]
                    assert [row["paper"] for row in mine] == PAPER[run]
                    assert {row["measure"]: float(row["value"]) for row in mine} == {
                        name: 100 * value for name, value in scores[convention].items()}
                    numbers = part["conventions"][convention]
                    assert float(mine[0]["value"]) == numbers["mAP"][run][seed]
                    if seed == 0:
                        mean, spread = (reduce(numbers["mAP"][run]) for reduce in (
                            np.mean, lambda values: np.std(values, ddof=1)))
                        assert f"{mean:.1f} ± {spread:.1f}" in page
    with Image.open(out / "table5.png") as picture:
        assert min(picture.size) > 300
    assert "| *61.7* | *63.8* |" in page and page.count("63.2 ± 0.83") == 1


def commands(capsys, *words: str) -> list[list[str]]:
    assert reproduce.main(["table5", *words, "--dry-run"]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_as_the_paper_has_it(tmp_path, capsys):
    market = commands(capsys, "--data", "M", "--preset", "market", "--out", str(tmp_path))
    assert [words[3] for words in market] == [
        "market", "augment", "train", "evaluate", "train", "evaluate", "table"]
    flow = market[0]
    assert flow[flow.index("--data.root") + 1] == "M"
    assert flow[flow.index("--data.image-size") + 1 :][:2] == ["128", "64"]
    augment = " ".join(market[1])
    assert "--root M" in augment and "--poses 25" in augment and "--on-missing copy" in augment
    assert ["--seeds", "0", "1", "2"] == market[2][market[2].index("--seeds") :][:4]
    assert not list(tmp_path.iterdir())


def test_people_are_generated_first(tmp_path, capsys):
    first, flow, *_ = commands(capsys, "--out", str(tmp_path), "--weights", "W")
    assert first[3] == "synthesize" and first[4] == flow[flow.index("--data.root") + 1]
    assert flow[flow.index("--data.image-size") + 1 :][:2] == ["64", "32"]
    assert flow[-2:] == ["--weights", "W"]


def test_commands_of_the_pages_can_be_given(tmp_path, capsys):
    found = [words for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
             for words in re.findall(r"-m posemodel\.reproduce table5\b([^#`\n]*)",
                                     page.read_text().replace("\\\n", " "))]
    assert len(found) >= 3
    for words in found:
        assert commands(capsys, *shlex.split(words), "--out", str(tmp_path))


@pytest.mark.parametrize(("words", "says"), [
    ("table5 --seeds 0", "--seeds 0: expected at least 1"),
    ("table5 --reid-steps 0", "--reid-steps 0: expected at least 1"),
    ("table5 --budget 0", "--budget 0: expected at least 1"),
    ("table5 --max-images -1", "--max-images -1: expected different numbers, 0 or more"),
    ("table5 --max-images 1 1", "--max-images 1 1: expected different"),
    ("--seeds 2 table5", "table5 has flags of its own: give its name first")])
def test_mistakes(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        reproduce.main(words.split())
    assert not list(tmp_path.iterdir())
