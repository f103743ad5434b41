"""The training step: two tasks, two optimisers, and everything random a function of the step."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from posemodel.build import build_discriminator, build_generator
from posemodel.config.sections import Config
from posemodel.config.stored import to_dict
from posemodel.engine.objective import Objective, Part, load_reconstruction, weights
from posemodel.engine.run_folder import RunFolder
from posemodel.engine.schedule import AFFINE, INIT, TORCH, Schedule, Turn, stream
from posemodel.engine.starting_weights import read_weights, start_from
from posemodel.flow.affine import random_affine
from posemodel.runtime import checkpoint
from posemodel.runtime.distributed import ALONE, World, local_gradients, split
from posemodel.runtime.errors import UserError

_SMALLEST_SCALE = 2.0**-10
# What a checkpoint holds: the weights of these, the state of those.
_NETS = ("averaged", "generator", "discriminator")
_STATEFUL = ("optimizer", "discriminator_optimizer", "scaler", "discriminator_scaler")


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; all processes raise this in the same step, before it changed
    a weight."""


class Trainer:
    """Networks, losses and optimisers of one run; `step(n, batch)` is training step n.

    A step is one batch of `optim.batch_size` pairs, whatever the number of processes and of parts
    that each works through: every loss is a mean over the batch, so the losses of the parts, each
    times its share, add up to those of the whole. Only BatchNorm notices `optim.accumulate`.
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype,
                 world: World = ALONE):
        self.config, self.device, self.dtype, self.world = config, device, dtype, world
        self.schedule = Schedule(config.optim, config.steps)
        self.rows = self._own_rows()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, INIT).initial_seed())
            self.generator = build_generator(config.model, config.data.image_size).to(device)
            self.discriminator = build_discriminator(config.model).to(device)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.reconstruction = load_reconstruction(config.loss).to(device)
        self._make_optimizers()
        # W and R are wrapped apart: the affine task leaves R without gradients, and a wrapper
        # expects one for each of its parameters.
        nets = self.generator.warping, self.generator.refinement, self.discriminator
        if config.compile:
            # R1 takes second derivatives of D, which compiled code does not have.
            for net in nets[: 2 if config.loss.r1_weight else 3]:
                net.compile()
        warping, refinement, judge = map(world.wrap, nets)
        self.objective = Objective(
            loss=config.loss, reconstruction=self.reconstruction,
            estimator=self.generator.warping, discriminator=self.discriminator,
            warping=warping, refinement=refinement, judge=judge)

    def _make_optimizers(self) -> None:
        optim, device = self.config.optim, self.device
        decoder = list(self.generator.refinement.decoder.parameters())
        rest = [*self.generator.warping.parameters(),
                *self.generator.refinement.encoder.parameters()]
        self.optimizer = torch.optim.Adam([{"params": decoder}, {"params": rest}], lr=optim.lr,
                                          betas=optim.betas, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=optim.lr_discriminator, betas=(0.5, 0.999),
            fused=True)
        # One scaler per optimiser: a shared one would grow at twice the intended rate.
        self.scaler, self.discriminator_scaler = (
            torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
            for _ in range(2))

    # --- the batch and its parts ------------------------------------------------------------------

    def _own_rows(self) -> list[range]:
        """This process's rows of a batch, one range for each part that it works through."""
        size, parts = self.config.optim.batch_size, self.config.optim.accumulate
        if size < parts * self.world.size:
            raise UserError(
                f"a batch of {size} pairs cannot be shared by {self.world.size} processes with "
                f"{parts} parts each: raise --optim.batch-size to at least "
                f"{parts * self.world.size}, lower --optim.accumulate or start fewer processes")
        return [self.world.part(rows) for rows in split(range(size), parts)]

    def pairs(self, step: int) -> list[int]:
        """Indices of the pairs that this process trains on in step n >= 1, part after part."""
        first = (step - 1) * self.config.optim.batch_size
        return [first + row for rows in self.rows for row in rows]

    def _parts(self, step: int, batch: dict[str, Tensor]) -> list[Part]:
        """This process's pairs in parts. The affine maps are drawn for the whole batch, so that
        they do not depend on who works on which rows."""
        size, parts, end = self.config.optim.batch_size, [], 0
        height, width = self.config.data.image_size
        maps = random_affine(size, aspect=width / height,
                             generator=stream(self.config.seed, AFFINE, step))
        for rows in self.rows:
            begin, end = end, end + len(rows)
            parts.append(Part(
                batch={name: values[begin:end] for name, values in batch.items()},
                affine=maps[rows.start:rows.stop].to(self.device), share=len(rows) / size))
        return parts

    # --- a step -----------------------------------------------------------------------------------

    def step(self, step: int, batch: dict[str, Tensor]) -> dict[str, float]:
        """Training step n (from 1) on the pairs `pairs(n)`; returns the losses of the whole batch.

        Raises: `NonFiniteLoss`, in every process, before any weight changes.
        """
        objective = self.objective
        self._begin(step)
        turn = self.schedule.turn(step, affine=objective.has_affine_task,
                                  adversarial=self.config.loss.adversarial_weight > 0)
        parts = self._parts(step, batch)

        # W and R, by Eq. 8; then D, by its side of Eq. 6, on the images that R made.
        values = self._gradients(objective.of_generator, parts, turn, self.optimizer, self.scaler,
                                 (objective.warping, objective.refinement))
        if turn.adversarial:
            judged = self._gradients(objective.of_discriminator, parts, turn,
                                     self.discriminator_optimizer, self.discriminator_scaler,
                                     (objective.judge,))
            values |= {name: value for name, value in judged.items() if name != "loss"}
        losses = self._whole(step, values)

        self._update(self.generator, self.optimizer, self.scaler, self.config.optim.clip)
        if turn.adversarial:
            self._update(self.discriminator, self.discriminator_optimizer,
                         self.discriminator_scaler, clip=0.0)
        self._average(self.schedule.decay(step))
        return losses

    def _begin(self, step: int) -> None:
        """Random numbers, learning rates and networks as step n has them."""
        torch.manual_seed(stream(self.config.seed, TORCH, step).initial_seed())
        groups = *self.optimizer.param_groups, *self.discriminator_optimizer.param_groups
        for group, rate in zip(groups, self.schedule.rates(step), strict=True):
            group["lr"] = rate
        self.generator.train()
        self.generator.warping.progress = (step - 1) / self.config.steps

    def _gradients(self, losses: Callable[[Part, Turn], dict[str, Tensor]], parts: list[Part],
                   turn: Turn, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                   nets: Sequence[nn.Module]) -> dict[str, Tensor]:
        """The gradients of the whole batch; returns each value by part, `[parts]`, and first of
        them "loss", the weighted sum that they are the gradients of."""
        optimizer.zero_grad(set_to_none=True)
        weight = weights(self.config.loss, self.config.optim.tasks)
        rows = []
        for number, part in enumerate(parts, 1):
            with local_gradients(nets if number < len(parts) else ()):
                with self.autocast():
                    values = losses(part, turn)
                total = torch.stack([weight.get(name, 1.0) * value
                                     for name, value in values.items()
                                     if name.startswith("loss_")]).sum()
                # The shares add up to the whole batch, and the wrappers take the mean.
                scaler.scale(total * self.world.size).backward()
            rows.append({name: value.detach() for name, value in {"loss": total, **values}.items()})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def autocast(self) -> torch.autocast:
        """The precision in which the networks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _whole(self, step: int, values: dict[str, Tensor]) -> dict[str, float]:
        """The values of the whole batch, from those of every part in every process."""
        mine = torch.stack(list(values.values()), dim=1).double().cpu()    # [parts, values]
        everyone = self.world.gather(mine.flatten().tolist()).view(-1, *mine.shape)
        names, sums = list(values), everyone.sum(dim=(0, 1)).tolist()
        whole = dict(zip(names, sums, strict=True))
        losses = {name: value for name, value in whole.items() if name.startswith("loss")}
        worst = [value for value in losses.values() if not math.isfinite(value)]
        if not worst:
            return whole
        optim, first = self.config.optim, (step - 1) * self.config.optim.batch_size
        columns = [name in losses for name in names]
        bad = ~everyone[:, :, columns].isfinite().all(dim=-1)             # [processes, parts]
        parts = split(range(optim.batch_size), optim.accumulate)
        rows = [split(parts[part], self.world.size)[process]
                for process, part in bad.nonzero().tolist()]
        where = ", ".join(f"{first + row.start} to {first + row.stop - 1}" for row in rows)
        shown = ", ".join(f"{name.removeprefix('loss_')} {value:.4g}"
                          for name, value in losses.items() if name != "loss")
        raise NonFiniteLoss(f"the loss of step {step} is {worst[0]} ({shown}), pairs {where}; no "
                            "weight was changed by this step; try a smaller --optim.lr")

    def _update(self, net: nn.Module, optimizer, scaler, clip: float) -> None:
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        # Every step with infinite gradients is left out and halves the scale; one that gets this
        # small says that they are infinite at any scale.
        if scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE:
            raise NonFiniteLoss("the gradients overflow float16 at any scale; go on with "
                                "--precision bfloat16 or float32 in another --out")

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        ours, theirs = self.averaged, self.generator
        torch._foreach_lerp_(list(ours.parameters()), list(theirs.parameters()), 1 - decay)
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(other)

    # --- what a checkpoint holds ------------------------------------------------------------------

    def save(self, run: RunFolder | None, step: int) -> None:
        """Write a checkpoint of step n. All processes call this; the first one has the folder.

        Raises: `UserError` when it cannot be written, `RuntimeError` when the processes do not have
        the same weights.
        """
        weights = self.weights()
        self.world.require_same([tensor for net in weights.values() for tensor in net.values()])
        with self.world.first_alone():
            if run is not None:
                checkpoint.save(run.checkpoints, step, weights=weights, state=self.state(),
                                config=to_dict(self.config))

    def restore(self, run: RunFolder | None) -> int:
        """Go back to the newest valid checkpoint of a run; returns its step, 0 for a new run.

        All processes call this. Only the first one has, and needs, the folder.
        """
        with self.world.first_alone():
            saved = checkpoint.load_latest(run.checkpoints) if run is not None else None
        saved = self.world.from_first(saved)
        step, skipped = (saved.step, saved.skipped) if saved is not None else (0, ())
        if saved is not None:
            self.load(saved.weights, saved.state)
        if run is not None:
            for line in skipped:
                run.log(f"warning: {line}")
            run.truncate_to(step)
        return step

    def start_from(self, path: str) -> list[str]:
        """The weights of another run or of a file as those of step 0; returns what became of each
        network, for people. All processes call this. Raises: `UserError` when none fits."""
        lines: list[str] = []
        weights = read_weights(Path(path), lines.append)
        lines += start_from(self.generator, weights, path)
        self.averaged.load_state_dict(self.generator.state_dict())
        return lines

    def parameter_counts(self) -> dict[str, int]:
        """Number of weights of each network."""
        warping = self.generator.warping
        nets = {**(warping.blocks() or {self.config.model.flow: warping}),
                "R": self.generator.refinement, "D": self.discriminator}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State of every network; "averaged" is the one to use."""
        return {name: getattr(self, name).state_dict() for name in _NETS}

    def state(self) -> dict:
        """State of the optimisers and scalers."""
        return {name: getattr(self, name).state_dict() for name in _STATEFUL}

    def load(self, weights: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Restore what `weights()` and `state()` gave.

        Raises: `UserError` when they belong to other networks.
        """
        try:
            for name in _NETS:
                getattr(self, name).load_state_dict(weights[name])
            for name in _STATEFUL:
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint does not fit these networks: {reason}") from error
