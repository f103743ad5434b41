"""The benchmarks run, and check what they time. Their figures are not judged here."""

import contextlib
import inspect
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pose_kernels
from posemodel.mannequins.pairs import Mannequins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = [file for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
           if not file.stem.endswith("-step")]  # those are step_bench's
FLAGS = SimpleNamespace(compile=False, channels_last=False)
# Every operator, and two read-outs in one call.
OPS = tuple(sorted([*pose_kernels.implementations(), "guided_readout_pair"]))
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


@pytest.mark.parametrize("name", ["bound_bench.py", "corr_bench.py", "experiments.py",
                                  "film_bench.py", "hole_bench.py", "loading_bench.py",
                                  "step_bench.py"])
def test_help(name):
    done = bench(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


def test_film_bench_needs_the_report_of_the_clips_before_it_trains(tmp_path):
    done = bench("film_bench.py", str(tmp_path), "--out", str(tmp_path / "runs"))
    assert done.returncode == 2 and f"{tmp_path / 'film.json'} is missing" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_film_bench_shows_what_mannequins_alone_bring():
    def measured(value):
        return {f"{image}_{column}": value for image in ("copy", "warped", "refined")
                for column in ("l1", "person_l1", "lpips_alex", "lpips_vgg")}

    run = {"before": measured(8.0), "after": measured(6.0), "steps": 70, "step_ms": 900.0,
           "mannequin_steps": 400}
    rows = {"mraa": [run | {"before": None, "mannequin_steps": None}],
            "fomm from mannequins": [run, run | {"before": measured(7.0)}]}
    table = runpy.run_path(str(ROOT / "benchmarks" / "film_bench.py"))["table"]({"rows": rows})
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in found] == ["copying the source", "mraa", "fomm, mannequins alone",
                                         "fomm from mannequins"]
    assert found[2][1] == "7.5 ± 0.7" and found[2][-2:] == ["400 ± 0", ""]
    assert found[3][1] == "6.0 ± 0.0" and found[3][-2:] == ["70 ± 0", "900 ± 0"]


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


def test_bound_bench_knows_the_truth(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bound_bench

    batch = Mannequins(size=(64, 64), turn=60.0, seed=5).pairs(range(4))
    target = batch["target"]
    assert torch.allclose(bound_bench.moved(target, 1.0)[..., 1:], target[..., :-1], atol=1e-5)
    half = bound_bench.moved(target, 0.5)[..., 1:]
    assert torch.allclose(half, (target[..., 1:] + target[..., :-1]) / 2, atol=1e-5)
    best = bound_bench.true_flow(batch)
    behind, seen = ~batch["target_foreground"], batch["visible"]
    assert torch.equal(best[behind.expand_as(best)], target[behind.expand_as(best)])
    off = ((best - target).abs().mean(1, keepdim=True) * 127.5)[seen].mean()
    unmoved = ((batch["source"] - target).abs().mean(1, keepdim=True) * 127.5)[seen].mean()
    assert off < 0.3 * unmoved


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
                                                 "channels", "features", "outputs", "kernel",
                                                 "power"))
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
    forms, forward = ({row["form"] for row in rows if row["mode"] == mode}
                      for mode in ("forward+backward", "forward"))
    takes = inspect.signature(getattr(pose_kernels, op.removesuffix("_pair"))).parameters
    if op == "guided_readout_pair":
        assert {"two calls", "stored map, matmul"} <= forms
        assert all(row["error"] < 1e-5 for row in rows)
    if op == "mutual_matches":
        assert not forms
        forms = forward
    assert forward - forms == ({"cpp, out="} if "out" in takes else set())
    assert forms - forward == set()
    assert {"eager", "reference", "cpp"} <= forms
    assert ("cpp, bfloat16 map" in forms) == ("out_dtype" in takes)
    assert ("ncnet" in forms) == (op in ("soft_mutual_normalize", "guided_correlation",
                                         "guided_correlation_conv2d"))
    assert ("cpp, ch.-last" in forms) == (op in ("correlation_4d", "guided_correlation"))
    assert {row["form"] for row in rows if row["ours"]} <= {
        "reference", "cpp", "reference, ch.-last", "cpp, ch.-last", "cpp, out=",
        "cpp, bfloat16 map"}
    assert all(row["status"] == "ok" for row in rows)
    printed = capsys.readouterr().out
    assert all(row["form"] in printed for row in rows)
    if op == "guided_correlation_conv2d":
        assert {"conv alone", "conv alone, ch.-last", "conv over guided"} <= forms
    if op == "guided_readout":
        assert {"stored map, matmul", "sdpa"} <= forms
        assert {row["power"] for row in rows} == {1, 2}
        # What computes the same is right too, and attention is another function.
        same = [row for row in rows if row["form"] != "sdpa"]
        assert all(row["error"] < 1e-5 for row in same) and len(same) < len(rows)
        assert all(row["error"] > 0.1 for row in rows if row["form"] == "sdpa")
        assert "3 values, power 2" in printed


