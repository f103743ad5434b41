"""`python -m posemodel.train [preset] [--flags]`: train; the same command again continues."""

import contextlib
import sys
import time
from functools import partial
from pathlib import Path

from posemodel.config.flags import parse_train
from posemodel.runtime.interruptions import Interrupted, Interruptions
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
        with Interruptions() as interruptions, distributed.join(config.timeout) as world:
            return _train(config, argv, world, interruptions)
    except Interrupted as stop:
        print(f"{stop}: ended before a step was made; what was saved is as it was",
              file=sys.stderr)
        return stop.code
    except (NonFiniteLoss, distributed.LostProcess) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(config, argv: list[str], world, interruptions: Interruptions) -> int:
    from posemodel.data.source import check_root, check_seed, missing_validation, open_training_data
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
    data = open_training_data(config.data, machine.device, trainer.pairs, seed=config.seed,
                              timeout=config.timeout)
    weights = trainer.reconstruction.weights
    # A run that goes on has no need of what it once started from.
    goes_on = any(Path(config.out, "checkpoints").glob("step_*"))
    origins = trainer.start_from(config.init) if config.init and not goes_on else []
    with contextlib.closing(data), _run_folder(config, argv, world, weights) as run:
        start = trainer.restore(run)
        if config.init and start == 0 and goes_on:  # no checkpoint is whole
            origins = trainer.start_from(config.init)
        if run is not None:
            run.log(start_panel(run, machine, start, kernels=kernels_on(machine.device),
                                parameters=trainer.parameter_counts(),
                                loss_name=trainer.reconstruction.name, data=data.description))
            for line in filter(None, [missing_validation(config.data), *origins]):
                run.log(line)
            data.report_to(run.log)
        journal = Journal(run, trainer, start, instruments, interruptions)
        return _steps(start, trainer, data, journal, interruptions)


def _steps(start: int, trainer, data, journal, interruptions: Interruptions) -> int:
    """All steps after `start`, with evaluations and checkpoints; returns the exit code."""
    config, saved = trainer.config, start

    def due(every: int, step: int) -> bool:
        return step % every == 0 or step == config.steps

    with interruptions.held():
        # Of other weights: what there is to get better than.
        late = due(config.evaluate_every, start) if start else bool(config.init)
        if late and not journal.has_evaluated(start):
            journal.evaluate(start)
        step = start
        while True:
            # A batch may be long in coming, or never come.
            began, batch = time.perf_counter(), None
            if step < config.steps:
                batch = interruptions.unless_interrupted(partial(data.batch, step + 1))
            if stop := trainer.world.agree(interruptions.code):
                if saved < step:
                    journal.save(step)
                journal.stopped(stop, step)
                return stop
            if step == config.steps:
                break
            step += 1
            _step(step, trainer, batch, journal, began)
            if due(config.evaluate_every, step):
                journal.evaluate(step)
            if due(config.checkpoint_every, step):
                journal.save(step)
                saved = step
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


def _step(step: int, trainer, batch, journal, began: float) -> None:
    """One step, and where its time went since it `began` to wait for its batch."""
    fetched = time.perf_counter()
    losses = trainer.step(step, batch)
    done = time.perf_counter()
    journal.step(step, losses, 1000 * (fetched - began), step_ms=1000 * (done - began))


if __name__ == "__main__":
    run_main(main)
