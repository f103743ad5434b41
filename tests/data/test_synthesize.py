"""Generated data sets: the same bytes however often stopped, joints on the people, real layouts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from posemodel.data import lists
from posemodel.data import synthesize as module
from posemodel.data.dataset_folder import DatasetFolder, read_rows
from posemodel.data.images import read_image
from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.data.layouts.market import MARKET
from posemodel.data.reading import find_dataset, open_pairs, read_split
from posemodel.data.synthesize import synthesize
from posemodel.mannequins.pairs import Mannequins
from posemodel.poses.joints import normalized_to_pixels
from tests.small_datasets import Killed, contents, generated_plan, make_generated, refused


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Path:
    return make_generated(tmp_path_factory.mktemp("fashion") / "fashion_data")


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return make_generated(tmp_path_factory.mktemp("market") / "market_data", layout="market",
                          test_pairs=20)


def test_patns_form(fashion):
    for split, pairs in (("train", 6), ("test", 2)):
        reading = read_split(find_dataset(fashion), split)
        assert reading.file_frame == (256, 176) and reading.notes == ()
        assert len(reading.pairs.pairs) == pairs
        assert read_image(reading.pairs.path(0)).shape == (32, 22, 3)
        persons = [DEEPFASHION.person(name) for name in reading.pairs.names]
        assert all(persons[a] == persons[b] and a != b for a, b in reading.pairs.pairs)
        listed = lists.read_list(fashion / f"{split}.lst")
        assert tuple(listed) == reading.pairs.names


def test_the_form_with_borders_shows_the_same(fashion, tmp_path):
    reading = read_split(find_dataset(make_generated(tmp_path / "wide", frame=256)), "train")
    assert reading.file_frame == (256, 256)
    wide = reading.pairs
    inner = open_pairs(fashion, "train")
    assert wide.names == inner.names
    np.testing.assert_array_equal(wide.joints, inner.joints)
    image, cropped = (read_image(pairs.path(0)).astype(int) for pairs in (wide, inner))
    assert image.shape == (32, 32, 3)
    assert image[:, :4].min() > 235 and image[:, 28:].min() > 235
    assert abs(image[:, 5:27] - cropped).mean() < 6  # JPEG, twice


def test_joints_lie_where_the_generator_put_them(fashion):
    pairs = open_pairs(fashion, "train")
    batch = Mannequins(size=(32, 22), seed=3).pairs(range(4))
    for view, name in enumerate(("source_pose", "target_pose")):
        true = normalized_to_pixels(batch[name], (256, 176)).numpy()
        found = pairs.joints[view:8:2]
        present = found[..., 2] > 0
        assert (true[..., 2][present] == 1).all()
        assert np.abs(found[..., 0] - 40 - true[..., 0])[present].max() <= 1
        assert np.abs(found[..., 1] - true[..., 1])[present].max() <= 1
        assert present.sum() > 0.5 * true[..., 2].sum()
        image = read_image(pairs.path(view)) / 127.5 - 1
        expected = batch[name.removesuffix("_pose")][0].permute(1, 2, 0).numpy()
        assert np.abs(image - expected).mean() < 0.06


def test_the_test_split_is_the_held_out_people(fashion, tmp_path):
    other = make_generated(tmp_path / "other", seed=4)
    changed = {name for name, data in contents(other).items() if contents(fashion)[name] != data}
    assert any(name.startswith("train/") for name in changed)
    assert not any(name.startswith("test/") or "-test" in name for name in changed)
    names = [set(open_pairs(fashion, split).names) for split in ("train", "test")]
    assert not set(map(DEEPFASHION.person, names[0])) & set(map(DEEPFASHION.person, names[1]))


def test_market(market):
    train, test = (open_pairs(market, split) for split in ("train", "test"))
    for pairs in (train, test):
        assert pairs.frame == (128, 64)
        assert all(re.fullmatch(r"(-1|\d{4})_c[1-6]s\d_\d{6}_\d\d\.jpg", n) for n in pairs.names)
        assert read_image(pairs.path(0)).shape == (32, 16, 3)
    assert len(train.pairs) == 6 and len(test.pairs) == 20
    strangers = {MARKET.person(name) for name in test.names} & {"-1", "0000"}
    assert strangers == {"-1", "0000"}
    made = MARKET.pairs("test", test.names, test.joints)
    np.testing.assert_array_equal(test.pairs, made[:20])


def test_some_rows_have_no_joint_and_some_joints_are_missed():
    joints = np.ones((2000, 18, 3))
    module._miss(joints, 2**33 + 5, range(1000))
    present = joints[..., 2] > 0
    assert 0.01 < (~present.any(1)).mean() < 0.06
    seen = present[present.any(1)]
    assert seen[:, [2, 5, 8, 11]].all()
    assert 0.8 < np.delete(seen, [2, 5, 8, 11], 1).mean() < 0.9
    again = np.ones((2, 18, 3))
    module._miss(again, 2**33 + 5, range(7, 8))
    np.testing.assert_array_equal(again, joints[14:16])


def stop_after(images: int, root: Path, monkeypatch) -> None:
    left, add = iter(range(images)), DatasetFolder.add_image

    def until_killed(self, *arguments, **more):
        if next(left, None) is None:
            raise Killed
        add(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "add_image", until_killed)
        with pytest.raises(Killed):
            make_generated(root)


@pytest.mark.parametrize("images", [0, 3, 17])
def test_a_stopped_one_continues_to_the_same_bytes(fashion, tmp_path, monkeypatch, images):
    root = tmp_path / "set"
    stop_after(images, root, monkeypatch)
    assert not json.loads((root / "manifest.json").read_text())["complete"]
    assert len(read_rows(root)) == images
    if images:
        # A row torn in the middle, and an image that the disk has half of.
        with (root / "images.jsonl").open("a") as file:
            file.write('{"split": "train", "na')
        torn = min((root / "train").iterdir())
        torn.write_bytes(torn.read_bytes()[:200])
        stop_after(2, root, monkeypatch)
        assert len(read_rows(root)) == images - 1 + 2
    make_generated(root)
    assert contents(root) == contents(fashion)


def test_a_complete_one_is_left_alone(fashion):
    before = {path: path.stat().st_mtime_ns for path in fashion.rglob("*")}
    assert synthesize(fashion, generated_plan(), progress=lambda done, total: None) is False
    assert before == {path: path.stat().st_mtime_ns for path in fashion.rglob("*")}


def test_nothing_is_written_over(fashion, tmp_path):
    before = contents(fashion)
    refused("another set .*seed: 3 there, 4 asked", make_generated, fashion, seed=4)
    assert contents(fashion) == before
    (tmp_path / "mine.txt").write_text("mine")
    refused("not empty", make_generated, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    (tmp_path / "manifest.json").write_text('{"name": "somebody else\'s"}')
    refused("not of this program", make_generated, tmp_path)


def test_two_at_a_time_are_refused(tmp_path):
    def again(done, total):
        refused("another process .* is writing", make_generated, tmp_path / "set")

    synthesize(tmp_path / "set", generated_plan(), progress=again)


@pytest.mark.parametrize("changes, says", [
    ({"layout": "fashion"}, "--layout"), ({"pairs": 0}, "--pairs"), ({"test_pairs": 0}, "--pairs"),
    ({"frame": 200}, "--frame"), ({"image_rows": 100}, "--image-rows"),
])
def test_wrong_plans(changes, says):
    refused(says, generated_plan, **changes)
