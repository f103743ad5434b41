"""Mannequins: the truth that comes with a pair is checked against the pictures, and by other
means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pose_kernels
from posemodel.mannequins import pairs as mannequins
from posemodel.mannequins.body import INDEX, PARTS, build_shape
from posemodel.mannequins.pairs import PART_NAMES, Mannequins
from posemodel.mannequins.person import Draws, draw_person
from posemodel.mannequins.stance import draw_stance


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are small: on a busy machine more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def warp(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    grid = batch["flow"].permute(0, 2, 3, 1)
    return F.grid_sample(batch["source"], grid, align_corners=False, padding_mode="border")


def pure(part: torch.Tensor) -> torch.Tensor:
    """``[B, 1, H, W]`` part ids, 0 where the 3 x 3 neighbourhood, a pixel's footprint, holds
    another part too."""
    padded = F.pad(part.float(), (1, 1, 1, 1), value=0.0)
    high, low = F.max_pool2d(padded, 3, stride=1), -F.max_pool2d(-padded, 3, stride=1)
    return torch.where(high == low, part, 0)


def interior(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Visible pixels that show one part only, and sample four source pixels that show only that
    part."""
    source, target = pure(batch["source_part"]), pure(batch["target_part"])
    size, width, height = len(source), source.shape[3], source.shape[2]
    left = ((batch["flow"][:, 0] + 1) * width / 2 - 0.5).floor().long()
    top = ((batch["flow"][:, 1] + 1) * height / 2 - 0.5).floor().long()
    sample = torch.arange(size)[:, None, None]
    good = batch["visible"][:, 0] & (target[:, 0] > 0)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = left + dx, top + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            tap = source[:, 0][sample, y.clamp(0, height - 1), x.clamp(0, width - 1)]
            good &= inside & (tap == target[:, 0])
    return good


def test_keys_shapes_and_ranges() -> None:
    batch = Mannequins(size=(64, 48), background="cluttered").pairs(range(5))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    image, mask = ((5, 3, 64, 48), torch.float32), ((5, 1, 64, 48), torch.bool)
    assert shapes == {"source": image, "target": image, "source_pose": ((5, 18, 3), torch.float32),
                      "target_pose": ((5, 18, 3), torch.float32),
                      "flow": ((5, 2, 64, 48), torch.float32), "visible": mask,
                      "source_foreground": mask, "target_foreground": mask,
                      "source_part": ((5, 1, 64, 48), torch.int64),
                      "target_part": ((5, 1, 64, 48), torch.int64), "turn": ((5,), torch.float32)}
    for name in ("source", "target"):
        assert batch[name].min() >= -1 and batch[name].max() <= 1
        assert batch[f"{name}_part"].max() < len(PART_NAMES)
        assert torch.equal(batch[f"{name}_part"] > 0, batch[f"{name}_foreground"])
        pose = batch[f"{name}_pose"]
        assert set(pose[..., 2].unique().tolist()) <= {0.0, 1.0}
        assert pose[..., :2].abs().max() <= 1 and pose[pose[..., 2] == 0].eq(0).all()
    assert not (batch["visible"] & ~batch["target_foreground"]).any()
    assert all(value.isfinite().all() for value in batch.values())


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (256, 176)])
def test_the_people_fill_the_frame(size: tuple[int, int]) -> None:
    batch = Mannequins(size=size).pairs(range(12))
    rows = batch["source_foreground"][:, 0].any(2).float().mean(1)
    assert rows.mean() > 0.75
    assert batch["source_foreground"].flatten(1).float().mean(1).min() > 0.04


