"""Mirroring and affine maps of training pairs: image and joints move together."""

import pytest
import torch

from posemodel.data.augmentation import Augmentation, augment, draw, move
from posemodel.poses.joints import normalized_to_pixels

SIZES = [(64, 64), (64, 32)]
ALL = Augmentation(flip=True, rotate=20.0, scale=0.2, shift=0.1)


def marked(pose, size):
    """White images `[B, 3, H, W]` with a dark spot at the first joint of `[B, 18, 3]`."""
    height, width = size
    x, y, _ = normalized_to_pixels(pose[:, 0], size).unbind(-1)
    dx = torch.arange(width) - x.view(-1, 1, 1)
    dy = torch.arange(height).view(-1, 1) - y.view(-1, 1, 1)
    spot = torch.exp(-(dx**2 + dy**2) / (2 * 2.0**2))
    return (1 - 2 * spot).unsqueeze(1).repeat(1, 3, 1, 1)


def spots(images):
    """Pixel coordinates (x, y) of the dark spots, `[B, 2]`."""
    ink = (1 - images).mean(1)
    weight = ink / ink.sum((1, 2), keepdim=True)
    x = (weight.sum(1) * torch.arange(ink.shape[2])).sum(1)
    y = (weight.sum(2) * torch.arange(ink.shape[1])).sum(1)
    return torch.stack([x, y], 1)


def batch_of(count, size):
    # Spots far enough from the border to stay in the frame as a whole.
    batch = {}
    for name in ("source", "target"):
        pose = torch.cat([torch.rand(count, 18, 2) - 0.5, torch.ones(count, 18, 1)], -1)
        pose[:, 17] = 0  # a missing joint
        batch |= {name: marked(pose, size), f"{name}_pose": pose}
    return batch


def draws(bounds, positions, *, seed=0, size=(64, 64)):
    return draw(bounds, seed=seed, positions=positions, aspect=size[1] / size[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bounds", [Augmentation(flip=True), Augmentation(rotate=25.0),
                                    Augmentation(scale=0.2), Augmentation(shift=0.1), ALL])
def test_the_moved_joint_lies_on_its_mark_in_the_moved_image(bounds, size):
    before, chosen = batch_of(12, size), draws(bounds, range(12), size=size)
    after = augment(before, chosen)
    for name in ("source", "target"):
        image, pose = after[name], after[f"{name}_pose"]
        assert not torch.equal(image, before[name])
        assert (spots(image) - normalized_to_pixels(pose[:, 0], size)[:, :2]).abs().max() < 0.5
        ears = pose[:, 16:, 2].bool()
        assert torch.equal(ears[:, 0], ~chosen.flip) and torch.equal(ears[:, 1], chosen.flip)


def test_left_and_right_change_places_in_a_mirror_and_come_back():
    before = batch_of(16, (64, 32))
    chosen = draws(Augmentation(flip=True), range(16))
    assert 0 < chosen.flip.sum() < 16
    once = augment(before, chosen)
    twice = augment(once, chosen)
    for name, values in before.items():
        assert torch.equal(twice[name], values), name
    for k in range(16):
        right, left = 4, 7  # wrists
        was, now = before["source_pose"][k], once["source_pose"][k]
        expected = was[left] * torch.tensor([-1.0, 1, 1]) if chosen.flip[k] else was[right]
        assert torch.equal(now[right], expected)
        image = before["source"][k]
        assert torch.equal(once["source"][k], image.flip(-1) if chosen.flip[k] else image)


def test_by_default_nothing_is_touched():
    before = batch_of(4, (32, 32))
    after = augment(before, draws(Augmentation(), range(4)))
    assert all(after[name] is values for name, values in before.items())


def test_a_pairs_draws_depend_on_its_position_and_the_seed_alone():
    together, alone = draws(ALL, [3, 4, 5]), draws(ALL, [4])
    assert torch.equal(together.affine[1], alone.affine[0])
    assert torch.equal(together.flip[1], alone.flip[0])
    assert not torch.equal(alone.affine, draws(ALL, [4], seed=1).affine)
    # Turning one field on leaves what another one draws.
    assert torch.equal(draws(ALL, range(9)).flip, draws(Augmentation(flip=True), range(9)).flip)


