"""W, the warping network: two poses to one flow."""

from typing import Literal

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.flow.estimator import FlowEstimator, Motion
from posemodel.flow.filling import certainty_of_spread, fill_flow
from posemodel.model.convolution import network_dtype, one_by_one
from posemodel.model.flow_head import FlowHead, guided_map
from posemodel.model.pose_encoder import PoseEncoder
from posemodel.poses.limb_maps import limb_maps
from posemodel.poses.maps import pose_maps
from posemodel.runtime.memory_format import channels_last

#: Floor of the soft mutual normalisation (Eq. 9, 2).
EPS = 1e-5


class WarpingNetwork(FlowEstimator):
    """M on both poses, guided correlation (Eq. 1, 9, 2), C_l.

    Sees nothing but the two poses. `parametrization` says what is added to C_l's output:
    "residual" the identity, "absolute" nothing, "matching" the expected source position under the
    squared guided correlation (whose squares sum to one over the source positions, Eq. 2), "filled"
    the same where that is certain, and elsewhere the displacement of what lies around.
    """

    has_correlation = True

    def __init__(self, *, encoder: PoseEncoder, head: FlowHead, image_size: tuple[int, int],
                 pose_sigma: float, limb_sigma: float,
                 parametrization: Literal["residual", "absolute", "matching", "filled"]):
        super().__init__()
        self.encoder, self.head, self.image_size = encoder, head, image_size
        self.pose_sigma, self.limb_sigma = pose_sigma, limb_sigma
        self.parametrization = parametrization

    def blocks(self) -> dict[str, nn.Module]:
        """M and C_l."""
        return {"M": self.encoder, "C_l": self.head}

    def features(self, pose: Tensor) -> Tensor:
        """`[B, J, 3]` -> M's features `[B, m, h, w]`, in the networks' precision."""
        dtype = network_dtype(pose.device)
        return self.encoder(one_by_one(lambda some: self._maps(some, dtype), pose), dtype)

    def _maps(self, pose: Tensor, dtype: torch.dtype) -> Tensor:
        """What M reads, `[B, maps, H, W]`."""
        maps = [pose_maps(pose, self.image_size, self.pose_sigma)]
        if self.limb_sigma:
            maps.append(limb_maps(pose, self.image_size, self.limb_sigma))
        return channels_last(torch.cat([some.to(dtype) for some in maps], dim=1))

    def encode(self, source_pose: Tensor, target_pose: Tensor) -> tuple[Tensor, Tensor]:
        """M's features of `[k B, J, 3]` and `[B, J, 3]` poses, both `[k B, m, h, w]`."""
        # One pass for all poses, so that BatchNorm sees source and target as the same thing.
        features = self.features(torch.cat([source_pose, target_pose]))
        source, target = features.split([len(source_pose), len(target_pose)])
        if len(source) != len(target):
            target = target.repeat(len(source) // len(target), 1, 1, 1)
        return source, target

    def match(self, source: Tensor, target: Tensor) -> Tensor:
        """Qhat, `[B, S, h, w]`, of M's features: channel s of pixel t says how well source position
        s fits."""
        return guided_map(source, target, EPS)

    def forward(self, source_pose: Tensor, target_pose: Tensor,
                source_image: Tensor | None = None) -> Motion:
        """As `FlowEstimator.forward`; of k sources for a target, the target is encoded once. The
        image is not looked at."""
        return Motion(flow=self.flow_from(*self.encode(source_pose, target_pose)))

    def flow_from(self, source: Tensor, target: Tensor) -> Tensor:
        """M's features -> flow: C_l and the parametrisation."""
        if self.parametrization in ("matching", "filled"):
            flow, match = self.head.with_match(source, target, EPS)
            if self.parametrization == "matching":
                return flow + match.place
            return flow + fill_flow(match.place, certainty_of_spread(match.variance))
        flow = self.head(source, target, EPS)
        if self.parametrization == "residual":
            return flow + pose_kernels.identity_flow(*flow.shape[-2:], device=flow.device)
        return flow


def guided_column(source: Tensor, target: Tensor, position: int) -> Tensor:
    """Column t of Qhat, `[hs, ws]`, from features `[1, m, hs, ws]` and `[1, m, ht, wt]`: the whole
    map would be too large to keep for a click."""
    source, target = source.float(), target.float()
    at = target.flatten(2)[:, :, position].unflatten(1, (-1, 1, 1))
    u = pose_kernels.correlation_4d(source, at)[0, :, 0, 0].pow(3)                 # Eq. 1, 9
    best = pose_kernels.mutual_matches(source, target).target_correlations
    u = u / best[0].flatten().clamp_min(EPS)
    return (u / u.norm().clamp_min(EPS)).view(source.shape[-2:])                   # Eq. 2
