"""A validation list out of the training list: whole people, nothing lost, and who reads it."""

import json
import shutil

import numpy as np
import pytest
import torch

from posemodel.data import validation as module
from posemodel.data.check import check, describe
from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.data.layouts.market import MARKET
from posemodel.data.lists import read_pairs, write_pairs
from posemodel.data.prepare import prepare
from posemodel.data.reading import open_pairs
from posemodel.data.source import (
    held_out_batches,
    missing_validation,
    open_training_data,
    split_while_training,
)
from posemodel.data.validation import carve_validation
from posemodel.poses.annotations import read_annotations, write_annotations
from tests.small_datasets import (
    Killed,
    contents,
    make_fashion,
    make_generated,
    make_market,
    refused,
)
from tests.tiny import tiny_config

SPLITS = ("train", "validation", "test")
FASHION, LIST = "fasion-resize-pairs-{}.csv", "fasion-resize-pairs-train.csv"


@pytest.fixture
def fashion(tmp_path):
    return make_fashion(tmp_path / "fashion", people=20)


def paired(root) -> dict[str, list[tuple[str, str]]]:
    """Names of source and target of every pair, by split."""
    opened = {split: open_pairs(root, split) for split in SPLITS}
    return {split: [(each.names[one], each.names[other]) for one, other in each.pairs.tolist()]
            for split, each in opened.items()}


@pytest.mark.parametrize("make, layout, more", [
    (make_fashion, DEEPFASHION, {}), (make_market, MARKET, {}),
    (make_market, MARKET, {"pairs": False})])  # a list that a rule makes
def test_whole_people_move_and_no_pair_is_lost(make, layout, more, tmp_path):
    root = make(tmp_path / "set", people=20, **more)
    before = contents(root)
    train, test = (open_pairs(root, split) for split in ("train", "test"))
    validation, rest = carve_validation(root, share=0.1)
    assert (validation.people, rest.people) == (2, 18)
    pairs = paired(root)
    assert len(pairs["validation"]) == validation.pairs == 12 and len(pairs["train"]) == rest.pairs
    assert sorted(pairs["train"] + pairs["validation"]) == sorted(
        (train.names[a], train.names[b]) for a, b in train.pairs.tolist())
    people = {split: {layout.person(name) for pair in of for name in pair}
              for split, of in pairs.items()}
    assert not people["train"] & people["validation"] and not people["validation"] & people["test"]
    np.testing.assert_array_equal(open_pairs(root, "test").pairs, test.pairs)
    # What was there is there still, the list under another name.
    after = contents(root)
    listed = rest.path.name
    assert {name for name in before if after.get(name) != before[name]} <= {listed}
    assert after[listed + ".whole"] == before.get(listed, after[listed + ".whole"])
    assert set(after) - set(before) == {validation.path.name, listed + ".whole"} | (
        {listed} - set(before))
    found = check(root)
    assert found.problems == [] and found.splits["validation"]["pairs"] == 12
    assert "validation" in describe(found)
    assert open_pairs(root, "validation").path(0).is_file()


def test_who_moves_does_not_depend_on_the_order_of_rows(fashion, tmp_path):
    other = shutil.copytree(fashion, tmp_path / "other")
    path = other / "fasion-resize-annotation-train.csv"
    names, joints = read_annotations(path)
    pairs = read_pairs(other / LIST, names)
    write_annotations(path, names[::-1], joints[::-1])
    write_pairs(other / LIST, names, pairs[::-1])
    for root in (fashion, other):
        carve_validation(root, share=0.2)
    moved = [set(paired(root)["validation"]) for root in (fashion, other)]
    assert moved[0] == moved[1] and len(moved[0]) == 24


def test_who_is_paired_is_one_where_names_say_nothing(fashion):
    path = fashion / "fasion-resize-annotation-train.csv"
    names, joints = read_annotations(path)
    own = [f"{number * 7 % len(names):03d}.jpg" for number in range(len(names))]
    for old, new in zip(names, own, strict=True):
        (fashion / "train" / old).rename(fashion / "train" / new)
    # A chain of pairs is one person, too: 0 - 1 - 2.
    chain = [pair for first in range(0, len(own), 3)
             for pair in ((first + 1, first), (first + 1, first + 2))]
    write_annotations(path, own, joints)
    write_pairs(fashion / LIST, own, np.array(chain))
    validation, rest = carve_validation(fashion, share=0.25)
    assert (validation.people, validation.pairs, rest.people) == (5, 10, 15)
    pairs = paired(fashion)
    images = [{name for pair in pairs[split] for name in pair} for split in ("train", "validation")]
    assert not images[0] & images[1] and len(images[1]) == 15


def test_a_list_that_is_there_is_never_written_over(fashion):
    carve_validation(fashion, share=0.1)
    before = contents(fashion)
    refused("validation list already.* move .*train.csv.whole back .* delete",
            carve_validation, fashion, share=0.5)
    (fashion / FASHION.format("validation")).unlink()
    refused("train.csv.whole is there from an earlier split", carve_validation, fashion, share=0.5)
    assert contents(fashion) == {name: data for name, data in before.items()
                                 if name != FASHION.format("validation")}
    # As the line says.
    (fashion / f"{LIST}.whole").replace(fashion / LIST)
    assert carve_validation(fashion, share=0.5)[0].people == 10


