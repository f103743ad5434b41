"""The course of a run, and the random streams of its steps."""

import pytest
import torch

from posemodel.config.sections import OptimConfig
from posemodel.engine.schedule import Schedule, stream


def test_the_rates_warm_up_and_end_near_zero():
    course = [Schedule(OptimConfig(), 1000).course(step) for step in range(1, 1001)]
    assert course[0] < 0.1 and max(course) <= 1 and course[-1] < 1e-4
    assert course.index(max(course)) == 19
    constant = Schedule(OptimConfig(schedule="constant"), 1000)
    assert constant.course(1) == constant.course(1000) == 1


def test_a_tenth_after_each_milestone():
    schedule = Schedule(OptimConfig(schedule="constant", milestones=(0.6, 0.9)), 100)
    assert [schedule.course(step) for step in (1, 60, 61, 90, 91, 100)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01])
    plain, dropped = (Schedule(OptimConfig(milestones=shares), 100) for shares in ((), (0.5,)))
    assert dropped.course(50) == plain.course(50)
    assert dropped.course(51) == pytest.approx(0.1 * plain.course(51))


def test_the_factors_of_phase_two():
    optim = OptimConfig(lr=1e-6, lr_discriminator=1e-4, schedule="constant", phase_one=0.5,
                        phase_two_decoder=100, phase_two_rest=0.01)
    schedule = Schedule(optim, 10)
    assert schedule.rates(5) == (1e-6, 1e-6, 1e-4)
    assert schedule.rates(6) == pytest.approx((1e-4, 1e-8, 1e-4))


def test_whose_turn_it_is():
    alternate = Schedule(OptimConfig(tasks="alternate", phase_one=0.5), 10)
    turns = [alternate.turn(step, affine=True, adversarial=True) for step in (1, 2, 9, 10)]
    assert [turn.affine for turn in turns] == [True, False, True, False]
    assert [turn.reconstruction for turn in turns] == [False, True, False, True]
    assert [turn.adversarial for turn in turns] == [False, False, False, True]
    alone = alternate.turn(9, affine=False, adversarial=True)
    assert (alone.affine, alone.reconstruction, alone.adversarial) == (False, True, True)
    both = Schedule(OptimConfig(), 10).turn(3, affine=True, adversarial=False)
    assert (both.affine, both.reconstruction, both.adversarial) == (True, True, False)
    lazy = Schedule(OptimConfig(tasks="lazy"), 10)
    turns = [lazy.turn(step, affine=True, adversarial=False) for step in (1, 2, 3)]
    assert [turn.affine for turn in turns] == [True, False, True]
    assert all(turn.reconstruction for turn in turns)
    assert not lazy.turn(1, affine=False, adversarial=False).affine


def test_the_loss_on_joints_ends_with_phase_one():
    schedule = Schedule(OptimConfig(phase_one=0.5), 10)
    for adversarial in (True, False):
        turns = [schedule.turn(step, affine=True, adversarial=adversarial) for step in (5, 6)]
        assert [turn.joints for turn in turns] == [True, False]
    assert Schedule(OptimConfig(), 10).turn(10, affine=True, adversarial=False).joints


def test_the_average_follows_closely_at_first():
    schedule = Schedule(OptimConfig(ema=0.99), 5000)
    assert schedule.decay(1) < 0.1 and schedule.decay(5000) == 0.99


def test_streams_are_independent_of_each_other_and_reproducible():
    draws = {(seed, purpose, step): float(torch.rand(1, generator=stream(seed, purpose, step)))
             for seed in range(3) for purpose in range(3) for step in range(3)}
    assert len(set(draws.values())) == 27
    assert draws[1, 2, 0] == float(torch.rand(1, generator=stream(1, 2, 0)))
