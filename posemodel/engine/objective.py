"""What is minimised: each loss, its equation, its weight.

Every value is a mean over the batch. A step may work through its batch in parts: the values of a
part are times its share of the batch, so those of all parts add up to the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posemodel.config.sections import LossConfig
from posemodel.engine.schedule import AFFINE_EVERY, Turn
from posemodel.flow.affine import transform_pose
from posemodel.flow.estimator import FlowEstimator
from posemodel.losses.adversarial import (
    R1_EVERY,
    balance,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    r1_penalty,
)
from posemodel.losses.affine import affine_loss
from posemodel.losses.joint import joint_loss
from posemodel.losses.perceptual import FORMS, load_perceptual_loss
from posemodel.losses.pyramid import PyramidLoss
from posemodel.model.discriminator import Discriminator
from posemodel.model.scene import moved, scene_of_batch
from posemodel.poses.limb_maps import body_map

# Of the body's envelope in the affine task, in pixels of an image 256 pixels high.
_BODY_SIGMA = 20.0


def weights(loss: LossConfig, tasks: str) -> dict[str, float]:
    """The weight of each term in the sum that is minimised (Eq. 8); of any other it is 1.

    Args:
        tasks: `OptimConfig.tasks`. A term that is left out of steps whose other terms stay weighs
            more in those that have it, so that the mean is as if it were in all.
    """
    return {
        "loss_affine": loss.affine_weight * (AFFINE_EVERY if tasks == "lazy" else 1),   # Eq. 7
        "loss_reconstruction": loss.reconstruction_weight,          # Eq. 5, the refined image
        "loss_warped": loss.warped_weight,                          # Eq. 5, the warped image
        "loss_joint": loss.joint_weight,                            # the flow at the joints
        "loss_adversarial": loss.adversarial_weight,                # Eq. 6, the generator's part
        "loss_feature_matching": loss.feature_matching_weight,      # D's features
        "loss_discriminator": 1.0,                                  # Eq. 6, D's part
        "loss_r1": loss.r1_weight * R1_EVERY,                       # D's gradient at real images
    }


def load_reconstruction(loss: LossConfig) -> nn.Module:
    """The loss of Eq. 5. Raises: `UserError` where its network cannot be had."""
    if loss.reconstruction not in FORMS:
        return PyramidLoss()
    return load_perceptual_loss(FORMS[loss.reconstruction], loss.weights_folder)


@dataclass
class Part:
    """Pairs of a step that are worked on at once."""

    batch: dict[str, Tensor]
    affine: Tensor
    """their random maps of task 1, `[b, 2, 3]`"""
    share: float
    """of the pairs of the step"""
    image: Tensor | None = None
    """what R made of them, for D: `[b, 3, H, W]`"""


@dataclass(kw_only=True)
class Objective:
    """The losses of one run, on its networks: as wrapped for several processes, where a gradient
    goes into their weights."""

    loss: LossConfig
    reconstruction: nn.Module
    estimator: FlowEstimator
    discriminator: Discriminator
    warping: nn.Module
    """`estimator`, wrapped"""
    refinement: nn.Module
    """R, wrapped"""
    judge: nn.Module
    """`discriminator`, wrapped"""

    @property
    def has_affine_task(self) -> bool:
        """Whether there is a task 1; a method of Table 1 has losses of its own in its place."""
        return self.loss.affine_weight > 0 and not self.estimator.has_own_losses

    def of_generator(self, part: Part, turn: Turn) -> dict[str, Tensor]:
        """What W and R minimise, by name; leaves the image of task 2 in the part.

        Both tasks have the same target poses, so where both have their turn, W works on them once.
        """
        batch, pose = part.batch, part.batch["target_pose"]
        sources = [batch["source_pose"]] if turn.reconstruction else []
        if turn.affine:
            sources.append(transform_pose(pose, part.affine))
        image = batch["source"] if self.estimator.uses_image else None
        motion = self.warping(torch.cat(sources), pose, image)
        own = self.estimator.losses(motion, batch, self.reconstruction.features)
        values = {f"loss_{name}": value for name, value in own.items()}
        flows = list(motion.flow.chunk(len(sources)))
        if turn.affine:
            values |= self._task_1(flows.pop(), pose, part.affine)
        if turn.reconstruction:
            values |= self._task_2(flows.pop(), part, turn)
        return {name: part.share * value for name, value in values.items()}

    def _task_1(self, flow: Tensor, pose: Tensor, affine: Tensor) -> dict[str, Tensor]:
        """A random affine map of the target pose has a known flow (Eq. 7)."""
        weight, background = None, self.loss.affine_background
        if background != 1:
            body = body_map(pose, tuple(flow.shape[-2:]), _BODY_SIGMA)
            weight = background + (1 - background) * body
        return {"loss_affine": affine_loss(flow, affine, weight,
                                           cells=self.loss.affine_norm == "cells")}

    def _task_2(self, flow: Tensor, part: Part, turn: Turn) -> dict[str, Tensor]:
        """Transfer to the target pose and compare (Eq. 5, 6)."""
        loss, batch = self.loss, part.batch
        scene = scene_of_batch(batch)
        part.image = self.refinement(batch["source"], flow, batch["target_pose"], scene)
        compared = {"loss_reconstruction": part.image}
        if loss.warped_weight:
            warped = moved(batch["source"], flow, scene)
            compared["loss_warped"] = warped if scene is None else scene.under(warped, flow)
        distances = self.reconstruction(list(compared.values()), batch["target"])
        values = dict(zip(compared, distances, strict=True))
        if turn.joints and loss.joint_weight:
            values["loss_joint"] = joint_loss(flow, batch["source_pose"], batch["target_pose"])
        if turn.adversarial:
            values |= self._adversarial(part.image, batch)
        return values

    def _adversarial(self, image: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The generator's part of Eq. 6."""
        loss, pose = self.loss, batch["target_pose"]
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

    def of_discriminator(self, part: Part, turn: Turn) -> dict[str, Tensor]:
        """What D minimises (Eq. 6), and who is winning."""
        loss, target, pose = self.loss, part.batch["target"], part.batch["target_pose"]
        penalised = loss.r1_weight > 0 and turn.step % R1_EVERY == 0
        if penalised:
            target = target.detach().requires_grad_()
        real, fake = self.judge(target, pose), self.judge(part.image.detach(), pose)
        values = {"loss_discriminator": discriminator_loss(real, fake, loss.adversarial),
                  **balance(real, fake, loss.adversarial)}
        if penalised:
            values["loss_r1"] = r1_penalty(real, target)
        return {name: part.share * value for name, value in values.items()}
