"""What a run tells while it trains: progress, metrics, evaluations with pictures, the report."""

import contextlib
import signal
from collections.abc import Iterator
from functools import partial

from posemodel.data.source import split_while_training
from posemodel.engine.progress import Progress
from posemodel.engine.report import end_panel, write_report
from posemodel.engine.run_folder import RunFolder
from posemodel.engine.trainer import Trainer
from posemodel.evaluation.held_out import evaluate, on_the_way
from posemodel.evaluation.measures import Instruments
from posemodel.evaluation.samples import write_samples
from posemodel.runtime.interruptions import Interruptions


class Journal:
    """Everything that the training loop writes. All processes call it; the first one, which has the
    run folder, does the work, and the others wait where that takes long."""

    def __init__(self, run: RunFolder | None, trainer: Trainer, start: int,
                 instruments: Instruments | None, interruptions: Interruptions):
        """`instruments` of the evaluations; None: without networks."""
        self.run, self.trainer, self.world = run, trainer, trainer.world
        self.instruments = instruments or Instruments()
        self.interruptions = interruptions
        self.config = trainer.config
        if run is not None:
            # Whatever is looked at while training, somebody chooses by.
            self.split = split_while_training(self.config.data)
            self.progress = Progress(self.config.steps, start, run.log,
                                     evaluate_every=self.config.evaluate_every)
            self._latest: dict[str, tuple[int, float]] = {}

    def step(self, step: int, losses: dict[str, float], data_ms: float, step_ms: float) -> None:
        """Step n is done, and took so long, of which so long for its data."""
        if self.run is None:
            return
        rate = 1000 * self.config.optim.batch_size / step_ms
        # Not every step has every loss: those of the others since the last line count too.
        self._latest |= {name: (step, value) for name, value in losses.items()}
        since = step - self.config.log_every
        losses = {name: value for name, (at, value) in self._latest.items() if at > since}
        self.progress.update(step, {**losses, "pairs_per_second": rate})
        if step % self.config.log_every == 0 or step == self.config.steps:
            self.run.append_metrics({
                "step": step, **losses, "lr": self.trainer.optimizer.param_groups[0]["lr"],
                "pairs_per_second": rate, "step_ms": step_ms, "data_ms": data_ms})

    def evaluate(self, step: int) -> None:
        """Validation pairs: a picture and a line of eval.jsonl. A signal ends it without the line.
        Of a data set without a validation list they are test pairs."""
        with self.world.first_alone(), self._pause():
            if self.run is not None:
                self.interruptions.unless_interrupted(partial(self._evaluate, self.run, step))

    def _evaluate(self, run: RunFolder, step: int) -> None:
        trainer, config = self.trainer, self.config
        model = trainer.averaged, config, trainer.device, trainer.dtype
        with run.writing():
            write_samples(*model, run.sample_path(step), split=self.split, title=f"step {step}")
        instruments = self.instruments if step == config.steps else on_the_way(self.instruments)
        run.append_evaluation({
            "step": step, "reconstruction_loss": trainer.reconstruction.name,
            "reconstruction_weights": trainer.reconstruction.weights,
            **evaluate(*model, split=self.split, log=run.log, instruments=instruments)})

    def has_evaluated(self, step: int) -> bool:
        """Whether eval.jsonl has a line of step n; the same in all processes."""
        return self.world.from_first(self.run is not None and any(
            row.get("step") == step for row in self.run.read_evaluations()))

    def save(self, step: int) -> None:
        """A checkpoint."""
        with self._pause():
            self.trainer.save(self.run, step)

    def stopped(self, code: int, step: int) -> None:
        """A signal ended the run early; `code` is 128 and its number."""
        if self.run is not None:
            self.progress.close()
            name = signal.Signals(code - 128).name
            self.run.log(f"stopped by {name} after step {step}; the same command continues")

    def finished(self) -> None:
        """The last step is done."""
        with self.world.first_alone():
            if self.run is None:
                return
            self.progress.close()
            self.run.mark_done()
            with self.run.writing():
                write_report(self.run.path)
            self.run.log(end_panel(self.run, self.run.read_evaluations()[-1]))

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.run is None else self.progress.pause():
            yield
