"""What the training loop writes down."""

from types import SimpleNamespace

import pytest

from posemodel.engine.journal import Journal
from posemodel.runtime.distributed import ALONE
from posemodel.runtime.interruptions import Interruptions
from tests.tiny import tiny_config


@pytest.fixture
def journal():
    """Of a run that writes a row every fourth step; its rows in `journal.rows`."""
    config, rows = tiny_config(), []
    config.log_every = 4
    trainer = SimpleNamespace(config=config, world=ALONE,
                              optimizer=SimpleNamespace(param_groups=[{"lr": 0.5}]))
    run = SimpleNamespace(log=lambda line: None, append_metrics=rows.append)
    made = Journal(run, trainer, 0, None, Interruptions())
    made.rows = rows
    return made


def test_a_row_has_the_losses_of_the_steps_since_the_last(journal):
    """Where tasks take turns, no step has all of them, and each fourth step would have the same."""
    for step in range(1, 9):
        losses = {"loss": float(step)} | ({"loss_affine": step / 10} if step % 2 else {})
        if step == 3:
            losses["loss_joint"] = 0.25
        journal.step(step, losses, data_ms=1.0, step_ms=100.0)
    first, second = journal.rows
    assert (first["step"], first["loss"], first["loss_affine"]) == (4, 4.0, 0.3)
    assert (second["step"], second["loss"], second["loss_affine"]) == (8, 8.0, 0.7)
    assert first["loss_joint"] == 0.25 and "loss_joint" not in second
