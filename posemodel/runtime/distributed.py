"""Several processes that train one model, started by torchrun; one process is a world of its own.

Every process holds the whole model and works on its part of each batch. Gradients are summed by
DistributedDataParallel, BatchNorm sees the whole batch, and what is decided (stop, go on, is the
loss finite) is decided together, so that all processes do the same in every step. The first one
alone writes the run folder and evaluates; the others wait for it.

Nothing waits forever: a process that has ended is noticed at once, one that does not answer within
`--timeout` seconds ends the job, and so does a first process that takes ten times as long over an
evaluation or a checkpoint.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from posemodel.runtime.errors import UserError

# Processes of one job may start minutes apart, when packages come from a slow disk.
_START_SECONDS = 1800
# How much longer than for a step the others wait while the first process works alone.
_ALONE = 10


class LostProcess(RuntimeError):
    """Another process of the job has ended or does not answer."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of this job, seen from one of them; made by `join`."""

    rank: int = 0
    """number of this process, 0 for the first one"""
    size: int = 1
    """number of processes"""
    local_rank: int = 0
    """number of this process among those on this machine"""
    timeout: float = 600.0
    """seconds that a process waits for another"""
    group: dist.ProcessGroup | None = None
    """for tensors on the device that trains"""
    control: dist.ProcessGroup | None = None
    """for what is agreed upon, on the CPU"""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, rows: range) -> range:
        """This process's part of a range of rows."""
        return split(rows, self.size)[self.rank]

    # --- agreeing -----------------------------------------------------------------------------

    def gather(self, values: Sequence[float]) -> Tensor:
        """The values of every process, `[size, len(values)]`, float64."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return mine.unsqueeze(0)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine, group=self.control)
        return torch.stack(everyone)

    def agree(self, code: int) -> int:
        """The largest code that any process has."""
        return int(self.gather([code]).max())

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Around what the first process does alone: the others wait, and end if it fails."""
        error = None
        try:
            yield
        except BaseException as caught:
            error = caught
        if self.size > 1:
            dist.monitored_barrier(self.control, timeout=timedelta(seconds=_ALONE * self.timeout))
            failed = self.agree(0 if error is None else 2 if isinstance(error, UserError) else 1)
            if failed and error is None:
                raise SystemExit(failed)  # the process that failed says why
        if error is not None:
            raise error

    def from_first(self, value):
        """The value that the first process has; the others' is ignored."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    # --- networks -----------------------------------------------------------------------------

    def wrap(self, net: nn.Module) -> nn.Module:
        """What to call in the place of `net`, so that gradients become the mean over processes.

        The net keeps its parameters and the names of its state, and is changed in one way: its
        BatchNorm layers normalise over the batches of all processes together.
        """
        if self.size == 1 or not list(net.parameters()):
            return net
        if next(net.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(net, self.group)
        else:
            _share_statistics(net, self.group)
        wrapped = DistributedDataParallel(net, process_group=self.group,
                                          gradient_as_bucket_view=True)
        # Statistics are the same everywhere already. (The argument of this name is deprecated.)
        wrapped.broadcast_buffers = False
        return wrapped

    def require_same(self, tensors: Sequence[Tensor]) -> None:
        """A check that the processes have not drifted apart. Raises: `RuntimeError` when these
        tensors have not the same sums in all of them."""
        if self.size == 1:
            return
        sums = torch.stack([tensor.detach().double().sum() for tensor in tensors])
        everyone = self.gather(sums.tolist())
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)):
            raise RuntimeError("the processes no longer have the same weights; this is a fault of "
                               "the program or of a machine, and no checkpoint was written")


ALONE = World()


@contextlib.contextmanager
def join(timeout: float) -> Iterator[World]:
    """The world that torchrun has put this process into; without torchrun, a world of one.
    Raises: `LostProcess` in the place of the error of a communication that failed."""
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if size == 1:
        yield World(timeout=timeout)
        return
    # Each device its own library: NCCL between GPUs, gloo between CPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=_START_SECONDS))
        limit = timedelta(seconds=timeout)
        group, control = (dist.new_group(timeout=limit, backend=name) for name in (None, "gloo"))
        # One that ends at once, by a user's mistake, must not leave while others still come.
        dist.monitored_barrier(control)
        yield World(rank=rank, size=size, local_rank=local_rank, timeout=timeout, group=group,
                    control=control)
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors; each names its source file, .../gloo/..., or the barrier.
        if not isinstance(error, dist.DistError) and not any(
                sign in str(error) for sign in ("/gloo/", "monitoredBarrier")):
            raise
        raise LostProcess(
            f"process {rank} of {size} lost contact with another one, which has ended or did not "
            f"answer within {timeout:g} s; the job ends, and the same command continues it from "
            f"the last checkpoint ({str(error).splitlines()[0]})") from error
    # After an error the others may be gone, and taking leave of them could hang.
    dist.destroy_process_group()


def split(rows: range, parts: int) -> list[range]:
    """Consecutive pieces of `rows` whose lengths differ by at most one; none is lost or doubled."""
    cuts = [rows.start + len(rows) * index // parts for index in range(parts + 1)]
    return [range(*pair) for pair in zip(cuts[:-1], cuts[1:], strict=True)]


@contextlib.contextmanager
def local_gradients(nets: Sequence[nn.Module]) -> Iterator[None]:
    """Gradients of backward passes in here add up in this process; the next one after sums all."""
    with contextlib.ExitStack() as stack:
        for net in nets:
            if isinstance(net, DistributedDataParallel):
                stack.enter_context(net.no_sync())
        yield


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, of whatever sizes; torch's own needs a GPU."""

    group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape and dtype."""
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        variance, mean = variance.double(), mean.double()  # E[x^2] - E[x]^2 would lose digits
        count = torch.full_like(mean, x.numel() / x.shape[1])
        count, total, squares = _Sum.apply(
            torch.stack([count, count * mean, count * (variance + mean.square())]), self.group)
        mean = total / count
        variance = squares / count - mean.square()
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.detach().float(), self.momentum)
        unbiased = variance * count / (count - 1)
        self.running_var.lerp_(unbiased.detach().float(), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt().float()
        shift = self.bias - mean.float() * scale
        return (x.float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(x.dtype)


def _share_statistics(net: nn.Module, group: dist.ProcessGroup) -> None:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                shared = SharedBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                shared.weight, shared.bias, shared.group = child.weight, child.bias, group
                for buffer, value in child.named_buffers():
                    setattr(shared, buffer, value)
                setattr(parent, name, shared)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each one's result depends on all inputs, so gradients are summed
    in the same way."""

    @staticmethod
    def forward(ctx, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
