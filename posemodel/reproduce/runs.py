"""The runs of a table: each in a folder of its own, by the ordinary commands, several at a time."""

import contextlib
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from posemodel.config.flags import parse_train
from posemodel.config.stored import drift
from posemodel.engine.run_folder import RunFolder
from posemodel.evaluation import records
from posemodel.reproduce.commands import run_command
from posemodel.reproduce.tables import Cell
from posemodel.runtime.errors import UserError

# Turns in which a method is timed, steps of each, and those of them that only warm up.
_ROUNDS, _TIMED, _WARM_UP = 2, 24, 4
# Evaluations on the way, for the learning curve, and the validation pairs of each.
_EVALUATIONS, _CURVE_PAIRS = 4, 64


@dataclass(frozen=True)
class Result:
    """A run that was trained and measured."""

    run: RunFolder
    row: dict
    """its evaluation.json"""
    pairs: dict[str, np.ndarray]
    """the values of each pair by name, `[N]`"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How all cells of a table are trained and measured."""

    out: Path
    preset: str
    flags: tuple[str, ...]
    """of `posemodel.train`, the same for all cells"""
    steps: int | None
    """of each run where no `minutes` are given; None: as many as its preset and method have"""
    minutes: float | None
    """training time of each run in the place of a number of steps"""
    pairs: int
    """test pairs"""
    device: str
    jobs: int
    """runs side by side, which share the cores"""
    weights: str = ""
    """folder of published weights"""
    log: Callable[[str], None] = print
    _running: set = field(default_factory=set)

    @property
    def threads(self) -> int:
        """CPU threads of each run."""
        return max(1, len(os.sched_getaffinity(0)) // self.jobs)

    def paces(self, cells: Sequence[Cell]) -> dict[str, float]:
        """`seconds_per_step` of each cell by its key. All of them are timed in turns: where a
        machine is slower for some minutes, because of others on it, it then is so for all."""
        for number, cell in itertools.product(range(_ROUNDS), cells):
            self._timed(cell, number)
        return {cell.key: self.seconds_per_step(cell) for cell in cells}

    def seconds_per_step(self, cell: Cell) -> float:
        """How long a step of a cell takes here, alone on its threads, in the quickest of its turns.

        Measured once; a later start takes the same figure, and so gets the same number of steps.
        """
        turns = [self._timed(cell, number) for number in range(_ROUNDS)]
        share = turns[0].config.optim.phase_one
        early, late = (min(times) for times in zip(*map(_step_times, turns), strict=True))
        # The discriminator comes late: each part of the run counts by its length.
        return (share * early + (1 - share) * late) / 1000

    def _timed(self, cell: Cell, number: int) -> RunFolder:
        path = self.out / "timing" / f"{cell.key}-{number}"
        self._train(cell, path, "timing", "--steps", _TIMED, "--log-every", 1, "--evaluate-every",
                    _TIMED, "--checkpoint-every", _TIMED, "--data.evaluation-pairs", 1)
        return RunFolder.open_existing(path)

    def steps_of(self, cell: Cell) -> int:
        """Training steps of each run of a cell."""
        if self.minutes is None:
            return self.steps or parse_train(
                [cell.preset or self.preset, *self.flags, *cell.flags]).config.steps
        return max(1, int(60 * self.minutes / self.seconds_per_step(cell)))

    def run(self, cells: Sequence[Cell], seeds: int) -> dict[str, list[Result]]:
        """Train and measure what is missing; results by the cells' keys, one for each seed.
        Raises: `UserError` when a run fails."""
        # Before anything runs beside it.
        steps = {cell.key: self.steps_of(cell) for cell in cells}
        with self._side_by_side() as pool:
            futures = {cell.key: [pool.submit(self._result, cell, steps[cell.key], seed)
                                  for seed in range(seeds)] for cell in cells}
            for future in as_completed(itertools.chain(*futures.values())):
                future.result()
        return {key: [future.result() for future in seeds] for key, seeds in futures.items()}

    def is_done(self, cell: Cell, steps: int, seed: int) -> bool:
        """Whether a run has reached its last step."""
        return (self._path(cell, steps, seed) / "DONE").exists()

    def _path(self, cell: Cell, steps: int, seed: int) -> Path:
        return self.out / "runs" / f"{cell.key}-{steps}-{seed}"

    def _result(self, cell: Cell, steps: int, seed: int) -> Result:
        path = self._path(cell, steps, seed)
        every = max(1, steps // _EVALUATIONS)
        self._train(cell, path, "training", "--steps", steps, "--seed", seed, "--evaluate-every",
                    every, "--checkpoint-every", every, "--data.evaluation-pairs",
                    min(_CURVE_PAIRS, self.pairs))
        self._command("posemodel.evaluate", path, "--split", "test", "--protocol", "paper",
                      "--device", self.device, "--pairs", self.pairs, *self._weights_flag())
        row = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
        self.log(f"measured {path.name}: warped l1 {row['measures']['l1']:.2f}, source unmoved "
                 f"{row['measures_copy']['l1']:.2f}")
        return Result(RunFolder.open_existing(path), row, records.read(row["values"])[0])

    def _train(self, cell: Cell, path: Path, doing: str, *flags) -> None:
        words = [str(word) for word in (
            cell.preset or self.preset, *self.flags, *cell.flags, "--device", self.device,
            *self._weights_flag(), "--out", path, *flags)]
        if (path / "DONE").exists():
            there, wanted = RunFolder.open_existing(path).config, parse_train(words).config
            if changed := drift(there, wanted):
                raise UserError(f"{path} holds another run: {'; '.join(changed)}. Choose another "
                                "--out")
            if there.steps == wanted.steps:
                return
        self.log(f"{doing} {path.name}")
        self._command("posemodel.train", *words)

    def _weights_flag(self) -> tuple[str, ...]:
        return ("--weights", self.weights) if self.weights else ()

    def _command(self, module: str, *words) -> None:
        """Raises: `UserError` with what the command says of its end."""
        run_command(module, *words, threads=self.threads, running=self._running)

    @contextlib.contextmanager
    def _side_by_side(self) -> Iterator[ThreadPoolExecutor]:
        """After a failure or a signal no run begins any more, and those at work are told to save
        and end."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    process.terminate()
                raise


def _step_times(run: RunFolder) -> tuple[float, float]:
    """Milliseconds of a step, the median, in phase one and in phase two of a run that was timed;
    both the same where it has but one of them."""
    share, rows = run.config.optim.phase_one, run.read_metrics()
    early, late = [], []
    # Two at a time: where tasks take turns, a step is one of two kinds.
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        if one["step"] > _WARM_UP:
            both = (one["step_ms"] + other["step_ms"]) / 2
            (early if other["step"] <= share * _TIMED else late).append(both)
    early, late = early or late, late or early
    return statistics.median(early), statistics.median(late)
