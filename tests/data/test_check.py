"""What `check` finds: nothing wrong where nothing is, and every fault that is put in."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from posemodel.data import check as module
from posemodel.data import lists
from posemodel.data.check import check, describe
from posemodel.data.layouts import LAYOUTS
from posemodel.data.layouts.deepfashion import DEEPFASHION
from tests.small_datasets import (
    change_joints,
    fashion_names,
    make_fashion,
    make_generated,
    make_market,
)


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """The small sets stand for the published ones."""
    counts = {split: {"images": 36, "pairs": 72} for split in ("train", "test")}
    for layout in LAYOUTS.values():
        monkeypatch.setattr(type(layout), "published", counts)
    monkeypatch.setattr(type(DEEPFASHION), "other_splits", {("test", 71): "an old split"})


@pytest.fixture
def fashion(tmp_path):
    return make_fashion(tmp_path, people=12)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return make_generated(tmp_path_factory.mktemp("generated") / "set", layout="market", pairs=4)


@pytest.fixture
def copy(generated, tmp_path):
    return shutil.copytree(generated, tmp_path / "copy")


@pytest.mark.parametrize("make, preset", [(make_fashion, "paper"), (make_market, "market")])
def test_a_sound_set(tmp_path, make, preset):
    found = check(make(tmp_path, people=12))
    assert found.problems == found.notes == []
    counts = found.splits["train"]
    assert (counts["images"], counts["rows"], counts["torso_rows"]) == (36, 36, 36)
    assert (counts["persons"], counts["pairs"], counts["self_pairs"]) == (12, 72, 0)
    assert (counts["sampled"], counts["bad"], counts["empty_rows"]) == (36, 0, 0)
    text = describe(found)
    assert "problems: none" in text and "notes" not in text
    assert text.endswith(f"next\n  python -m posemodel.train {preset} --data.root {tmp_path}")
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True
    # The table is aligned: every line of numbers is as long.
    table = text.split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(module._ROWS) and max(map(len, table)) <= 100


def one(found, *says) -> None:
    assert len(found.problems) == 1, found.problems
    assert all(text in found.problems[0] for text in says), found.problems


def keep_lines(path, which) -> None:
    path.write_text("".join(path.read_text().splitlines(True)[which]))


def change_manifest(root, **changes) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_bad_row(fashion):
    path = fashion / "fasion-resize-annotation-test.csv"
    path.write_text(path.read_text()[:-30])
    found = check(fashion)
    one(found, "line 37", str(path))
    assert list(found.splits) == ["train"]
    assert "problems" in describe(found) and "mend" in describe(found)


def test_a_damaged_image_and_one_of_another_shape(fashion):
    names = fashion_names(12)
    path = fashion / "train" / names[0]
    path.write_bytes(path.read_bytes()[:40])
    Image.new("RGB", (30, 100)).save(fashion / "train" / names[1], "PNG")
    one(check(fashion), "2 of 36 images", names[0], names[1], "100 x 30")
    assert check(fashion, sample=0).problems == []
    assert check(fashion, sample=2).splits["train"]["sampled"] == 2


def test_lost_images(fashion):
    (fashion / "test" / fashion_names(12, first=100)[4]).unlink()
    one(check(fashion), "test: 1 of the 36 images", "InShopRetrieval")


def test_fewer_pairs_than_published(fashion):
    """A note of a set that may be somebody's own, a fault of one that calls itself complete."""
    keep_lines(fashion / "fasion-resize-pairs-train.csv", slice(50))
    found = check(fashion)
    assert found.problems == [] and "problems: none" in describe(found)
    assert found.notes == ["train: 49 pairs instead of 72: a set of your own, or a part of the "
                           "published one; numbers on it do not compare with those of DeepFashion"]
    recipe = {"recipe": {"made_by": "prepare"}, "complete": True, "counts": {}, "sha256": {}}
    (fashion / "manifest.json").write_text(json.dumps(recipe))
    one(check(fashion), "train: 49 pairs instead of 72", "not the published split")


def test_what_is_missing_says_where_to_get_it_and_how_to_make_it(fashion):
    (fashion / "fasion-resize-pairs-train.csv").unlink()
    one(check(fashion), "pairs-train.csv is missing; get it from", "docs/own-data.md")


