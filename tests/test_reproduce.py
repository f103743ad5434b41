"""`python -m posemodel.reproduce`: what is trained, what is compared, what may be said."""

import csv
import json
import re
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from posemodel.build import build_generator
from posemodel.config.flags import config_text, parse_train
from posemodel.config.presets import PRESETS
from posemodel.config.stored import drift
from posemodel.engine.starting_weights import start_from
from posemodel.evaluate import main as evaluate_main
from posemodel.evaluation import statistics
from posemodel.reproduce import __main__ as command
from posemodel.reproduce import pictures
from posemodel.reproduce.results import BETTER, OPEN, WORSE, TableNumbers
from posemodel.reproduce.runs import Bench, Result
from posemodel.reproduce.tables import (
    MEASURES,
    OURS,
    PAPERS,
    PAPERS_METHOD,
    TABLES,
    Cell,
    Table,
    of_preset,
    with_images,
)
from posemodel.runtime.backbones import ALEXNET
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import tensors_sha256
from posemodel.train import main as train_main
from tests.published import tensors, write
from tests.tiny import FLAGS

ROOT = Path(__file__).resolve().parents[1]


# --- what is in the tables ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["quick", *PAPERS])
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_a_run_that_can_be_started(name, preset):
    table = of_preset(TABLES[name], preset)
    for cell in table.cells:
        config = parse_train([cell.preset or preset, *cell.flags]).config
        assert (config == parse_train([preset]).config) == (cell.key in ("ours", "copy"))
        assert set(cell.paper) <= set(MEASURES)
    assert table.reference in {cell.key for cell in table.cells}
    assert not any(cell.extends for cell in table.cells) or preset == "quick"


def test_the_papers_method_has_a_row_beside_ours_and_rows_of_its_own():
    rows = {cell.key: cell for cell in of_preset(TABLES["table1"], "quick").cells}
    config = parse_train([rows["paper-small"].preset, *rows["paper-small"].flags]).config
    small = PRESETS["paper-small"]()
    assert (config.model.encoder_channels, config.loss.joint_weight, config.optim.tasks) \
        == (small.model.encoder_channels, 0.0, "alternate")
    for method in ("fomm", "mraa", "tpsmm", "gfla32", "gfla64"):
        plain, joints = (parse_train(list(rows[key].flags)).config
                         for key in (method, f"{method}-joints"))
        assert (plain.loss.joint_weight, joints.loss.joint_weight) == (0.0, 1.0)
        assert joints.optim == plain.optim
    labels = [cell.label for cell in of_preset(TABLES["table4"], "paper-small").cells]
    assert labels == [PAPERS_METHOD, "without affine loss", "copy"]


def test_one_key_is_one_run_in_all_tables():
    flags = {}
    for table in (*TABLES.values(), with_images(TABLES["table1"])):
        assert [cell.key for cell in table.cells].count("ours") == 1
        for cell in table.cells:
            assert flags.setdefault(cell.key, cell.flags) == cell.flags
    assert len({key for key in flags if key.endswith("-image")}) == 10


def test_the_papers_table_1():
    cells = {cell.key: cell.paper for cell in TABLES["table1"].cells}
    assert cells["tpsmm"] == {"l1_32": 13.66, "l1": 16.12, "ssim": 0.617, "lpips_alex": 0.45,
                              "lpips_vgg": 0.41}
    # What the paper itself prints: two methods have the better SSIM.
    assert [key for key, row in cells.items() if row and row["ssim"] > cells["ours"]["ssim"]] \
        == ["tpsmm", "gfla64"]


# --- what may be said -----------------------------------------------------------------------------

PROTOCOL = {"name": "paper-64x64", "size": [64, 64], "pairs": 60, "split": "test", "commit": None,
            "precision": "bfloat16"}


def result(seed, *, l1, ssim=0.5, protocol=PROTOCOL):
    """A run with these values of 60 pairs."""
    pairs = {"pair": np.arange(60), "person": np.arange(60.0), "protocol_l1": l1,
             "copy_protocol_l1": np.full(60, 20.0), "protocol_ssim": np.full(60, ssim)}
    config = replace(PRESETS["quick"](), seed=seed, steps=7)
    run = SimpleNamespace(path=Path(f"run-{seed}"), config=config)
    return Result(run, {"protocol": protocol}, pairs)


