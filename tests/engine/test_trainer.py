import contextlib
import copy
from dataclasses import replace

import pytest
import torch

from posemodel.config.sections import OptimConfig
from posemodel.data.source import HELD_OUT_SEEDS, check_seed, mannequins
from posemodel.engine import objective
from posemodel.engine.trainer import NonFiniteLoss, Trainer
from posemodel.runtime.errors import UserError
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def trainer(config):
    return Trainer(config, CPU, torch.float32)


@pytest.fixture(scope="module")
def batches():
    data = mannequins(tiny_config().data, seed=0, device=CPU)
    return [data.pairs(range(2 * n, 2 * n + 2)) for n in range(8)]


def steps(one, batches, first=1):
    """The losses of a step on each batch."""
    return [one.step(n, batch) for n, batch in enumerate(batches, first)]


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def parameters(*nets):
    return {f"{number}{name}": p.detach().clone() for number, net in enumerate(nets)
            for name, p in net.named_parameters()}


def test_both_networks_learn_and_every_loss_is_reported(batches):
    one = trainer(tiny_config())
    generator, discriminator = parameters(one.generator), parameters(one.discriminator)
    losses = steps(one, batches[:2])
    assert set(losses[0]) == {"loss", "loss_affine", "loss_reconstruction", "loss_warped",
                              "loss_adversarial", "loss_discriminator",
                              "d_real", "d_fake", "d_real_accuracy", "d_fake_accuracy"}
    # C_l starts at zero in its last layer, so what lies before it moves from the second step on.
    # A bias before a normalisation has no effect on anything.
    assert changed(generator, parameters(one.generator)) == set(generator)
    still = set(discriminator) - changed(discriminator, parameters(one.discriminator))
    assert all("bias" in name for name in still)


@pytest.mark.parametrize(("phase_one", "own"), [(0.0, "adversarial"), (1.0, "joint")])
def test_total_loss_is_the_weighted_sum(phase_one, own, batches):
    config = tiny_config(optim_phase_one=phase_one)
    found = trainer(config).step(1, batches[0])
    loss, terms = config.loss, {"reconstruction", "warped", "affine", own}
    expected = sum(getattr(loss, f"{name}_weight") * found[f"loss_{name}"] for name in terms)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert {name for name in found if name.startswith("loss_")} - {"loss_discriminator"} == {
        f"loss_{name}" for name in terms}


def test_alternation_gives_each_task_its_turn(batches):
    one = trainer(tiny_config(optim_tasks="alternate", optim_phase_one=1.0))
    first, second = steps(one, batches[:2])
    assert set(first) == {"loss", "loss_affine"}
    assert "loss_affine" not in second
    assert {"loss_reconstruction", "loss_joint"} <= set(second)


def test_a_lazy_affine_task_weighs_as_much_on_average(batches):
    loss = tiny_config().loss
    lazy, joint = (steps(trainer(tiny_config(optim_tasks=tasks, optim_lr=0.0)), batches[:2])
                   for tasks in ("lazy", "joint"))
    assert lazy[0]["loss"] - joint[0]["loss"] == pytest.approx(
        loss.affine_weight * joint[0]["loss_affine"], rel=1e-4)
    assert "loss_affine" not in lazy[1] and "loss_reconstruction" in lazy[1]


def test_affine_task_does_not_touch_refinement_nor_discriminator(batches):
    one = trainer(tiny_config(optim_tasks="alternate"))
    nets = one.generator.refinement, one.discriminator
    before = parameters(*nets)
    one.step(1, batches[0])
    assert changed(before, parameters(*nets)) == set()


def test_weight_zero_leaves_a_task_out(batches):
    weights = {f"loss_{name}_weight": 0.0 for name in ("affine", "warped", "joint")}
    found = trainer(tiny_config(**weights)).step(1, batches[0])
    assert not {"loss_affine", "loss_warped", "loss_joint"} & set(found)