def test_a_list_of_the_users_own_is_never_written_over(fashion):
    own = fashion / FASHION.format("validation")
    shutil.copy(fashion / LIST, own)
    before = contents(fashion)
    refused(f"{own}: there is a validation list already", carve_validation, fashion, share=0.1)
    assert contents(fashion) == before
    assert "60 images are in both splits, train and validation" in check(fashion).problems[0]


@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.parametrize("make, more", [(make_fashion, {}), (make_market, {"pairs": False})])
def test_a_split_that_was_stopped_is_gone_through_again(make, more, written, tmp_path, monkeypatch):
    expected, root = (make(tmp_path / name, people=20, **more) for name in ("whole", "stopped"))
    carve_validation(expected, share=0.1)
    done = []

    def stopping(function):
        def write(*arguments):
            if len(done) == written:
                raise Killed
            done.append(function)
            function(*arguments)
        return write

    with monkeypatch.context() as patched:
        for name in ("write_aside", "write_pairs"):
            patched.setattr(module, name, stopping(getattr(module, name)))
        with pytest.raises(Killed):
            carve_validation(root, share=0.1)
    carve_validation(root, share=0.1)
    assert contents(root) == contents(expected)


@pytest.mark.parametrize("share, says", [
    (0, "--validation 0: expected a share"), (1, "--validation 1: "), (0.99, "no people"),
    (float("nan"), "--validation nan")])
def test_what_is_no_split_is_refused(share, says, fashion):
    before = contents(fashion)
    refused(says, carve_validation, fashion, share=share)
    assert contents(fashion) == before


def test_a_written_set_stays_sound(tmp_path):
    """What this program has made knows its files by their content."""
    root = make_generated(tmp_path / "generated", pairs=40)
    carve_validation(root, share=0.1)
    assert check(root).problems == []
    path = root / f"{LIST}.whole"
    path.write_text(path.read_text() + "\n")
    assert f"{path} is not the file that was written" in check(root).problems[0]


def test_a_prepared_set_has_the_list_of_its_download(fashion, tmp_path):
    market = make_market(tmp_path / "market", people=20, form="bounding_box_{}")
    carve_validation(market, share=0.1)
    prepare(market, tmp_path / "out", kind="market", progress=lambda *_: None)
    assert paired(tmp_path / "out") == paired(market)


def test_a_validation_split_with_images_of_its_own(tmp_path):
    root = make_generated(tmp_path / "set", pairs=6, test_pairs=4, validation_pairs=4,
                          validation_seed=2**32 + 1)
    for split, pairs in (("train", 6), ("test", 4), ("validation", 4)):
        opened = open_pairs(root, split)
        assert len(opened.pairs) == pairs and opened.folder == root / split
    found = check(root)
    assert found.problems == found.notes == []
    people = {split: {DEEPFASHION.person(name) for pair in of for name in pair}
              for split, of in paired(root).items()}
    assert not people["train"] & people["validation"] and not people["validation"] & people["test"]
    without = make_generated(tmp_path / "without", pairs=6, test_pairs=4)
    assert contents(without)["train.lst"] == contents(root)["train.lst"]
    assert not (without / "validation").exists()
    refused("--validation-pairs -1", make_generated, tmp_path / "x", validation_pairs=-1)


def test_training_measures_itself_on_the_list_where_there_is_one(tmp_path):
    root = make_generated(tmp_path / "market", layout="market", pairs=40, test_pairs=20)
    config = tiny_config(data_kind="market", data_root=str(root), data_image_size=(64, 32),
                         data_workers=0)

    def description():
        return open_training_data(config.data, torch.device("cpu"), lambda step: [0],
                                  seed=0).description

    assert split_while_training(config.data) == "test"
    assert "4 of 20 test pairs held out" in description()
    said = missing_validation(config.data)
    assert "evaluations on the way use test pairs; choose nothing by them" in said
    assert f"python -m posemodel.data split {root} makes one" in said and "\n" not in said
    refused(f"no validation list, market-pairs-validation.csv; .* split {root} makes one",
            open_pairs, root, "validation")
    carve_validation(root, share=0.2)
    assert split_while_training(config.data) == "validation"
    assert missing_validation(config.data) == ""
    assert "4 of 8 validation pairs held out" in description()
    shown = {split: torch.cat([batch["source"] for batch in held_out_batches(
        config.data, torch.device("cpu"), 8, split=split, positions=64)])
        for split in ("validation", "test")}
    apart = (shown["validation"][:, None] - shown["test"]).abs().amax((2, 3, 4))
    assert apart.min() > 0.1


def test_mannequins_always_have_validation_pairs():
    config = tiny_config()
    assert split_while_training(config.data) == "validation"
    assert missing_validation(config.data) == ""


def test_the_command(fashion, monkeypatch, capsys):
    from tests.data.test_data_command import exit_of

    code, out, _ = exit_of(["split", fashion, "--validation", 0.1], monkeypatch, capsys)
    assert code == 0 and "12 pairs of 2 people" in out and "108 pairs of 18 people" in out
    assert f"as it was: {fashion / LIST}.whole" in out
    code, out, error = exit_of(["split", fashion], monkeypatch, capsys)
    assert code == 2 and out == "" and error.count("\n") == 1
    code, out, _ = exit_of(["check", fashion, "--json", fashion / "c.json"], monkeypatch, capsys)
    assert code == 0
    found = json.loads((fashion / "c.json").read_text())
    assert list(found["splits"]) == ["train", "test", "validation"]