def outcome(ours, theirs, **changes):
    """Two cells; `ours` and `theirs` are the l1 of each seed, as `[60]` arrays."""
    table = Table(title="T", cells=(OURS, Cell(key="fomm", label="FOMM", paper=OURS.paper
                                               | {"l1": 15.97}), Cell(key="copy", label="copy")))
    return TableNumbers("t", table, {
        "ours": [result(seed, l1=values) for seed, values in enumerate(ours)],
        "fomm": [result(seed, l1=values, **changes) for seed, values in enumerate(theirs)]})


def noise(seed, mean):
    return mean + np.random.default_rng(seed).normal(0, 1, 60)


def test_a_difference_in_all_pairs_and_seeds_is_one():
    found = outcome([noise(1, 10), noise(2, 10)], [noise(3, 12), noise(4, 12)])
    assert found.verdicts["fomm", "l1"].says == BETTER
    assert found.verdicts["copy", "l1"].says == BETTER
    assert outcome([noise(1, 12)], [noise(2, 10)]).verdicts["fomm", "l1"].says == WORSE


def test_no_difference_is_said_where_pairs_or_seeds_do_not_show_it():
    # The same in the mean: pairs go either way.
    assert outcome([noise(1, 10)], [noise(2, 10)]).verdicts["fomm", "l1"].says == OPEN
    # Clear over pairs, but one seed of ours is worse than one of theirs.
    found = outcome([noise(1, 10), noise(2, 12.5)], [noise(3, 12), noise(4, 14)])
    verdict = found.verdicts["fomm", "l1"]
    assert verdict.significant and not verdict.seeds_apart and verdict.says == OPEN


def test_more_is_better_for_ssim():
    ours, theirs = [noise(1, 10)], [noise(1, 10)]
    assert outcome(ours, theirs, ssim=0.4).verdicts["fomm", "ssim"].says == BETTER
    assert outcome(ours, theirs, ssim=0.6).verdicts["fomm", "ssim"].says == WORSE


def test_one_level_for_the_whole_table(monkeypatch):
    # Three comparisons, of which one would be a difference if it were the only one.
    values = iter([0.04, 0.5, 0.01])
    compare = statistics.compare
    monkeypatch.setattr(statistics, "compare", lambda *words, **more: replace(
        compare(*words, **more), p=next(values)))
    found = outcome([noise(1, 10)], [noise(2, 12)])
    assert set(found.measures) == {"l1", "ssim"}
    assert {key: verdict.significant for key, verdict in found.verdicts.items()} == {
        ("fomm", "l1"): False, ("fomm", "ssim"): False, ("copy", "l1"): True}
    # Both are far apart in seeds and interval: it is the whole table's level that decides.
    assert (found.verdicts["fomm", "l1"].says, found.verdicts["copy", "l1"].says) == (OPEN, BETTER)


@pytest.mark.parametrize("change", [{"size": [32, 32]}, {"precision": "float32"}])
def test_cells_under_two_protocols_are_no_table(change):
    with pytest.raises(UserError, match="under different protocols"):
        outcome([noise(1, 10)], [noise(2, 10)], protocol={**PROTOCOL, **change})


def test_the_page_marks_the_papers_numbers_and_says_which_orders_hold():
    about = {"command": "x", "preset": "quick", "data": "mannequins", "steps": 7, "minutes": None,
             "threads": 1, "seconds_per_step": {"ours": 0.4, "fomm": 0.25}}
    page = outcome([noise(1, 12)], [noise(2, 10)]).to_markdown(about)
    assert "*paper: l1*" in page and "*15.97*" in page and "one seed" in page
    assert "in bfloat16" in page and f"| FOMM | l1 | {BETTER} | {WORSE} | does not hold |" in page
    page = outcome([noise(1, 10), noise(2, 10)], [noise(3, 12), noise(4, 12)]).to_markdown(about)
    assert f"| FOMM | l1 | {BETTER} | {BETTER} | holds |" in page
    assert "LPIPS-Alex, LPIPS-VGG" in page and "one seed" not in page and "10.0" in page


