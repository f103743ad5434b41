"""Two processes train what one trains, to within rounding."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn

from posemodel.config.flags import config_text
from posemodel.config.presets import quick
from posemodel.runtime import checkpoint
from posemodel.runtime.distributed import ALONE, SharedBatchNorm, World, _share_statistics, split
from tests import ranks
from tests.tiny import FLAGS

# Training multiplies a difference in the last bit, by ten in a step at the usual learning rate, so
# what is compared over many steps takes small ones. Adam and clipping would hide a gradient that is
# wrong by a factor: no clipping, and Adam's state is compared too.
SMALL_STEPS = ["--optim.lr", "1e-6", "--optim.lr-discriminator", "1e-6", "--optim.clip", "0",
               "--optim.schedule", "constant"]
# An odd batch: two processes get three and two pairs.
JOINT = [*FLAGS, *SMALL_STEPS, "--optim.batch-size", "5", "--steps", "50", "--evaluate-every", "50",
         "--checkpoint-every", "25", "--optim.phase-one", "0.1", "--loss.adversarial-weight", "0.1",
         "--loss.feature-matching-weight", "0.5", "--loss.r1-weight", "1",
         # R of three scales has so few values at the coarsest one that over 50 steps BatchNorm
         # makes more of the rounding; the runs of 10 steps below have it.
         "--model.refine", "paper", "--model.refine-downsamplings", "1"]
ALTERNATING = [*FLAGS, *SMALL_STEPS, "--optim.batch-size", "9", "--optim.accumulate", "2",
               "--optim.tasks", "alternate",
               "--steps", "10", "--evaluate-every", "10", "--checkpoint-every", "10"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run):
    return [{name: value for name, value in row.items() if name.startswith("loss")}
            for row in lines(run / "metrics.jsonl")]


def difference(run, other, *, steps=None):
    """The largest difference between two losses of one name and step, of the first `steps` or all.
    """
    pairs = list(zip(losses(run), losses(other), strict=True))[:steps]
    assert pairs and all(a.keys() == b.keys() for a, b in pairs)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a)


def require_same_state(run, other):
    one, two = (checkpoint.load_latest(folder / "checkpoints") for folder in (run, other))
    for net, tensors in one.weights.items():
        for name, value in tensors.items():
            torch.testing.assert_close(two.weights[net][name], value, rtol=1e-3, atol=1e-4)
    for optimizer in ("optimizer", "discriminator_optimizer"):
        mine, theirs = ({number: values["exp_avg"] for number, values in
                         found.state[optimizer]["state"].items()} for found in (one, two))
        # The gradient of a bias before a normalisation is nothing but rounding.
        noise = 0.01 * max(value.norm() for value in mine.values())
        for number, value in mine.items():
            error = (theirs[number] - value).norm() / max(noise, value.norm())
            assert error < 0.02, (optimizer, number)


def joint_flags(folder):
    return ["--config", str(folder / "config.json"), *JOINT]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The same run by one and by two processes."""
    folder = tmp_path_factory.mktemp("joint")
    config = quick()
    config.model.discriminator_width = 4
    (folder / "config.json").write_text(config_text(config))
    jobs = {size: ranks.start([*joint_flags(folder), "--out", str(folder / str(size))], size=size,
                              log=folder / f"log{size}") for size in (1, 2)}
    assert [ranks.end(process) for job in jobs.values() for process in job] == [0, 0, 0]
    return folder


def test_two_processes_have_the_losses_of_one(joint):
    assert len(losses(joint / "1")) == 50
    assert {"loss_r1", "loss_feature_matching"} < set(losses(joint / "1")[-3])
    # Rounding grows with the steps.
    assert 0 < difference(joint / "1", joint / "2", steps=25) < 1e-5
    assert difference(joint / "1", joint / "2") < 3e-5
    first, *_, last = losses(joint / "1")
    assert abs(first["loss_reconstruction"] - last["loss_reconstruction"]) > 3e-4  # it did learn
    require_same_state(joint / "1", joint / "2")


def test_only_the_first_process_writes(joint):
    assert (joint / "log2.1").read_text() == "" and "2 processes" in (joint / "log2.0").read_text()
    assert json.loads((joint / "2" / "env.json").read_text())["processes"] == 2
    evaluations = [lines(joint / name / "eval.jsonl") for name in "12"]
    assert [len(rows) for rows in evaluations] == [1, 1]
    assert all(rows[0]["pairs"] == 4 for rows in evaluations)
    assert (joint / "2" / "report.html").exists() and (joint / "2" / "DONE").exists()


def test_another_number_of_processes_continues(joint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(joint / "1", run)
    shutil.rmtree(run / "checkpoints" / "step_000050")
    flags = [*joint_flags(joint), "--out", str(run)]
    assert ranks.run(flags, size=2, log=tmp_path / "log") == [0, 0]
    said = (tmp_path / "log.0").read_text()
    assert "processes: 1 -> 2" in said and "equal to within rounding" in said
    assert "training starts at step 26" in said and difference(joint / "1", run) < 1e-5


def test_alternating_tasks_and_parts_of_a_batch(tmp_path):
    jobs = [ranks.start([*ALTERNATING, "--out", str(tmp_path / str(size))], size=size,
                        log=tmp_path / f"log{size}") for size in (1, 2)]
    assert [ranks.end(process) for job in jobs for process in job] == [0, 0, 0]
    assert "loss_reconstruction" not in losses(tmp_path / "1")[0]
    assert difference(tmp_path / "1", tmp_path / "2") < 1e-5
    require_same_state(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("size, message", [("1", "cannot be shared by 2 processes")])
def test_a_batch_too_small_to_share(size, message, tmp_path):
    flags = [*FLAGS, "--optim.batch-size", size, "--out", str(tmp_path / "run")]
    assert ranks.run(flags, size=2, log=tmp_path / "log") == [2, 2]
    assert message in (tmp_path / "log.0").read_text() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_split_neither_loses_nor_repeats(count, parts):
    pieces = split(range(5, 5 + count), parts)
    assert [row for piece in pieces for row in piece] == list(range(5, 5 + count))
    lengths = [len(piece) for piece in pieces]
    assert len(pieces) == parts and max(lengths) - min(lengths) <= 1


def test_parts_of_the_processes_make_the_whole():
    worlds = [World(rank=rank, size=3) for rank in range(3)]
    assert [row for world in worlds for row in world.part(range(7))] == list(range(7))
    assert ALONE.part(range(7)) == range(7) and ALONE.first and not worlds[1].first


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_shared_batch_norm_is_batch_norm(group):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)))
    shared = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)))
    shared.load_state_dict(plain.state_dict())
    _share_statistics(shared, group)
    assert type(shared[1][0]) is SharedBatchNorm
    x = 5 + 3 * torch.randn(6, 3, 8, 8)
    upstream = 100 * torch.randn(6, 4, 6, 6)
    outputs = []
    for net in (plain, shared):
        nn.init.uniform_(net[1][0].weight, generator=torch.Generator().manual_seed(1))
        # Not a sum of squares, which BatchNorm fixes: its gradient would be rounding alone.
        (net(x) * upstream).mean().backward()
        net(x + 1)
        outputs.append([net(x), net.eval()(x), *(p.grad for p in net.parameters())])
    for mine, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert plain.state_dict().keys() == shared.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
