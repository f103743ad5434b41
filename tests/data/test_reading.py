"""Finding data sets in folders and opening them; every frame comes out as the canonical one."""

import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from posemodel.data import lists, reading
from posemodel.data.layouts.market import MARKET
from posemodel.data.reading import Reading, find_dataset, open_pairs, read_split
from posemodel.poses import annotations
from tests.small_datasets import (
    SHARED,
    change_joints,
    fashion_names,
    make_fashion,
    make_market,
    market_names,
    random_joints,
    refusal,
    write_images,
)

REAL_FASHION = SHARED / "fasion-annotation-test.head300.csv"
EXPECTED = random_joints(12)  # what every spelling of the small DeepFashion set must give


def find_and_read(root: Path) -> Reading:
    return read_split(find_dataset(root), "train")


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, first", [("train", 1), ("test", 100)])
def test_patn(tmp_path, split, first):
    pairs = open_pairs(make_fashion(tmp_path / "fashion_data"), split)
    assert (pairs.kind, pairs.split, pairs.frame) == ("deepfashion", split, (256, 256))
    assert pairs.names == tuple(fashion_names(4, first=first))
    assert pairs.joints.dtype == np.float32 and pairs.pairs.dtype == np.int64
    np.testing.assert_array_equal(pairs.joints, EXPECTED)
    assert len(pairs.pairs) == 4 * 6
    assert all(pairs.path(index).is_file() for index in range(12))


@pytest.mark.parametrize("stem, columns, image_size", [
    ("fasion-resize", 176, (32, 32)), ("fashion-resize", 176, (32, 22)),
    ("fasion", 256, (32, 32)), ("fashion", 256, (32, 32)),
    ("fasion", 256, (32, 22)),  # joints of the 2018 files, images of PATN
    ("fasion", 176, (32, 22)), ("fashion", 176, (32, 32)),  # GFLA's names
])
def test_names_and_frames(tmp_path, stem, columns, image_size):
    make_fashion(tmp_path, stem=stem, columns=columns, image_size=image_size)
    pairs = open_pairs(tmp_path, "train")
    assert pairs.frame == (256, 256)
    np.testing.assert_array_equal(pairs.joints, EXPECTED)
    assert find_and_read(tmp_path).file_frame == (256, columns)


def test_one_folder_higher(tmp_path):
    make_fashion(tmp_path / "dataset" / "fashion_data")
    make_market(tmp_path / "dataset" / "market_data")
    assert open_pairs(tmp_path / "dataset", "test", kind="market").kind == "market"
    assert open_pairs(tmp_path / "dataset", "test", kind="deepfashion").kind == "deepfashion"
    text = refusal(open_pairs, tmp_path / "dataset", "train")
    assert "more than one" in text and "fashion_data" in text and "--kind" in text


def texts_to(place, root):
    for path in [*root.glob("*.csv"), *root.glob("*.lst")]:
        path.rename(place / path.name)


def test_texts_above_the_images(tmp_path):
    root = make_fashion(tmp_path / "set" / "fashion")
    texts_to(tmp_path / "set", root)
    for folder in (root, tmp_path / "set"):
        np.testing.assert_array_equal(open_pairs(folder, "train").joints, EXPECTED)


def test_texts_of_both_above_the_images_of_both(tmp_path):
    for root in (make_fashion(tmp_path / "fashion_data"), make_market(tmp_path / "market_data")):
        texts_to(tmp_path, root)
    assert open_pairs(tmp_path / "fashion_data", "train").kind == "deepfashion"
    assert open_pairs(tmp_path, "train", kind="market").names == tuple(market_names(4))


@pytest.mark.parametrize("form", ["{}", "bounding_box_{}"])
@pytest.mark.parametrize("with_pairs", [True, False])
def test_market(tmp_path, form, with_pairs):
    root = make_market(tmp_path / "Market-1501-v15.09.15", form=form, pairs=with_pairs)
    pairs = open_pairs(root, "train")
    assert (pairs.kind, pairs.frame) == ("market", (128, 64))
    assert pairs.folder == root / form.format("train")
    assert pairs.names == tuple(market_names(4))
    np.testing.assert_array_equal(pairs.pairs, MARKET.pairs("train", pairs.names, pairs.joints))


def test_names_of_cfld(tmp_path):
    make_fashion(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split).rename(tmp_path / f"{split}_highres")
    assert open_pairs(tmp_path, "train").folder == tmp_path / "train_highres"


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_FASHION.exists(), reason=f"{REAL_FASHION} is not there")
@pytest.mark.parametrize("columns", [176, 256])
def test_real_joints_tell_their_frame(tmp_path, columns):
    names, joints = annotations.read_annotations(REAL_FASHION)
    shifted = joints.copy()
    if columns == 176:
        shifted[..., 0] -= 40 * joints[..., 2]
    joints[(shifted[..., :2] == -1).any(-1)] = 0  # lost, as in the published file
    shifted[joints[..., 2] == 0] = 0
    for stem in ("fashion", "fashion-resize")[: 1 + (columns == 176)]:
        root = tmp_path / stem
        write_images(root / "test", list(names), (32, 32))
        annotations.write_annotations(root / f"{stem}-annotation-test.csv", names, shifted)
        lists.write_pairs(root / f"{stem}-pairs-test.csv", names, np.array([[0, 1]]))
        np.testing.assert_array_equal(open_pairs(root, "test").joints, joints)