def test_a_pixel_is_as_wide_as_it_is_high() -> None:
    """The same person in a frame of another shape keeps its shape in pixels."""
    wide, narrow = (Mannequins(size=size).pairs([3])["target_pose"][0]
                    for size in ((96, 96), (96, 72)))
    both = (wide[:, 2] * narrow[:, 2]) > 0
    spans = []
    for pose, width in ((wide, 96), (narrow, 72)):
        xy = pose[both, :2] * torch.tensor([width / 2, 96 / 2])
        xy = xy - xy.mean(0)
        spans.append(xy / xy.norm())
    torch.testing.assert_close(spans[0], spans[1], atol=1e-4, rtol=0)


def test_warping_by_the_exact_flow_reproduces_the_target() -> None:
    errors = {}
    for size, count, least in ((64, 48, 0.10), (128, 24, 0.25), (256, 12, 0.45)):
        batch = Mannequins(size=(size, size)).pairs(range(count))
        where = interior(batch)
        assert where.sum() > least * batch["visible"].sum()
        # In units of the images' range, so that 1 is black against white.
        error = (warp(batch) - batch["target"]).abs().mean(1) / 2
        errors[size] = error[where].mean().item()
    assert errors[64] < 0.025
    assert errors[256] < 0.008
    assert errors[256] < 0.7 * errors[128] < 0.7 * 0.7 * errors[64]


def test_a_wrong_flow_does_not() -> None:
    """The test above can fail: five pixels off, the error is several times as large."""
    batch = Mannequins(size=(256, 256)).pairs(range(6))
    where = interior(batch)
    right = (warp(batch) - batch["target"]).abs().mean(1)[where].mean()
    batch["flow"] = batch["flow"] + 2 * 5 / 256
    assert (warp(batch) - batch["target"]).abs().mean(1)[where].mean() > 4 * right


def test_flow_is_the_identity_on_the_background() -> None:
    batch = Mannequins(size=(32, 48)).pairs(range(4))
    identity = pose_kernels.identity_flow(32, 48).expand(4, -1, -1, -1)
    outside = ~batch["target_foreground"].expand(-1, 2, -1, -1)
    torch.testing.assert_close(batch["flow"][outside], identity[outside], atol=1e-6, rtol=0)


@pytest.fixture
def motionless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both views of a pair take the first view's pose and place."""

    def first_twice(array: np.ndarray) -> np.ndarray:
        return np.repeat(array[:, :1], 2, axis=1)

    def stance(*args: object) -> object:
        out = draw_stance(*args)
        return dataclasses.replace(out, **{k: first_twice(v) for k, v in vars(out).items()})

    frame = mannequins._frame
    monkeypatch.setattr(mannequins, "draw_stance", stance)
    monkeypatch.setattr(mannequins, "_frame",
                        lambda *args: tuple(first_twice(a) for a in frame(*args)))


