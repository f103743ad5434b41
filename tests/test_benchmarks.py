"""The benchmarks run, and check what they time. Their figures are not judged here."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pose_kernels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = [file for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
           if not file.stem.endswith("-step")]  # those are step_bench's
FLAGS = SimpleNamespace(compile=False, channels_last=False)
OPS = tuple(sorted(pose_kernels.implementations()))
TINY = ("--grids", "6", "--features", "4", "--outputs", "3", "--image", "12", "--channels", "2",
        "--repeats", "2", "--threads", "1")


def bench(name, *words):
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / name), *words], cwd=ROOT,
                          capture_output=True, text=True, check=False)


@pytest.fixture
def modules(monkeypatch):
    """The parts of corr_bench, with ceilings that cost no time."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import corr_bench
    import corr_measure
    import measure
    import operation
    import operators

    monkeypatch.setattr(measure, "bandwidth", lambda clock: 1e10)
    monkeypatch.setattr(measure, "product_rate", lambda dtype, clock: 1e11)
    threads = torch.get_num_threads()
    yield SimpleNamespace(corr_bench=corr_bench, corr_measure=corr_measure, measure=measure,
                          operation=operation, operators=operators)
    torch.set_num_threads(threads)


@pytest.fixture
def corr_bench(modules):
    return modules.corr_bench


@pytest.mark.parametrize("name", ["corr_bench.py", "experiments.py", "loading_bench.py",
                                  "step_bench.py"])
