"""Mannequins in Market-1501's layout: identities keep their clothes, cameras their look."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from market_helpers import read_as_torchreid

from posemodel.data.images import read_image
from posemodel.data.reading import open_pairs
from posemodel.mannequins.pairs import Mannequins
from posemodel.poses.annotations import read_annotations
from posemodel.reid import synthesize as module
from posemodel.reid.market import DISTRACTOR, JUNK, open_split
from posemodel.reid.synthesize import MarketPlan, synthesize
from tests.small_datasets import contents, refused


def plan(**changes) -> MarketPlan:
    return MarketPlan(**{"identities": 3, "cameras": 2, "images": 2, "turn": 60.0, "seed": 4,
                         **changes})


def make(out: Path, **changes) -> Path:
    synthesize(out, plan(**changes), progress=lambda done, total: None)
    return out


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("market") / "market")


def test_counts_and_splits(market):
    train, gallery, query = (open_split(market, name) for name in ("train", "gallery", "query"))
    assert len(train.names) == 3 * 2 * 2 and set(train.persons) == {1, 3, 5}
    assert sorted(zip(query.persons, query.cameras, strict=True)) == [
        (person, camera) for person in (2, 4, 6) for camera in (1, 2)]
    assert all(name.endswith("_00.jpg") for name in query.names)
    assert set(gallery.persons) == {2, 4, 6, DISTRACTOR, JUNK}
    assert (gallery.persons > 0).sum() == 3 * 2 * 2
    assert len(read_as_torchreid(market / "bounding_box_train")) == 12


def test_the_pair_loader_reads_it(market):
    for split in ("train", "test"):
        pairs = open_pairs(market, split)
        assert len(pairs.pairs) and all(pairs.names[a][:4] == pairs.names[b][:4]
                                        for a, b in pairs.pairs)
    names, joints = read_annotations(market / "market-annotation-train.csv")
    assert list(names) == sorted(names)
    seen = joints[joints[..., 2] > 0]
    assert (seen[:, 0] < 64).all() and (seen[:, 1] < 128).all() and (seen >= 0).all()


def test_same_plan_same_bytes(market, tmp_path):
    assert contents(make(tmp_path / "again")) == contents(market)
    other = contents(make(tmp_path / "other", seed=5))
    assert all(other[name] != data for name, data in contents(market).items()
               if name.endswith(".jpg"))


def test_every_image_has_a_stance_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "_box", lambda *words: (0.0, 0.0, 72.0, 144.0))
    monkeypatch.setattr(module, "_seen", lambda points, random: points)
    crops = [crop for crop in module._crops(plan()) if crop.person == 1]
    joints = [points for _, points in module._render(plan(), crops)]
    assert len(joints) == 4
    for first, second in itertools.combinations(joints, 2):
        assert np.abs(first - second).max() > 2


def test_never_over_anything(market):
    before = contents(market)
    refused("is there already", make, market)
    assert contents(market) == before


@pytest.mark.parametrize("changes, message", [
    ({"identities": 751}, "--identities 751"), ({"cameras": 7}, "--cameras 7"),
    ({"images": 0}, "--images 0"), ({"turn": 181.0}, "--turn"), ({"seed": -1}, "--seed -1")])
def test_plans_that_the_names_do_not_allow(changes, message):
    refused(message, plan, **changes)


# --- the generator's own part --------------------------------------------------------------------


def test_a_person_is_that_of_the_pair_with_the_same_index():
    generator = Mannequins(size=(64, 32), seed=2)
    own, lent = generator.pairs([5, 6]), generator.pairs([5, 6], persons=[5, 6])
    assert all(torch.equal(own[name], lent[name]) for name in own)


def test_a_person_keeps_body_and_clothes_in_other_poses():
    generator = Mannequins(size=(64, 32), seed=2, turn=20.0)
    batch = generator.pairs([100, 101, 102, 103], persons=[5, 5, 6, 6])
    assert not torch.equal(batch["source_pose"][0], batch["source_pose"][1])
    images, masks = batch["source"], batch["source_foreground"]
    mean = torch.stack([image[:, mask[0]].mean(1)
                        for image, mask in zip(images, masks, strict=True)])
    same, other = (mean[0] - mean[1]).norm(), (mean[0] - mean[2]).norm()
    assert same < 0.5 * other


def test_a_scene_is_that_behind_the_source_of_a_pair():
    generator = Mannequins(size=(64, 32), seed=2, background="cluttered")
    own = generator.pairs([5])
    other = generator.pairs([9, 10], scenes=[5, 5, 5, 7])
    empty = ~(own["source_foreground"] | other["source_foreground"]
              | other["target_foreground"]).any(0, keepdim=True).expand(2, 3, -1, -1)
    # A pixel beside the person may hold a part of the edge.
    inner = -torch.nn.functional.max_pool2d(-empty.float(), 3, 1, 1) > 0
    first = own["source"].expand(2, -1, -1, -1)
    assert torch.equal(other["source"][inner], first[inner])
    assert torch.equal(other["target"][:1][inner[:1]], first[:1][inner[:1]])
    assert not torch.equal(other["target"][1:][inner[1:]], first[1:][inner[1:]])


def test_wrong_numbers_of_persons_and_scenes():
    generator = Mannequins(size=(64, 32))
    with pytest.raises(ValueError, match="expected 2 persons; got 1"):
        generator.pairs([1, 2], persons=[1])
    with pytest.raises(ValueError, match="expected 4 scenes; got 2"):
        Mannequins(size=(64, 32), background="cluttered").pairs([1, 2], scenes=[1, 2])


def test_images_of_one_camera_look_alike(tmp_path):
    market = make(tmp_path / "market", identities=10, images=3)
    train = open_split(market, "train")
    mean = np.array([read_image(train.path(i)).mean((0, 1)) for i in range(len(train.names))])
    groups = [mean[train.cameras == camera] for camera in (1, 2)]
    within = np.mean([group.std(0).mean() for group in groups])
    between = np.abs(groups[0].mean(0) - groups[1].mean(0)).mean()
    assert between > 0.25 * within