def test_what_is_compared_with_another_than_ours_is_not_said_of_ours():
    found = outcome([noise(1, 12)], [noise(2, 10)])
    found.reference = replace(OURS, label=PAPERS_METHOD)
    about = {"command": "x", "preset": "paper-small", "data": "mannequins", "steps": 7,
             "minutes": None, "threads": 1, "seconds_per_step": {"ours": 0.4, "fomm": 0.25}}
    page = found.to_markdown(about)
    section = page[page.index(f"## Against {PAPERS_METHOD}"):page.index("## How each")]
    assert "reference worse" in section and not re.search("ours (better|worse)", section.lower())


def test_the_r_of_table_3_that_does_not_see_the_pose_is_ours_but_for_that():
    """Its weights are those of ours without the ones of what ours sees besides."""
    cells = {cell.key: cell for cell in TABLES["table3"].cells}
    ours, blind = (parse_train(["quick", *cells[key].flags]).config for key in ("ours", "blind"))
    assert len(drift(ours, blind)) == 1
    posed, other = (build_generator(config.model, config.data.image_size)
                    for config in (ours, blind))
    lines = start_from(posed, other.state_dict(), "it")
    assert lines == [f"{name} starts from it" for name in ("M", "C_l", "R")]
    assert posed.refinement.decoder.posed and not other.refinement.decoder.posed


# --- what is committed ----------------------------------------------------------------------------


#: Cells of committed tables that were made when they had other rows.
OTHER_ROWS = {
    "128px/table1": [("ours", ()), *((key, ("--model.flow", key)) for key in
                                     ("fomm", "mraa", "tpsmm", "gfla32", "gfla64")), ("copy", ())]}


@pytest.mark.parametrize(("folder", "name"), [*((".", name) for name in TABLES),
                                              ("128px", "table1")])
def test_committed_tables(folder, name):
    """Every cell of the table, all under one protocol of one commit, and one set of numbers in the
    three files."""
    where = f"{folder}/{name}".removeprefix("./")
    folder = ROOT / "docs" / "tables" / folder
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["table"] == name and found["protocol"]["commit"].isalnum(), "of no commit"
    assert "/" not in found["command"].replace("python -m", ""), "not a command for everyone"
    assert [(cell["key"], tuple(cell["flags"])) for cell in found["cells"]] \
        == OTHER_ROWS.get(where, [(cell.key, cell.flags)
                                  for cell in of_preset(TABLES[name], found["preset"]).cells])
    rows = list(csv.DictReader((folder / f"{name}.csv").open()))
    page = (folder / f"{name}.md").read_text()
    assert found["command"] in page
    for cell in found["cells"]:
        trained = cell["key"] != "copy"
        assert len(cell["runs"]) == found["seeds"] * trained
        steps = {run["steps"] for run in cell["runs"]}
        assert len(steps) == trained and (found["steps"] is None or steps <= {found["steps"]})
        for measure, values in cell["values"].items():
            assert [float(row["value"]) for row in rows
                    if (row["cell"], row["measure"]) == (cell["key"], measure)] == values
        shown = f"{np.mean(cell['values']['epe']):.2f}"
        assert any(line.startswith(f"| {cell['label']} |") and shown in line
                   for line in page.splitlines()), (cell["label"], shown)


# --- the runs -------------------------------------------------------------------------------------


class OneByOne(futures.Executor):
    """Training wants the main thread, for its signals."""

    def __init__(self, jobs):
        pass

    def submit(self, call, *words):
        future = futures.Future()
        future.set_result(call(*words))
        return future


@pytest.fixture
def in_process(monkeypatch):
    """The commands in this process, whose torch is there already; says what was trained."""
    trained = []

    def call(self, module, *words):
        words = [str(word) for word in words]
        if module == "posemodel.train":
            trained.append(Path(words[words.index("--out") + 1]).name)
            assert train_main(words) == 0
        else:
            assert evaluate_main(words) == 0

    monkeypatch.setattr(Bench, "_command", call)
    monkeypatch.setattr(Bench, "paces", lambda self, cells: {cell.key: 0.25 for cell in cells})
    monkeypatch.setattr("posemodel.reproduce.runs.ThreadPoolExecutor", OneByOne)
    monkeypatch.setattr(command, "_data_flags", lambda data: tuple(FLAGS))
    for module in ("engine.journal", "evaluation.samples"):  # sample sheets are not tested here
        monkeypatch.setattr(f"posemodel.{module}.write_samples", lambda *_, **__: None)
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    return trained