def test_attention_is_that_of_the_features_and_values(modules):
    import operators.guided_readout as module

    generator = torch.Generator().manual_seed(0)
    for outputs in (3, 7):  # fewer than the features have channels, and more
        size = modules.operation.Size(2, 6, "float64", 5, outputs, 1, 1, 1)
        inputs = {name: x.double() for name, x in module.OPERATOR.inputs(size, generator).items()}
        source, target = (inputs[name].flatten(2) for name in ("source", "target"))
        scale = max(5, outputs) ** -0.5
        weights = (scale * torch.einsum("bms,bmt->bst", source, target)).softmax(1)
        expected = torch.einsum("ns,bst->bnt", inputs["values"], weights)
        torch.testing.assert_close(module.attention(*inputs.values()).flatten(2), expected)


def with_more_keywords(right, calls, wrong=False):
    """An operator that also takes `out`, which a wrong one does not write, and `out_dtype`."""
    def operator(source, target, *, memory_format=torch.contiguous_format, impl=None, out=None,
                 out_dtype=None):
        result = right(source, target, memory_format=memory_format, impl=impl)
        calls.append((impl, out is not None, out_dtype, torch.is_grad_enabled()))
        if out is None:
            return result.to(out_dtype or result.dtype)
        return out if wrong else out.copy_(result)

    return operator


def test_out_and_a_map_of_half_precision(modules, tmp_path, monkeypatch):
    op, calls, file = modules.operators.operator("guided_correlation"), [], tmp_path / "run.json"
    right = pose_kernels.guided_correlation
    monkeypatch.setattr(pose_kernels, "guided_correlation", with_more_keywords(right, calls))
    words = [*TINY, "--op", "guided_correlation", "--commit", "0123abc", "--json", str(file)]
    assert modules.corr_bench.main(words) == 0
    rows = assert_valid(file.read_text())["rows"]
    found = {(row["form"], row["mode"]): row for row in rows}
    assert ("cpp, out=", "forward") in found and ("cpp, out=", "forward+backward") not in found
    assert not any(form.startswith("reference,") for form, _ in found)
    assert {(impl, dtype, grad) for impl, out, dtype, grad in calls if out} == {
        ("cpp", None, False)}
    features, map = 4 * 2 * 4 * 36, 36 * 36
    for mode, times in (("forward", 1), ("forward+backward", 2)):
        full, half = found["cpp", mode], found["cpp, bfloat16 map", mode]
        assert full["fewest_bytes"] == times * (features + 4 * map)
        assert half["fewest_bytes"] == times * (features + 2 * map)
        assert (full["tolerance"], half["tolerance"]) == (1e-5, 4e-2)
        assert 1e-4 < half["error"] < 1e-2  # it is in half precision
    assert found["cpp, out=", "forward"]["tolerance"] == 1e-5
    # Memory that was there before the call is none of what it makes.
    size = modules.operation.Size(1, 6, "float32", 4, 3, 3, 12, 2)
    forms = {form.name: form for form in op.forms(size, torch.device("cpu"), FLAGS)}
    assert op.returned(size, False, forms["cpp, out="]) == 0
    assert op.returned(size, False, forms["cpp, bfloat16 map"]) == 2 * map
    words[words.index("--op"):] = ["--op", "guided_correlation", "--dtype", "float16"]
    calls.clear()
    assert modules.corr_bench.main(words) == 0
    assert not [dtype for *_, dtype, _ in calls if dtype], "a map of half precision already"