@pytest.mark.usefixtures("motionless")
def test_a_view_paired_with_itself() -> None:
    batch = Mannequins(size=(96, 96), turn=180).pairs(range(16))
    torch.testing.assert_close(batch["source"], batch["target"])
    assert batch["turn"].eq(0).all()
    identity = pose_kernels.identity_flow(96, 96)
    torch.testing.assert_close(batch["flow"], identity.expand(16, -1, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(batch["visible"], batch["target_foreground"])


def test_visibility_agrees_with_a_z_buffer_of_splatted_points() -> None:
    """Points strewn over the parts, not found by rays, and kept by a depth buffer, tell what the
    source shows."""
    size, data = 192, Mannequins(size=(192, 192), seed=5)
    indices = list(range(6))
    batch = data.pairs(indices)
    draws = Draws(data.seed, indices)
    person = draw_person(draws)
    shape = build_shape(person)
    stance = draw_stance(draws, person, data.turn)
    zoom, shift = mannequins._frame(draws, shape, stance, size, size)
    bodies = mannequins.place(shape, stance, zoom, shift, torch.device("cpu"))
    rng = np.random.default_rng(0)
    agree = total = hidden = 0
    for b in indices:
        buffer, owner = np.full((size, size), -np.inf), np.full((size, size), -1)
        for p in range(len(PARTS)):
            if not shape.exists[b, p]:
                continue
            # Balls all the way along the axis: what is not on the hull lies inside and harms no
            # depth buffer.
            u = rng.normal(size=(80_000, 3))
            u /= np.linalg.norm(u, axis=1, keepdims=True)
            h = rng.random((len(u), 1))
            q = u * (shape.r0[b, p] * (1 - h) + shape.r1[b, p] * h)
            q = q - h * shape.length[b, p] * np.array([0, 1, 0])
            q = q[q @ shape.clip[b, p, :3] <= shape.clip[b, p, 3]]
            world = (q * shape.scale[b, p]) @ stance.rotation[b, 0, p].T + stance.origin[b, 0, p]
            x = world[:, 0] * zoom[b, 0, 0] + shift[b, 0, 0]
            y = -world[:, 1] * zoom[b, 0, 1] + shift[b, 0, 1]
            column, row = (np.floor((a + 1) * size / 2).astype(int) for a in (x, y))
            ok = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            before = buffer.copy()
            np.maximum.at(buffer, (row[ok], column[ok]), world[ok, 2])
            owner[buffer > before] = p
        i, j = batch["target_foreground"][b, 0].nonzero(as_tuple=True)
        xy = torch.stack([(2 * j + 1) / size - 1, (2 * i + 1) / size - 1])
        part = batch["target_part"][b, 0, i, j] - 1
        view = torch.full_like(part, 2 * b + 1)
        depth = mannequins.cast(bodies, view, xy).depth
        q = mannequins.surface_points(bodies, view, part, xy, depth)
        place, depth = mannequins.project(bodies, view - 1, part, q)
        column, row = ((place + 1) * size / 2).floor().long()
        inside = (column >= 1) & (column < size - 1) & (row >= 1) & (row < size - 1)
        column, row = column.clamp(0, size - 1).numpy(), row.clamp(0, size - 1).numpy()
        behind = buffer[row, column] - depth.numpy()
        seen = batch["visible"][b, 0, i, j].numpy()
        # Cells are trusted where they and their neighbours show one part, without steep slopes.
        patches = [np.lib.stride_tricks.sliding_window_view(np.pad(a, 1, mode="edge"), (3, 3))
                   for a in (np.maximum(buffer, -9.0), owner)]
        clear = (np.ptp(patches[0], (2, 3)) < 0.03) & (np.ptp(patches[1], (2, 3)) == 0)
        sure = inside.numpy() & clear[row, column]
        assert sure.mean() > 0.25
        expected = (owner[row, column] == part.numpy()) & (behind < 0.03)
        agree += (expected == seen)[sure].sum()
        hidden += (~seen & sure).sum()
        total += sure.sum()
    assert hidden > 300
    assert agree > 0.995 * total


def test_big_turns_leave_less_to_see() -> None:
    batch = Mannequins(turn=180).pairs(range(120))
    seen = batch["visible"].flatten(1).sum(1) / batch["target_foreground"].flatten(1).sum(1)
    near, far = seen[batch["turn"] < 40].mean(), seen[batch["turn"] > 140].mean()
    assert near > 0.65 and far < 0.35
    assert Mannequins(turn=0).pairs(range(8))["turn"].eq(0).all()
    assert Mannequins(turn=30).pairs(range(32))["turn"].max() <= 60


def test_a_pair_depends_on_seed_and_index_alone() -> None:
    data = Mannequins(background="cluttered", hidden_joints="drop")
    together = data.pairs([7, 2**40, 11, 0, 19])
    for at, index in ((0, 7), (1, 2**40), (4, 19)):
        for name, value in data.pairs([index]).items():
            assert torch.equal(value[0], together[name][at]), name
    again = Mannequins(background="cluttered", hidden_joints="drop").pairs([11])
    assert torch.equal(again["source"][0], together["source"][2])


def test_streams_do_not_collide() -> None:
    """Seed and index are told apart, also beyond 32 bits."""
    keys = [(0, 1), (1, 0), (0, 2**32), (2**32, 0), (1, 1), (0, 2**32 + 1), (2**32 + 1, 0), (0, 0)]
    rows = np.stack([Draws(seed, [index]).values[0] for seed, index in keys])
    assert len(np.unique(rows[:, 0])) == len(keys)
    assert not torch.equal(Mannequins(seed=0).pairs([4])["source"],
                           Mannequins(seed=1).pairs([4])["source"])


def test_a_pair_shows_one_person() -> None:
    """The same part has nearly the same mean colour in both views, and another person's has not."""
    batch = Mannequins(turn=20).pairs(range(40))

    def mean_color(view: str, part: str) -> torch.Tensor:
        mask = (batch[f"{view}_part"] == PART_NAMES.index(part)).float()
        count = mask.sum((2, 3))
        return torch.where(count > 4, (batch[view] * mask).sum((2, 3)) / count.clamp_min(1),
                           torch.nan)

    for part in ("chest", "left_thigh", "head"):
        source, target = mean_color("source", part), mean_color("target", part)
        same = (source - target).abs().nanmean()
        assert same < 0.6 * (source - target.roll(1, 0)).abs().nanmean()


JOINT_PARTS = {
    "right_wrist": (4, ("right_forearm", "right_hand")),
    "left_elbow": (6, ("left_upper_arm", "left_forearm")),
    "right_knee": (9, ("right_thigh", "right_shin", "skirt")),
    "left_ankle": (13, ("left_shin", "left_foot")),
    "nose": (0, ("head",)),
}


@pytest.mark.parametrize("name", JOINT_PARTS)
def test_joints_lie_on_their_parts(name: str) -> None:
    joint, parts = JOINT_PARTS[name]
    batch = Mannequins(size=(128, 128), hidden_joints="drop").pairs(range(32))
    pose = batch["source_pose"][:, joint]
    allowed = torch.zeros(len(PART_NAMES), dtype=torch.bool)
    allowed[[PART_NAMES.index(part) for part in parts]] = True
    ids = F.max_pool2d(allowed[batch["source_part"]].float(), 3, stride=1, padding=1)[:, 0]
    present = pose[:, 2] > 0
    assert present.float().mean() > 0.4
    pixel = ((pose[:, :2] + 1) * 64).floor().long().clamp(0, 127)
    assert ids[torch.arange(32), pixel[:, 1], pixel[:, 0]][present].eq(1).all()


def test_joints_outside_the_frame_are_missing() -> None:
    pose = Mannequins(size=(32, 32)).pairs(range(200))["source_pose"]
    missing = pose[..., 2] == 0
    ankles = missing[:, [10, 13]].any(1).float().mean()
    assert 0.08 < ankles < 0.25  # close crops
    assert missing[:, 0].float().mean() < 0.02  # the head stays


def test_only_hidden_joints_are_dropped() -> None:
    keep = Mannequins(turn=180).pairs(range(64))
    drop = Mannequins(turn=180, hidden_joints="drop").pairs(range(64))
    kept, seen = keep["source_pose"], drop["source_pose"]
    both = seen[..., 2] > 0
    assert torch.equal(kept[both], seen[both])
    gone = (kept[..., 2] > 0) & ~both
    assert 0.1 < gone.float().mean() < 0.4
    # Faces are missed from behind, and only elbows over other parts go missing.
    elbow = gone[:, 3]
    pixel = ((kept[elbow, 3, :2] + 1) * 32).floor().long().clamp(0, 63)
    parts = keep["source_part"][elbow, 0] - 1
    over = parts[torch.arange(int(elbow.sum())), pixel[:, 1], pixel[:, 0]]
    own = (over == INDEX["right_upper_arm"]) | (over == INDEX["right_forearm"])
    # The joint's pixel centre may still show the arm beside the occluder.
    assert own.float().mean() < 0.2
    frontal = Mannequins(turn=0, hidden_joints="drop").pairs(range(64))["source_pose"]
    assert frontal[:, 0, 2].mean() > 0.85 > 0.75 > seen[:, 0, 2].mean()


def test_backgrounds() -> None:
    white = Mannequins(background="white").pairs(range(4))
    far = F.max_pool2d(white["source_foreground"].float(), 5, stride=1, padding=2) == 0
    assert white["source"][far.expand(-1, 3, -1, -1)].eq(1).all()
    cluttered = Mannequins(background="cluttered").pairs(range(8))
    outside = ~(cluttered["source_foreground"] | cluttered["target_foreground"])
    difference = (cluttered["source"] - cluttered["target"]).abs()[outside.expand(-1, 3, -1, -1)]
    assert difference.mean() > 0.1  # nothing to copy


def test_a_background_that_stays() -> None:
    still = Mannequins(background="still", turn=180.0).pairs(range(8))
    both = ~(still["source_foreground"] | still["target_foreground"])
    # Where a limb covers a part of a pixel, its centre is background all the same.
    near = (still["source_foreground"] | still["target_foreground"]).float()
    far = F.max_pool2d(near, 5, stride=1, padding=2) == 0
    difference = (still["source"] - still["target"]).abs().amax(1, keepdim=True)
    assert far.any() and not difference[far].any()
    plain = still["source"].eq(1).all(1, keepdim=True)
    assert [bool(plain[i][far[i]].all()) for i in range(8)] == [i % 3 == 0 for i in range(8)]
    # It is visible in both, and its flow says that it has not moved; of white nobody can tell.
    cluttered = torch.tensor([i % 3 != 0 for i in range(8)]).view(-1, 1, 1, 1)
    assert still["visible"][both & cluttered].all() and not still["visible"][
        ~still["target_foreground"] & (still["source_foreground"] | ~cluttered)].any()
    # Its mask says which pixels are the person's; before white it is not needed.
    assert ((still["source_mask"] > 0.5) == still["source_foreground"])[
        cluttered.expand_as(both)].float().mean() > 0.99
    assert still["source_mask"][~cluttered.expand_as(both)].eq(1).all()
    assert "source_mask" not in Mannequins(background="cluttered").pairs([0])
    identity = pose_kernels.identity_flow(64, 64).expand(8, -1, -1, -1)
    assert torch.equal(still["flow"][both.expand(-1, 2, -1, -1)],
                       identity[both.expand(-1, 2, -1, -1)])


def test_no_indices() -> None:
    for name, value in Mannequins(background="cluttered", hidden_joints="drop").pairs([]).items():
        assert len(value) == 0, name
        assert value.ndim == 1 or value.shape[1] > 0, name


@pytest.mark.parametrize(("arguments", "word"), [
    ({"size": (64,)}, "size"), ({"size": (4, 64)}, "size"), ({"size": (64.0, 64)}, "size"),
    ({"turn": -1.0}, "turn"), ({"turn": 181.0}, "turn"), ({"turn": float("nan")}, "turn"),
    ({"background": "green"}, "background"), ({"hidden_joints": "maybe"}, "hidden_joints"),
    ({"seed": -1}, "seed"),
])
def test_bad_arguments(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Mannequins(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_index() -> None:
    with pytest.raises(ValueError, match="index"):
        Mannequins().pairs([0, -3])


@pytest.mark.gpu
def test_cuda_makes_the_same_pairs() -> None:
    cpu, gpu = (Mannequins(background="cluttered", device=d).pairs(range(4))
                for d in ("cpu", "cuda"))
    for name, value in gpu.items():
        assert value.device.type == "cuda", name
        close = (value.cpu().float() - cpu[name].float()).abs() < 1e-3
        assert close.float().mean() > 0.999, name
