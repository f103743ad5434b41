"""The training loop: two tasks, two optimisers, and everything random a function of the step."""

import copy
import math
import time

import torch
from torch import Tensor, nn

from posemodel.config import Config, to_dict
from posemodel.engine import checkpoint
from posemodel.engine.run_folder import RunFolder
from posemodel.errors import UserError
from posemodel.losses.adversarial import discriminator_loss, generator_loss
from posemodel.losses.affine import AffineRange, affine_loss, random_affine, transform_pose
from posemodel.losses.perceptual import load_perceptual_loss
from posemodel.losses.pyramid import PyramidLoss
from posemodel.model.pose_transfer import build_discriminator, build_generator

# Names for the independent random streams of a step.
_INIT, _AFFINE, _TORCH = 1, 2, 3


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; no weight was changed by that step."""


def stream(seed: int, purpose: int, step: int = 0) -> torch.Generator:
    """A generator that depends on nothing but its arguments: resuming needs no stored state."""
    # An odd multiplier per argument; manual_seed then mixes the bits.
    value = (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9)
    return torch.Generator().manual_seed(value % 2**63)


class Trainer:
    """Networks, losses and optimisers of one run; `step(n, batch)` is training step n."""

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, device, dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, _INIT).initial_seed())
            self.generator = build_generator(config.model, config.data.image_size).to(device)
            self.discriminator = build_discriminator(config.model).to(device)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        if config.loss.reconstruction == "vgg19":
            self.reconstruction = load_perceptual_loss(config.loss.vgg_weights).to(device)
        else:
            self.reconstruction = PyramidLoss()
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
        """Training step n (from 1) on one batch of pairs; returns the losses by name.

        Raises: `NonFiniteLoss` before any weight changes.
        """
        config = self.config
        torch.manual_seed(stream(config.seed, _TORCH, step).initial_seed())
        self._set_learning_rates(step)
        joint = config.optim.tasks == "joint"
        affine = config.loss.affine_weight > 0 and (joint or step % 2 == 1)
        self.generator.train()
        with self._autocast():
            parts, image = self._tasks(step, batch, affine=affine,
                                       reconstruction=joint or not affine)
        weights = {
            "affine": config.loss.affine_weight,
            "reconstruction": config.loss.reconstruction_weight,
            "warped": config.loss.warped_weight,
            "adversarial": config.loss.adversarial_weight,
        }
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        values = {"loss": self._update(self.generator, total, self.optimizer, self.scaler, parts,
                                       step, clip=config.optim.clip)}
        if "adversarial" in parts:
            with self._autocast():
                parts["discriminator"] = discriminator_loss(
                    self.discriminator(batch["target"], batch["target_pose"]),
                    self.discriminator(image.detach(), batch["target_pose"]),
                    config.loss.adversarial)
            self._update(self.discriminator, parts["discriminator"], self.discriminator_optimizer,
                         self.discriminator_scaler, parts, step, clip=0.0)
        self._average(step)
        return values | {f"loss_{name}": float(part.detach()) for name, part in parts.items()}

    def _tasks(self, step: int, batch: dict[str, Tensor], *, affine: bool,
               reconstruction: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses of the tasks whose turn it is, and the image of task 2.

        Both tasks have the same target poses, so where both have their turn, W works on them once.
        """
        loss, pose = self.config.loss, batch["target_pose"]
        sources = [batch["source_pose"]] if reconstruction else []
        if affine:
            matrix = self._random_affine(step, len(pose))
            sources.append(transform_pose(pose, matrix))
        flows = list(self.generator.warping(torch.cat(sources), pose).chunk(len(sources)))
        parts: dict[str, Tensor] = {}
        image = None
        if affine:
            # Task 1: a random affine map of the target pose has a known flow (Eq. 7).
            parts["affine"] = affine_loss(flows.pop(), matrix, unit=loss.affine_unit)
        if reconstruction:
            # Task 2: transfer to the target pose and compare (Eq. 5, 6, 8).
            result = self.generator.transfer(batch["source"], flows.pop())
            image = result.image
            parts["reconstruction"] = self.reconstruction(image, batch["target"])
            if loss.warped_weight:
                parts["warped"] = self.reconstruction(result.warped, batch["target"])
            if loss.adversarial_weight and self.in_phase_two(step):
                parts["adversarial"] = self._adversarial(image, pose)
        return parts, image

    def _random_affine(self, step: int, count: int) -> Tensor:
        loss = self.config.loss
        height, width = self.config.data.image_size
        bounds = AffineRange(rotation=loss.affine_rotation, scale=loss.affine_scale,
                             shear=loss.affine_shear, shift=loss.affine_shift)
        return random_affine(count, bounds, aspect=width / height,
                             generator=stream(self.config.seed, _AFFINE, step)).to(self.device)

    def _adversarial(self, image: Tensor, pose: Tensor) -> Tensor:
        # The generator's gradient goes through D but not into it.
        self.discriminator.requires_grad_(False)
        scores = self.discriminator(image, pose)
        self.discriminator.requires_grad_(True)
        return generator_loss(scores, self.config.loss.adversarial)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- updates ----------------------------------------------------------------------------------

    def _update(self, net: nn.Module, loss: Tensor, optimizer, scaler, parts, step, clip) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            size = self.config.optim.batch_size
            found = ", ".join(f"{name} {float(part.detach()):.4g}" for name, part in parts.items())
            raise NonFiniteLoss(
                f"the loss of step {step} is {value} ({found}), pairs {(step - 1) * size} to "
                f"{step * size - 1}; no weight was changed by this step; try a smaller --optim.lr")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        return value

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # Early on the average follows closely, so that short runs are not an average of noise.
        decay = min(self.config.optim.ema, step / (step + 10))
        ours, theirs = self.averaged, self.generator
        torch._foreach_lerp_(list(ours.parameters()), list(theirs.parameters()), 1 - decay)
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(other)

    # --- what a checkpoint holds ------------------------------------------------------------------

    def save(self, run: RunFolder, step: int) -> None:
        """Write a checkpoint of step n."""
        checkpoint.save(run.checkpoints, step, weights=self.weights(), state=self.state(),
                        config=to_dict(self.config), keep=self.config.keep_checkpoints)

    def restore(self, run: RunFolder) -> int:
        """Go back to the newest valid checkpoint of a run; returns its step, 0 for a new run."""
        found = checkpoint.load_latest(run.checkpoints)
        step = 0
        if found is not None:
            for line in found.skipped:
                run.log(f"warning: {line}")
            self.load(found.weights, found.state)
            step = found.step
        run.truncate_to(step)
        return step

    def parameter_counts(self) -> dict[str, int]:
        """Number of weights of each network."""
        nets = {"M": self.generator.warping.encoder, "C_l": self.generator.warping.head,
                "R": self.generator.refinement, "D": self.discriminator}
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


class Clock:
    """Where the time of a step goes."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        now = time.perf_counter()
        elapsed, self.start = 1000 * (now - self.start), now
        return elapsed
