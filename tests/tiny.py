"""A configuration that trains a step in milliseconds, for the tests.

In float32: what "auto" chooses depends on the CPU, and the tests are about numbers.
"""

from posemodel.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig

# The same as flags of `posemodel.train`.
FLAGS = (
    "--steps 6 --evaluate-every 3 --checkpoint-every 2 --log-every 1 --device cpu "
    "--precision float32 --data.image-size 32 32 --data.evaluation-pairs 4 "
    "--model.flow-stride 4 --model.encoder-channels 8 8 8 "
    "--model.feature-channels 6 --model.flow-channels 8 8 8 8 8 --model.refine-width 4 "
    "--model.refine-blocks 1 --model.discriminator-width 4 --optim.batch-size 2"
).split()


def tiny_config(**changes) -> Config:
    """`section_field=value` changes a field of a section."""
    config = Config(
        steps=20,
        device="cpu",
        precision="float32",
        data=DataConfig(image_size=(32, 32), evaluation_pairs=4),
        model=ModelConfig(flow_stride=4, encoder_channels=(8, 8, 8), feature_channels=6,
                          flow_channels=(8, 8, 8, 8, 8), refine_width=4, refine_blocks=1,
                          discriminator_width=4),
        loss=LossConfig(adversarial_weight=0.1),
        optim=OptimConfig(batch_size=2, phase_one=0.0),
    )
    for name, value in changes.items():
        section, _, field = name.partition("_")
        setattr(getattr(config, section), field, value)
    return config
