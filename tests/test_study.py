"""The user study: what volunteers see, what is kept of their answers, and what the table says."""

import fcntl
import json
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from posemodel.study import study as studies
from posemodel.study.__main__ import main
from posemodel.study.report import report_text, sign_test, summarize, wilson
from posemodel.study.server import StudySite
from posemodel.study.study import QUESTIONS, append_answer, create_study, open_study, read_answers
from posemodel.study.trials import plan_trials
from tests.serving import serving
from tests.small_runs import write_tiny_run
from tests.tiny import tiny_config

METHODS = {"secretours": "runs/a", "secretfomm": "b", "secretgfla": "c"}


def picture(value: int) -> np.ndarray:
    return np.full((32, 24, 3), value % 256, np.uint8)


@pytest.fixture
def study(tmp_path):
    pairs = {f"pair{n}": {"source": picture(n), "target": picture(n + 20),
                          **{("result", name): picture(40 + 10 * n + k)
                             for k, name in enumerate(METHODS)}} for n in range(10)}
    return create_study(tmp_path / "study", methods=METHODS, pairs=pairs, seed=7, repeats=0.1,
                        show="warped", volunteers=2)


def owner(study, name: str) -> str:
    return next(method for pair in study.pairs for method, own in pair.results.items()
                if own == name)


def image_folder(path, stems, value=0, size=(8, 8)):
    path.mkdir()
    for stem in stems:
        Image.new("RGB", size, (value, value, value)).save(path / f"{stem}.png")
    return path


def answer_all(study, volunteer, choose=lambda trial, question: "left", trials=None):
    """`choose(trial, question)` -> "left" or "right"."""
    site = StudySite(study)
    for number, trial in enumerate(plan_trials(study, volunteer)[:trials]):
        for question in QUESTIONS:
            site.post("/api/answer", {"name": volunteer, "trial": number, "question": question,
                                      "seconds": 1, "choice": choose(trial, question)})


# --- the plan -------------------------------------------------------------------------------------


def test_everybody_sees_every_comparison_once_and_some_twice(study):
    trials = plan_trials(study, "anna")
    fresh = [trial for trial in trials if not trial.repeated]
    seen = {(trial.pair.name, frozenset((owner(study, trial.left), owner(study, trial.right))))
            for trial in fresh}
    expected = {(pair.name, frozenset(("secretours", other))) for pair in study.pairs
                for other in ("secretfomm", "secretgfla")}
    assert seen == expected and len(fresh) == len(expected) == 20
    for trial in trials:
        if trial.repeated:
            (before,) = [other for other in fresh if (other.left, other.right)
                         == (trial.right, trial.left)]
            assert trials.index(before) < len(fresh) // 2 <= trials.index(trial)
    assert sum(trial.repeated for trial in trials) == 2


def test_order_and_sides_are_shuffled_by_volunteer_and_stay(study):
    anna, bert = plan_trials(study, "anna"), plan_trials(study, "bert")
    assert anna == plan_trials(open_study(study.folder), "anna") != bert
    left = [owner(study, trial.left) == "secretours" for name in map(str, range(40))
            for trial in plan_trials(study, name)]
    assert 0.45 < np.mean(left) < 0.55


# --- blinding -------------------------------------------------------------------------------------


def test_nothing_that_the_page_gets_tells_the_methods(study):
    with serving(StudySite(study)) as client:
        heard = [client.get(path)[1] for path in ("/", "/app.js", "/style.css", "/server.js")]
        for number in (-1, 0):
            status, told = client.ask("/api/trial", {"name": "Anna", "trial": number})
            heard.append(json.dumps(told))
            assert status == 200 and set(told) == {
                "number", "total", "done", "questions", "finished", "given", "source", "target",
                "left", "right", "next"}
        names = {told[key] for key in ("source", "target", "left", "right")}
        assert all(re.fullmatch(r"/images/[0-9a-f]{16}\.png", name) for name in names)
        assert client.get(told["left"])[0] == 200
        for path in ("/study.json", "/answers.jsonl", "/images/", "/images/../study.json",
                     "/images/0000000000000000.png"):
            status, answer, _ = client.get(path)
            heard.append(answer)
            assert status == 404
    assert not any("secret" in text for text in heard)
    assert not any("secret" in line for line in study.answers_path.read_text().splitlines())