def test_the_affine_task_looks_at_the_person(batches):
    everywhere, person = (trainer(tiny_config(loss_affine_background=background))
                          for background in (1.0, 0.2))
    losses = [one.step(1, batches[0])["loss_affine"] for one in (everywhere, person)]
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_discriminator_waits_for_phase_two(batches):
    one = trainer(tiny_config(optim_phase_one=0.5))
    before = parameters(one.discriminator)
    assert "loss_discriminator" not in one.step(10, batches[0])
    assert changed(before, parameters(one.discriminator)) == set()
    assert "loss_discriminator" in one.step(11, batches[0])


def test_learning_rate_zero_freezes_the_rest_bit_for_bit(batches):
    one = trainer(tiny_config(optim_phase_two_rest=0.0))
    before = parameters(one.generator)
    one.step(1, batches[0])
    moved = changed(before, parameters(one.generator))
    assert moved and all(name.startswith("0refinement.decoder.") for name in moved)


def test_resuming_is_exact(batches):
    whole, first, second = (trainer(tiny_config()) for _ in range(3))
    steps(whole, batches)
    steps(first, batches[:3])
    second.load(copy.deepcopy(first.weights()), copy.deepcopy(first.state()))
    torch.rand(17)  # other use of the global generator in between
    steps(second, batches[3:], 4)
    for name, expected in whole.weights().items():
        assert changed(expected, second.weights()[name]) == set(), name


def test_same_seed_same_weights_other_seed_other_weights(batches):
    one, same, other = (parameters(trainer(replace(tiny_config(), seed=seed)).generator)
                        for seed in (0, 0, 1))
    assert changed(one, same) == set() and changed(one, other)


def test_building_a_trainer_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trainer(tiny_config())
    assert torch.equal(torch.rand(1), expected)


def test_non_finite_loss_stops_before_the_step(batches):
    one = trainer(tiny_config())
    before = parameters(one.generator)
    bad = batches[0] | {"target": batches[0]["target"].clone()}
    bad["target"][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"step 7 is nan .*pairs 12 to 13"):
        one.step(7, bad)
    assert changed(before, parameters(one.generator)) == set()


def test_average_is_close_at_first_and_slow_later(batches):
    one = trainer(tiny_config(optim_ema=0.9))
    one.step(1, batches[0])
    start = parameters(trainer(tiny_config()).generator)
    raw, averaged = parameters(one.generator), parameters(one.averaged)
    for name, value in averaged.items():
        assert torch.allclose(value, start[name].lerp(raw[name], 10 / 11), atol=1e-7)


def test_weights_of_other_networks_are_refused():
    other = trainer(tiny_config(model_refine_width=6))
    with pytest.raises(UserError, match="does not fit"):
        trainer(tiny_config()).load(other.weights(), other.state())


def test_training_seeds_stay_clear_of_the_held_out_pairs():
    check_seed(2**32 - 1)
    for seed, says in (*((seed, "--seed") for seed in HELD_OUT_SEEDS.values()), (-1, "--seed -1")):
        with pytest.raises(UserError, match=says):
            check_seed(seed)


@pytest.mark.parametrize("changes", [
    {"model_flow_parametrization": "matching", "model_refine": "detail"},
    # Large steps while no match is certain yet make chaos of rounding.
    {"optim_lr": 1e-4}], ids=str)
def test_bfloat16_trains_close_to_float32(batches, changes):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        # Two steps of either phase; a discriminator from the first on makes chaos of rounding.
        one = Trainer(tiny_config(optim_phase_one=0.1, **changes), CPU, dtype)
        losses[dtype] = [found["loss"] for found in steps(one, batches[:4])]
        assert all(p.dtype == torch.float32 for p in one.generator.parameters())
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)
    assert losses[torch.bfloat16] != losses[torch.float32]


