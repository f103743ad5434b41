"""Shared by the tests of the baselines: poses, positions, small networks."""

import dataclasses

import torch

import pose_kernels
from posemodel.baselines import baseline_config, build_baseline
from posemodel.baselines.gfla import GflaConfig


def poses(count, seed=0, present=1.0):
    """`[count, 18, 3]`; a joint is there with probability `present`, else all zero."""
    generator = torch.Generator().manual_seed(seed)
    xy = 1.6 * torch.rand(count, 18, 2, generator=generator) - 0.8
    there = (torch.rand(count, 18, 1, generator=generator) < present).float()
    return torch.cat([xy, torch.ones(count, 18, 1)], dim=-1) * there


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
    return scale * torch.stack([
        torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