def test_pictures_are_copied_as_they_are_and_carry_nothing_else(study):
    pair = study.pairs[3]
    for k, name in enumerate(pair.results.values()):
        with Image.open(study.folder / "images" / name) as image:
            assert not image.info and (np.asarray(image) == picture(70 + k)).all()
    assert {path.name for path in (study.folder / "images").iterdir()} == study.image_names


# --- answers --------------------------------------------------------------------------------------


def test_a_volunteer_stops_and_continues(study):
    with serving(StudySite(study)) as client:
        first = client.ask("/api/trial", {"name": " Anna  Maria ", "trial": -1})[1]
        assert (first["number"], first["done"], first["total"]) == (0, 0, 22)
        answer = {"name": "Anna Maria", "trial": 0, "choice": "left", "seconds": 2.5}
        for question in QUESTIONS:
            assert client.ask("/api/answer", {**answer, "question": question})[0] == 200
        client.ask("/api/answer", {**answer, "trial": 1, "question": "pose"})
    with serving(StudySite(open_study(study.folder))) as client:  # the server starts again
        again = client.ask("/api/trial", {"name": "ANNA MARIA", "trial": -1})[1]
        assert (again["number"], again["done"]) == (1, 1) and again["given"] == {"pose": "left"}
        assert client.ask("/api/trial", {"name": "Bert", "trial": -1})[1]["number"] == 0
        # Going back is possible, running ahead is not.
        assert client.ask("/api/trial", {"name": "anna maria", "trial": 0})[0] == 200
        assert client.ask("/api/trial", {"name": "anna maria", "trial": 2})[0] == 400


def test_the_end_is_reached(study):
    answer_all(study, "anna")
    told = StudySite(study).post("/api/trial", {"name": "anna", "trial": -1})
    assert told["finished"] and told["done"] == told["total"] == 22


@pytest.mark.parametrize("change", [
    {"name": ""}, {"name": "  "}, {"name": "x" * 41}, {"name": "a\x00b"}, {"name": 5},
    {"trial": -1}, {"trial": 22}, {"trial": "0"}, {"trial": True}, {"question": "beauty"},
    {"choice": "both"}, {"seconds": -1}, {"seconds": "1"}, {"seconds": None}])
def test_malformed_answers_are_refused_and_not_kept(study, change):
    good = {"name": "anna", "trial": 0, "question": "pose", "choice": "left", "seconds": 1}
    with serving(StudySite(study)) as client:
        assert client.ask("/api/answer", {**good, **change})[0] == 400
        assert client.ask("/api/answer", good, X_Token="no")[0] == 403
        assert read_answers(study.answers_path) == ([], 0)
        assert client.ask("/api/answer", good)[0] == 200


