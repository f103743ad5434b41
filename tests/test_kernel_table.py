"""The table of the CUDA kernels: what is read from machine code, what follows, and its page."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "benchmarks" / "results" / "kernels" / f"{name}.json"
         for name in ("before", "after")]

#: Two copies of a kernel, as a library has them, whose product (16 matrix instructions, 2 loads
#: before the first) lies in a loop over tiles.
BODY = ["LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.128 R8, desc[UR4][R2.64+0x200]",
        *["HMMA.1688.F32.TF32 R12, R4, R8, R12"] * 16, "LDG.E.128 R4, desc[UR4][R2.64]",
        "@P0 BRA 0x0010"]
CODE = ["S2R R0, SR_TID.X", *BODY, *["FMNMX.NAN R5, R4, R6, !PT"] * 44, "@!P1 BRA 0x0010",
        "STL [R1], R5", "EXIT", "BRA 0x0420"]
KERNEL = "void pose_kernels::row_maxima_kernel<float, 1>(pose_kernels::RowMaximaArguments<float>)"


@pytest.fixture
def kernel_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import kernel_table

    return kernel_table


def disassembled(code):
    lines = [f"        /*{16 * i:04x}*/      {text} ;   /* 0x0 */" for i, text in enumerate(code)]
    return [f"\t\tFunction : {KERNEL}", *lines]


def test_what_is_read_from_machine_code(kernel_table, monkeypatch):
    """The loop in the loop runs for five steps of 8 features; a thread has 64 elements of a turn.
    What a library has twice counts once."""
    dumps = {"-res-usage": [f" Function {KERNEL}:", "  REG:113 STACK:8 SHARED:0 LOCAL:0"],
             "-sass": disassembled(CODE) * 2}
    dumps = {what: [re.sub("pose_kernels::", "", x) for x in text] for what, text in dumps.items()}
    monkeypatch.setattr(kernel_table, "dump", lambda library, what, architecture: dumps[what])
    kernels = kernel_table.read_library(Path("library"), "sm_90")
    (row,) = kernel_table.make_rows({**kernels})[:1]
    assert (row["kernel"], row["precision"]) == ("row maxima", "TF32")
    assert row["registers"] == 113 and row["spills"] == 1 and row["loads_ahead"] == 2
    assert row["instructions"] == (len(BODY) * 5 + 45) / 64
    assert row["matrix_instructions"] == 16 * 5 / 64
    assert row["waves"] == 1120 / (132 * 2) and row["shared_bytes"] == row["tiles_ahead"] == 0


def test_a_prediction_is_the_longest_of_three(kernel_table):
    row = {"map_bytes": 0, "instructions": 1.0, "matrix_instructions": 0.0}
    warps = 7 * 4096**2 / 32
    found = kernel_table.predicted(row)
    assert found["bound"] == "instructions"
    assert found["predicted_ms"] == pytest.approx(1e3 * warps / (132 * 4 * 67e12 / (256 * 132)))
    found = kernel_table.predicted(row | {"map_bytes": 4.8e12})
    assert found == {"predicted_ms": 1e3, "bound": "bytes"}
    # One product of 40 features is 2 x 40 operations an element, at 494.5 TFLOP/s.
    found = kernel_table.predicted(row | {"instructions": 0.0, "matrix_instructions": 1.25})
    assert found["predicted_ms"] == pytest.approx(1e3 * 80 * 7 * 4096**2 / 494.5e12)


def test_the_committed_figures(kernel_table):
    """Complete, no spills, at most 128 registers, and predictions that follow from the rest."""
    before, after = (json.loads(file.read_text()) for file in FILES)
    for results in (before, after):
        assert results["gpu"] == kernel_table.GPU and re.fullmatch(r"[0-9a-f]{7,40}",
                                                                   results["commit"])
        for row in results["rows"]:
            assert row["spills"] == 0 and row["registers"] <= 128
            said = {key: row[key] for key in ("predicted_ms", "bound")}
            assert said == kernel_table.predicted(row)
    names = [(kernel.name, precision) for kernel in kernel_table.KERNELS
             for precision in kernel_table.PRECISIONS]
    assert [(row["kernel"], row["precision"]) for row in after["rows"]] == names


def test_the_page_has_the_table_as_the_command_prints_it(kernel_table, capsys):
    assert kernel_table.main(["--read", *map(str, FILES)]) == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "kernels.md").read_text()


def test_mistakes_are_told_in_a_line(kernel_table, tmp_path, capsys):
    file = tmp_path / "there.json"
    file.write_text("")
    assert kernel_table.main(["--json", str(file)]) == 2
    assert "exists (--force overwrites" in capsys.readouterr().err
