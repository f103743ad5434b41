"""What a run tells while it trains: progress, metrics, evaluations with pictures, the report."""

import contextlib
from collections.abc import Iterator

from posemodel.engine.progress import Progress
from posemodel.engine.report import end_panel, write_report
from posemodel.engine.run_folder import RunFolder
from posemodel.engine.trainer import Trainer
from posemodel.evaluation.held_out import evaluate, on_the_way
from posemodel.evaluation.measures import Instruments
from posemodel.evaluation.samples import write_samples


class Journal:
    """Everything that the training loop writes. All processes call it; the first one, which has the
    run folder, does the work, and the others wait where that takes long."""

    def __init__(self, run: RunFolder | None, trainer: Trainer, start: int,
                 instruments: Instruments | None = None):
        """`instruments` of the evaluations; None: without networks."""
        self.run, self.trainer, self.world = run, trainer, trainer.world
        self.instruments = instruments or Instruments()
        self.config = trainer.config
        if run is not None:
            self.progress = Progress(self.config.steps, start, run.log,
                                     evaluate_every=self.config.evaluate_every)

    def step(self, step: int, losses: dict[str, float], data_ms: float, step_ms: float) -> None:
        """Step n is done, and took so long, of which so long for its data."""
        if self.run is None:
            return
        rate = 1000 * self.config.optim.batch_size / step_ms
        self.progress.update(step, {**losses, "pairs_per_second": rate})
        if step % self.config.log_every == 0 or step == self.config.steps:
            self.run.append_metrics({
                "step": step, **losses, "lr": self.trainer.optimizer.param_groups[0]["lr"],
                "pairs_per_second": rate, "step_ms": step_ms, "data_ms": data_ms})

    def evaluate(self, step: int) -> None:
        """Held-out pairs: a line of eval.jsonl and a picture; of step 0, which no checkpoint has,
        once in a run."""
        trainer, config = self.trainer, self.config
        with self.world.first_alone(), self._pause():
            if self.run is None or step == 0 and self.run.read_evaluations():
                return
            last = step == config.steps
            self.run.append_evaluation({
                "step": step, "reconstruction_loss": trainer.reconstruction.name,
                "reconstruction_weights": trainer.reconstruction.weights,
                **evaluate(trainer.averaged, config, trainer.device, trainer.dtype,
                           log=self.run.log, instruments=self.instruments if last
                           else on_the_way(self.instruments))})
            with self.run.writing():
                write_samples(trainer.averaged, config, trainer.device, trainer.dtype,
                              self.run.sample_path(step), title=f"step {step}")

    def save(self, step: int) -> None:
        """A checkpoint."""
        with self._pause():
            self.trainer.save(self.run, step)

    def stopped(self, signal: str, step: int) -> None:
        """A signal ended the run early."""
        if self.run is not None:
            self.progress.close()
            self.run.log(f"stopped by {signal} after step {step}; the same command continues")

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