def test_weights_are_recorded_in_the_tables(in_process, tmp_path):
    folder, out = tmp_path / "weights", tmp_path / "out"
    folder.mkdir()
    write(folder, ALEXNET)
    assert command.main(["table3", "--budget", "1", "--pairs", "4", "--out", str(out), "--device",
                         "cpu", "--weights", str(folder)]) == 0
    found = json.loads((out / "table3.json").read_text())
    record = found["protocol"]["lpips_weights"]["alex"]
    assert record["sha256"] == tensors_sha256(tensors(ALEXNET))
    ours = found["cells"][0]
    row = json.loads((out / "runs" / "ours-1-0" / "evaluation.json").read_text())
    assert ours["values"]["lpips_alex"] == [row["measures"]["lpips_alex"]]
    assert ours["values"]["refined_lpips_alex"] == [row["measures_refined"]["lpips_alex"]]
    assert "lpips_vgg" not in ours["values"] and ours["runs"][0]["reconstruction_weights"] is None
    page = (out / "table3.md").read_text()
    assert "LPIPS-Alex ↓" in page and "were not at hand: LPIPS-VGG." in page


def test_a_table_and_another_one_in_the_same_folder(in_process, tmp_path, monkeypatch, capsys):
    sheets = []
    real = pictures.contact_sheet

    def sheet(columns, path, **options):
        sheets.append([name for name, _ in columns])
        real(columns, path, **options)

    monkeypatch.setattr(pictures, "contact_sheet", sheet)
    out = tmp_path / "out"
    words = ["table4", "--budget", "2", "--seeds", "2", "--pairs", "6", "--out", str(out),
             "--device", "cpu"]
    assert command.main(words) == 0
    runs = ["ours-2-0", "ours-2-1", "no-affine-2-0", "no-affine-2-1"]
    assert sorted(in_process) == sorted(runs)
    expected = ["source", "target pose", "target", "true flow", "ours", "... refined",
                "without affine loss", "... refined"]
    assert expected in sheets
    for name in ("table4.png", "table4-curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300

    found = json.loads((out / "table4.json").read_text())
    cells = {cell["key"]: cell for cell in found["cells"]}
    assert found["protocol"]["name"] == "paper-32x32" and found["steps"] == 2
    assert found["protocol"]["split"] == "test"
    assert [Path(one["run"]).name for one in cells["ours"]["runs"]] == runs[:2]
    row = json.loads((out / "runs" / "ours-2-1" / "evaluation.json").read_text())
    assert cells["ours"]["values"]["l1"][1] == row["measures"]["l1"]
    assert cells["ours"]["values"]["auc_cycle"][1] == row["visibility_auc_cycle"]
    assert cells["copy"]["values"]["l1"] == [row["measures_copy"]["l1"]]
    assert cells["ours"]["values"]["refined_ssim"][1] == row["measures_refined"]["ssim"]
    assert cells["copy"]["values"]["epe"] == [row["epe_zero"]]
    assert cells["no-affine"]["paper"]["l1"] == 42.13
    lines = list(csv.DictReader((out / "table4.csv").open()))
    assert len([one for one in lines if one["measure"] == "l1"]) == 5
    page = (out / "table4.md").read_text()
    assert "reproduce table4 --budget 2" in page and "6 test pairs" in page
    assert page.strip() in capsys.readouterr().out

    # A table that shares a run trains the other cell alone: nothing is trained twice.
    in_process.clear()
    words[0], words[4] = "appendix-e", "1"
    assert command.main(words) == 0
    assert sorted(in_process) == ["paper-refine-2-0", "skip-2-0"]
    assert (out / "table4.md").read_text() == page

    # The same folder for runs of another kind.
    monkeypatch.setattr(command, "_data_flags", lambda data: (*FLAGS, "--optim.lr", "0.5"))
    with pytest.raises(UserError, match=r"ours-2-0 holds another run: optim.lr: .*another --out"):
        command.main(words)
    monkeypatch.setattr(command, "_data_flags", lambda data: tuple(FLAGS))
    with pytest.raises(UserError, match=r"data.image_size: \(32, 32\) -> \(64, 36\).*another"):
        command.main([*words, "--image-size", "64", "36"])
    with pytest.raises(UserError, match=r"precision: 'float32' -> 'bfloat16'.*another"):
        command.main([*words, "--precision", "bfloat16"])


def bench(out, **changes):
    return Bench(**{"out": out, "preset": "quick", "flags": tuple(FLAGS), "steps": 9,
                    "minutes": None, "pairs": 256, "device": "cpu", "jobs": 1, **changes})


def timed(out, cell, slower=1):
    """The folder that a timing run leaves: 100 ms a step, 200 ms with the discriminator, or so many
    times as long."""
    words = ["quick", *FLAGS, *cell.flags, "--device", "cpu", "--out", str(out), "--steps", "24",
             "--data.evaluation-pairs", "1"]
    out.mkdir(parents=True)
    config = parse_train(words).config
    (out / "config.json").write_text(config_text(config))
    (out / "DONE").touch()
    first = config.optim.phase_one * 24
    rows = [{"step": step, "step_ms":
             5000 if step < 5 else slower * (100 if step <= first else 200)}
            for step in range(1, 25)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_minutes_become_steps_by_the_time_of_a_step(tmp_path):
    for number, slower in enumerate((2, 1)):
        timed(tmp_path / "timing" / f"ours-{number}", OURS, slower)
    one = bench(tmp_path, minutes=2.0)
    # 70 % of the steps without the discriminator, at the pace of the quickest turn.
    assert one.seconds_per_step(OURS) == pytest.approx(0.7 * 0.1 + 0.3 * 0.2)
    assert one.steps_of(OURS) == int(120 / 0.13)
    assert bench(tmp_path).steps_of(OURS) == 9


def test_methods_are_timed_in_turns(tmp_path, monkeypatch):
    """A machine that is slower for a while is so for all of them."""
    begun = []

    def train(self, cell, path, *words):
        if not path.exists():
            begun.append(path.name)
            timed(path, cell, slower=len(begun))

    monkeypatch.setattr(Bench, "_train", train)
    cells = [OURS, replace(OURS, key="other")]
    found = bench(tmp_path, minutes=2.0).paces(cells)
    assert begun == ["ours-0", "other-0", "ours-1", "other-1"]
    assert found == pytest.approx({"ours": 0.13, "other": 2 * 0.13})


def test_under_the_papers_preset_every_method_has_its_own_papers_epochs(tmp_path):
    full = Bench(out=tmp_path, preset="paper", flags=(), steps=None, minutes=None, pairs=9,
                 device="cpu", jobs=1)
    steps = {cell.key: full.steps_of(cell)
             for cell in of_preset(TABLES["table1"], "paper").trained}
    assert steps["ours"] == steps["gfla32"] == 3 * steps["fomm"] == PRESETS["paper"]().steps


def test_a_dry_run_says_what_would_be_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_data_flags", lambda data: tuple(FLAGS))
    for cell in TABLES["table3"].trained:
        for number in range(2):
            timed(tmp_path / "timing" / f"{cell.key}-{number}", cell)
    done = tmp_path / "runs" / "ours-600-1"
    done.mkdir(parents=True)
    (done / "DONE").touch()
    assert command.main(["table3", "--budget", "600", "--seeds", "3", "--out", str(tmp_path),
                         "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["ours", "3", "600", "0.130", "1.3", "1"]
    # 600 steps of 0.13 s, eleven of twelve runs.
    assert said[5].startswith("to train: 14 min with 1 at a time")


def test_a_run_that_fails_says_why(tmp_path):
    cell = Cell(key="broken", label="broken", flags=("--optim.lr", "-1"))
    with pytest.raises(UserError, match="ended with code 2: error: --optim.lr is -1.0"):
        bench(tmp_path).run([cell], seeds=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("words", "says"), [
    ("--seeds 0", "--seeds 0: expected more than 0"), ("--minutes nan", "--minutes nan"),
    ("--pairs 1", "--pairs 1: expected more than 1"), ("--data /nowhere", "/nowhere is no folder")])
def test_mistakes(words, says, tmp_path):
    with pytest.raises(UserError, match=says):
        command.main(["table1", "--out", str(tmp_path), *words.split()])
