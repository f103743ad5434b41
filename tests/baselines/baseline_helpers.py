"""Shared by the tests of the baselines: positions, small networks."""

import dataclasses

import torch

import pose_kernels
from posemodel.baselines import baseline_config, build_baseline
from posemodel.baselines.gfla import GflaConfig


def grid(height=8, width=8, dtype=torch.float64):
    return pose_kernels.identity_flow(height, width, dtype=torch.float64).to(dtype)


def small(name, size=(32, 32), **changes):
    """A small estimator for small images."""
    config = baseline_config(name)
    sizes = {"width": 8, "max_width": 32}
    sizes |= {"levels": 4} if isinstance(config, GflaConfig) else {"blocks": 2}
    torch.manual_seed(0)
    return build_baseline(dataclasses.replace(config, **sizes | changes), image_size=size)


def turn(degrees, scale=1.0):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return scale * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
