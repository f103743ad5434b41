"""Which implementation runs, and what a request that cannot be met says."""

import os
import subprocess
import sys

import pytest
import torch
from kernel_helpers import features, implementations

import pose_kernels
from pose_kernels import _dispatch


def test_every_op_has_a_reference_that_runs():
    for op, table in pose_kernels.implementations().items():
        assert table["reference"].available and table["reference"].devices == ()
        assert callable(getattr(pose_kernels, op))
        for name, entry in table.items():
            assert (entry.op, entry.name) == (op, name)
            assert entry.available or entry.reason


def test_best_first():
    best = _dispatch.choose("guided_correlation", None, torch.device("cpu"))
    name = implementations("guided_correlation")[0]
    assert best is _dispatch._functions["guided_correlation"][name]


def test_the_choice_has_a_name_and_reasons(monkeypatch):
    """Whatever a call without `impl` runs, `chosen` names, and says why nothing better does."""
    cpu, table = torch.device("cpu"), _dispatch._implementations["guided_correlation"]
    for op in pose_kernels.implementations():
        name = _dispatch.chosen(op, cpu)
        assert _dispatch._functions[op][name] is _dispatch.choose(op, None, cpu)
        assert name == implementations(op)[0]
    missing = _dispatch.Implementation("guided_correlation", "cpp", ("cpu",), (), "not built")
    monkeypatch.setitem(table, "cpp", missing)
    assert _dispatch.chosen("guided_correlation", cpu) == "reference"
    assert _dispatch.passed_over("guided_correlation", cpu) == {"cpp": "not built"}
    assert _dispatch.summary(["guided_correlation"], cpu) == "reference; not cpp: not built"
    assert _dispatch.chosen("flow_sample", torch.device("meta")) == "reference"
    assert _dispatch.passed_over("flow_sample", torch.device("meta")) == {}


def test_the_choice_of_the_program_is_a_reason(monkeypatch):
    cpu = torch.device("cpu")
    table = {"cpp": _dispatch.Implementation("op", "cpp", ("cpu",), (), None),
             "reference": _dispatch.Implementation("op", "reference", (), (), None)}
    other = {"reference": table["reference"]}
    monkeypatch.setattr(_dispatch, "_implementations", {"op": table, "other": other})
    assert _dispatch.summary(["op", "other"], cpu) == "cpp (op), reference (other)"
    with pose_kernels.use_implementation("reference"):
        assert _dispatch.chosen("op", cpu) == "reference"
        assert _dispatch.passed_over("op", cpu) == {"cpp": "use_implementation: reference"}
        monkeypatch.setattr(_dispatch, "_env", "reference")
        summary = _dispatch.summary(["op", "other"], cpu)
        assert summary == "reference; not cpp: POSE_KERNELS_IMPL=reference"
    monkeypatch.setitem(table, "cuda", _dispatch.Implementation("op", "cuda", ("cuda",), (), None))
    with pose_kernels.use_implementation("cuda"):
        summary = _dispatch.summary(["op"], cpu)
    assert summary == "op: implementation 'cuda' cannot run: it runs on cuda tensors, got cpu"


def test_unknown_and_lacking_implementations():
    inputs = features(1, 3, (2, 2), (2, 2))
    with pytest.raises(ValueError, match="impl: expected one of cuda, triton, cpp, reference"):
        pose_kernels.guided_correlation(*inputs, impl="fast")
    with pytest.raises(RuntimeError, match="'cuda' cannot run: "):
        pose_kernels.correlation_4d(*inputs, impl="cuda")  # on tensors of a CPU, wherever this runs


def test_an_implementation_that_an_op_lacks(monkeypatch):
    monkeypatch.delitem(_dispatch._implementations["correlation_4d"], "cpp")
    with pytest.raises(ValueError, match="impl: correlation_4d has reference, .*; got 'cpp'"):
        pose_kernels.correlation_4d(*features(1, 3, (2, 2), (2, 2)), impl="cpp")


def test_a_request_that_cannot_run_says_why(monkeypatch):
    inputs = features(1, 3, (2, 2), (2, 2))
    with pytest.raises(RuntimeError, match="'cpp' cannot run: it runs on cpu tensors, got meta"):
        pose_kernels.guided_correlation(*(x.to("meta") for x in inputs), impl="cpp")
    missing = _dispatch.Implementation("guided_correlation", "cpp", ("cpu",), (),
                                       "not built: no compiler")
    monkeypatch.setitem(_dispatch._implementations["guided_correlation"], "cpp", missing)
    with pytest.raises(RuntimeError, match="'cpp' cannot run: not built: no compiler"):
        pose_kernels.guided_correlation(*inputs, impl="cpp")
    pose_kernels.guided_correlation(*inputs)  # nobody asked for it: the reference steps in


def test_context_manager_nests_and_spares_ops_that_lack_it(monkeypatch):
    reference = _dispatch._functions["guided_correlation"]["reference"]
    cpu = torch.device("cpu")
    before = _dispatch.choose("guided_correlation", None, cpu)
    with pose_kernels.use_implementation("reference"):
        assert _dispatch.choose("guided_correlation", None, cpu) is reference
        monkeypatch.delitem(_dispatch._implementations["correlation_4d"], "cuda")
        with pose_kernels.use_implementation("cuda"):
            _dispatch.choose("correlation_4d", None, cpu)
        assert _dispatch.choose("guided_correlation", None, cpu) is reference
    assert _dispatch.choose("guided_correlation", None, cpu) is before
    with pytest.raises(ValueError, match="name: expected one of"):
        pose_kernels.use_implementation("fast")


def test_what_runs_on_request_only(monkeypatch):
    """Triton's interpreter on CPU tensors must never be anybody's default."""
    monkeypatch.setattr(_dispatch, "_functions", {"op": {}})
    monkeypatch.setattr(_dispatch, "_implementations", {"op": {}})
    _dispatch.register("op", "reference", print)
    _dispatch.register("op", "triton", len, devices=("cuda",), on_request=("cpu",))
    cpu = torch.device("cpu")
    assert _dispatch.choose("op", None, cpu) is print
    assert _dispatch.choose("op", "triton", cpu) is len
    with pose_kernels.use_implementation("triton"):
        assert _dispatch.choose("op", None, cpu) is len


def test_compile_follows_the_context():
    inputs = features(1, 3, (2, 2), (2, 2))
    compiled = torch.compile(pose_kernels.guided_correlation, fullgraph=True, backend="aot_eager")
    expected = compiled(*inputs)
    with pose_kernels.use_implementation("reference"):
        torch.testing.assert_close(compiled(*inputs), expected)


@pytest.mark.parametrize(("value", "code"), [("reference", 0), ("fast", 1)])
def test_environment_variable(value, code):
    script = ("import torch, pose_kernels as p; from pose_kernels import _dispatch as d;"
              "f = d.choose('guided_correlation', None, torch.device('cpu'));"
              "assert f is d._functions['guided_correlation']['reference']")
    done = subprocess.run([sys.executable, "-c", script],
                          env={**os.environ, "POSE_KERNELS_IMPL": value}, capture_output=True,
                          text=True)
    assert done.returncode == code, done.stderr
    assert code == 0 or "POSE_KERNELS_IMPL: expected one of" in done.stderr
