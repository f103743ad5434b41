"""`python -m posemodel.train [preset] [--flags]`: train; the same command again continues."""

import contextlib
import signal
import sys
import time

from posemodel.config.flags import parse_train
from posemodel.runtime.main import run_main


def main(argv: list[str]) -> int:
    """Parses, then trains. torch is imported only when there is something to train."""
    request = parse_train(argv)
    return 0 if request.dry_run else train(request.config, argv)


def train(config, argv: list[str]) -> int:
    """One run from wherever its folder stands to `config.steps`; returns the exit code.

    Under torchrun each process of the job calls this.
    """
    from posemodel.engine.trainer import NonFiniteLoss
    from posemodel.runtime import distributed

    try:
        with distributed.join(config.timeout) as world, Interruptions() as interruptions:
            return _train(config, argv, world, interruptions)
    except (NonFiniteLoss, distributed.LostProcess) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(config, argv: list[str], world, interruptions: "Interruptions") -> int:
    from posemodel.data.source import check_root, check_seed, open_training_data
    from posemodel.engine.journal import Journal
    from posemodel.engine.report import start_panel
    from posemodel.engine.run_folder import kernels_on
    from posemodel.engine.trainer import Trainer
    from posemodel.evaluation.held_out import instruments_of_run
    from posemodel.runtime.compilers import check_torch_compile
    from posemodel.runtime.environment import choose_machine

    check_seed(config.seed)
    check_root(config.data)
    machine = choose_machine(config.device, config.precision, config.tf32, world)
    # What can be missing, such as a compiler or the weights of a loss, first: a run that cannot
    # start leaves no folder behind.
    if config.compile:
        check_torch_compile(machine.device.type)
    trainer = Trainer(config, machine.device, machine.dtype, world)
    with world.first_alone():
        instruments = instruments_of_run(config, machine.device) if world.first else None
    data = open_training_data(config.data, machine.device, trainer.pairs, seed=config.seed)
    weights = trainer.reconstruction.weights
    with contextlib.closing(data), _run_folder(config, argv, world, weights) as run:
        start = trainer.restore(run)
        origins = trainer.start_from(config.init) if config.init and start == 0 else []
        if run is not None:
            run.log(start_panel(run, machine, start, kernels=kernels_on(machine.device),
                                parameters=trainer.parameter_counts(),
                                loss_name=trainer.reconstruction.name, data=data.description))
            for line in origins:
                run.log(line)
            data.report_to(run.log)
        journal = Journal(run, trainer, start, instruments)
        if origins:
            journal.evaluate(0)  # what there is to get better than
        for step in range(start + 1, config.steps + 1):
            _step(step, trainer, data, journal)
            stop = world.agree(interruptions.code)
            _keep(step, config, journal, stop)
            if stop:
                journal.stopped(signal.Signals(stop - 128).name, step)
                return stop
        journal.finished()
    return 0


@contextlib.contextmanager
def _run_folder(config, argv: list[str], world, weights: dict | None):
    """The run's folder in the first process, None in the others."""
    from posemodel.engine.run_folder import RunFolder

    with contextlib.ExitStack() as stack:
        run = None
        with world.first_alone():
            if world.first:
                run = stack.enter_context(RunFolder.open(config, argv, world.size, weights))
        yield run


def _step(step: int, trainer, data, journal) -> None:
    """One step, and where its time went."""
    began = time.perf_counter()
    batch = data.batch(step)
    fetched = time.perf_counter()
    losses = trainer.step(step, batch)
    done = time.perf_counter()
    journal.step(step, losses, 1000 * (fetched - began), step_ms=1000 * (done - began))


def _keep(step: int, config, journal, stop: int) -> None:
    """Evaluation and checkpoint, where they are due."""
    last = step == config.steps
    if step % config.evaluate_every == 0 or last:
        journal.evaluate(step)
    if step % config.checkpoint_every == 0 or last or stop:
        journal.save(step)


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
