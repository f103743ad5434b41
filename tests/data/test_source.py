"""What a config's data section means: mannequins, or the splits of a data set on disk."""

import numpy as np
import pytest
import torch

from posemodel.config.presets import PRESETS
from posemodel.data import source as data_source
from posemodel.data.pair_set import PairSet
from posemodel.data.source import (
    HELD_OUT_SEEDS,
    held_out_batches,
    mannequins,
    open_held_out,
    open_training_data,
)
from tests.small_datasets import make_generated, refused
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def positions(step):
    return range(2 * step - 2, 2 * step)


def on_disk(kind, root, **changes):
    size = (64, 32) if kind == "market" else (64, 64)
    return tiny_config(data_kind=kind, data_root=str(root), data_image_size=size, data_workers=0,
                       **changes)


def training(config):
    return open_training_data(config.data, CPU, positions, seed=config.seed)


def all_held_out(config, count, split="test"):
    return held_out_batches(config.data, CPU, count, split=split, positions=8 * 8)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return make_generated(tmp_path_factory.mktemp("data") / "market", layout="market", pairs=8,
                          test_pairs=20, seed=0)


def test_mannequins_are_the_pairs_of_their_positions():
    config = tiny_config()
    data = training(config)
    expected = mannequins(config.data, seed=config.seed, device=CPU).pairs([4, 5])
    assert all(torch.equal(value, expected[name]) for name, value in data.batch(3).items())
    assert data.description.startswith("mannequins, 32 x 32, facing within 60 degrees")
    for split, seed in HELD_OUT_SEEDS.items():
        held_out = list(all_held_out(config, 18, split))
        assert [len(batch["turn"]) for batch in held_out] == [16, 2]
        expected = mannequins(config.data, seed=seed, device=CPU).pairs([16, 17])
        assert torch.equal(held_out[1]["flow"], expected["flow"])


def test_no_training_validation_and_test_pair_of_mannequins_coincide():
    config = tiny_config()
    trained = torch.cat([training(config).batch(step)["source"] for step in range(1, 11)])
    shown = {split: torch.cat([batch["source"] for batch in all_held_out(config, 20, split)])
             for split in HELD_OUT_SEEDS}
    everybody = torch.cat([trained, *shown.values()])
    apart = (everybody[:, None] - everybody).abs().amax((2, 3, 4))
    assert (apart + torch.eye(len(everybody))).min() > 0.1
    assert min(HELD_OUT_SEEDS.values()) >= 2**32, "a run may train on it"


def test_a_data_set_trains_on_one_split_and_is_measured_on_the_other(market):
    config = on_disk("market", market)
    data = training(config)
    assert data.description == "market, 64 x 32, 8 pairs of 16 images; 4 of 20 test pairs held out"
    batch = data.batch(1)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pair": (2,), "source": (2, 3, 64, 32), "target": (2, 3, 64, 32),
        "source_pose": (2, 18, 3), "target_pose": (2, 18, 3)}
    trained_on = torch.cat([data.batch(step)["source"] for step in range(1, 5)])
    for held_out in torch.cat([b["source"] for b in all_held_out(config, 20)]):
        assert (trained_on - held_out).abs().amax((1, 2, 3)).min() > 0.1


def test_augmentation_and_epochs_are_the_configs(market):
    plain = training(on_disk("market", market))
    flipped = training(on_disk("market", market, data_flip=True))
    pairs = [(plain.batch(step), flipped.batch(step)) for step in range(1, 9)]
    mirrored = [torch.equal(a["source"][row].flip(-1), b["source"][row])
                for a, b in pairs for row in range(2)]
    assert 0 < sum(mirrored) < len(mirrored)
    # Two pairs in an epoch of two: each step is an epoch of its own.
    short = training(on_disk("market", market, data_pairs_per_epoch=2))
    assert not torch.equal(short.batch(2)["source"], plain.batch(2)["source"])


def test_held_out_pairs_are_spread_evenly_and_all_of_them_where_as_many_are_wanted(
    market, monkeypatch
):
    asked = []

    def stream(self, requests):
        asked.append([list(request) for request in requests])
        return iter(())

    monkeypatch.setattr(data_source.PairLoader, "stream", stream)
    for count in (4, 19, 20, 5000):
        list(all_held_out(on_disk("market", market), count))
    flat = [np.concatenate(batches).tolist() for batches in asked]
    assert flat[0] == [0, 5, 10, 15]
    assert len(set(flat[1])) == 19
    assert flat[2] == flat[3] == list(range(20))
    assert [len(batch) for batch in asked[2]] == [16, 4]


@pytest.mark.parametrize("positions, most", [(64, 16), (64 * 64, 16), (128 * 64, 4), (128 * 128, 1),
                                             (256 * 256, 1)])
def test_a_batch_has_fewer_pairs_where_4d_maps_are_large(positions, most):
    held_out = open_held_out(tiny_config().data, CPU, 20, split="test", positions=positions)
    assert max(map(len, held_out.batches)) == most
    assert np.concatenate(held_out.batches).tolist() == list(range(20))


@pytest.mark.parametrize("preset", ["paper", "market"])
def test_a_preset_for_a_data_set_says_what_to_do_without_one(preset):
    config = PRESETS[preset]()
    refused(r"no --data.root .*--data.kind mannequins.* synthesize", training, config)
    config.data.kind = "mannequins"
    config.data.image_size = (32, 32)
    assert training(config).batch(1)["source"].shape == (2, 3, 32, 32)


def test_what_cannot_be_used_is_said_before_training(market, tmp_path):
    for config, says in (
        (on_disk("market", tmp_path), str(tmp_path)),
        (on_disk("deepfashion", market), "no DeepFashion"),
        (tiny_config(data_kind="market", data_root=str(market)), "--data.image-size 32 32"),
    ):
        refused(says, training, config)


def test_only_bad_images_in_the_test_split_are_an_error_and_not_an_empty_table(market, monkeypatch):
    from posemodel.build import build_generator
    from posemodel.evaluation.held_out import evaluate

    config = on_disk("market", market)
    monkeypatch.setattr(PairSet, "path", lambda self, index: self.folder / "nowhere.jpg")
    model = build_generator(config.model, config.data.image_size)
    lines = []
    refused("held-out pair", evaluate, model, config, CPU, torch.float32, split="test",
            log=lines.append)
    assert len(lines) == 1 and "nowhere.jpg" in lines[0]