def test_another_known_split_is_no_fault(fashion):
    keep_lines(fashion / "fasion-resize-pairs-test.csv", slice(-1))
    found = check(fashion)
    assert found.problems == [] and found.notes == ["test: 71 pairs are an old split"]


def test_more_images_than_published_are_no_fault(fashion):
    shutil.copy(fashion / "train" / fashion_names(1)[0], fashion / "train" / "more.jpg")
    found = check(fashion)
    assert found.problems == []
    assert found.notes == ["train: 37 images instead of 36; the pairs are all there"]


def test_joints_in_the_wrong_frame(fashion):
    found = check(fashion, frame=256)
    assert len(found.problems) == 2
    assert "40 columns left of the middle" in found.problems[0]


def test_names_of_a_list_without_image(fashion):
    with (fashion / "train.lst").open("a") as file:
        file.write("lost.jpg\n")
    assert "1 names in train.lst" in check(fashion).notes[0]


def test_images_in_both_splits(fashion):
    for text in ("annotation", "pairs"):
        shutil.copy(fashion / f"fasion-resize-{text}-train.csv",
                    fashion / f"fasion-resize-{text}-test.csv")
    shutil.rmtree(fashion / "test")
    shutil.copytree(fashion / "train", fashion / "test")
    one(check(fashion), "36 images are in both splits")


def test_names_of_ones_own(fashion):
    for path in fashion.glob("*.*"):
        path.write_text(path.read_text().replace("fashionWOMEN", "mine"))
    for path in [*fashion.glob("train/*"), *fashion.glob("test/*")]:
        path.rename(path.with_name(path.name.replace("fashionWOMEN", "mine")))
    found = check(fashion)
    assert found.problems == [] and found.splits["train"]["persons"] is None


def test_self_pairs_and_empty_rows_are_counted(fashion):
    names, _ = change_joints(fashion / "fasion-resize-annotation-train.csv",
                             lambda joints: joints * (np.arange(36) != 5)[:, None, None])
    pairs = np.array([[0, 0]] + [[0, 1]] * 71)
    lists.write_pairs(fashion / "fasion-resize-pairs-train.csv", names, pairs)
    counts = check(fashion).splits["train"]
    assert (counts["self_pairs"], counts["empty_rows"], counts["torso_rows"]) == (1, 1, 35)


# --- sets made by this program ------------------------------------------------------------------


def test_a_generated_set_is_held_against_its_own_manifest(generated):
    found = check(generated)
    assert found.problems == [] and found.made_by == "synthesize"
    assert "published" not in describe(found)


def test_a_stopped_one(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest = {"recipe": manifest["recipe"], "complete": False}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    one(check(copy), "stopped", "synthesize")


def test_texts_and_images_that_were_changed(copy):
    path = copy / "market-annotation-train.csv"
    path.write_bytes(path.read_bytes() + b"\n")
    one(check(copy), str(path), "not the file that was written")
    path.write_bytes(path.read_bytes()[:-1])
    image = min((copy / "train").iterdir())
    data = image.read_bytes()
    image.write_bytes(data + b" ")
    assert any("1 images are missing or of another size" in text for text in check(copy).problems)
    # As long as before and decodable, but not the same.
    image.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    assert any(image.name in text for text in check(copy).problems)


def test_a_damaged_manifest(copy):
    (copy / "manifest.json").write_text("{")
    assert "damaged" in check(copy).problems[0]


@pytest.mark.parametrize("damage", [{"sha256": {"a" * 300: ""}}, {"sha256": ["x"]}, {"counts": 3},
                                    {"recipe": []}], ids=["long name", "list", "number", "recipe"])
def test_a_manifest_with_nonsense_inside(copy, damage):
    change_manifest(copy, **damage)
    assert "manifest.json is damaged" in check(copy).problems[0]


@pytest.mark.parametrize("row", [
    b"\xff", b'{"split": "train", "name": [], "bytes": 1, "sha256": ""}',
], ids=["bytes", "list"])
def test_nonsense_among_the_images_ends_the_list(copy, row):
    lines = (copy / "images.jsonl").read_bytes()
    (copy / "images.jsonl").write_bytes(lines + row + b"\n")
    one(check(copy), "images.jsonl is not the file that was written")
