"""A configuration that trains a step in milliseconds, for the tests, and poses.

In float32: what "auto" chooses depends on the CPU, and the tests are about numbers.
"""

import torch

from posemodel.config.sections import Config, DataConfig, LossConfig, ModelConfig, OptimConfig

# The same as flags of `posemodel.train`.
FLAGS = (
    "--steps 6 --evaluate-every 3 --checkpoint-every 2 --log-every 1 --device cpu "
    "--precision float32 --data.image-size 32 32 --data.evaluation-pairs 4 "
    "--model.flow-stride 4 --model.encoder-channels 8 8 8 "
    "--model.feature-channels 6 --model.flow-channels 8 8 8 8 8 --model.refine-width 4 "
    "--optim.batch-size 2"
).split()


def tiny_config(**changes) -> Config:
    """`section_field=value` changes a field of a section."""
    config = Config(
        steps=20, device="cpu", precision="float32",
        data=DataConfig(image_size=(32, 32), evaluation_pairs=4),
        model=ModelConfig(flow_stride=4, encoder_channels=(8, 8, 8), feature_channels=6,
                          flow_channels=(8, 8, 8, 8, 8), refine_width=4,
                          discriminator_width=4),
        loss=LossConfig(adversarial_weight=0.1),
        optim=OptimConfig(batch_size=2, phase_one=0.0),
    )
    for name, value in changes.items():
        section, _, field = name.partition("_")
        setattr(getattr(config, section), field, value)
    return config


def random_poses(count: int, seed: int = 0, present: float = 1.0) -> torch.Tensor:
    """`[count, 18, 3]`; a joint is there with probability `present`, else all zero."""
    generator = torch.Generator().manual_seed(seed)
    xy = 1.6 * torch.rand(count, 18, 2, generator=generator) - 0.8
    there = (torch.rand(count, 18, 1, generator=generator) < present).float()
    return torch.cat([xy, torch.ones(count, 18, 1)], dim=-1) * there