def test_answers_of_many_at_once_are_all_kept(tmp_path):
    path = tmp_path / "answers.jsonl"

    def write(who):
        for trial in range(15):
            append_answer(path, {"volunteer": who, "trial": trial, "question": "q" * 500})

    threads = [threading.Thread(target=write, args=(f"v{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers, damaged = read_answers(path)
    assert damaged == 0
    assert {(row["volunteer"], row["trial"]) for row in answers} == {
        (f"v{n}", trial) for n in range(6) for trial in range(15)}


def test_a_torn_line_is_reported_and_costs_only_itself(study):
    answer_all(study, "anna", trials=2)
    with study.answers_path.open("ab") as file:
        file.write(b'{"volunteer": "anna", "tri')
    answer_all(study, "bert", trials=1)
    answers, damaged = read_answers(study.answers_path)
    assert (len(answers), damaged) == (6, 1) and "warning: 1 lines" in report_text(summarize(study))


# --- the table ------------------------------------------------------------------------------------


def test_interval_and_test_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for preferred, count in ((0, 1), (1, 1), (0, 20), (20, 20), (10, 20), (13, 20), (789, 1000)):
        oracle = stats.binomtest(preferred, count)
        assert wilson(preferred, count) == pytest.approx(
            tuple(oracle.proportion_ci(method="wilson")), abs=1e-9)
        assert sign_test(preferred, count) == pytest.approx(oracle.pvalue, rel=1e-9)


def test_table_counts_the_first_method(study):
    def choose(trial, question):
        first = "left" if owner(study, trial.left) == "secretours" else "right"
        second = "right" if first == "left" else "left"
        against_fomm = "secretfomm" in (owner(study, trial.left), owner(study, trial.right))
        if against_fomm:
            return first if question == "pose" else second
        return first if int(trial.pair.name[-1]) < 7 else second

    for name in ("a", "b", "c", "d", "e"):
        answer_all(study, name, choose)
    summary = summarize(study)
    table = {(row["against"], row["question"]): row for row in summary["table"]}
    assert table["secretfomm", "pose"]["preferred"] == 50  # repeats do not count
    assert table["secretfomm", "invisible"]["share"] == 0
    for question in QUESTIONS:
        row = table["secretgfla", question]
        assert (row["preferred"], row["count"]) == (35, 50)
        assert (row["low"], row["high"]) == wilson(35, 50)
        # They all answered alike, so that drawing volunteers changes nothing.
        assert row["low_by_volunteer"] == pytest.approx(0.7)
    for row in summary["volunteers"]:
        assert row["done"] == 1 and row["answers"] == 44
        assert row["repeated"] == row["repeated_alike"] == 4
    text = report_text(summary)
    assert "5 of 2 volunteers are done (10 pairs; of runs, their warped images)" in text
    assert "against secretgfla   70.0%" in text and "35 of 50" in text and "4 of 4" in text


def test_whoever_always_takes_the_left_is_seen(study):
    answer_all(study, "anna")
    (row,) = summarize(study)["volunteers"]
    assert row["left"] == 1 and row["repeated"] == 4 and row["repeated_alike"] == 0


def test_the_last_answer_counts(study):
    site = StudySite(study)
    trial = plan_trials(study, "anna")[0]
    for choice in ("left", "right"):
        site.post("/api/answer", {"name": "anna", "trial": 0, "question": "pose",
                                  "choice": choice, "seconds": 1})
    counts = [row for row in summarize(study)["table"] if row["count"]]
    assert [row["preferred"] for row in counts] == [owner(study, trial.right) == "secretours"]


def test_no_answers_yet(study):
    assert report_text(summarize(study)) == "no answers yet: 0 of 2 volunteers are done"


def test_report_says_who_is_still_to_come(study):
    answer_all(study, "anna", trials=21)  # one is missing
    assert "0 of 2 volunteers are done" in report_text(summarize(study))
    answer_all(study, "anna")
    assert "1 of 2 volunteers are done" in report_text(summarize(study))


def test_the_papers_row_is_quoted_as_it_is(study):
    answer_all(study, "anna")
    summary = summarize(study)
    assert summary["paper"]["row"] == [78.9, 29.1] and sum(summary["paper"]["row"]) != 100
    text = report_text(summary)
    assert "80 pairs, 6 volunteers" in text
    assert "78.9 against 29.1 percent, which add up to 108.0 and not to 100" in text
    # No number of the paper besides: all others are of this study.
    table = text[: text.index("The paper (")]
    assert "78.9" not in table and "29.1" not in table


def test_answers_of_another_study_are_refused(study):
    append_answer(study.answers_path, {
        "volunteer": "a", "trial": 0, "question": "pose", "choice": "left", "chosen": "x.png",
        "other": "y.png", "repeated": False, "seconds": 1})
    with pytest.raises(UserError, match="not of this study"):
        summarize(study)


# --- studies of other versions --------------------------------------------------------------------


def test_a_study_with_other_questions_is_refused_and_kept(study):
    path = study.folder / "study.json"
    now = json.loads(path.read_text())
    first = {name: value for name, value in now.items() if name != "volunteers"} | {
        "version": 1, "questions": {"realism": "Which one looks more realistic?",
                                    "faithfulness": "Which one shows the person better?"}}
    for values in (first, {**now, "questions": first["questions"]}):
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="written by another version, which asks other "
                           "questions.*a new study.*nothing was changed"):
            open_study(study.folder)
        assert json.loads(path.read_text()) == values


# --- the command ----------------------------------------------------------------------------------


def test_folders_of_images(tmp_path, capsys):
    stems = [f"p{n}" for n in range(6)]
    folders = {name: image_folder(tmp_path / name, stems, value)
               for value, name in enumerate(("ours", "other", "source", "target"))}
    (folders["other"] / "p5.png").unlink()
    folder = tmp_path / "study"
    methods = [f"{name}={folders[name]}" for name in ("ours", "other")]
    assert main(["new", str(folder), "--methods", *methods, "--source", str(folders["source"]),
                 "--target", str(folders["target"]), "--pairs", "4", "--repeats", "0"]) == 0
    study = open_study(folder)
    assert len(study.pairs) == 4 and "p5" not in [pair.name for pair in study.pairs]
    assert "4 pairs, 4 comparisons with two questions for each of 6 volunteers" \
        in capsys.readouterr().out
    answer_all(study, "anna")
    assert main(["report", str(folder)]) == 0
    assert "of 4" in capsys.readouterr().out
    assert json.loads((folder / "report.json").read_text())["method"] == "ours"


def test_runs_answer_their_own_test_pairs(tmp_path):
    import torch

    from posemodel.data.source import HELD_OUT_SEEDS
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.trained import load_trained
    from posemodel.mannequins.pairs import Mannequins
    from posemodel.pictures.pixels import to_pictures

    for name, refine in (("one", "detail"), ("two", "none")):
        write_tiny_run(tmp_path / name, model_refine=refine)
    others = image_folder(tmp_path / "folder", ["000000", "000003"], size=(32, 32))
    folder = tmp_path / "study"
    argv = ["new", str(folder), "--methods", f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}",
            f"folder={others}", "--pairs", "2", "--device", "cpu"]
    assert main(argv) == 0
    study = open_study(folder)
    assert [pair.name for pair in study.pairs] == ["000000", "000003"]
    assert (study.show, study.volunteers) == ("warped", 6)
    data = tiny_config().data
    truth = Mannequins(size=data.image_size, turn=data.turn,
                       seed=HELD_OUT_SEEDS["test"]).pairs([3])
    shown = np.asarray(Image.open(folder / "images" / study.pairs[1].target)).astype(int)
    expected = ((truth["target"][0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).max() <= 0.5001

    model, _ = load_trained(RunFolder.open_existing(tmp_path / "one"), torch.device("cpu"))
    with torch.inference_mode():
        made = model(truth["source"], truth["source_pose"], truth["target_pose"])
    refined = tmp_path / "refined"
    assert main(["new", str(refined), *argv[2:], "--show", "refined"]) == 0
    for where, expected in ((folder, made.warped), (refined, made.image)):
        pair = open_study(where).pairs[1]
        one, two = (np.asarray(Image.open(where / "images" / pair.results[name])).astype(int)
                    for name in ("one", "two"))
        assert np.abs(one - to_pictures(expected)[0]).max() <= 1
        assert one.shape == two.shape == (32, 32, 3) and (one != two).any()
    assert (made.warped != made.image).any()


BOTH = "new S --methods a=A b=B --source A --target B --pairs"


@pytest.mark.parametrize("argv, says", [
    ("new S --methods a=A", "at least two"), ("new S --methods a=A b", "NAME=RUN_OR_FOLDER"),
    ("new S --methods a=A a=B", "twice"), ("new S --methods a=A b=nowhere", "no folder"),
    ("new S --methods a=A b=B", "--source and --target"),
    (f"{BOTH} 9", "2 pairs in common; --pairs 2 takes them all"),
    (BOTH.removesuffix(" --pairs"), "--pairs 80: the methods have 2 pairs"),
    (f"{BOTH} 0", "at least 1"), (f"{BOTH.replace('b=B', 'b=C')} 2", "different sizes"),
    (f"{BOTH} 2 --repeats 0.9", "0 to 0.5"),
    (f"{BOTH} 2 --volunteers 0", "--volunteers 0: expected at least 1"),
    ("new A --methods a=A b=B", "is there already"),
    ("serve A", "no study"), ("report nowhere", "no study"),
    ("serve S --address 0.0.0.0", "the one address")])
def test_mistakes_get_one_line_and_leave_nothing(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, size in (("A", (8, 8)), ("B", (8, 8)), ("C", (9, 8))):
        image_folder(tmp_path / name, ["p0", "p1"], size=size)
    monkeypatch.setattr(sys, "argv", ["study", *argv.split()])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and says in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "C"]


def test_answers_that_somebody_keeps_locked_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_PATIENCE", 0.1)
    path = tmp_path / "answers.jsonl"
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="answers.jsonl: another process has kept it locked"):
            append_answer(path, {"volunteer": "one"})
    append_answer(path, {"volunteer": "one"})
    assert read_answers(path) == ([{"volunteer": "one"}], 0)
