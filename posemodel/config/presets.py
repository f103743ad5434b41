"""Named starting points. A preset is a function that returns a whole `Config`."""

from collections.abc import Callable
from dataclasses import replace

from posemodel.config.sections import Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def quick() -> Config:
    """Generated people at 64 pixels, minutes on two CPU cores."""
    return Config(preset="quick", loss=LossConfig(adversarial_weight=0.01),
                  optim=OptimConfig(phase_one=0.7))


def overnight() -> Config:
    """The sizes of `quick`, trained for as long as it keeps getting better."""
    config = replace(quick(), preset="overnight", steps=40_000, evaluate_every=1000,
                     checkpoint_every=1000)
    config.optim.ema = 0.999
    return config


def person() -> Config:
    """One's own film in --data.root, from the package's model, minutes on two CPU cores."""
    return Config(
        preset="person", init="shipped", steps=400, evaluate_every=200, checkpoint_every=100,
        data=DataConfig(kind="film", image_size=(128, 128), evaluation_pairs=48),
        model=ModelConfig(flow_channels=(64, 64, 64, 48, 32), refine_width=24),
        # The person is laid over a background of their own, where nothing is left to hold still.
        loss=LossConfig(affine_background=0.3),
        optim=OptimConfig(batch_size=4))


def paper() -> Config:
    """The paper's sizes and numbers (256 pixels, grid 64), for DeepFashion in --data.root."""
    return Config(
        preset="paper", steps=300 * 101_966 // 7, evaluate_every=5000, checkpoint_every=5000,
        log_every=100,
        data=DataConfig(kind="deepfashion", image_size=(256, 256), turn=180.0,
                        hidden_joints="drop"),
        model=ModelConfig(flow_stride=4, pose_sigma=6.0, limb_sigma=0.0,
                          encoder_channels=(64, 128, 128, 128, 128, 128, 128, 128, 128, 128),
                          feature_channels=35, flow_channels=(128, 128, 96, 64, 32), head_kernel=3,
                          flow_parametrization="residual", refine="paper", refine_width=64,
                          refine_downsamplings=2, refine_blocks=6,
                          discriminator_width=64, discriminator_layers=4),
        loss=LossConfig(reconstruction="vgg19", warped_weight=0.0, affine_weight=0.001,
                        joint_weight=0.0, affine_background=1.0, adversarial_weight=0.1),
        optim=OptimConfig(batch_size=7, tasks="alternate", lr=1e-6, schedule="constant",
                          betas=(0.5, 0.999), phase_one=1 / 3, phase_two_decoder=100.0,
                          phase_two_rest=0.01, ema=0.0, clip=0.0),
    )


def market() -> Config:
    """The paper's numbers for Market-1501 in --data.root (128 x 64 pixels, grid 32 x 16)."""
    return replace(paper(), preset="market", steps=300 * 263_632 // 7,
                   data=DataConfig(kind="market", image_size=(128, 64), turn=180.0,
                                   background="cluttered", hidden_joints="drop"))


def hires() -> Config:
    """The paper's numbers at 512 pixels (grid 128), where a 4D map that is never made has 1 GiB."""
    config = replace(paper(), preset="hires")
    config.data.image_size = (512, 512)
    return config


def _fast(preset: Callable[[], Config]) -> Callable[[], Config]:
    """The sizes of a preset with the losses and learning rates of `quick`, in far fewer steps."""

    def fast() -> Config:
        config = preset()
        config.model.flow_parametrization = "matching"
        # The sum over VGG-19's layers and scales is some tens of times the pyramid's l1, with which
        # the affine and adversarial weights of `quick` were found.
        loss = LossConfig(reconstruction="vgg19", reconstruction_weight=0.02, warped_weight=0.02,
                          affine_weight=1.0, adversarial_weight=0.01)
        return replace(config, preset=f"{config.preset}-fast", steps=100_000, loss=loss,
                       optim=OptimConfig(batch_size=7, lr=1e-3, phase_one=0.7, ema=0.999))

    name = preset.__name__
    fast.__name__ = f"{name}_fast"
    fast.__doc__ = (f"The sizes of `{name}` with the losses and learning rates of `quick`, 100,000 "
                    "steps.")
    return fast


paper_fast, market_fast, hires_fast = map(_fast, (paper, market, hires))
PRESETS = {
    preset.__name__.replace("_", "-"): preset
    for preset in (quick, overnight, person, paper, market, hires, paper_fast, market_fast,
                   hires_fast)
}
