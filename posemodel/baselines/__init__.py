"""The methods of the paper's Table 1, driven by given key points.

Written from the papers' equations. All have the face of `posemodel.flow.estimator.FlowEstimator`.
"""

import dataclasses

from posemodel.baselines.baseline import Baseline
from posemodel.baselines.dense_motion import DenseMotionConfig
from posemodel.baselines.fomm import Fomm, FommConfig
from posemodel.baselines.gfla import Gfla, GflaConfig
from posemodel.baselines.mraa import Mraa, MraaConfig
from posemodel.baselines.tpsmm import Tpsmm, TpsmmConfig
from posemodel.runtime.errors import UserError

BaselineConfig = DenseMotionConfig | GflaConfig

_METHODS = {FommConfig: Fomm, MraaConfig: Mraa, TpsmmConfig: Tpsmm, GflaConfig: Gfla}
_QUICK = {"fomm": FommConfig(), "mraa": MraaConfig(), "tpsmm": TpsmmConfig(),
          "gfla32": GflaConfig(scale=32), "gfla64": GflaConfig(scale=64)}
_PAPER_HOURGLASS = {"width": 64, "blocks": 5, "max_width": 1024}
_PAPER_UNET = {"max_width": 256, "correctness_weight": 20.0, "regularization_weight": 0.01}

BASELINES = tuple(_QUICK)


def baseline_config(name: str, *, paper: bool = False) -> BaselineConfig:
    """The configuration of a method, for 64 pixels or in the sizes of its paper (256 pixels).

    Raises: `UserError` for an unknown name.
    """
    if name not in _QUICK:
        raise UserError(f"baseline {name!r}, expected one of {', '.join(BASELINES)}")
    config = _QUICK[name]
    if not paper:
        return config
    sizes = _PAPER_UNET if isinstance(config, GflaConfig) else _PAPER_HOURGLASS
    return dataclasses.replace(config, **sizes)


def at_stride(config: BaselineConfig, stride: int) -> BaselineConfig:
    """The same on cells of `stride` pixels, with so many blocks that it sees as much of the image.
    GFLA keeps an eighth and a quarter of the image, as in its paper."""
    if isinstance(config, GflaConfig):
        return config
    more = (config.stride // stride).bit_length() - 1
    return dataclasses.replace(config, stride=stride, blocks=config.blocks + more)


def build_baseline(config: BaselineConfig, *, image_size: tuple[int, int]) -> Baseline:
    """The estimator that a configuration describes, for images of (H, W), multiples of 4."""
    return _METHODS[type(config)](config=config, image_size=image_size)
