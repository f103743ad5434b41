"""A person laid over a background that stays, and holes that are filled."""

import pytest
import torch

import pose_kernels
from posemodel.engine.trainer import Trainer
from posemodel.evaluation import inspection
from posemodel.evaluation.inspection import inspect
from posemodel.model.scene import Scene, front_of, moved, scene_of, scene_of_batch
from posemodel.pictures.inpainting import fill
from posemodel.poses.limb_widths import cover_bounds, limb_widths
from tests.small_runs import tiny_generator
from tests.tiny import random_poses, tiny_config


def disc(size: int, x: float, y: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (((columns - x) ** 2 + (rows - y) ** 2) < radius**2).float()[None, None]


def ramp(size: int) -> torch.Tensor:
    """A picture that a smooth filling finds again: three planes."""
    at = torch.linspace(-1, 1, size)
    return torch.stack([at.expand(size, size), at[:, None].expand(size, size),
                        0.5 * (at + at[:, None])])[None]


def test_what_is_known_stays_and_a_plane_is_filled_in() -> None:
    hole = disc(64, 30, 33, 12)
    image = ramp(64)
    filled = fill(torch.where(hole > 0, 5.0, image), hole)
    assert torch.equal(filled[(hole == 0).expand_as(image)], image[(hole == 0).expand_as(image)])
    assert (filled - image).abs().max() < 0.1  # a constant would be off by 0.4
    assert filled.min() >= image.min() and filled.max() <= image.max()


def test_a_hole_without_a_rim() -> None:
    assert torch.equal(fill(torch.ones(1, 3, 9, 14), torch.ones(1, 1, 9, 14)),
                       torch.zeros(1, 3, 9, 14))
    image = torch.randn(2, 3, 7, 10)
    assert torch.equal(fill(image, torch.zeros(2, 1, 7, 10)), image)


def test_a_moved_person_before_what_was_behind() -> None:
    background, person, mask = ramp(64), torch.full((1, 3, 64, 64), -0.9), disc(64, 20, 32, 8)
    source = torch.lerp(background, person, mask)
    scene = scene_of(source, mask)
    # The person moves 20 columns to the right: every pixel looks 20 to its left.
    flow = pose_kernels.identity_flow(64, 64)[None].clone()
    flow[:, 0] -= 2 * 20 / 64
    moved = scene.under(pose_kernels.flow_sample(source, flow), flow)
    wanted = torch.lerp(background, person, disc(64, 40, 32, 8))
    error = (moved - wanted).abs().amax(1)
    assert error.max() < 0.15 and error.mean() < 0.01
    # Without a scene the background would have come along.
    assert (pose_kernels.flow_sample(source, flow) - wanted).abs().mean() > 0.2


def test_nothing_is_seen_of_the_person_who_left() -> None:
    source = ramp(64).lerp(torch.full((1, 3, 64, 64), 3.0), disc(64, 20, 32, 8))
    scene = scene_of(source, disc(64, 20, 32, 8))
    assert scene.behind.max() <= 1.0 and scene.hole.sum() > disc(64, 20, 32, 8).sum()


def test_what_the_camera_saw_at_other_times_is_behind_the_person() -> None:
    room = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    mask, known = disc(64, 30, 33, 12), torch.ones(1, 1, 64, 64)
    known[..., 33:, :] = 0                                        # never seen below
    source = torch.lerp(room, torch.full_like(room, -0.9), mask)
    without = scene_of(source, mask)
    lit = 0.3 + 0.1 * ramp(64)[:, :1]                             # the light of another hour
    scene = scene_of(source, mask, plate=((room - lit) * known, known))
    assert torch.equal(scene.hole, without.hole * (1 - known)) and scene.hole.any()
    seen = (without.hole * known > 0).expand_as(room)
    assert (scene.behind - room)[seen].abs().max() < 0.05
    assert (without.behind - room)[seen].abs().mean() > 0.2
    outside = (without.hole == 0).expand_as(room)
    assert torch.equal(scene.behind[outside], source[outside])
    nothing = scene_of(source, mask, plate=(torch.zeros_like(room), torch.zeros_like(known)))
    assert torch.equal(nothing.behind, without.behind) and torch.equal(nothing.hole, without.hole)


def test_nothing_of_the_background_comes_along() -> None:
    # The mask is soft at its edge, and the last certain pixels still have something of the room.
    mask, picture = 0.4 * disc(64, 20, 32, 10) + 0.6 * disc(64, 20, 32, 8), ramp(64)
    source = picture + 3 * disc(64, 20, 32, 12)
    source += 5 * (disc(64, 20, 32, 12) - disc(64, 20, 32, 7))
    front = front_of(source, mask)
    certain = disc(64, 20, 32, 6.5).expand_as(front) > 0
    assert torch.equal(front[certain], source[certain])
    assert front.min() > 1.9 and front.max() < 4.1  # the person alone is so bright
    everywhere = torch.rand(1, 2, 64, 64) * 2 - 1
    assert moved(source, everywhere, Scene(mask, source, front=front)).min() > 1.9
    assert moved(source, everywhere, None).min() < 0
    # Nobody, and somebody who is everywhere.
    for degenerate in (torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)):
        assert torch.equal(front_of(source, degenerate), source)
    both = front_of(source.expand(2, -1, -1, -1), torch.cat([mask * 0, mask]))
    assert torch.equal(both, torch.cat([source, front]))