def narrow(root: Path) -> None:
    """Joints that lie in both frames: x from 40 to 175 only."""
    for path in root.glob("*annotation*"):
        names, joints = annotations.read_annotations(path)
        joints[..., 0] = (90 + joints[..., 0] % 40) * joints[..., 2]
        annotations.write_annotations(path, names, joints)


@pytest.mark.parametrize("stem, image_size, columns", [
    ("fasion-resize", (32, 32), 176), ("fasion-resize", (32, 22), 176),
    ("fasion", (32, 32), 256), ("fasion", (32, 22), 176),
])
def test_where_joints_do_not_tell_name_and_images_do(tmp_path, stem, image_size, columns):
    narrow(make_fashion(tmp_path, stem=stem, columns=256, image_size=image_size))
    assert find_and_read(tmp_path).file_frame == (256, columns)


def test_frames_that_cannot_be_told(tmp_path):
    narrow(make_fashion(tmp_path, stem="fasion", columns=256))
    write_images(tmp_path / "more", fashion_names(1)[:1], (32, 32))
    shutil.copy(tmp_path / "more" / fashion_names(1)[0], tmp_path / "train")
    text = refusal(open_pairs, tmp_path, "train")
    assert "differ in shape" in text and "--frame 176 or --frame 256" in text
    wide = open_pairs(tmp_path, "train", frame=256).joints
    inner = open_pairs(tmp_path, "train", frame=176).joints
    np.testing.assert_array_equal(inner[..., 0], wide[..., 0] + 40 * wide[..., 2])
    assert "expected 176 or 256" in refusal(open_pairs, tmp_path, "train", frame=200)


def test_joints_that_contradict_the_name(tmp_path):
    make_fashion(tmp_path, stem="fasion-resize", columns=256)
    text = refusal(open_pairs, tmp_path, "train")
    assert "fasion-resize-annotation-train.csv" in text and "--frame 256" in text
    np.testing.assert_array_equal(open_pairs(tmp_path, "train", frame=256).joints, EXPECTED)


def test_joints_of_a_much_larger_frame(tmp_path):
    make_market(tmp_path)
    for path in tmp_path.glob("*annotation*"):
        change_joints(path, lambda joints: joints * [8, 8, 1])
    text = refusal(open_pairs, tmp_path, "train")
    assert "outside of the frame of 128 x 64 (rows x columns)" in text
    assert market_names(1)[0] in text


def test_a_few_joints_outside_become_missing(tmp_path, caplog):
    path = make_market(tmp_path) / "market-annotation-train.csv"
    names, joints = annotations.read_annotations(path)
    joints[5, 4] = (64, 3, 1)
    annotations.write_annotations(path, names, joints)
    with caplog.at_level(logging.WARNING):
        pairs = open_pairs(tmp_path, "train")
    assert pairs.joints[5, 4].tolist() == [0, 0, 0]
    assert "1 joints" in caplog.text and names[5] in caplog.text
    joints[5, 4] = 0
    np.testing.assert_array_equal(pairs.joints, joints)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("make", [make_market,
                                  lambda root: make_fashion(root, stem="fasion", columns=256)])
def test_swapped_x_and_y_are_noticed(tmp_path, make, small):
    make(tmp_path)
    (path,) = tmp_path.glob("*annotation-train.csv")
    names, joints = annotations.read_annotations(path)
    rows, columns = find_and_read(tmp_path).pairs.frame
    if small:  # bodies that fit into the frame either way
        joints[..., :2] = np.rint(joints[..., :2] * 0.3 * [columns / rows, 1] + columns / 3)
        joints *= joints[..., 2:]
        annotations.write_annotations(path, names, joints)
        assert find_and_read(tmp_path).notes == ()
    text = path.read_text()
    path.write_text(text.replace("keypoints_y:keypoints_x", "keypoints_x:keypoints_y"))
    if small:
        (note,) = find_and_read(tmp_path).notes
        assert "swapped" in note
    else:
        assert "swapped" in refusal(open_pairs, tmp_path, "train")


def test_frame_is_of_deepfashion_only(tmp_path):
    assert "only" in refusal(open_pairs, make_market(tmp_path), "train", frame=176)


# --- missing things -----------------------------------------------------------------------------