def test_help(name):
    done = bench(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


def test_loading_bench_measures_rates(tmp_path):
    file = tmp_path / "run.json"
    done = bench("loading_bench.py", "--kinds", "market", "mannequins", "--sizes", "32", "--pairs",
                 "4", "--batch", "2", "--workers", "0", "--seconds", "0.1", "--threads", "1",
                 "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["mannequins"]["32"] > 0 and found["market"]["pairs_per_second"]["0"] > 0
    assert min(found["market"]["ms_per_pair"].values()) > 0
    assert re.search(r"32 x 32 +\d", done.stdout) and "a core delivers" in done.stdout


def test_experiments_names_the_variants_when_one_is_misspelt():
    done = bench("experiments.py", "affine-zero")
    assert done.returncode == 2 and "affine-0" in done.stderr and "Traceback" not in done.stderr


HEADER = {"schema": int, "date": str, "machine": str, "device": str, "threads": int,
          "versions": dict, "commit": str, "changed": (bool, type(None)), "build": dict,
          "options": dict, "tf32": bool, "flushed_bytes": int, "bandwidth_bytes_per_s": float,
          "rate_operations_per_s": dict, "rows": list}
COLUMNS = {"op": str, "batch": int, "grid": int, "dtype": str, "mode": str, "form": str,
           "ours": bool, "status": str, "note": str, "floor_ms": float, "bound": str,
           "fewest_bytes": int, "operations": int, "tolerance": float, "checked_at": int}
MEASURED = ("ms", "ms_p25", "ms_p75", "repeats", "peak_mib", "extra_mib", "gb_per_s",
            "percent_of_floor", "tflop_per_s", "eager_ratio", "compile_ratio", "error")


def refuse(constant):
    raise AssertionError(f"{constant} in a JSON file")


def assert_valid(text):
    """Complete, finite, consistent, and every row of ours passed its check."""
    found = json.loads(text, parse_constant=refuse)
    for key, kind in HEADER.items():
        assert isinstance(found[key], kind), key
    assert re.fullmatch("[0-9a-f]{7,40}", found["commit"])
    assert {"pose_kernels", "torch", "python"} <= {k for k, v in found["versions"].items() if v}
    assert found["rows"]
    medians = {}
    for row in found["rows"]:
        problem = tuple(row.get(key) for key in ("op", "mode", "batch", "grid", "dtype", "image",
                                                 "channels", "features", "outputs", "kernel"))
        assert (problem, row["form"]) not in medians, "a row twice"
        medians[problem, row["form"]] = row["ms"]
        row["problem"] = problem
    for row in found["rows"]:
        for key, kind in COLUMNS.items():
            assert isinstance(row[key], kind), (key, row)
        assert all(row[key] is None or math.isfinite(row[key]) for key in MEASURED), row
        assert row["op"] in OPS and row["mode"] in ("forward", "forward+backward")
        floor = 1e3 * row["fewest_bytes"] / found["bandwidth_bytes_per_s"]
        assert row["floor_ms"] >= 0.999999 * floor > 0
        if row["ours"]:
            assert row["status"] in ("ok", "out of memory"), row
        if row["status"] != "ok":
            assert row["ms"] is None and row["note"], row
            continue
        assert 0 < row["ms_p25"] <= row["ms"] <= row["ms_p75"] and row["repeats"] >= 1, row
        if row["ours"]:
            assert row["error"] <= row["tolerance"], row
        assert row["percent_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["ms"])
        assert row["gb_per_s"] == pytest.approx(row["fewest_bytes"] / row["ms"] / 1e6)
        for form in ("eager", "compile"):
            other = medians.get((row["problem"], form))
            expected = None if other is None else pytest.approx(other / row["ms"])
            assert row[f"{form}_ratio"] == expected
    return found


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_results(file):
    found = assert_valid(file.read_text())
    assert not found["changed"], "measured on code that is in no commit"


def test_the_command_writes_valid_json_and_a_picture(tmp_path):
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    done = bench("corr_bench.py", *TINY, "--op", "flow_sample", "--commit", "0123abc", "--json",
                 str(file), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    found = assert_valid(file.read_text())
    assert found["commit"] == "0123abc" and found["threads"] == 1
    assert found["bandwidth_bytes_per_s"] > 1e8 and found["rate_operations_per_s"]["float32"] > 1e8
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.png"]


@pytest.mark.parametrize("op", OPS)
def test_every_operator(op, corr_bench, tmp_path, capsys):
    file = tmp_path / "run.json"
    words = [*TINY, "--op", op, "--channels-last", "--commit", "0123abc", "--json", str(file)]
    assert corr_bench.main(words) == 0
    rows = assert_valid(file.read_text())["rows"]
    forms = {row["form"] for row in rows if row["mode"] == "forward+backward"}
    assert forms == {row["form"] for row in rows if row["mode"] == "forward"}
    assert {"eager", "reference", "cpp"} <= forms
    assert ("ncnet" in forms) == (op in ("soft_mutual_normalize", "guided_correlation",
                                         "guided_correlation_conv2d"))
    assert ("cpp, ch.-last" in forms) == (op in ("correlation_4d", "guided_correlation"))
    assert {row["form"] for row in rows if row["ours"]} <= {
        "reference", "cpp", "reference, ch.-last", "cpp, ch.-last"}
    assert all(row["status"] == "ok" for row in rows)
    printed = capsys.readouterr().out
    assert all(row["form"] in printed for row in rows)
    if op == "guided_correlation_conv2d":
        assert {"conv alone", "conv alone, ch.-last", "conv over guided"} <= forms


def test_several_sizes_and_batches_in_one_run(corr_bench, tmp_path, capsys):
    file, picture = tmp_path / "run.json", tmp_path / "run.svg"
    words = [*TINY, "--op", "correlation_4d", "soft_mutual_normalize", "--grids", "4", "5",
             "--batch", "1", "3", "--dtype", "float64", "bfloat16", "--channels", "1", "2",
             "--repeats", "1", "--commit", "0123abc", "--json", str(file), "--plot", str(picture)]
    assert corr_bench.main(words) == 0
    rows = assert_valid(file.read_text())["rows"]
    # Channels are flow_sample's alone: they make no problem twice.
    assert len({(r["op"], r["grid"], r["batch"], r["dtype"]) for r in rows}) == 16
    assert picture.read_text().lstrip().startswith("<?xml")
    printed = capsys.readouterr().out
    assert corr_bench.main(["--read", str(file)]) == 0
    again = capsys.readouterr().out
    assert again.split() == printed.split()


def test_compile_is_a_row_of_its_own(corr_bench, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    file = tmp_path / "run.json"
    words = [*TINY, "--op", "guided_correlation", "--compile", "--commit", "0123abc"]
    assert corr_bench.main([*words, "--json", str(file)]) == 0
    rows = assert_valid(file.read_text())["rows"]
    assert {row["form"] for row in rows} == {"eager", "ncnet", "compile", "cpp", "reference"}
    assert all(row["compile_ratio"] > 0 for row in rows)


def test_a_failed_check_prints_no_speed(modules, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(modules.corr_measure.TOLERANCE, "float32", 0.0)
    file = tmp_path / "run.json"
    words = [*TINY, "--op", "guided_correlation", "--json", str(file)]
    assert modules.corr_bench.main(words) == 1
    for row in json.loads(file.read_text())["rows"]:
        failed = row["ours"]
        assert (row["status"] == "failed the check") == failed
        assert (row["ms"] is None) == failed and (row["percent_of_floor"] is None) == failed
    out, err = capsys.readouterr()
    assert re.search(r"cpp +failed the check; error \d", out)
    assert "cpp: failed the check" in err


def test_a_wrong_implementation_is_found(corr_bench, monkeypatch, capsys):
    right = pose_kernels.flow_sample
    monkeypatch.setattr(pose_kernels, "flow_sample", lambda image, flow, impl: (
        right(image, flow, impl=impl) * (float("nan") if impl == "cpp" else 1)))
    assert corr_bench.main([*TINY, "--op", "flow_sample"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"cpp +failed the check; error -", out)
    assert re.search(r"reference +\d", out)


def test_an_implementation_that_raises_is_a_failure(corr_bench, monkeypatch, capsys):
    right = pose_kernels.guided_correlation

    def broken(*arguments, impl=None, **keywords):
        if impl == "cpp":
            raise RuntimeError("no such kernel\nat line 3")
        return right(*arguments, impl=impl, **keywords)

    monkeypatch.setattr(pose_kernels, "guided_correlation", broken)
    assert corr_bench.main([*TINY, "--op", "guided_correlation"]) == 1
    assert re.search(r"cpp +error \(RuntimeError: no such kernel\)", capsys.readouterr().out)


def test_out_of_memory_is_a_result(modules, tmp_path, monkeypatch, capsys):
    op = modules.operators.operator("guided_correlation_conv2d")
    size = modules.operation.Size(1, 16, "float32", 4, 3, 3, 16, 1)
    named = {form.name: form for form in op.forms(size, torch.device("cpu"), FLAGS)}
    eager, ours = named["eager"], named["cpp"]
    base = op.base(size)
    room = (base + op.need(size, eager, False), base + op.need(size, ours, True))
    assert room[0] > room[1]
    # Enough for ours with gradients, not for eager; the oracle has to take a smaller grid.
    enough = sum(room) / 2 / 0.9
    monkeypatch.setattr(modules.measure, "available_bytes", lambda device: enough)
    file = tmp_path / "run.json"
    words = [*TINY, "--grids", "16", "--op", "guided_correlation_conv2d", "--commit", "0123abc",
             "--json", str(file)]
    assert modules.corr_bench.main(words) == 0
    rows = assert_valid(file.read_text())["rows"]
    for row in rows:
        if row["form"] in ("eager", "ncnet", "reference"):
            assert row["status"] == "out of memory" and "needs about" in row["note"]
        if row["form"] == "cpp":
            assert row["status"] == "ok" and row["eager_ratio"] is None
            assert row["checked_at"] == 8 and "checked at 8" in row["note"]
    assert "out of memory (needs about" in capsys.readouterr().out
    # Not even the inputs fit.
    monkeypatch.setattr(modules.measure, "available_bytes", lambda device: 0)
    assert modules.corr_bench.main(words[:-2]) == 0
    assert "%" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
])
def test_what_counts_as_out_of_memory(modules, error):
    measure = modules.measure

    def call():
        raise error

    assert measure.attempt(call) == (None, ("out of memory", ""))


def test_every_operator_has_a_file_of_forms(modules):
    assert modules.operators.NAMES == OPS
    assert all(modules.operators.operator(name).name == name for name in OPS)


def test_work_by_hand(modules):
    # 2 samples, 3 x 3, m = 5: a map of 2 * 81 = 162 values, features of 90, results in float16.
    size = modules.operation.Size(2, 3, "float16", 5, 7, 3, 11, 4)
    work = {name: [op.work(size, backward) for backward in (False, True)]
            for name, op in ((name, modules.operators.operator(name)) for name in OPS)}
    maps, features = 162, 90
    product = 2 * 2 * 9 * 9 * 5
    for name in ("correlation_4d", "guided_correlation"):
        assert work[name] == [(2 * (2 * features + maps), product),
                              (2 * (4 * features + 2 * maps), 3 * product)]
    assert work["soft_mutual_normalize"] == [(2 * 2 * maps, 0), (2 * 4 * maps, 0)]
    weight, result = 7 * 9 * 9, 2 * 7 * 9
    values = 2 * features + weight + 7 + result
    convolution = 2 * 2 * 7 * 9 * 9 * 9  # 2 B n T S k k
    assert work["guided_correlation_conv2d"] == [
        (2 * values, product + convolution), (4 * values, 3 * (product + convolution))]
    image, flow = 2 * 4 * 11 * 11, 2 * 2 * 9
    assert work["flow_sample"] == [
        (2 * (2 * image + flow), 8 * image), (4 * (2 * image + flow), 24 * image)]
    conv = modules.operators.operator("guided_correlation_conv2d")
    alone = next(f for f in conv.forms(size, torch.device("cpu"), FLAGS) if f.name == "conv alone")
    assert conv.work(size, False, alone) == (2 * (maps + weight + 7 + result), convolution)
    # "extra" is beyond these: the result, and every gradient.
    assert conv.returned(size, False) == 2 * result
    assert conv.returned(size, True) == 2 * (values)
    assert conv.returned(size, True, alone) == 2 * (maps + weight + 7 + result)


@pytest.mark.parametrize("op", OPS)
def test_the_oracle_of_a_batch_is_that_of_its_samples_at_once(op, modules):
    op = modules.operators.operator(op)
    size = modules.operation.Size(3, 4, "float64", 5, 2, 3, 9, 2)
    generator = torch.Generator().manual_seed(1)
    inputs = op.inputs(size, generator)
    inputs = {name: x.double() for name, x in inputs.items()}
    upstream = op.upstream(size, inputs, generator)
    exact = op.exact(inputs, upstream)
    whole = {name: x.clone().requires_grad_() for name, x in op.widened(inputs).items()}
    expected = modules.operation.differentiate(op.oracle, whole, upstream)
    assert exact.keys() == expected.keys() == {"result", *inputs}
    for name, value in expected.items():
        torch.testing.assert_close(exact[name], value, rtol=1e-12, atol=1e-12)


def test_no_upstream_gradient_arrives_at_a_corner_of_the_interpolation(modules):
    op = modules.operators.operator("flow_sample")
    size = modules.operation.Size(1, 32, "float32", 1, 1, 1, 32, 1)
    half = pose_kernels.identity_flow(32, 32)[None].clone()
    half[:, :, :16] += 1 / 32  # half a pixel: the upper rows are between pixels, the lower on them
    grad = op.upstream(size, {"image": torch.zeros(1, 1, 32, 32), "flow": half},
                       torch.Generator().manual_seed(0))
    assert (grad[:, :, :16] != 0).all() and (grad[:, :, 16:] == 0).all()


def test_nothing_is_overwritten_unasked(corr_bench, tmp_path, capsys):
    for flag, name in (("--json", "mine.json"), ("--plot", "mine.png")):
        file = tmp_path / name
        file.write_text("precious")
        assert corr_bench.main([*TINY, "--op", "correlation_4d", flag, str(file)]) == 2
        err = capsys.readouterr().err
        assert "exists" in err and err.count("\n") == 1
        assert file.read_text() == "precious"
    words = [*TINY, "--op", "correlation_4d", "--commit", "0123abc", "--force"]
    assert corr_bench.main([*words, "--json", str(tmp_path / "mine.json")]) == 0
    assert_valid((tmp_path / "mine.json").read_text())


@pytest.mark.parametrize("words, named", [
    (["--op", "convolve"], "--op"), (["--grids", "0"], "--grids"), (["--grids"], "--grids"),
    (["--dtype", "int8"], "--dtype"), (["--repeats", "-1"], "--repeats"),
    (["--device", "tpu"], "--device"), (["--device", "cuda:99"], "--device"),
    (["--seconds", "-1"], "--seconds"), (["--nonsense"], "--nonsense"), (["--tf32"], "--tf32"),
    (["--json", "/no/such/folder/run.json"], "--json"), (["--plot", "run.doc"], "--plot"),
    (["--read", "/no/such.json"], "--read"), (["--read", "pyproject.toml"], "--read"),
    (["--read", "x.json", "--json", "y.json"], "--json"),
])
def test_bad_arguments_get_one_line(words, named, corr_bench, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert corr_bench.main(words) == 2
    out, err = capsys.readouterr()
    assert named in err and err.count("\n") == 1 and not out
