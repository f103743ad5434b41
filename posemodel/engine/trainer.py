"""The training loop: two tasks, two optimisers, and everything random a function of the step."""

import copy
import math
import time

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.baselines.estimator import Features, FlowEstimator, Motion, pixel_features
from posemodel.config import Config, to_dict
from posemodel.engine import checkpoint
from posemodel.engine.distributed import ALONE, World, local_gradients, split
from posemodel.engine.run_folder import RunFolder
from posemodel.errors import UserError
from posemodel.losses.adversarial import (
    balance,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    r1_penalty,
)
from posemodel.losses.affine import (
    AffineRange,
    affine_loss,
    random_affine,
    transform_pose,
)
from posemodel.losses.joint import joint_loss
from posemodel.losses.perceptual import load_perceptual_loss
from posemodel.losses.pyramid import PyramidLoss
from posemodel.model.limb_maps import body_map
from posemodel.model.pose_transfer import build_discriminator, build_generator

# Names for the independent random streams of a step.
_INIT, _AFFINE, _TORCH = 1, 2, 3
# Of the body's envelope in the affine task, in pixels of an image 256 pixels high.
_BODY_SIGMA = 20.0
_SMALLEST_SCALE = 2.0**-10


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; all processes raise this in the same step, before it changed
    a weight."""


def stream(seed: int, purpose: int, step: int = 0) -> torch.Generator:
    """A generator that depends on nothing but its arguments: resuming needs no stored state."""
    # An odd multiplier per argument; manual_seed then mixes the bits.
    value = (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9)
    return torch.Generator().manual_seed(value % 2**63)


class Trainer:
    """Networks, losses and optimisers of one run; `step(n, batch)` is training step n.

    A step is one batch of `optim.batch_size` pairs, whatever the number of processes and of parts
    that each works through: every loss is a mean over the batch, so the losses of the parts, each
    times its share, add up to those of the whole. Only BatchNorm notices `optim.accumulate`.
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype,
                 world: World = ALONE):
        self.config, self.device, self.dtype, self.world = config, device, dtype, world
        self.rows = self._own_rows()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, _INIT).initial_seed())
            self.generator = build_generator(config.model, config.data.image_size).to(device)
            self.discriminator = build_discriminator(config.model).to(device)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        if config.loss.reconstruction == "vgg19":
            self.reconstruction = load_perceptual_loss(config.loss.vgg_weights).to(device)
        else:
            self.reconstruction = PyramidLoss()
        self.features: Features = self.reconstruction.features \
            if config.loss.reconstruction == "vgg19" else pixel_features
        decoder = list(self.generator.refinement.decoder.parameters())
        rest = [*self.generator.warping.parameters(),
                *self.generator.refinement.encoder.parameters()]
        self.optimizer = torch.optim.Adam(
            [{"params": decoder}, {"params": rest}], lr=config.optim.lr, betas=config.optim.betas,
            fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.optim.lr_discriminator, betas=(0.5, 0.999),
            fused=True)
        # One scaler per optimiser: a shared one would grow at twice the intended rate.
        self.scaler, self.discriminator_scaler = (
            torch.amp.GradScaler(device.type, enabled=dtype == torch.float16) for _ in range(2))
        # W and R are wrapped apart: the affine task leaves R without gradients, and a wrapper
        # expects one for each of its parameters.
        warping = self.generator.warping
        self.is_baseline = isinstance(warping, FlowEstimator)
        nets = (_Estimate(warping) if self.is_baseline else warping, self.generator.refinement,
                self.discriminator)
        if config.compile:
            # R1 takes second derivatives of D, which compiled code does not have.
            for net in nets[: 2 if config.loss.r1_weight else 3]:
                net.compile()
        self._warping, self._refinement, self._judge = map(world.wrap, nets)

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

    def _parts(self, batch: dict[str, Tensor]) -> list[tuple[range, dict[str, Tensor]]]:
        """Each part's rows in the whole batch, and its pairs out of this process's ones."""
        parts, end = [], 0
        for rows in self.rows:
            begin, end = end, end + len(rows)
            parts.append((rows, {name: values[begin:end] for name, values in batch.items()}))
        return parts

    # --- the schedule -----------------------------------------------------------------------------

    def in_phase_two(self, step: int) -> bool:
        """Whether step n >= 1 has the adversarial loss and the learning rates of phase two."""
        return step > self.config.optim.phase_one * self.config.steps

    def course(self, step: int) -> float:
        """The factor on every learning rate in step n >= 1."""
        if self.config.optim.schedule == "constant":
            return 1.0
        warm_up = min(1.0, step / max(1.0, 0.02 * self.config.steps))
        return warm_up * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / self.config.steps))

    def _set_learning_rates(self, step: int) -> None:
        optim, course = self.config.optim, self.course(step)
        two = self.in_phase_two(step)
        decoder, rest = self.optimizer.param_groups
        decoder["lr"] = optim.lr * course * (optim.phase_two_decoder if two else 1)
        rest["lr"] = optim.lr * course * (optim.phase_two_rest if two else 1)
        self.discriminator_optimizer.param_groups[0]["lr"] = optim.lr_discriminator * course

    # --- the two tasks ----------------------------------------------------------------------------

    def step(self, step: int, batch: dict[str, Tensor]) -> dict[str, float]:
        """Training step n (from 1) on the pairs `pairs(n)`; returns the losses of the whole batch.

        Raises: `NonFiniteLoss`, in every process, before any weight changes.
        """
        torch.manual_seed(stream(self.config.seed, _TORCH, step).initial_seed())
        self._set_learning_rates(step)
        self.generator.train()
        if self.is_baseline:
            self.generator.warping.progress = (step - 1) / self.config.steps
        matrices = self._random_affine(step)
        pieces, images = self._parts(batch), []

        def generate(rows: range, piece: dict[str, Tensor]) -> dict[str, Tensor]:
            values, image = self._tasks(step, rows, piece, matrices)
            images.append(image)
            return values

        def judge(rows: range, piece: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._judge_loss(step, rows, piece, images.pop(0).detach())

        found = self._backward(generate, pieces, self.optimizer, self.scaler,
                               (self._warping, self._refinement))
        adversarial = "loss_adversarial" in found
        if adversarial:
            judged = self._backward(judge, pieces, self.discriminator_optimizer,
                                    self.discriminator_scaler, (self._judge,))
            judged.pop("loss")
            found |= judged
        values = self._whole(step, found)
        self._update(self.generator, self.optimizer, self.scaler, self.config.optim.clip)
        if adversarial:
            self._update(self.discriminator, self.discriminator_optimizer,
                         self.discriminator_scaler, clip=0.0)
        self._average(step)
        return values

    def _tasks(self, step: int, rows: range, batch: dict[str, Tensor], matrices: Tensor,
               ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses of the tasks whose turn it is, and the image of task 2.

        Both tasks have the same target poses, so where both have their turn, W works on them once.
        A method of Table 1 has no affine task and no joint loss, but losses of its own.
        """
        loss, pose = self.config.loss, batch["target_pose"]
        joint = self.config.optim.tasks == "joint"
        affine = not self.is_baseline and loss.affine_weight > 0 and (joint or step % 2 == 1)
        reconstruction = joint or not affine
        share = len(rows) / self.config.optim.batch_size
        matrix = matrices[rows.start:rows.stop].to(self.device)
        sources = [batch["source_pose"]] if reconstruction else []
        if affine:
            sources.append(transform_pose(pose, matrix))
        values: dict[str, Tensor] = {}
        image = None
        if self.is_baseline:
            motion = self._warping(batch)
            flows = [motion.flow]
            own = self.generator.warping.losses(motion, batch, self.features)
            values |= {f"loss_{name}": share * value for name, value in own.items()}
        else:
            flows = list(self._warping(torch.cat(sources), pose).chunk(len(sources)))
        if affine:
            # Task 1: a random affine map of the target pose has a known flow (Eq. 7).
            flow = flows.pop()
            weight = self._affine_weights(pose, tuple(flow.shape[-2:]))
            values["loss_affine"] = share * affine_loss(flow, matrix, weight, unit=loss.affine_unit)
        if reconstruction:
            # Task 2: transfer to the target pose and compare (Eq. 5, 6, 8).
            flow = flows.pop()
            image = self._refinement(batch["source"], flow)
            compared = {"loss_reconstruction": image}
            if loss.warped_weight:
                compared["loss_warped"] = pose_kernels.flow_sample(batch["source"], flow)
            distances = self.reconstruction(list(compared.values()), batch["target"])
            values |= {name: share * distance
                       for name, distance in zip(compared, distances, strict=True)}
            if loss.joint_weight and not self.is_baseline:
                values["loss_joint"] = share * joint_loss(flow, batch["source_pose"], pose)
            if loss.adversarial_weight and self.in_phase_two(step):
                values |= {name: share * value
                           for name, value in self._adversarial(image, batch).items()}
        return values, image

    def _affine_weights(self, pose: Tensor, size: tuple[int, int]) -> Tensor | None:
        """How much each position of the flow counts in Eq. 7."""
        background = self.config.loss.affine_background
        if background == 1:
            return None
        return background + (1 - background) * body_map(pose, size, _BODY_SIGMA)

    def _random_affine(self, step: int) -> Tensor:
        """The maps of the whole batch, on the CPU, so that each part knows all of them."""
        loss = self.config.loss
        height, width = self.config.data.image_size
        bounds = AffineRange(rotation=loss.affine_rotation, scale=loss.affine_scale,
                             shear=loss.affine_shear, shift=loss.affine_shift)
        return random_affine(self.config.optim.batch_size, bounds, aspect=width / height,
                             generator=stream(self.config.seed, _AFFINE, step))

    def _adversarial(self, image: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, pose = self.config.loss, batch["target_pose"]
        # The generator's gradient goes through D but not into it.
        self.discriminator.requires_grad_(False)
        scores, features = self.discriminator(image, pose, features=True)
        values = {"loss_adversarial": generator_loss(scores, loss.adversarial)}
        if loss.feature_matching_weight:
            with torch.no_grad():
                _, real = self.discriminator(batch["target"], pose, features=True)
            values["loss_feature_matching"] = feature_matching_loss(real, features)
        self.discriminator.requires_grad_(True)
        return values

    def _judge_loss(self, step: int, rows: range, batch: dict[str, Tensor], image: Tensor,
                    ) -> dict[str, Tensor]:
        """What D minimises, and who is winning."""
        loss, target, pose = self.config.loss, batch["target"], batch["target_pose"]
        penalised = loss.r1_weight > 0 and step % loss.r1_every == 0
        if penalised:
            target = target.detach().requires_grad_()
        real, fake = self._judge(target, pose), self._judge(image, pose)
        values = {"loss_discriminator": discriminator_loss(real, fake, loss.adversarial),
                  **balance(real, fake, loss.adversarial)}
        if penalised:
            values["loss_r1"] = r1_penalty(real, target)
        share = len(rows) / self.config.optim.batch_size
        return {name: share * value for name, value in values.items()}

    def _loss_weights(self) -> dict[str, float]:
        """Of what is minimised; a method of Table 1 has weighted its own losses already."""
        loss = self.config.loss
        return {
            "loss_affine": loss.affine_weight,
            "loss_joint": loss.joint_weight,
            "loss_reconstruction": loss.reconstruction_weight,
            "loss_warped": loss.warped_weight,
            "loss_adversarial": loss.adversarial_weight,
            "loss_feature_matching": loss.feature_matching_weight,
            "loss_discriminator": 1.0,
            "loss_r1": loss.r1_weight * loss.r1_every,
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- updates ----------------------------------------------------------------------------------

    def _backward(self, losses, pieces, optimizer, scaler, nets) -> dict[str, Tensor]:
        """The gradients of the whole batch; returns each value by part, `[parts]`, and first of
        them "loss", the sum that they are the gradients of."""
        optimizer.zero_grad(set_to_none=True)
        weights, found = self._loss_weights(), []
        for number, (rows, piece) in enumerate(pieces, 1):
            with local_gradients(nets if number < len(pieces) else ()):
                with self._autocast():
                    values = losses(rows, piece)
                total = torch.stack([weights.get(name, 1.0) * value
                                     for name, value in values.items()
                                     if name.startswith("loss_")]).sum()
                # The shares add up to the whole batch, and the wrappers take the mean.
                scaler.scale(total * self.world.size).backward()
            values = {"loss": total, **values}
            found.append({name: value.detach() for name, value in values.items()})
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def _whole(self, step: int, found: dict[str, Tensor]) -> dict[str, float]:
        """The values of the whole batch, from those of every part in every process."""
        mine = torch.stack(list(found.values()), dim=1).double().cpu()    # [parts, values]
        everyone = self.world.gather(mine.flatten().tolist()).view(-1, *mine.shape)
        values = dict(zip(found, everyone.sum(dim=(0, 1)).tolist(), strict=True))
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        worst = [value for value in losses.values() if not math.isfinite(value)]
        if worst:
            optim, first = self.config.optim, (step - 1) * self.config.optim.batch_size
            columns = [name in losses for name in found]
            bad = ~everyone[:, :, columns].isfinite().all(dim=-1)         # [processes, parts]
            parts = split(range(optim.batch_size), optim.accumulate)
            rows = [split(parts[part], self.world.size)[process]
                    for process, part in bad.nonzero().tolist()]
            where = ", ".join(f"{first + one.start} to {first + one.stop - 1}" for one in rows)
            shown = ", ".join(f"{name.removeprefix('loss_')} {value:.4g}"
                              for name, value in losses.items() if name != "loss")
            raise NonFiniteLoss(
                f"the loss of step {step} is {worst[0]} ({shown}), pairs {where}; no weight was "
                "changed by this step; try a smaller --optim.lr")
        return values

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
    def _average(self, step: int) -> None:
        # Early on the average follows closely, so that short runs are not an average of noise.
        decay = min(self.config.optim.ema, step / (step + 10))
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
                                config=to_dict(self.config), keep=self.config.keep_checkpoints)

    def restore(self, run: RunFolder | None) -> int:
        """Go back to the newest valid checkpoint of a run; returns its step, 0 for a new run.

        All processes call this. Only the first one has, and needs, the folder.
        """
        found, step = None, 0
        with self.world.first_alone():
            if run is not None:
                found = checkpoint.load_latest(run.checkpoints)
        found = self.world.from_first(found)
        if found is not None:
            self.load(found.weights, found.state)
            step = found.step
        if run is not None:
            for line in found.skipped if found is not None else ():
                run.log(f"warning: {line}")
            run.truncate_to(step)
        return step

    def parameter_counts(self) -> dict[str, int]:
        """Number of weights of each network."""
        warping = self.generator.warping
        flow = {self.config.model.flow: warping} if self.is_baseline \
            else {"M": warping.encoder, "C_l": warping.head}
        nets = {**flow, "R": self.generator.refinement, "D": self.discriminator}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State of every network; "averaged" is the one to use."""
        return {"averaged": self.averaged.state_dict(), "generator": self.generator.state_dict(),
                "discriminator": self.discriminator.state_dict()}

    def state(self) -> dict:
        """State of the optimisers and scalers."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "discriminator_scaler": self.discriminator_scaler.state_dict(),
        }

    def load(self, weights: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Restore what `weights()` and `state()` gave.

        Raises: `UserError` when they belong to other networks.
        """
        try:
            for name in ("averaged", "generator", "discriminator"):
                getattr(self, name).load_state_dict(weights[name])
            for name in ("optimizer", "discriminator_optimizer", "scaler", "discriminator_scaler"):
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint does not fit these networks: {reason}") from error


class _Estimate(nn.Module):
    """What is called of a method of Table 1 in training: all that it says, not the flow alone."""

    def __init__(self, estimator: FlowEstimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, batch: dict[str, Tensor]) -> Motion:
        image = batch["source"] if self.estimator.uses_image else None
        return self.estimator.estimate(batch["source_pose"], batch["target_pose"], image)


class Clock:
    """Where the time of a step goes."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        now = time.perf_counter()
        elapsed, self.start = 1000 * (now - self.start), now
        return elapsed