def test_a_few_lost_images_are_left_out_with_their_pairs(tmp_path, caplog):
    make_market(tmp_path, people=60)
    whole = open_pairs(tmp_path, "train")
    (whole.folder / whole.names[7]).unlink()
    with caplog.at_level(logging.WARNING):
        pairs = open_pairs(tmp_path, "train")
    assert whole.names[7] in caplog.text and "4 of 360 pairs" in caplog.text
    assert pairs.names == whole.names[:7] + whole.names[8:]
    by_name = [(whole.names[a], whole.names[b]) for a, b in whole.pairs if 7 not in (a, b)]
    assert [(pairs.names[a], pairs.names[b]) for a, b in pairs.pairs] == by_name
    np.testing.assert_array_equal(pairs.joints, np.delete(whole.joints, 7, 0))


def test_many_lost_images_are_refused(tmp_path):
    make_market(tmp_path, people=60)
    for name in market_names(60)[3:7]:
        (tmp_path / "train" / name).unlink()
    text = refusal(open_pairs, tmp_path, "train")
    assert "4 of the 180 images" in text and market_names(60)[3] in text and "https://" in text


def test_rows_that_no_pair_needs_may_go_without_images(tmp_path):
    # The published annotations cover more images than the lists.
    path = make_fashion(tmp_path) / "fasion-resize-pairs-train.csv"
    names = fashion_names(4)
    lists.write_pairs(path, names, np.array([[0, 1], [5, 4]]))
    for index in (2, 3, 6, 7, 8, 9, 10, 11):
        (tmp_path / "train" / names[index]).unlink()
    reading = find_and_read(tmp_path)
    assert reading.notes == () and (reading.rows, reading.images) == (12, 4)
    assert reading.pairs.names == (names[0], names[1], names[4], names[5])
    assert reading.pairs.pairs.tolist() == [[0, 1], [3, 2]]
    np.testing.assert_array_equal(reading.pairs.joints, EXPECTED[[0, 1, 4, 5]])


@pytest.mark.parametrize("gone, says", [
    ("fasion-resize-annotation-train.csv", "fasion-resize-annotation-train.csv is missing"),
    ("fasion-resize-pairs-train.csv", "fasion-resize-pairs-train.csv is missing"),
    ("train", "the folder train with the images is missing"),
])
def test_missing_parts_are_named_with_where_to_get_them(tmp_path, gone, says):
    make_fashion(tmp_path)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = refusal(open_pairs, tmp_path, "train")
    assert says in text and "https://" in text
    assert len(open_pairs(tmp_path, "test").pairs) == 24


def test_no_pairs_is_an_error(tmp_path):
    make_fashion(tmp_path / "a")
    path = tmp_path / "a" / "fasion-resize-pairs-train.csv"
    path.write_text("from,to\n")
    assert str(path) in refusal(open_pairs, tmp_path / "a", "train")
    make_market(tmp_path / "b", pairs=False)
    change_joints(tmp_path / "b" / "market-annotation-train.csv",
                  lambda joints: joints * (np.arange(18) != 8)[:, None])
    assert "no pair" in refusal(open_pairs, tmp_path / "b", "train")


def test_no_joints_is_an_error(tmp_path):
    make_fashion(tmp_path)
    change_joints(tmp_path / "fasion-resize-annotation-train.csv", lambda joints: 0 * joints)
    assert "no image has a single joint" in refusal(open_pairs, tmp_path, "train")


def test_nothing_there(tmp_path):
    assert "is no folder" in refusal(open_pairs, tmp_path / "nothing", "train")
    text = refusal(open_pairs, tmp_path, "train")
    assert "InShopRetrieval" in text and "project_reid" in text and "prepare" in text
    assert "project_reid" not in refusal(open_pairs, tmp_path, "train", kind="deepfashion")
    assert "no kind" in refusal(open_pairs, tmp_path, "train", kind="fashion")
    assert "no split" in refusal(open_pairs, make_market(tmp_path / "m"), "val")


def test_other_files_among_the_images(tmp_path):
    make_market(tmp_path)
    for name in ("Thumbs.db", "._0001_c1s1_000000_01.jpg", "readme.txt"):
        (tmp_path / "train" / name).write_text("")
    assert find_and_read(tmp_path).images == 12


def test_many_names_open_quickly(tmp_path, monkeypatch):
    count = 50_000
    names = [f"{number // 3:04d}_c1s1_{number:06d}_01.jpg" for number in range(3, count + 3)]
    joints = np.tile(random_joints(10), (count // 10, 1, 1))
    joints[..., :2] = np.floor((joints[..., :2] - [40, 0]) * [64 / 176, 0.5]) * joints[..., 2:]
    annotations.write_annotations(tmp_path / "market-annotation-train.csv", names, joints)
    (tmp_path / "train").mkdir()
    # The folder is listed once. The files need not exist: a look at each would take seconds.
    monkeypatch.setattr(reading, "image_names", lambda folder: sorted(names))
    started = time.process_time()
    pairs = open_pairs(tmp_path, "train")
    assert time.process_time() - started < 5
    assert len(pairs.names) == count and len(pairs.pairs) > 99_000