def test_out_that_is_not_written_is_found(corr_bench, monkeypatch, capsys):
    monkeypatch.setattr(pose_kernels, "guided_correlation",
                        with_more_keywords(pose_kernels.guided_correlation, [], wrong=True))
    assert corr_bench.main([*TINY, "--op", "guided_correlation"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"cpp, out= +failed the check", out) and re.search(r"cpp +\d", out)


def children():
    """Processes that this one started and that run."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids]


def state_and_seconds(pid):
    """Z for a process that has ended and that nobody asked for its code; its time on a CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def wait_until(true):
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_cores_are_kept_busy_and_let_go(modules):
    from busy import busy

    before = set(children())
    for error in (None, KeyboardInterrupt, ValueError):
        with pytest.raises(error) if error else contextlib.nullcontext(), busy(2):
            pids = set(children()) - before
            assert len(pids) == 2
            for pid in pids:
                assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
                start = state_and_seconds(pid)[1]
                wait_until(lambda pid=pid, start=start: state_and_seconds(pid)[1] > start)
            if error:
                raise error
        assert set(children()) == before
    with busy(0):
        assert set(children()) == before


def test_a_busy_process_that_ends_early_is_an_error(modules):
    from busy import busy

    before = set(children())
    with pytest.raises(RuntimeError, match="ended with codes"), busy(1):
        pid, = set(children()) - before
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_busy_processes_do_not_outlive_the_one_that_started_them():
    code = ("import os, subprocess, sys; sys.path.insert(0, 'benchmarks'); from busy import busy\n"
            "with busy(1):\n"
            "    print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True)\n"
            "    os._exit(0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=60)

    def ended():
        try:
            return state_and_seconds(int(done.stdout))[0] == "Z"
        except OSError:
            return True

    wait_until(ended)


def test_a_run_says_that_cores_were_busy(corr_bench, tmp_path, capsys):
    file = tmp_path / "run.json"
    words = [*TINY, "--op", "correlation_4d", "--busy", "1", "--commit", "0123abc"]
    before = children()
    assert corr_bench.main([*words, "--json", str(file)]) == 0
    assert children() == before
    assert "1 core kept busy meanwhile" in capsys.readouterr().out
    assert assert_valid(file.read_text())["options"]["busy"] == 1
    assert corr_bench.main(["--read", str(file)]) == 0
    assert "1 core kept busy meanwhile" in capsys.readouterr().out
    for older in RESULTS:  # than the option
        assert corr_bench.main(["--read", str(older)]) == 0
        found = json.loads(older.read_text())["options"].get("busy")
        assert ("kept busy" in capsys.readouterr().out) == bool(found)


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
    assert {row["form"] for row in rows} == {"eager", "ncnet", "compile", "cpp", "cpp, out=",
                                             "cpp, bfloat16 map", "reference"}
    assert all(row["compile_ratio"] > 0 for row in rows)


def test_a_failed_check_prints_no_speed(modules, tmp_path, monkeypatch, capsys):
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setitem(modules.corr_measure.TOLERANCE, dtype, 0.0)
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
    assert work["mutual_matches"][0] == (2 * (2 * features + 2 * 2 * 9), product)
    assert work["soft_mutual_normalize"] == [(2 * 2 * maps, 0), (2 * 4 * maps, 0)]
    values, result = 7 * 9, 2 * 7 * 9
    products = 2 * 2 * 9 * 9 * (5 + 7)  # 2 B S T (m + n)
    whole = 2 * (2 * features + values + result)
    assert work["guided_readout"] == [(whole, products), (2 * whole, 3 * products)]
    whole, products = whole + 2 * (2 * 9 + 2 * 2 * 9), products + 2 * 2 * 9 * 9 * 2
    assert work["guided_readout_pair"] == [(whole, products), (2 * whole, 3 * products)]
    weight = 7 * 9 * 9
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
    gradient = upstream if op.backward else None
    expected = modules.operation.differentiate(op.oracle, whole, gradient)
    assert exact.keys() == expected.keys() == {"result", *(inputs if op.backward else ())}
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
    (["--busy", "0"], "--busy"), (["--power", "3"], "--power"),
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
