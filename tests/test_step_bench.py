"""The step benchmark runs, adds up, and compares what it times. Its figures are not judged here."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from posemodel.config.presets import PRESETS
from posemodel.runtime.errors import UserError
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*-step.json"))


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import step_bench

        yield step_bench


@pytest.fixture(scope="module")
def forms(bench):
    """What measures a form."""
    import step_measure

    return step_measure


@pytest.fixture(scope="module")
def rows(bench, forms):
    """Both forms of a small model whose tasks alternate and of one that does them at once."""
    rows = {}
    for tasks in ("alternate", "lazy"):
        config = tiny_config(optim_tasks=tasks, optim_lr=1e-6)
        config.preset = tasks
        config.model.stream = "always"
        made = []
        for form in ("ours", "eager"):
            job = forms.Job(config=config, form=form, steps=2, seconds=60.0, rate=1e12)
            made.append(bench.make_row(config, form, forms.measure_form(job)))
        bench.compare(made, bench.TOLERANCE["float32"])
        rows[tasks] = made
    return rows


@pytest.mark.parametrize("tasks", ["alternate", "lazy"])
def test_both_forms_compute_the_same_and_their_parts_add_up(bench, forms, rows, tasks):
    for row in rows[tasks]:
        assert row["status"] == "ok", row
        assert row["loss_difference"] <= bench.TOLERANCE["float32"]
        assert row["repeats"] == 2 and row["peak_mib"] > 0 and row["warping_peak_mib"] > 0
        parts = {name: median for name, (median, _, _) in row["parts"].items()}
        assert tuple(parts) == forms.PARTS and min(parts.values()) > 0, parts
        alone = [sum(parts[name] for name in forms.PARTS if task in name)
                 for task in ("task 1", "task 2")]
        extra = parts["D forward"] + parts["D backward"] + parts["optimiser"]
        if tasks == "alternate":
            # Half of the steps have D; what is left is reading the losses and the like.
            assert row["ms"] > (sum(alone) + parts["D forward"] + parts["D backward"]) / 2
            assert row["ms"] < 10 * (sum(alone) + extra)
        assert abs(sum(row["shares"].values()) - 1) < 1e-6
        assert row["shares"]["convolutions"] > 0 and row["convolution_percent"] > 0
    ours, eager = rows[tasks]
    assert ours["eager_ratio"] == pytest.approx(eager["ms"] / ours["ms"])
    assert ours["shares"]["our operators"] > 0
    assert "our operators" not in eager["shares"], "eager does not run the compiled operators"
    names = ours["losses"].keys()
    assert {name.partition(":")[0] for name in names} == \
        {"alternate": {"task 1", "task 2"}, "lazy": {"both", "task 2"}}[tasks]


def small(**changes):
    config = tiny_config(optim_lr=1e-6, data_image_size=(64, 64), **changes)  # gfla's least
    config.preset = "small"
    return config


def test_rivals_and_the_other_head_are_forms_of_the_same_preset(bench):
    options = SimpleNamespace(compile=False, other_head=True, rivals=["fomm", "gfla64"])
    config = small(model_head_kernel=1)
    found = bench.forms(config, options)
    assert list(found) == ["ours", "eager", "head 3 x 3", "fomm", "gfla64"]
    assert found["ours"] is config and found["eager"] is config
    assert found["head 3 x 3"].model == replace(config.model, head_kernel=3)
    assert found["fomm"].model == replace(config.model, flow="fomm")
    # The methods of Table 1 have no loss on joints.
    assert (config.loss.joint_weight, found["fomm"].loss.joint_weight) == (1.0, 0.0)
    assert all(replace(other, model=config.model, loss=config.loss) == config
               for other in found.values())
    config.model.head_kernel = 3
    assert found["head 3 x 3"] != bench.forms(config, options)["head 1 x 1"]
    plain = SimpleNamespace(compile=True, other_head=False, rivals=[])
    assert tuple(bench.forms(config, plain)) == bench.FORMS


@pytest.mark.parametrize("tasks", ["alternate", "lazy"])
def test_rivals_beside_ours(bench, forms, tasks, capsys, monkeypatch):
    profiled = {"shares": {"convolutions": 1.0}, "convolution_percent": None}
    # Seconds for each form, in which nothing depends on the form.
    monkeypatch.setattr(forms.Variant, "profile", lambda variant, flops: profiled)
    options = SimpleNamespace(compile=False, other_head=True, rivals=["fomm", "gfla32"])
    rows = []
    ours = small(optim_tasks=tasks, model_flow_stride=4, model_head_kernel=1)
    for form, config in bench.forms(ours, options).items():
        job = forms.Job(config=config, form=form, steps=1, seconds=0.0, rate=1e12)
        rows.append(bench.make_row(config, form, forms.measure_form(job)))
    bench.compare(rows, bench.TOLERANCE["float32"])
    ours = rows[0]
    for row in rows:
        assert row["status"] == "ok", row
        assert row["ours_ratio"] == pytest.approx(ours["ms"] / row["ms"])
        same = row["form"] in ("ours", "eager")
        assert (row["eager_ratio"] is not None) == (row["loss_difference"] is not None) == same
    by_form = {row["form"]: row for row in rows}
    assert by_form["head 3 x 3"]["losses"] != ours["losses"]
    assert (ours["head_kernel"], by_form["head 3 x 3"]["head_kernel"]) == (1, 3)
    for rival in ("fomm", "gfla32"):  # one kind of step, whatever the preset's tasks are
        row = by_form[rival]
        assert tuple(row["parts"]) == tuple(n for n in forms.PARTS if "task 1" not in n)
        assert {name.partition(":")[0] for name in row["losses"]} == {"task 2"}
        assert not {"task 2: loss_affine", "task 2: loss_joint"} & row["losses"].keys()
        assert "task 2: loss_discriminator" in row["losses"]
    assert "task 2: loss_correctness" in by_form["gfla32"]["losses"]
    assert by_form["fomm"]["grid"] == ours["grid"] == [16, 16]
    assert by_form["gfla32"]["grid"] == [8, 8]
    bench.show(rows)
    out = capsys.readouterr().out
    assert "grid 16 x 16, head 1 x 1" in out and out.count("ours/") == 1
    lines = {line.split("  ")[1]: line for line in out.splitlines() if re.search(r"\dx ", line)}
    assert lines.keys() == by_form.keys()
    assert [form for form, line in lines.items() if "grid" in line] == ["gfla32"]
    assert lines["gfla32"].endswith("grid 8 x 8") and "task 1" not in out.split("fomm, ms")[1]


def test_another_result_and_no_figures_are_told(bench, rows):
    ours, eager = ({**row, "losses": dict(row["losses"])} for row in rows["lazy"])
    name = next(iter(ours["losses"]))
    ours["losses"][name] *= 1.01
    bench.compare([ours, eager], 1e-3)
    assert ours["status"] == bench.DIFFERENT and ours["loss_difference"] == pytest.approx(
        0.01, rel=0.1)
    assert eager["status"] == "ok"
    lost = {**eager, "status": "out of memory"}
    bench.compare([ours := {**ours, "status": "ok"}, lost], 1e-3)
    assert ours["status"] == "ok" and ours["eager_ratio"] is None and ours["ours_ratio"] == 1
    rival = {**eager, "form": "fomm"}
    bench.compare([{**ours, "status": "error"}, eager, rival], 1e-3)
    assert eager["eager_ratio"] == 1 and eager["ours_ratio"] is rival["eager_ratio"] is None


def test_the_step_of_a_task_is_that_task(forms):
    config = tiny_config(optim_tasks="joint")
    variant = forms.Variant(forms.Job(config=config, form="ours", steps=1, seconds=1.0, rate=1.0))
    for _ in range(2):
        found = variant.round()
        assert "loss_reconstruction" not in found["task 1"][1]
        assert "loss_affine" not in found["task 2"][1]
        assert {"loss_affine", "loss_reconstruction", "loss_discriminator"} <= set(found["both"][1])
        assert "D forward" not in found["task 1"][0]


def test_an_error_in_a_form_is_a_row(bench, forms):
    config = tiny_config()
    job = forms.Job(config=replace(config, device="cuda:99"), form="ours", steps=1, seconds=1.0,
                    rate=1.0)
    row = bench.make_row(config, "ours", forms.measure_form(job))
    assert row["status"] == "error" and "cuda:99" in row["note"] and "ms" not in row


def sleep(job, threads, answers):
    time.sleep(30)


def end(job, threads, answers):
    os._exit(7)


def answer(job, threads, answers):
    answers.send(({"threads": threads}, None))


def test_a_form_has_its_own_process_which_is_stopped_in_time(forms):
    start = time.monotonic()
    left = iter([10, 10])
    found = forms.apart(None, threads=1, available=lambda: next(left, 1), worker=sleep, reserve=5)
    assert found[1][0] == "out of memory" and time.monotonic() - start < 20
    found = forms.apart(None, threads=1, available=lambda: 10, worker=end, reserve=5)
    assert found == (None, (forms.STOPPED, "its process ended with code 7"))
    found = forms.apart(None, threads=3, available=lambda: 10, worker=answer, reserve=5)
    assert found == ({"threads": 3}, None)


def test_every_preset_can_be_measured(bench):
    options = SimpleNamespace(device="cpu", precision="auto", batch=None)
    for name in PRESETS:
        config = bench.benchmark_config(name, options, "file")
        assert config.data.kind == "mannequins" and config.optim.phase_one == 0
        assert config.optim.batch_size == PRESETS[name]().optim.batch_size
        try:
            config.data.__post_init__()
        except UserError as error:
            pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize("stride, side", [(2, 16), (4, 8)])
def test_the_grid_of_a_row_is_that_of_the_flow(bench, forms, stride, side):
    config = tiny_config(model_flow_stride=stride)
    planned = bench.make_row(config, "ours", (None, ("out of memory", "")))
    assert planned["grid"] == [side, side]  # of images of 32 x 32
    job = forms.Job(config=config, form="ours", steps=1, seconds=1.0, rate=1.0)
    measured = forms.Variant(job).warping()
    assert bench.make_row(config, "ours", (measured, None))["grid"] == [side, side]
    measured["grid"] = [3, 5]  # what was measured counts, not what was asked for
    assert bench.make_row(config, "ours", (measured, None))["grid"] == [3, 5]


def test_random_weights_are_read_as_vgg19(forms, tmp_path):
    from posemodel.losses.perceptual import VGG19, load_perceptual_loss

    forms.random_vgg19(tmp_path)
    loss = load_perceptual_loss(VGG19, tmp_path)
    assert sum(weight.numel() for weight in loss.parameters()) == 12_944_960  # to relu5_1


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_results(bench, file):
    found = json.loads(file.read_text())
    assert (found["benchmark"], found["schema"]) == ("step", bench.SCHEMA)
    assert found["commit"] and not found["changed"], "measured on code that is in no commit"
    for preset in {row["preset"] for row in found["rows"]}:
        rows = {row["form"]: row for row in found["rows"] if row["preset"] == preset}
        eager = rows["eager"]
        for row in rows.values():
            assert row["status"] == bench.OK
            if row["form"] in bench.FORMS:
                assert row["eager_ratio"] == pytest.approx(eager["ms"] / row["ms"])
                assert row["loss_difference"] <= bench.TOLERANCE[found["precision"]]
            if "ours_ratio" in row:  # older files have none
                assert row["ours_ratio"] == pytest.approx(rows["ours"]["ms"] / row["ms"])
            data = row["parts"]["data"][0]
            assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / (row["ms"] + data))
            assert sum(row["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_results_can_be_read(bench, file, capsys):
    assert bench.main(["--read", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(row["form"] in printed for row in json.loads(file.read_text())["rows"])


def test_a_run_is_written_and_read_again(bench, forms, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forms, "apart", lambda job, **_: next(answers))
    monkeypatch.setattr(forms, "random_vgg19", lambda folder: None)
    asked = bench.make_row(tiny_config(), "ours", (None, None))
    measured = {key: value for key, value in rows["lazy"][0].items() if key not in asked}
    answers = iter([(measured, None), (None, ("out of memory", "needs more"))])
    file = tmp_path / "run.json"
    import measure

    monkeypatch.setattr(measure, "product_rate", lambda dtype, clock: 1e11)
    assert bench.main(["--batch", "1", "--device", "cpu", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "out of memory: needs more" in printed and "random weights" in printed
    found = json.loads(file.read_text())
    assert found["data"] == "mannequins" and found["versions"]["torch"] and len(found["rows"]) == 2
    assert bench.main(["--read", str(file)]) == 0
    assert capsys.readouterr().out == printed
    assert bench.main(["--json", str(file)]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("words, says", [
    (["--presets", "papre"], "papre"), (["--rivals", "fom"], "fom"), (["--rivals"], "--rivals"),
    (["--rivals", "ours"], "ours"), (["--steps", "0"], "--steps"),
    (["--device", "cuda:99"], "cuda:99"), (["--seconds", "-1"], "--seconds"),
])
def test_bad_arguments_are_one_line(bench, words, says, capsys):
    assert bench.main(words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
