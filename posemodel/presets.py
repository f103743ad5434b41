"""Named starting points. A preset is a function that returns a whole `Config`."""

from posemodel.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def quick() -> Config:
    """Generated people at 64 pixels, minutes on two CPU cores."""
    return Config(
        preset="quick",
        loss=LossConfig(adversarial_weight=0.01),
        optim=OptimConfig(phase_one=0.7),
    )


def overnight() -> Config:
    """The sizes of `quick`, trained for as long as it keeps getting better."""
    config = quick()
    config.preset = "overnight"
    config.steps = 40_000
    config.evaluate_every = 1000
    config.checkpoint_every = 1000
    config.optim.ema = 0.999
    return config


def paper() -> Config:
    """The paper's sizes and numbers (256 pixels, grid 64), on generated people for now."""
    return Config(
        preset="paper",
        steps=300 * 101_966 // 7,
        evaluate_every=5000,
        checkpoint_every=5000,
        log_every=100,
        data=DataConfig(image_size=(256, 256), turn=180.0, hidden_joints="drop"),
        model=ModelConfig(
            encoder_channels=(64, 128, 128, 128, 128, 128, 128, 128, 128, 128),
            flow_channels=(128, 128, 96, 64, 32),
            flow_parametrization="residual",
            refine_width=64,
            refine_downsamplings=2,
            refine_blocks=6,
            discriminator_width=64,
            discriminator_layers=4,
        ),
        loss=LossConfig(
            reconstruction="vgg19",
            warped_weight=0.0,
            affine_weight=0.001,
            adversarial_weight=0.1,
        ),
        optim=OptimConfig(
            batch_size=7,
            tasks="alternate",
            lr=1e-6,
            schedule="constant",
            betas=(0.5, 0.999),
            phase_one=1 / 3,
            phase_two_decoder=100.0,
            phase_two_rest=0.01,
            ema=0.0,
            clip=0.0,
        ),
    )


PRESETS = {preset.__name__: preset for preset in (quick, overnight, paper)}