def test_limbs_say_how_much_the_person_covers_at_least_and_at_most() -> None:
    """Whatever the mask, the flow and R say."""
    batch, net = nobody_moves(), tiny_generator()
    batch["source_mask"][..., 4:28, 8:24] = 1
    scene = scene_of_batch(batch)
    least, most = scene.bounds
    widths = limb_widths(batch["source_pose"], batch["source_mask"] > 0)
    for bound, wanted in zip(scene.bounds, cover_bounds(widths, batch["target_pose"], (32, 32)),
                             strict=True):
        assert torch.equal(bound, wanted)
    assert (least == 1).any() and (most == 0).any() and (least <= most).all()
    flow = torch.rand(2, 2, 32, 32) * 2 - 1
    assert (scene.cover(flow) >= least).all() and (scene.cover(flow) <= most).all()
    torch.nn.init.zeros_(net.refinement.decoder.last.weight)
    for more, wanted in ((1.0, most), (-1.0, least)):
        torch.nn.init.constant_(net.refinement.decoder.last.bias[3:], more)
        made = net.transfer(batch["source"], flow, batch["target_pose"], scene)
        torch.testing.assert_close(made.cover, wanted)
        torch.testing.assert_close(made.image, scene.covered(made.person, wanted))


@pytest.mark.parametrize("refine", ["detail", "posed", "paper", "none"])
def test_r_and_the_loss_see_the_person_alone(refine: str, monkeypatch) -> None:
    """In training and in evaluation."""
    trainer = Trainer(tiny_config(model_refine=refine, loss_warped_weight=1.0),
                      torch.device("cpu"), torch.float32)
    batch, fronts = nobody_moves(), []
    batch["source_mask"][..., 4:28, 8:24] = 1
    front = scene_of_batch(batch).front
    assert not torch.equal(front, batch["source"])
    sample = Scene.moved
    monkeypatch.setattr(Scene, "moved", lambda scene, *inputs: (
        fronts.append(scene.front), sample(scene, *inputs))[1])
    trainer.step(1, batch)
    of_r = refine != "paper"  # which sees what features bring
    assert len(fronts) == 1 + of_r
    inspect(trainer.averaged, batch, torch.float32)
    assert len(fronts) == 2 * (1 + of_r) and all(torch.equal(each, front) for each in fronts)


def test_the_flow_learns_from_the_mask() -> None:
    scene = Scene(disc(32, 12, 16, 5), torch.zeros(1, 3, 32, 32))
    flow = pose_kernels.identity_flow(8, 8)[None].clone().requires_grad_()
    scene.under(torch.ones(1, 3, 32, 32), flow).sum().backward()
    assert flow.grad.abs().max() > 0


def test_batches_with_and_without_masks() -> None:
    source, nobody = ramp(32), torch.zeros(1, 18, 3)
    batch = {"source": source, "source_pose": nobody, "target_pose": nobody}
    assert scene_of_batch(batch) is None
    whole = scene_of_batch({**batch, "source_mask": torch.ones(1, 1, 32, 32)})
    flow = pose_kernels.identity_flow(32, 32)[None].flip(-1)
    # A mask of ones: the flow moves all there is.
    assert torch.allclose(whole.under(source, flow), source, atol=1e-6)
    plate = {"source_plate": source.flip(-1), "source_known": torch.ones(1, 1, 32, 32)}
    part = {**batch, "source_mask": disc(32, 16, 16, 6)}
    assert not torch.equal(scene_of_batch({**part, **plate}).behind, scene_of_batch(part).behind)


