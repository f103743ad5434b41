import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from posemodel.evaluation import records
from posemodel.evaluation.mannequin_metrics import MannequinTotals
from posemodel.evaluation.records import PairRecords
from posemodel.evaluation.roc import RocAccumulator
from posemodel.runtime.errors import UserError

ABOUT = {"protocol": {"name": "paper", "size": [64, 64]}, "pairs": 30}


def values(pairs):
    """What "measuring" pairs gives: one value depends on nothing but the pair."""
    pairs = torch.tensor(pairs, dtype=torch.float32)
    return {"l1": 100 / (pairs + 3), "epe": torch.where(pairs == 7, float("nan"), pairs.sqrt())}


def curve(pairs, roc):
    for pair in pairs:
        generator = torch.Generator().manual_seed(pair)
        labels = torch.rand(50, generator=generator) < 0.5
        roc.update(torch.rand(50, generator=generator) + labels * 0.2, labels)


def measure(folder, share, *, process=0, stop=10**9, batch=4):
    """An evaluation that stops, as if killed, before its batch number `stop`."""
    with PairRecords.open(folder, ABOUT, process=process) as file:
        roc = RocAccumulator(500).load(file.totals)
        todo = file.pending(share)
        for number, start in enumerate(range(0, len(todo), batch)):
            if number == stop:
                return len(todo)
            file.append(todo[start:start + batch], values(todo[start:start + batch]))
            curve(todo[start:start + batch], roc)
            if number % 2:
                file.commit(roc.state())
        file.commit(roc.state())
        return len(todo)


def outcome(folder):
    table, totals = records.read(folder)
    whole = RocAccumulator(500)
    for state in totals:
        whole.merge(RocAccumulator().load(state))
    return table, records.means(table), whole.auc()


def assert_same(first, second):
    assert all(np.array_equal(a, b, equal_nan=True)
               for a, b in zip(first[0].values(), second[0].values(), strict=True))
    assert first[1:] == second[1:]


def test_one_go(tmp_path):
    assert measure(tmp_path, range(30)) == 30
    table, means, _ = outcome(tmp_path)
    assert table["pair"].tolist() == list(range(30))
    expected = values(list(range(30)))
    assert np.array_equal(table["l1"], expected["l1"].double().numpy())  # to the last bit
    assert np.isnan(table["epe"][7])
    assert means["epe"] == pytest.approx(float(expected["epe"].double().nanmean()), rel=1e-12)


@pytest.mark.parametrize("stop", range(0, 8))
def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(tmp_path, stop):
    measure(tmp_path / "whole", range(30))
    measure(tmp_path / "cut", range(30), stop=stop)
    left = measure(tmp_path / "cut", range(30))
    assert left == 30 - 8 * (stop // 2)  # what was committed is not measured again
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_two_processes_give_the_numbers_of_one_and_may_become_three(tmp_path):
    measure(tmp_path / "one", range(30))
    for process in (0, 1):
        measure(tmp_path / "two", range(process, 30, 2), process=process)
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
    for process in (0, 1):
        measure(tmp_path / "three", range(process, 30, 2), process=process, stop=3)
    for process in (2, 0, 1):
        measure(tmp_path / "three", range(process, 30, 3), process=process)
    assert_same(outcome(tmp_path / "three"), outcome(tmp_path / "one"))


def test_a_killed_process_loses_nothing_that_was_committed(tmp_path):
    script = (
        "import os, numpy\n"
        "from posemodel.evaluation.records import PairRecords\n"
        f"file = PairRecords.open({str(tmp_path)!r}, {ABOUT!r})\n"
        "file.append([0, 1], {'l1': numpy.ones(2), 'epe': numpy.ones(2)})\n"
        "file.commit()\n"
        "file.append([2, 3], {'l1': numpy.ones(2), 'epe': numpy.ones(2)})\n"
        "file._rows.flush()\n"
        "os.kill(os.getpid(), 9)\n")
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    with (tmp_path / "rows-0.jsonl").open("a") as file:
        file.write('{"pair": 4, "l1')           # torn
    with PairRecords.open(tmp_path, ABOUT) as file:
        assert file.done == {0, 1} and file.pending(range(4)) == [2, 3]
        file.commit()
    assert records.read(tmp_path)[0]["pair"].tolist() == [0, 1]


def test_another_evaluation_is_refused(tmp_path):
    measure(tmp_path, range(4))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="another evaluation .other protocol."):
        PairRecords.open(tmp_path, {**ABOUT, "protocol": {"name": "gfla"}})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with PairRecords.open(tmp_path, ABOUT) as file:
        with pytest.raises(UserError, match="holds l1, epe of each pair, not l1;"):
            file.append([9], {"l1": torch.ones(1)})


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "rows-0.jsonl").write_text("not ours")
    with pytest.raises(UserError, match="is no evaluation .*nothing was touched"):
        PairRecords.open(tmp_path, ABOUT)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "rows-0.jsonl": "not ours"}


def test_a_folder_in_use_is_refused(tmp_path):
    with PairRecords.open(tmp_path, ABOUT):
        with pytest.raises(UserError, match="in use"):
            PairRecords.open(tmp_path, ABOUT)
        PairRecords.open(tmp_path, ABOUT, process=1).close()
    PairRecords.open(tmp_path, ABOUT).close()


def test_damage_is_found_out(tmp_path):
    with pytest.raises(UserError, match="is no evaluation"):
        records.read(tmp_path)
    measure(tmp_path, range(8))
    rows = (tmp_path / "rows-0.jsonl").read_bytes()
    (tmp_path / "rows-0.jsonl").write_bytes(rows[:-5])
    for reader in (records.read, lambda folder: PairRecords.open(folder, ABOUT)):
        with pytest.raises(UserError, match="shorter than when it was written"):
            reader(tmp_path)
    assert (tmp_path / "rows-0.jsonl").read_bytes() == rows[:-5]
    (tmp_path / "rows-0.jsonl").write_bytes(rows)
    (tmp_path / "totals-0.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="totals-0.npz is damaged"):
        records.read(tmp_path)


def test_a_pair_measured_twice_is_found_out(tmp_path):
    measure(tmp_path / "a", range(4))
    measure(tmp_path / "b", range(3, 6), process=1)
    for file in (tmp_path / "b").glob("*-1.*"):
        file.rename(tmp_path / "a" / file.name)
    with pytest.raises(UserError, match="two processes have measured pair 3"):
        records.read(tmp_path / "a")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write in"):
        PairRecords.open(tmp_path / "file" / "folder", ABOUT)


def test_infinite_values_and_no_rows(tmp_path):
    with PairRecords.open(tmp_path, ABOUT) as file:
        file.commit()
    assert records.means(records.read(tmp_path)[0]) == {}
    assert MannequinTotals().load({}).summary()["visibility"] == {}
    with PairRecords.open(tmp_path, ABOUT) as file:
        file.append([0, 1], {"psnr": torch.tensor([float("inf"), 30.0])})
        file.commit()
    assert json.loads((tmp_path / "rows-0.jsonl").read_text().splitlines()[0])["psnr"] is None
    assert records.means(records.read(tmp_path)[0]) == {"psnr": 30.0}
