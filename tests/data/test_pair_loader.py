"""From image files to batches: geometry, order, workers, bad images."""

import dataclasses
import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel.data.augmentation import Augmentation
from posemodel.data.layouts import LAYOUTS
from posemodel.data.pair_loader import PairLoader, PairOrder, TrainingPairs, View
from posemodel.data.pair_set import PairSet
from posemodel.poses.joints import normalized_to_pixels
from posemodel.runtime.errors import UserError
from tests.small_datasets import refused


def pair_set(folder, kind="market", count=5):
    """Images of noise, joints anywhere in the frame, all ordered pairs."""
    draws = np.random.default_rng(0)
    height, width = LAYOUTS[kind].frame
    for index in range(count):
        pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    joints = draws.random((count, 18, 3)) * [width - 1, height - 1, 0] + [0, 0, 1]
    joints[:, 3] = 0
    return PairSet(
        layout=LAYOUTS[kind], split="train", folder=folder,
        names=tuple(f"{index}.png" for index in range(count)), joints=joints.astype(np.float32),
        pairs=np.array(list(itertools.permutations(range(count), 2))))


@pytest.fixture
def pairs(tmp_path):
    return pair_set(tmp_path)


def loader(pairs, **options):
    return PairLoader(pairs, **{"image_size": (64, 32), **options})


def training(pairs, *, rank=0, world=1, workers=0, augmentation=None):
    size = 6

    def positions(step):
        return range((step - 1) * size + rank * size // world,
                     (step - 1) * size + (rank + 1) * size // world)

    return TrainingPairs(loader(pairs, workers=workers, seed=5), positions=positions, seed=5,
                         pairs_per_epoch=0, augmentation=augmentation or Augmentation())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [(256, 256), (256, 176), (512, 352), (1101, 750)])
@pytest.mark.parametrize(("size", "fit"), [((256, 256), "pad"), ((64, 64), "pad"),
                                           ((256, 176), "pad"), ((128, 88), "pad"),
                                           ((256, 256), "stretch")])
def test_every_joint_lies_on_its_mark_in_the_picture(file, size, fit, tmp_path):
    pairs = pair_set(tmp_path, "deepfashion", count=1)
    x, y = 90.0, 200.0  # in the frame of 256 x 256
    whole = file[0] == file[1]
    scale = file[0] / 256
    at = ((x + 0.5 - (0 if whole else 40)) * file[1] / (256 if whole else 176) - 0.5,
          (y + 0.5) * scale - 0.5)
    columns, rows = np.arange(file[1]) - at[0], np.arange(file[0])[:, None] - at[1]
    spot = np.exp(-(columns**2 + rows**2) / (2 * (6 * scale) ** 2))
    image = np.repeat(np.rint(255 * (1 - spot))[..., None], 3, axis=2).astype(np.uint8)

    view = View(pairs, image_size=size, fit=fit)
    ink = 255.0 - view.picture(image)[..., 0]
    assert ink.shape == size
    found = ((ink.sum(0) * np.arange(size[1])).sum() / ink.sum(),
             (ink.sum(1) * np.arange(size[0])).sum() / ink.sum())
    joint = view.joints(np.float32([[x, y, 1]]))
    said = normalized_to_pixels(torch.from_numpy(joint), size)[0, :2]
    assert found == pytest.approx(said.tolist(), abs=0.5 if scale > 4 else 0.1)


def test_joints_out_of_sight_and_missing_ones_are_zero(tmp_path):
    view = View(pair_set(tmp_path, "deepfashion", count=1), image_size=(256, 176), fit="pad")
    joints = np.float32([[39, 10, 1], [40, 10, 1], [215, 10, 1], [216, 10, 1], [-1, -1, 0]])
    assert view.joints(joints)[:, 2].tolist() == [0, 1, 1, 0, 0]
    assert np.abs(view.joints(joints)[[0, 3, 4]]).max() == 0


@pytest.mark.parametrize(("kind", "size"), [("deepfashion", (256, 128)), ("deepfashion", (64, 48)),
                                            ("deepfashion", (176, 256)), ("market", (64, 64)),
                                            ("market", (64, 128))])
def test_a_size_that_would_distort_people_is_refused(kind, size, tmp_path):
    refused("--data.image-size .* expected a height to width of", PairLoader,
            pair_set(tmp_path, kind, count=2), image_size=size)


def test_pixels_and_joints_arrive_unchanged_where_nothing_is_resized(pairs):
    batch = next(loader(pairs, image_size=(128, 64)).stream([np.arange(3)]))
    for row, (source, target) in enumerate(pairs.pairs[:3]):
        for name, index in (("source", source), ("target", target)):
            pixels = torch.from_numpy(np.array(Image.open(pairs.path(index)))).permute(2, 0, 1)
            assert torch.equal(((batch[name][row] + 1) * 127.5).round().to(torch.uint8), pixels)
            back = normalized_to_pixels(batch[f"{name}_pose"][row], (128, 64))
            present = pairs.joints[index][:, 2] > 0
            assert np.allclose(back[present], pairs.joints[index][present], atol=1e-4)
            assert batch[f"{name}_pose"][row][~present].abs().max() == 0
    assert batch["source"].dtype == torch.float32 and batch["source"].is_contiguous()
    assert batch["source"].min() >= -1 and batch["source"].max() <= 1


# --- order ----------------------------------------------------------------------------------------