def test_source_and_target_are_moved_differently():
    affine = draws(ALL, range(3)).affine
    assert (affine[:, 0] != affine[:, 1]).any(dim=(1, 2)).all()


@pytest.mark.parametrize("size", SIZES)
def test_maps_keep_to_their_ranges_and_do_not_shear(size):
    bounds = Augmentation(rotate=10.0, scale=0.1, shift=0.05)
    affine = draws(bounds, range(500), size=size).affine.flatten(0, 1)
    height, width = size
    half = torch.diag(torch.tensor([width / 2, height / 2]))
    pixels = half @ affine[:, :, :2] @ half.inverse()
    scale = pixels[:, :, 0].norm(dim=1)
    angle = torch.rad2deg(torch.atan2(pixels[:, 1, 0], pixels[:, 0, 0]))
    square = pixels.mT @ pixels
    assert torch.allclose(square, scale.square().view(-1, 1, 1) * torch.eye(2), atol=1e-5)
    for values, limit in ((angle, 10.0), (scale - 1, 0.1), (affine[:, :, 2], 0.05)):
        assert 0.95 * limit < values.abs().max() <= limit * 1.0001
        assert values.mean().abs() < 0.1 * limit


def test_white_comes_in_and_joints_that_leave_are_missing():
    pose = torch.zeros(1, 18, 3)
    pose[0, 0], pose[0, 1] = torch.tensor([0.9, 0.0, 1.0]), torch.tensor([-0.5, 0.0, 1.0])
    shift = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    image, moved = move(torch.full((1, 3, 32, 32), -1.0), pose, shift)
    assert (image[..., :8] == 1).all() and (image[..., 8:] == -1).all()
    assert torch.equal(moved[0, 0], torch.zeros(3))
    assert torch.allclose(moved[0, 1], torch.tensor([0.0, 0.0, 1.0]))


def test_masks_move_with_their_images_and_both_images_alike() -> None:
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 4:14] = 1
    picture = 1 - 2 * mask.expand(-1, 3, -1, -1)          # black where the mask is
    pose = torch.zeros(2, 18, 3)
    batch = {"source": picture, "target": picture, "source_pose": pose, "target_pose": pose,
             "source_mask": mask, "target_mask": mask}
    moves = draw(Augmentation(flip=True, rotate=30, scale=0.2, shift=0.2), seed=3,
                 positions=[0, 1], aspect=1.0)
    moved = augment(batch, moves)
    # Two frames of one camera: what stays between them stays.
    assert torch.equal(moved["source"], moved["target"])
    for side in ("source", "target"):
        assert torch.allclose(moved[side][:, :1], 1 - 2 * moved[f"{side}_mask"], atol=1e-5)
    assert not torch.equal(moved["source_mask"], mask)


def test_what_is_behind_moves_with_the_source() -> None:
    known = torch.zeros(2, 1, 32, 32)
    known[:, :, 6:26, 5:25] = 1
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pose = torch.zeros(2, 18, 3)
    batch = {"source": picture, "target": picture.flip(-2), "source_pose": pose,
             "target_pose": pose, "source_mask": known, "target_mask": known,
             "source_plate": picture, "source_known": known}
    for bounds in ({"flip": True}, {"flip": True, "rotate": 30, "scale": 0.2, "shift": 0.1}):
        moved = augment(batch, draw(Augmentation(**bounds), seed=3, positions=[0, 1], aspect=1.0))
        certain = moved["source_known"]
        assert set(certain.unique().tolist()) == {0.0, 1.0} and not torch.equal(certain, known)
        assert (certain <= moved["source_mask"] + 1e-6).all()
        assert torch.allclose(moved["source_plate"] * certain, moved["source"] * certain, atol=1e-5)
