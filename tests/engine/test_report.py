"""The report and the panels, from good, odd and missing data."""

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from posemodel.config.presets import quick
from posemodel.engine.report import count, end_panel, start_panel, write_report
from posemodel.engine.run_folder import RunFolder
from posemodel.evaluation.tables import errors, evaluation_table
from posemodel.pictures.curves import line_chart
from posemodel.runtime.environment import Machine

ROW = {"copy_l1": 20.0, "warped_l1": 10.0, "refined_l1": 12.0, "epe_zero": 4.0,
       "epe_visible": 1.0, "visibility_auc_affine": 0.46, "visibility_auc_cycle": 0.55,
       "visibility_auc_peak": 0.54, "ssim": 0.8, "pairs": 256}

MACHINE = Machine(device=torch.device("cpu"), device_reason="auto: no CUDA device here",
                  dtype=torch.float32, dtype_reason="as asked")


def evaluation(step: int) -> dict:
    parts = {turn: {**ROW, "pairs": 80} for turn in ("0-30", "30-60", "60-180")}
    return {"step": step, "reconstruction_loss": "pyramid", **ROW, "by_turn": parts}


@pytest.fixture
def run(tmp_path):
    config = quick()
    config.steps, config.evaluate_every = 900, 300
    config.out = str(tmp_path / "run")
    with RunFolder.open(config, ["quick"]) as run:
        yield run


class Page(HTMLParser):
    """Tags must close in order; text and attributes are collected."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(run) -> tuple[str, Page]:
    text = write_report(run.path).read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]", text), "the report refers to something outside"
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:")
    assert not list(run.path.glob("*.tmp"))
    return text, page


def test_full_report(run):
    for step in range(10, 901, 10):
        run.append_metrics({"step": step, "loss": 1 / step, "loss_reconstruction": 0.2, "lr": 1e-3,
                            "pairs_per_second": 30.0, "step_ms": 250.0, "data_ms": 25.0})
    for step in (300, 600, 900):
        run.append_evaluation(evaluation(step))
        Image.new("RGB", (40, 20)).save(run.sample_path(step))
    run.mark_done()
    text, page = report(run)
    assert text.count("data:image/png;base64,") == 3
    for expected in ("done", "Result at step 900, 256 held-out pairs", "50 %", "60 %", "25 %",
                     "pyramid", "10 %", "60–180°", "Samples at step 900", "step 300",
                     "python -m posemodel.train overnight", "optim.betas", "0.9 0.99"):
        assert expected in page.text, expected


def test_report_of_a_run_that_has_just_begun(run):
    _, page = report(run)
    assert "No evaluation yet" in page.text and f"at step\n{run.config.evaluate_every}" in page.text
    assert "step 0 of 900" in page.text and "go on from the last checkpoint" in page.text


def test_report_of_one_evaluation_in_progress(run):
    run.append_evaluation(evaluation(300))
    text, page = report(run)
    assert "step 300 of 900" in page.text and "<circle" in text


@pytest.mark.parametrize("row", [
    {"step": 300}, {"step": 300, "copy_l1": None, "warped_l1": 3.0, "ssim": None, "by_turn": None},
    {"step": 300, "copy_l1": 0.0, "warped_l1": 3.0, "by_turn": {"0-30": None, "30-60": {}}},
    {**evaluation(300), "by_turn": {"0-30": {"copy_l1": 1.0, "pairs": 0}}, "ssim_copy": None},
    {"ssim": 0.5}])
def test_rows_may_lack_anything(run, row):
    run.append_metrics({"step": 10, "loss": None})
    run.append_metrics({"step": None, "loss": 1.0})
    run.append_metrics({"loss": 1.0})
    run.append_evaluation(row)
    _, page = report(run)
    assert "None" not in page.text and "nan" not in page.text.lower().replace("mannequins", "")
    assert "–" in page.text and end_panel(run, row).count("╮") == 1 and evaluation_table(row)


def test_without_the_truth_nothing_is_said_of_flow_error_and_visibility(run):
    absent = [name for name in ROW if "epe" in name or "visibility" in name]
    row = {**evaluation(900), **dict.fromkeys(absent), "data": "deepfashion", "by_turn": None}
    run.append_evaluation(row)
    _, page = report(run)
    for text in (page.text, end_panel(run, row), evaluation_table(row)):
        assert "flow error" not in text and "visib" not in text and "AUC" not in text
        assert "50 %" in text
    assert [line.name for line in errors(row)] == ["warped image, l1", "refined image, l1"]


def test_torn_files_do_not_matter(run):
    for name in ("metrics.jsonl", "eval.jsonl", "env.json"):
        (run.path / name).write_text('{"step": 3, "los')
    (run.path / "command.txt").unlink()
    (run.path / "samples" / "step_x.png").write_text("")
    report(run)


def test_names_are_escaped(tmp_path):
    config = quick()
    config.out = str(tmp_path / "<script>alert(1)<!--")
    with RunFolder.open(config, ["--out", config.out]) as run:
        run.append_evaluation({**evaluation(1), "reconstruction_loss": "<img src=x>"})
        text, page = report(run)
    assert "<script" not in text and "<img src=x" not in text
    assert "<script>alert(1)<!--" in page.text


def test_many_samples_are_thinned(run):
    for step in range(1, 41):
        Image.new("RGB", (4, 4)).save(run.sample_path(step))
    text, page = report(run)
    assert text.count("data:image/png") == 7
    assert "Samples at step 40" in page.text and "step 1" in page.text


def test_shares():
    assert [line.share for line in errors(ROW)] == [0.5, 0.6, 0.25]
    assert [line.share for line in errors({})] == [None] * 3


def test_end_panel_is_a_box_with_all_that_comes_next(run):
    Image.new("RGB", (4, 4)).save(run.sample_path(900))
    panel = end_panel(run, evaluation(900))
    lines = panel.splitlines()
    assert len({len(line) for line in lines}) == 1
    for expected in ("50 %", "60 %", "25 %", "0.54", "step_000900.png", "report.html",
                     f"python -m posemodel.evaluate {run.path}",
                     "python -m posemodel.train overnight"):
        assert expected in panel
    assert max(map(len, evaluation_table(evaluation(900)).splitlines())) <= 76


def test_start_panel_says_what_and_why(run):
    panel, finished = (start_panel(run, MACHINE, step, kernels="cpp", loss_name="pyramid",
                                   data="mannequins, 64 x 64", parameters={"M": 212_345, "D": 640})
                       for step in (300, 900))
    assert len(panel.splitlines()) <= 12 and finished.endswith("all 900 steps are done already")
    for expected in ("cpu (auto: no CUDA device here)", "float32 (as asked)", "cpp", "64 x 64",
                     "M 212 k, D 640", "pyramid", str(run.path), "training starts at step 301"):
        assert expected in panel


@pytest.mark.parametrize("value, text", [(640, "640"), (34_200, "34 k"), (5_120_000, "5.1 M")])
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize("values",
                         [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(5, -3.0), (6, 1e9)],
                          [(0, 1e-9), (1, 1.0)], [(step, float(step)) for step in range(5000)]])
def test_charts_of_any_range(values):
    chart = str(line_chart([("x", "s0", values)], smooth=True))
    Page(chart)
    assert "nan" not in chart and "inf" not in chart and len(chart) < 20_000
    numbers = [float(n) for n in re.findall(r'c?[xy]="(-?[\d.]+)"', chart)]
    assert all(-20 <= n <= 440 for n in numbers)


def test_chart_of_nothing_is_nothing():
    assert line_chart([("x", "s0", [])]) == ""