def test_an_epoch_is_every_pair_once_and_the_next_one_in_another_order():
    order = PairOrder(11, pairs_per_epoch=0, seed=3)
    first, second = order.indices(range(11)), order.indices(range(11, 22))
    assert sorted(first) == sorted(second) == list(range(11))
    assert list(first) != list(second)
    assert list(PairOrder(11, pairs_per_epoch=0, seed=4).indices(range(11))) != list(first)
    # Any position can be asked for at any time, across the border of two epochs too.
    assert list(order.indices([10, 11, 3])) == [first[10], second[0], first[3]]


def test_an_epoch_of_n_pairs_is_n_random_ones():
    order = PairOrder(1000, pairs_per_epoch=50, seed=0)
    first, second = order.indices(range(50)), order.indices(range(50, 100))
    assert set(first) != set(second) and 0 <= min(first) and max(first) < 1000
    # More pairs than there are come again.
    assert set(PairOrder(3, pairs_per_epoch=50, seed=0).indices(range(50))) == {0, 1, 2}


@pytest.mark.parametrize("augmentation", [
    Augmentation(), Augmentation(flip=True, rotate=5, scale=0.05, shift=0.04)])
def test_workers_change_nothing_and_any_step_can_be_the_first(pairs, augmentation):
    alone = training(pairs, augmentation=augmentation)
    expected = {step: alone.batch(step) for step in range(1, 6)}
    for workers, steps in ((0, (5, 2, 3)), (2, (4, 5)), (3, (1, 2, 5))):
        some = training(pairs, workers=workers, augmentation=augmentation)
        assert all(same(some.batch(step), expected[step]) for step in steps), workers
    assert not same(expected[1], expected[2])


def test_the_parts_of_all_processes_are_the_batch(pairs):
    bounds = Augmentation(flip=True, shift=0.04)
    whole = training(pairs, augmentation=bounds).batch(3)
    parts = [training(pairs, rank=rank, world=4, augmentation=bounds).batch(3) for rank in range(4)]
    assert same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})


def test_the_last_batch_of_a_test_set_is_neither_dropped_nor_filled(pairs):
    requests = np.split(np.arange(20), [8, 16])
    for workers in (0, 2):
        batches = list(loader(pairs, workers=workers).stream(requests))
        assert [len(batch["source"]) for batch in batches] == [8, 8, 4]
        poses = torch.cat([batch["source_pose"] for batch in batches])
        expected = loader(pairs).view.joints(pairs.joints)[pairs.pairs[:, 0]]
        assert np.array_equal(poses, expected)


def test_workers_end_with_their_stream(pairs):
    some = training(pairs, workers=2)
    some.batch(1)
    assert len(multiprocessing.active_children()) == 2
    some.batch(7)
    assert len(multiprocessing.active_children()) == 2
    del some
    assert multiprocessing.active_children() == []


def test_the_global_generator_is_left_alone(pairs):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    training(pairs, workers=2, augmentation=Augmentation(flip=True, rotate=5)).batch(1)
    assert torch.equal(torch.rand(1), expected)


# --- bad images -----------------------------------------------------------------------------------


def test_a_bad_image_is_named_once_and_its_pairs_are_replaced_by_the_same_others(pairs):
    (pairs.folder / "2.png").write_bytes(b"\x89PNG nothing more")
    expected, said = None, ([], [])
    for workers, lines in zip((0, 2), said, strict=True):
        some = training(pairs, workers=workers)
        some.report_to(lines.append)
        batches = [some.batch(step) for step in range(1, 8)]
        assert len(lines) == 1 and "2.png" in lines[0]
        assert all(len(batch["source"]) == 6 for batch in batches)
        assert expected is None or all(map(same, expected, batches))
        expected = batches
    assert said[0] == said[1]
    # What took the place is a pair as a whole: images and joints belong together.
    poses = loader(pairs).view.joints(pairs.joints)
    good = {tuple(pair) for pair in pairs.pairs if 2 not in pair}
    for batch in expected:
        for row in range(6):
            ends = tuple(next(i for i, pose in enumerate(poses)
                              if np.array_equal(pose, batch[f"{name}_pose"][row]))
                         for name in ("source", "target"))
            assert ends in good
            pixels = next(loader(pairs).stream([np.flatnonzero((pairs.pairs == ends).all(1))]))
            assert torch.equal(pixels["source"][0], batch["source"][row])


def test_too_many_bad_images_end_the_run(tmp_path):
    pairs = pair_set(tmp_path, count=30)
    for index in range(1, 30, 2):
        (tmp_path / f"{index}.png").write_bytes(b"")
    some = training(pairs)
    some.report_to(lambda line: None)
    with pytest.raises(UserError, match="bad images .* posemodel.data check"):
        for step in range(1, 100):
            some.batch(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_images_is_one_line(pairs, workers):
    empty = dataclasses.replace(pairs, folder=pairs.folder / "nowhere")
    refused("posemodel.data check", training(empty, workers=workers).batch, 1)


def test_a_test_pair_with_a_bad_image_is_left_out_and_named(pairs):
    Image.new("RGB", (64, 64)).save(pairs.folder / "2.png")  # of another shape
    lines = []
    some = loader(pairs, replace=False)
    some.report_to(lines.append)
    batches = list(some.stream(np.split(np.arange(20), [4, 8, 12, 16])))
    assert sum(len(batch["source"]) for batch in batches) == 12
    assert len(lines) == 1 and "2.png: 64 x 64 pixels" in lines[0]


def test_a_set_without_pairs_is_refused(pairs):
    refused("no pairs", loader, dataclasses.replace(pairs, pairs=np.zeros((0, 2), np.int64)))