def without_batch_statistics(one):
    """BatchNorm as in evaluation, so that a pair does not notice its batch."""

    def evaluating(norm, _):
        norm.eval()

    for net in one.generator.modules():
        if isinstance(net, torch.nn.BatchNorm2d):
            net.register_forward_pre_hook(evaluating)
    return one


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(parts, monkeypatch):
    monkeypatch.setattr(objective, "R1_EVERY", 1)
    changes = {"optim_batch_size": 5, "loss_feature_matching_weight": 0.5, "loss_r1_weight": 1.0,
               "optim_clip": 0.0}
    whole, other = (without_batch_statistics(trainer(tiny_config(**changes, optim_accumulate=n)))
                    for n in (1, parts))
    batch = mannequins(tiny_config().data, seed=0, device=CPU).pairs(whole.pairs(1))
    assert whole.pairs(3) == other.pairs(3) == list(range(10, 15))
    expected, found = whole.step(1, batch), other.step(1, batch)
    assert len(other.rows) == parts and "loss_r1" in found
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for net, reference in ((other.generator, whole.generator),
                           (other.discriminator, whole.discriminator)):
        for (name, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
            # Of a sum that nearly cancels beside large ones few digits are left.
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, msg=name,
                                       atol=max(2e-5, 2e-6 * q.grad.abs().max().item()))


def test_more_parts_than_pairs_are_refused():
    with pytest.raises(UserError, match="at least 3"):
        trainer(tiny_config(optim_accumulate=3))
    with pytest.raises(UserError, match="--optim.accumulate is 3"):
        OptimConfig(batch_size=2, accumulate=3)


def test_compiled_networks_are_one_graph_each_and_compute_the_same(batches):
    plain, compiled = (
        trainer(tiny_config(loss_feature_matching_weight=0.5)) for _ in range(2))
    for net in (compiled.generator.warping, compiled.generator.refinement, compiled.discriminator):
        net.compile(fullgraph=True, backend="aot_eager")
    for n, batch in enumerate(batches[:2], 1):
        assert compiled.step(n, batch) == pytest.approx(plain.step(n, batch), rel=1e-3, abs=1e-3)
    assert compiled.weights()["generator"].keys() == plain.weights()["generator"].keys()


def test_compile_takes_all_networks(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: taken.append(net))
    one = trainer(replace(tiny_config(), compile=True))
    assert taken == [one.generator.warping, one.generator.refinement, one.discriminator]


def test_r1_and_compile_go_together(batches, monkeypatch):
    """R1 is a gradient of a gradient, which compiled code refuses."""
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda net: compiling(net, backend="aot_eager"))
    monkeypatch.setattr(objective, "R1_EVERY", 1)
    plain, compiled = (
        trainer(replace(tiny_config(loss_r1_weight=1.0), compile=on)).step(1, batches[0])
        for on in (False, True))
    assert plain["loss_r1"] > 0
    assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-3)


def test_a_bad_loss_of_the_discriminator_changes_no_weight_either(batches, monkeypatch):
    one = trainer(tiny_config())
    before = parameters(one.generator, one.discriminator)
    monkeypatch.setattr("posemodel.engine.objective.discriminator_loss",
                        lambda real, fake, form: real.sum() * float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"step 1 is nan .*discriminator nan.*pairs 0 to 1;"):
        one.step(1, batches[0])
    assert changed(before, parameters(one.generator, one.discriminator)) == set()


def test_float16_that_overflows_at_any_scale_is_an_end():
    one = trainer(tiny_config())
    before = parameters(one.generator)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-9)
    for says in (contextlib.nullcontext(), pytest.raises(NonFiniteLoss, match="overflow float16")):
        for p in one.generator.parameters():
            p.grad = torch.full_like(p, float("inf"))
        scaler.scale(torch.zeros(()))
        with says:
            one._update(one.generator, one.optimizer, scaler, clip=1.0)
    assert changed(before, parameters(one.generator)) == set()