def nobody_moves() -> dict[str, torch.Tensor]:
    """Two pairs of one picture in which the mask finds nobody."""
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"source": picture, "target": picture, "source_pose": random_poses(2, seed=1),
            "target_pose": random_poses(2, seed=2), "source_mask": torch.zeros(2, 1, 32, 32)}


# R that sees the pose may find somebody where the mask does not.
@pytest.mark.parametrize("refine", ["detail", "paper", "none"])
def test_an_evaluation_lays_people_over_their_background(refine: str) -> None:
    batch = nobody_moves()
    seen = inspect(tiny_generator(model_refine=refine), batch, torch.float32)
    assert torch.equal(seen.image, batch["source"]) and torch.equal(seen.warped, batch["source"])
    assert torch.equal(seen.flow, pose_kernels.identity_flow(32, 32).expand_as(seen.flow))
    del batch["source_mask"]
    free = inspect(tiny_generator(), batch, torch.float32).warped
    assert (free - batch["source"]).abs().max() > 0.1


def test_a_refinement_that_sees_the_pose_says_how_much_the_person_covers() -> None:
    batch = nobody_moves()
    batch["source_mask"][..., 8:24, 8:24] = 0.5
    batch["target_pose"].zero_()  # of which nobody knows how much they cover
    net, poses = tiny_generator(), (batch["source_pose"], batch["target_pose"])
    torch.nn.init.zeros_(net.refinement.decoder.last.weight)
    scene, flow = scene_of_batch(batch), net.flow(batch["source"], *poses)
    warped = pose_kernels.flow_sample(batch["source"], flow)
    for more, wanted in ((0.0, scene.under(warped, flow)), (1.0, warped), (-1.0, scene.behind)):
        torch.nn.init.constant_(net.refinement.decoder.last.bias[3:], more)
        image = net.transfer(batch["source"], flow, poses[1], scene).image
        torch.testing.assert_close(image, wanted, rtol=0, atol=1e-6)
    # Beyond 0 and 1 it can still learn to come back.
    net.train()
    image = net.transfer(batch["source"], flow.detach(), poses[1], scene).image
    image.square().sum().backward()
    assert net.refinement.decoder.last.bias.grad[3] != 0


def test_r_sees_the_pose_of_the_target_and_its_scene(monkeypatch) -> None:
    """In training and in evaluation."""
    trainer = Trainer(tiny_config(), torch.device("cpu"), torch.float32)
    seen, batch = [], nobody_moves()
    for net in (trainer.generator, trainer.averaged):
        person = net.refinement.person
        monkeypatch.setattr(net.refinement, "person", lambda *inputs, person=person: (
            seen.append(inputs[2:]), person(*inputs))[1])
    trainer.step(1, batch)
    inspect(trainer.averaged, batch, torch.float32)
    assert len(seen) == 2
    for pose, scene in seen:
        assert torch.equal(pose, batch["target_pose"])
        assert torch.equal(scene.mask, batch["source_mask"])


def test_holes_are_continued_where_a_film_is_measured_and_not_where_the_truth_is_known(
        monkeypatch) -> None:
    monkeypatch.setattr(inspection, "continued", lambda scene: scene._replace(
        behind=torch.full_like(scene.behind, 0.25)))
    batch, net = nobody_moves(), tiny_generator(model_refine="none")
    film = inspect(net, batch, torch.float32)
    assert (film.image == 0.25).all() and (film.warped == 0.25).all()
    known = inspect(net, {**batch, "flow": torch.zeros(2, 2, 32, 32)}, torch.float32)
    assert torch.equal(known.image, batch["source"])


def test_training_compares_people_over_their_background() -> None:
    blind = {"model_refine": "detail"}
    trainer = Trainer(tiny_config(**blind), torch.device("cpu"), torch.float32)
    trainer.generator.load_state_dict(tiny_generator(**blind).state_dict())
    losses = trainer.step(1, nobody_moves())
    assert losses["loss_reconstruction"] == losses["loss_warped"] == 0
    batch = nobody_moves()
    del batch["source_mask"]
    assert trainer.step(2, batch)["loss_warped"] > 0.01
