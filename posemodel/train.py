"""`python -m posemodel.train [preset] [--flags]`: train; the same command again continues."""

import contextlib
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
    """One run from wherever its folder stands to `config.steps`; returns the exit code.

    Under torchrun each process of the job calls this.
    """
    from posemodel.engine import distributed
    from posemodel.engine.trainer import NonFiniteLoss

    try:
        with distributed.join(config.timeout) as world, Interruptions() as interruptions:
            return _train(config, argv, world, interruptions)
    except (NonFiniteLoss, distributed.LostProcess) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(config, argv: list[str], world, interruptions: "Interruptions") -> int:
    import torch

    from posemodel.engine import environment
    from posemodel.engine.data_source import check_root, check_seed, open_training_data
    from posemodel.engine.journal import Journal
    from posemodel.engine.report import start_panel
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.trainer import Clock, Trainer

    check_seed(config.seed)
    check_root(config)
    device, device_reason = environment.choose_device(config.device, world)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    dtype, dtype_reason = environment.choose_precision(config.precision, device)
    dtype_reason += environment.set_tf32(config.tf32, device)
    # What can be missing, such as the weights of a loss, first: a run that cannot start leaves no
    # folder behind.
    trainer = Trainer(config, device, dtype, world)
    data = open_training_data(config, device, trainer.pairs)
    with contextlib.ExitStack() as stack:
        stack.callback(data.close)
        run = None
        with world.first_alone():
            if world.first:
                run = stack.enter_context(RunFolder.open(config, argv, world.size))
        start = trainer.restore(run)
        if run is not None:
            run.log(start_panel(
                config, device, device_reason, dtype, dtype_reason, environment.kernels(device),
                trainer.parameter_counts(), run, start, trainer.reconstruction.name,
                data.description))
            data.report_to(run.log)
        journal = Journal(run, trainer, start)

        for step in range(start + 1, config.steps + 1):
            clock = Clock()
            batch = data.batch(step)
            data_ms = clock.lap()
            losses = trainer.step(step, batch)
            journal.step(step, losses, data_ms, step_ms=data_ms + clock.lap())

            last = step == config.steps
            stop = world.agree(interruptions.code)
            if step % config.evaluate_every == 0 or last:
                journal.evaluate(step)
            if step % config.checkpoint_every == 0 or last or stop:
                journal.save(step)
            if stop:
                journal.stopped(signal.Signals(stop - 128).name, step)
                return stop

        journal.finished()
    return 0


class Interruptions:
    """SIGINT and SIGTERM only raise a flag: the step at work ends well, and is saved.

    A second Ctrl-C is an ordinary KeyboardInterrupt.
    """

    def __init__(self):
        self.code = 0

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
        self.code = 128 + number
        print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
