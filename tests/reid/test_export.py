"""Exported folders, read by the rules of torchreid, fast-reid and DG-Net++."""

from collections import Counter
from pathlib import Path

import pytest
from market_helpers import read_as_dgnet, read_as_torchreid, small_augmented, small_market

from posemodel.reid.export import export
from tests.small_datasets import contents, refused

POSES = 3


def write(root, out, *, layout="market", augmented=None):
    return export(root, out, layout=layout, augmented=augmented, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def augmented(market, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    return small_augmented(folder, market, poses=POSES, on_missing="copy")


def test_market_layout(market, augmented, tmp_path):
    out = tmp_path / "Market-1501-v15.09.15"
    counts = write(market, out, augmented=augmented)
    assert counts == {"bounding_box_train": 12 * (1 + POSES), "bounding_box_test": 14, "query": 4}
    found = Counter(read_as_torchreid(out / "bounding_box_train"))
    real = Counter(read_as_torchreid(market / "bounding_box_train"))
    assert found == Counter({words: count * (1 + POSES) for words, count in real.items()})
    for folder in ("bounding_box_test", "query"):
        assert contents(out / folder) == contents(market / folder)


def test_folders_by_identity(market, augmented, tmp_path):
    counts = write(market, tmp_path / "out", layout="folders", augmented=augmented)
    root = tmp_path / "out" / "pytorch"
    assert counts == {f"pytorch/{name}": len(list((root / name).glob("*/*.jpg")))
                      for name in ("train_all", "train", "val", "gallery", "query")}
    everything = read_as_dgnet(root / "train_all")
    assert len(everything) == 12 * (1 + POSES)
    assert set(everything) == {(f"{p:04d}", c) for p in (1, 2, 3, 4) for c in (1, 2, 3)}
    # One image of each identity is held out, with all that was made of it.
    held_out = [path.stem for path in (root / "val").glob("*/*.jpg")]
    assert len(held_out) == 4
    train = [path.stem for path in (root / "train").glob("*/*.jpg")]
    assert len(train) == 8 * (1 + POSES)
    assert not any(name.startswith(stem) for name in train for stem in held_out)
    assert {path.name for path in (root / "gallery").iterdir()} == {
        "0100", "0101", "0102", "0103", "0000", "-1"}


def test_real_images_only(market, tmp_path):
    assert write(market, tmp_path / "out")["bounding_box_train"] == 12


def test_never_over_anything(market, tmp_path):
    (tmp_path / "out").mkdir()
    refused("is there already", write, market, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_of_a_failure(market, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.copyfile", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    refused("full", write, market, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_paths_that_the_libraries_misread(market, tmp_path):
    refused("'15_c1'", write, market, tmp_path / "market15_c1")


def test_other_folders_are_not_augmentations(market, tmp_path):
    refused("was not made by", write, market, tmp_path / "out", augmented=market)


@pytest.mark.parametrize("name", ["1502_c1s1_000001_01.jpg", "0001_c7s1_000001_01.jpg",
                                  "0001_c1s1_000001_01.png"])
def test_names_that_the_libraries_refuse(tmp_path, name):
    root = small_market(tmp_path / "market")
    (root / "bounding_box_train" / name).write_bytes(b"")
    refused("identities up to 1501 and cameras 1 to 6", write, root, tmp_path / "out")
