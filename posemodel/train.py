"""`python -m posemodel.train [preset] [--flags]`: train; the same command again continues."""

import signal
import sys

from posemodel.cli import parse_train, run_main


def main(argv: list[str]) -> int:
    """Parses, then trains. torch is imported only when there is something to train."""
    request = parse_train(argv)
    if request.dry_run:
        return 0
    return train(request.config, argv)


def train(config, argv: list[str]) -> int:
    """One run from wherever its folder stands to `config.steps`; returns the exit code."""
    from posemodel.engine import environment
    from posemodel.engine.evaluation import check_seed, evaluate, mannequins
    from posemodel.engine.progress import Progress
    from posemodel.engine.report import end_panel, start_panel, write_report
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.samples import write_samples
    from posemodel.engine.trainer import Clock, Trainer

    check_seed(config.seed)
    device, device_reason = environment.choose_device(config.device)
    dtype, dtype_reason = environment.choose_precision(config.precision, device)
    # What can be missing, such as the weights of a loss, first: a run that cannot start leaves no
    # folder behind.
    trainer = Trainer(config, device, dtype)
    with RunFolder.open(config, argv) as run, Interruptions() as interruptions:
        start = trainer.restore(run)
        run.log(start_panel(
            config, device, device_reason, dtype, dtype_reason, environment.kernels(device),
            trainer.parameter_counts(), run, start, trainer.reconstruction.name))
        data = mannequins(config, seed=config.seed, device=device)
        size = config.optim.batch_size
        progress = Progress(config.steps, start, run.log, evaluate_every=config.evaluate_every)

        for step in range(start + 1, config.steps + 1):
            clock = Clock()
            batch = data.pairs(range((step - 1) * size, step * size))
            data_ms = clock.lap()
            losses = trainer.step(step, batch)
            step_ms = data_ms + clock.lap()

            last = step == config.steps
            rate = 1000 * size / step_ms
            progress.update(step, {**losses, "pairs_per_second": rate})
            if step % config.log_every == 0 or last:
                run.append_metrics({
                    "step": step, **losses, "lr": trainer.optimizer.param_groups[0]["lr"],
                    "pairs_per_second": rate, "step_ms": step_ms,
                    "data_ms": data_ms})
            if step % config.evaluate_every == 0 or last:
                with progress.pause():
                    row = {"step": step, "reconstruction_loss": trainer.reconstruction.name,
                           **evaluate(trainer.averaged, config, device, dtype)}
                    run.append_evaluation(row)
                    write_samples(trainer.averaged, config, device, dtype,
                                  run.sample_path(step), title=f"step {step}")
            if step % config.checkpoint_every == 0 or last or interruptions.code:
                with progress.pause():
                    trainer.save(run, step)
            if interruptions.code:
                progress.close()
                run.log(f"stopped by {interruptions.name} after step {step}; "
                        "the same command continues")
                return interruptions.code

        progress.close()
        run.mark_done()
        write_report(run.path)
        run.log(end_panel(run, run.read_evaluations()[-1]))
    return 0


class Interruptions:
    """SIGINT and SIGTERM only raise a flag: the step at work ends well, and is saved.

    A second Ctrl-C is an ordinary KeyboardInterrupt.
    """

    def __init__(self):
        self.code = 0
        self.name = ""

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        if self.code:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        self.code = 128 + number
        print(f"{self.name}: saving after this step", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
