"""`python -m posemodel.export`: programs and weights that equal the model and load without us."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from posemodel.export import TOLERANCE, main
from posemodel.inference import programs
from posemodel.inference.model import PoseTransferModel
from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from tests.small_runs import tiny_generator, write_tiny_run
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


def export(source: Path, out: Path, *flags: str) -> Path:
    """The command, on the CPU; returns `out`."""
    assert main([str(source), "--out", str(out), "--device", "cpu", *flags]) == 0
    return out


@pytest.fixture(scope="module")
def program(run, tmp_path_factory):
    """The file of an exported program."""
    return export(run, tmp_path_factory.mktemp("program") / "model.pt2")


def in_new_process(code: str, *arguments: Path) -> dict:
    """Runs code that may know nothing of training; returns the JSON it prints."""
    code += ("\nimport sys"
             "\nassert 'posemodel.engine.trainer' not in sys.modules"
             "\nassert 'posemodel.losses' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def model_outputs(batch: int, **changes) -> tuple:
    """What the generator itself makes of the example inputs, and these."""
    model = model_of(**changes)
    inputs = programs.example_inputs(model, batch)
    with torch.no_grad():
        result = model.generator(*inputs)
    return inputs, (result.image, result.flow, result.warped)


def model_of(**changes) -> PoseTransferModel:
    return PoseTransferModel(tiny_generator(**changes), config=tiny_config(**changes), name="",
                             metadata={}, device=torch.device("cpu"))


def differences(ours, theirs) -> list[float]:
    return [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_program_equals_the_model_for_any_batch(program, batch):
    inputs, expected = model_outputs(batch)
    found = programs.load_program(program, compiled=False)(*inputs)
    assert [tuple(x.shape) for x in found] == [
        (batch, 3, 32, 32), (batch, 2, 8, 8), (batch, 3, 32, 32)]
    assert max(differences(found, expected)) <= TOLERANCE
    assert float((found[1][0] - found[1][-1]).abs().max()) > 0.01 or batch == 1


def test_our_operators_are_inside(program):
    # What runs without autocast is a graph in the graph.
    parts = torch.export.load(program).graph_module.modules()
    targets = {str(node.target) for part in parts for node in part.graph.nodes}
    ours = {f"pose_kernels.{name}.default" for name in ("flow_sample", "guided_readout_pair")}
    assert ours <= targets


def test_program_needs_nothing_but_torch_and_the_operators(program, tmp_path):
    inputs, expected = model_outputs(3)
    torch.save([*inputs, *expected], tmp_path / "case.pt")
    code = ("import json, sys, torch, pose_kernels\n"
            "*inputs, image, flow, warped = torch.load(sys.argv[2], weights_only=True)\n"
            "pairs = zip(torch.export.load(sys.argv[1]).module()(*inputs), (image, flow, warped))\n"
            "print(json.dumps([float((a - b).abs().max()) for a, b in pairs]))\n"
            "assert not any(name.startswith('posemodel') for name in sys.modules)")
    assert max(in_new_process(code, program, tmp_path / "case.pt")) <= TOLERANCE


def test_compiled_program(tmp_path, tmp_path_factory, capsys):
    # Of each part the fewest layers: the compiler takes half a second for each.
    small = dict(model_refine_downsamplings=1, model_flow_depth=2, model_encoder_channels=(8, 8))
    run = write_tiny_run(tmp_path_factory.mktemp("runs") / "small", **small)
    out = export(run, tmp_path / "model.pt2", "--compile")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    printed = capsys.readouterr().out
    assert "batch 8: " in printed and "largest difference" in printed
    inputs, (_, expected_flow, _) = model_outputs(5, **small)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = ("import json, sys, torch, pose_kernels\n"
            "inputs = torch.load(sys.argv[2], weights_only=True)\n"
            "found = torch._inductor.aoti_load_package(sys.argv[1])(*inputs)\n"
            "torch.save([output.clone() for output in found], sys.argv[3])\n"
            "print(json.dumps([list(output.shape) for output in found]))\n"
            "assert not any(name.startswith('posemodel') for name in sys.modules)")
    found = tmp_path / "found.pt"
    in_new_process(code, out, tmp_path / "inputs.pt", found)
    image, flow, warped = torch.load(found, weights_only=True)
    with torch.no_grad():  # an edge multiplies what the flow differs by, so at the same flow
        expected = tiny_generator(**small).transfer(inputs[0], flow, inputs[2])
    assert max(differences((flow, image, warped),
                           (expected_flow, expected.image, expected.warped))) <= TOLERANCE


@pytest.mark.parametrize("changes", [
    dict(model_stream="always"), dict(model_stream="always", model_flow_parametrization="residual"),
    dict(model_refine="none"),
    dict(model_refine="paper", model_skip=True, data_image_size=(64, 32)),
    dict(model_flow="fomm", model_motion_input="keypoints+image")])
def test_every_kind_of_model_can_be_exported(tmp_path, changes):
    programs.write_program(model_of(**changes), tmp_path / "a.pt2", compiled=False)
    inputs, expected = model_outputs(3, **changes)
    found = programs.load_program(tmp_path / "a.pt2", compiled=False)(*inputs)
    assert max(differences(found, expected)) <= TOLERANCE


def test_half_weights_take_half_the_file_and_are_computed_with_in_float32(run, tmp_path, capsys):
    whole = export(run, tmp_path / "whole.safetensors")
    half = export(run, tmp_path / "half.safetensors", "--half")
    assert "in 16 bits: largest difference from the model" in capsys.readouterr().out
    with safe_open(half, framework="pt") as file:
        stored = {file.get_tensor(name).dtype for name in file.keys()}
    assert stored <= {torch.float16, torch.int64} and torch.float16 in stored
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    generator = PoseTransferModel.from_file(half, "cpu").generator
    for name, tensor in PoseTransferModel.from_file(whole, "cpu").generator.state_dict().items():
        found = generator.state_dict()[name]
        assert found.dtype == tensor.dtype
        torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-6)


def test_weights_load_without_the_training_code(run, tmp_path):
    out = export(run, tmp_path / "model.safetensors", "--about", "mannequins only")
    inputs, expected = model_outputs(2)
    torch.save([*inputs, *expected], tmp_path / "case.pt")
    code = ("import json, sys, torch\n"
            "from posemodel.inference import PoseTransferModel\n"
            "*inputs, image, flow, warped = torch.load(sys.argv[2], weights_only=True)\n"
            "model = PoseTransferModel.from_file(sys.argv[1], 'cpu')\n"
            "pairs = zip(model.generator(*inputs), (image, flow, warped))\n"
            "largest = [float((a - b).abs().max()) for a, b in pairs]\n"
            "print(json.dumps([model.step, model.about, model.size, *largest]))")
    step, about, size, *largest = in_new_process(code, out, tmp_path / "case.pt")
    assert (step, about, size) == (7, "mannequins only", [32, 32]) and max(largest) == 0


def test_no_path_of_the_training_is_left(run, tmp_path):
    model = PoseTransferModel.from_run(run, "cpu")
    config = json.loads(model.metadata["config"])
    config["out"] = config["init"] = config["data"]["root"] = "/somewhere"
    config["loss"]["weights_folder"] = "/somewhere"
    model.metadata["config"] = json.dumps(config)
    programs.write_weights(model, tmp_path / "model.safetensors", about="")
    assert "/somewhere" not in metadata_of(tmp_path / "model.safetensors")["config"]


def test_weights_carry_the_configuration_but_no_paths(run, tmp_path):
    out = export(run, tmp_path / "model.safetensors")
    metadata = metadata_of(out)
    config = json.loads(metadata["config"])
    assert config["model"]["feature_channels"] == 6 and config["steps"] == 20
    assert config["out"] == config["init"] == config["data"]["root"] == ""
    assert config["loss"]["weights_folder"] == ""
    assert str(run.parent) not in json.dumps(config)
    assert metadata_of(export(out, tmp_path / "again.safetensors")) == metadata


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_program_that_differs_is_not_kept(run, tmp_path, monkeypatch):
    def other(path, *, compiled):
        program = torch.export.load(path).module()
        return lambda *inputs: [output + 2 * TOLERANCE for output in program(*inputs)]

    monkeypatch.setattr(programs, "load_program", other)
    with pytest.raises(RuntimeError, match="differs from the model"):
        export(run, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_existing_file_is_replaced_on_demand_only(run, tmp_path):
    out = tmp_path / "a.safetensors"
    out.write_text("years of work")
    with pytest.raises(UserError, match="--overwrite"):
        export(run, out)
    assert out.read_text() == "years of work"
    export(run, out, "--overwrite")
    assert PoseTransferModel.from_file(out, "cpu").step == 7


@pytest.mark.parametrize("words, says", [
    ("a.bin", "ending in .safetensors or .pt2"), ("none/a.pt2", "no folder none"),
    ("a.safetensors --compile", "ending in .pt2"), ("a.pt2 --about x", "--about is for weights"),
    ("a.pt2 --half", "--half is for weights"), ("a.pt2 --device abacus", "abacus")])
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", str(run), "--out", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert says in printed.err and not list(tmp_path.iterdir())


def test_missing_compiler_is_said(run, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="takes a C.. compiler, and there is no g"):
        main([str(run), "--out", str(tmp_path / "a.pt2"), "--compile"])
