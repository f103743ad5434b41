"""When what happens in a run: the random streams, whose turn it is, how the rates go."""

import math
from dataclasses import dataclass

import torch

from posemodel.config.sections import OptimConfig

# Names for the independent random streams of a step.
INIT, AFFINE, TORCH = 1, 2, 3
#: Steps from one with the affine task to the next, where not every step has it.
AFFINE_EVERY = 2


def stream(seed: int, purpose: int, step: int = 0) -> torch.Generator:
    """A generator that depends on nothing but its arguments: resuming needs no stored state."""
    # An odd multiplier per argument; manual_seed then mixes the bits.
    value = (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9)
    return torch.Generator().manual_seed(value % 2**63)


@dataclass(frozen=True)
class Turn:
    """What is minimised in a step."""

    step: int
    affine: bool
    """task 1: an affine map of the target pose (Eq. 7)"""
    reconstruction: bool
    """task 2: transfer to the target pose (Eq. 5)"""
    joints: bool
    """with the loss on joints; part of task 2, in phase one: it brings the flow to where it
    belongs, and after that holds back the images"""
    adversarial: bool
    """with the discriminator (Eq. 6); part of task 2"""


@dataclass(frozen=True)
class Schedule:
    """The course of a run of so many steps; step numbers begin at 1."""

    optim: OptimConfig
    steps: int

    def turn(self, step: int, *, affine: bool, adversarial: bool) -> Turn:
        """Whose turn it is in a run that has an affine task and a discriminator, or has not.

        The tasks alternate (the paper), both have their turn in every step, or reconstruction has
        and the affine task in every other one.
        """
        task_1 = affine and (self.optim.tasks == "joint" or step % AFFINE_EVERY == 1)
        task_2 = self.optim.tasks != "alternate" or not task_1
        two = self.in_phase_two(step)
        return Turn(step, task_1, task_2, task_2 and not two, task_2 and adversarial and two)

    def in_phase_two(self, step: int) -> bool:
        """Whether the adversarial loss has set in, with the learning rates of phase two."""
        return step > self.optim.phase_one * self.steps

    def course(self, step: int) -> float:
        """The factor on every learning rate."""
        drops = 0.1 ** sum(step > share * self.steps for share in self.optim.milestones)
        if self.optim.schedule == "constant":
            return drops
        warm_up = min(1.0, step / max(1.0, 0.02 * self.steps))
        return drops * warm_up * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / self.steps))

    def rates(self, step: int) -> tuple[float, float, float]:
        """Learning rates of R's decoder, of all else in the generator, and of D."""
        optim, course, two = self.optim, self.course(step), self.in_phase_two(step)
        return (optim.lr * course * (optim.phase_two_decoder if two else 1),
                optim.lr * course * (optim.phase_two_rest if two else 1),
                optim.lr_discriminator * course)

    def decay(self, step: int) -> float:
        """Of the averaged weights."""
        # Early on the average follows closely, so that short runs are not an average of noise.
        return min(self.optim.ema, step / (step + 10))
