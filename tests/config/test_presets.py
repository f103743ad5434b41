"""Every preset takes steps in both phases: its losses and schedule with small networks."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from posemodel.build import build_discriminator, build_generator
from posemodel.config.flags import parse_train
from posemodel.config.presets import PRESETS
from posemodel.engine import objective, trainer
from posemodel.losses.perceptual import PerceptualLoss
from posemodel.mannequins.pairs import Mannequins

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vgg():
    """VGG-19 with a sixteenth of its widths."""
    return PerceptualLoss(make_layers([x if x == "M" else x // 16 for x in cfgs["E"]]))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_in_both_phases(name, vgg, monkeypatch):
    monkeypatch.setattr(objective, "load_perceptual_loss", lambda form, folder: vgg)
    config = PRESETS[name]()
    height, width = config.data.image_size
    config.steps, config.optim.batch_size = 4, 2
    config.data.image_size = (32, 32 * width // height)
    model = config.model
    model.encoder_channels = tuple(8 for _ in model.encoder_channels)
    model.flow_channels = tuple(8 for _ in model.flow_channels)
    model.refine_width = model.discriminator_width = 4
    one = trainer.Trainer(config, CPU, torch.float32)
    before = [p.detach().clone() for p in one.generator.parameters()]
    data = Mannequins(size=config.data.image_size, turn=config.data.turn,
                      background=config.data.background,
                      hidden_joints=config.data.hidden_joints, seed=0, device=CPU)
    batch, found = data.pairs(range(2)), {}
    # Steps 1 and 2 are the two tasks in phase one, 3 and 4 in phase two.
    config.optim.phase_one = 0.5
    for step in range(1, 5):
        values = one.step(step, batch)
        assert all(math.isfinite(value) for value in values.values())
        found |= values
    assert {"loss_affine", "loss_reconstruction"} <= found.keys()
    judged = {"loss_adversarial", "loss_discriminator", "d_real", "d_fake"}
    assert judged & found.keys() == (judged if config.loss.adversarial_weight else set())
    after = one.generator.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("name", "grid", "streams"), [
    ("quick", (32, 32), True), ("paper", (64, 64), True), ("paper-fast", (64, 64), True),
    ("market", (32, 16), False), ("hires", (128, 128), True), ("hires-fast", (128, 128), True)])
def test_grids_and_what_is_stored(name, grid, streams):
    config = PRESETS[name]()
    with torch.device("meta"):
        warping = build_generator(config.model, config.data.image_size).warping
        build_discriminator(config.model)
    assert warping.head.layers[0].in_channels == grid[0] * grid[1]
    assert warping.head.stream is streams


def test_fast_presets_have_the_sizes_of_the_slow_ones():
    for name in ("paper", "market", "hires"):
        slow, fast = PRESETS[name](), PRESETS[f"{name}-fast"]()
        assert fast.data == slow.data
        slow.model.flow_parametrization = fast.model.flow_parametrization
        assert fast.model == slow.model and fast.steps < slow.steps / 10


@pytest.mark.parametrize("flow", ["fomm", "mraa", "tpsmm", "gfla32", "gfla64"])
def test_other_methods_keep_their_own_papers_optimiser(flow):
    ours, quick = PRESETS["paper"](), parse_train(["--model.flow", flow]).config
    theirs = parse_train(["paper", f"--model.flow={flow}"]).config
    assert theirs.loss.joint_weight == quick.loss.joint_weight == 0
    assert theirs.optim.lr == (1e-4 if flow.startswith("gfla") else 2e-4)
    assert theirs.optim.phase_two_decoder == theirs.optim.phase_two_rest == 1
    assert theirs.steps == ours.steps // (1 if flow.startswith("gfla") else 3)
    assert theirs.data == ours.data and quick.optim == PRESETS["quick"]().optim
    # What a command says still counts.
    changed = parse_train(["paper", "--model.flow", flow, "--optim.lr", "3e-4",
                           "--loss.joint-weight", "1"]).config
    assert (changed.optim.lr, changed.loss.joint_weight) == (3e-4, 1.0)


def test_paper_small_is_the_paper_in_all_but_sizes_rates_and_network():
    small, paper = PRESETS["paper-small"](), PRESETS["paper"]()
    same = ("affine_weight", "affine_norm", "affine_background", "adversarial",
            "adversarial_weight", "joint_weight", "warped_weight", "reconstruction_weight",
            "feature_matching_weight", "r1_weight")
    assert all(getattr(small.loss, name) == getattr(paper.loss, name) for name in same)
    assert len(small.model.encoder_channels) == len(paper.model.encoder_channels) == 10
    for changed in ("encoder_channels", "refine_width", "discriminator_width",
                    "discriminator_layers"):
        setattr(small.model, changed, getattr(paper.model, changed))
    assert small.model == paper.model
    assert small.optim == replace(paper.optim, lr=small.optim.lr, phase_one=0.9,
                                  phase_two_decoder=1.0)
