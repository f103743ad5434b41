"""What a volunteer sees, in which order, and on which side."""

import random
from dataclasses import dataclass

from posemodel.study.study import Study, StudyPair


@dataclass(frozen=True)
class Trial:
    """Two pictures side by side."""

    pair: StudyPair
    left: str
    """blinded file name"""
    right: str
    """blinded file name"""
    repeated: bool
    """seen before, with the sides exchanged"""


def plan_trials(study: Study, volunteer: str) -> list[Trial]:
    """The first method against each other one on every pair, in an order of the volunteer's own.

    The same study and volunteer give the same plan. Repeated trials come in the second half, and
    are of the first half.
    """
    random_ = random.Random(f"{study.seed} {volunteer}")
    first, *others = study.methods
    trials = []
    for pair in study.pairs:
        for other in others:
            sides = [pair.results[first], pair.results[other]]
            random_.shuffle(sides)
            trials.append(Trial(pair, *sides, repeated=False))
    random_.shuffle(trials)
    half = len(trials) // 2
    again = random_.sample(trials[:half], round(study.repeats * len(trials)))
    late = trials[half:]
    for trial in again:
        repeat = Trial(trial.pair, trial.right, trial.left, repeated=True)
        late.insert(random_.randint(0, len(late)), repeat)
    return trials[:half] + late
