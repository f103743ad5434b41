"""What a run is made of: five small dataclasses, checked when they are made.

This module imports nothing heavy, so that `--help` and a misspelt flag are answered at once.
Every value that the paper leaves open is a field here, with the default that did best on the
mannequins (`docs/experiments.md`); the paper's own numbers are the `paper` preset (`presets.py`).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin


class ConfigError(ValueError):
    """A value that no run can have; the message names the flag, what came and what is expected."""


def _require(condition: bool, flag: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"--{flag} is {value!r}, expected {expected}")


@dataclass(kw_only=True)
class DataConfig:
    """Where the pairs come from."""

    kind: Literal["mannequins", "deepfashion", "market"] = "mannequins"
    """mannequins: generated people with exact flow and visibility; else a data set on disk"""
    root: str = ""
    """folder of the data set on disk"""
    image_size: tuple[int, int] = (64, 64)
    """height and width in pixels"""
    fit: Literal["pad", "stretch"] = "pad"
    """deepfashion in a square: its 176 of 256 columns with white borders, or stretched to all"""
    pairs_per_epoch: int = 0
    """on disk: 0: an epoch is the whole list, shuffled; N: it is N random pairs (4000 in PATN)"""
    workers: int = 2
    """on disk: processes that decode images; 0: none but the training process"""
    flip: bool = False
    """on disk: mirror every second training pair, left and right joints changing places"""
    rotate: float = 0.0
    """on disk: largest rotation of a training image, degrees (5 in GFLA)"""
    scale: float = 0.0
    """on disk: largest relative change of size (0.05 in GFLA)"""
    shift: float = 0.0
    """on disk: largest shift, normalised coordinates (5 pixels of 256 in GFLA: 0.04)"""
    turn: float = 60.0
    """each body faces the camera to within this many degrees (180: any direction)"""
    background: Literal["white", "cluttered"] = "white"
    """what stands behind the mannequins"""
    hidden_joints: Literal["keep", "drop"] = "keep"
    """drop: occluded joints are missing, as a pose estimator would miss them"""
    evaluation_pairs: int = 256
    """held-out pairs: generated from seeds that training never uses, or spread evenly over the
    test list of a data set on disk"""

    def __post_init__(self):
        height, width = self.image_size
        _require(min(height, width) >= 32 and height % 4 == 0 and width % 4 == 0,
                 "data.image-size", self.image_size, "two multiples of 4, at least 32")
        _require(0 <= self.turn <= 180, "data.turn", self.turn, "degrees from 0 to 180")
        _require(self.evaluation_pairs >= 1, "data.evaluation-pairs", self.evaluation_pairs,
                 "at least 1")
        _require(self.pairs_per_epoch >= 0, "data.pairs-per-epoch", self.pairs_per_epoch,
                 "0 or more")
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        _require(0 <= self.rotate < 90, "data.rotate", self.rotate, "degrees, less than 90")
        _require(0 <= self.scale < 1, "data.scale", self.scale, "[0, 1)")
        _require(0 <= self.shift < 1, "data.shift", self.shift, "[0, 1)")
        if self.kind == "mannequins":
            for name in ("root", "pairs_per_epoch", "flip", "rotate", "scale", "shift"):
                value = getattr(self, name)
                _require(not value, "data." + name.replace("_", "-"), value,
                         "--data.kind deepfashion or market with it")
        _require(self.fit == "pad" or self.kind == "deepfashion", "data.fit", self.fit,
                 "pad, but for --data.kind deepfashion, whose images have white borders")


@dataclass(kw_only=True)
class ModelConfig:
    """The networks: M (pose encoder), C_l (flow head), R (refinement), D (discriminator)."""

    flow: Literal["ours", "fomm", "mraa", "tpsmm", "gfla32", "gfla64"] = "ours"
    """what estimates the flow: M and C_l, or a method of Table 1 driven by the same key points; for
    images of 256 pixels and more in the sizes of its own paper"""
    motion_input: Literal["keypoints", "keypoints+image"] = "keypoints"
    """what such a method sees: two poses, as ours, or also the source image"""
    flow_stride: int = 0
    """image pixels in a row of a cell of the flow's grid, 2 or 4 (the paper's); 0: 2 for images of
    up to 64 x 64 pixels, where a limb is hardly wider than 4, else 4. Of all methods but gfla"""
    pose_sigma: float = 12.0
    """M: Gaussian of a joint, in pixels of an image 256 pixels high (6 in the paper); 0: a dot"""
    limb_sigma: float = 10.0
    """M: Gaussian of a limb, in the unit of pose_sigma, in further maps that say where along and
    across each limb a position is; 0: joints alone (the paper)"""
    encoder_channels: tuple[int, ...] = (24, 48, 48, 48, 48, 48)
    """M: width of each hidden layer, of which the first one or two halve the resolution, as often
    as the stride asks; one more layer follows"""
    feature_channels: int = 64
    """m, the length of M's feature vectors (35 in the paper)"""
    feature_norm: Literal["location", "channel", "none"] = "location"
    """which vectors of M's output get unit length; the paper's text allows two readings"""
    correlation_eps: float = 1e-5
    """eps of the soft mutual normalisation"""
    flow_depth: int = 6
    """C_l: number of conv layers, 1 to 6 (Table 2 of the paper)"""
    flow_channels: tuple[int, ...] = (32, 32, 32, 32, 32)
    """C_l: widths of the hidden layers, the last flow_depth - 1 of which are used (128, 128, 96,
    64, 32 in the paper)"""
    flow_parametrization: Literal["residual", "absolute", "matching"] = "matching"
    """what is added to C_l's output: the identity, nothing, or the expected match under Qhat"""
    stream: Literal["auto", "always", "never"] = "auto"
    """make the 4D map in bands and never store it, the same flow to within rounding; auto: for
    grids of 64 x 64 and more"""
    refine_width: int = 16
    """R: channels at full resolution; each down-sampling doubles them"""
    refine_downsamplings: int = 1
    """R: how often the resolution is halved before the warp (2 in the paper)"""
    refine_blocks: int = 4
    """R: residual blocks of the decoder (6 in the paper)"""
    refine: bool = True
    """R; without it the image is the warped source (Table 3)"""
    skip: bool = False
    """R: the decoder also sees the warped image at every scale (Appendix E)"""
    discriminator_sigma: float = 6.0
    """D: Gaussian of a joint, in the unit of pose_sigma"""
    discriminator_width: int = 16
    """D: channels of its first layer"""
    discriminator_layers: int = 3
    """D: number of down-sampling layers"""
    discriminator_spectral_norm: bool = False
    """D: every layer divided by its spectral norm"""

    def __post_init__(self):
        for name in ("pose_sigma", "limb_sigma", "discriminator_sigma"):
            value = getattr(self, name)
            _require(value >= 0, "model." + name.replace("_", "-"), value, "a number, 0 or more")
        _require(self.flow_stride in (0, 2, 4), "model.flow-stride", self.flow_stride, "0, 2 or 4")
        _require(len(self.encoder_channels) >= 2, "model.encoder-channels", self.encoder_channels,
                 "at least two widths")
        _require(1 <= self.flow_depth <= 6, "model.flow-depth", self.flow_depth, "1 to 6")
        _require(len(self.flow_channels) >= self.flow_depth - 1, "model.flow-channels",
                 self.flow_channels, f"at least flow-depth - 1 = {self.flow_depth - 1} widths")
        widths = (*self.encoder_channels, self.feature_channels, *self.flow_channels,
                  self.refine_width, self.discriminator_width, self.discriminator_layers)
        _require(min(widths) >= 1, "model", min(widths), "widths and depths of at least 1")
        _require(self.refine_downsamplings in (0, 1, 2), "model.refine-downsamplings",
                 self.refine_downsamplings, "0, 1 or 2")
        _require(self.refine_blocks >= 0, "model.refine-blocks", self.refine_blocks, "0 or more")
        _require(self.flow != "ours" or self.motion_input == "keypoints", "model.motion-input",
                 self.motion_input, "keypoints: only with another --model.flow than ours")
        _require(self.refine or not self.skip, "model.skip", self.skip,
                 "no skip connections without a refinement (--model.no-refine)")
        _require(self.correlation_eps > 0, "model.correlation-eps", self.correlation_eps,
                 "a positive number")


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised, and how much of each."""

    reconstruction: Literal["pyramid", "vgg19"] = "pyramid"
    """pyramid: l1 at four resolutions, no network; vgg19: the paper's, l1 of VGG-19 features at
    four resolutions, needs ImageNet weights"""
    vgg_weights: str = ""
    """file with torchvision's VGG-19 weights; empty: torch hub's cache, else download"""
    reconstruction_weight: float = 1.0
    """weight of the reconstruction loss on the refined image (Eq. 5)"""
    warped_weight: float = 1.0
    """weight of the same loss on the warped source itself (0 in the paper)"""
    affine_weight: float = 1.0
    """lambda of the affine preserving loss (Eq. 7)"""
    joint_weight: float = 1.0
    """weight of the distance at each joint between the flow and that joint of the source (0 in the
    paper)"""
    affine_background: float = 0.1
    """weight in Eq. 7 of a position away from the person, where one on a limb has 1 (1 in the
    paper)"""
    affine_unit: Literal["normalized", "pixel"] = "normalized"
    """unit in which Eq. 7 measures flow: [-1, 1] coordinates or cells of the flow's own grid"""
    affine_rotation: float = 30.0
    """largest rotation of the random affine map, degrees"""
    affine_scale: float = 0.25
    """largest relative change of size, for each axis"""
    affine_shear: float = 0.15
    """largest shear"""
    affine_shift: float = 0.25
    """largest shift, normalised coordinates"""
    adversarial: Literal["lsgan", "hinge", "nonsaturating", "paper"] = "lsgan"
    """form of Eq. 6; paper: as printed, E[1 - D(y)] + E[D(I_t)], which has no lower bound"""
    adversarial_weight: float = 0.0
    """lambda_1, weight of the adversarial loss (0.1 in the paper)"""
    feature_matching_weight: float = 0.0
    """weight of the l1 between D's features of generated and real image, summed over its layers,
    where there is an adversarial loss (10 times its weight in the FOMM family, 0 in the paper)"""
    r1_weight: float = 0.0
    """weight of R1, half the squared gradient of D at real images (0 in the paper)"""
    r1_every: int = 16
    """R1 is computed in every so many steps only, and weighs as much more"""

    def __post_init__(self):
        for name in ("reconstruction_weight", "warped_weight", "affine_weight",
                     "joint_weight", "adversarial_weight", "feature_matching_weight", "r1_weight",
                     "affine_rotation", "affine_shear", "affine_shift"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, "loss." + name.replace("_", "-"), value,
                     "a finite number, 0 or more")
        _require(self.r1_every >= 1, "loss.r1-every", self.r1_every, "at least 1")
        _require(0 <= self.affine_background <= 1, "loss.affine-background",
                 self.affine_background, "[0, 1]")
        _require(0 <= self.affine_scale < 1, "loss.affine-scale", self.affine_scale, "[0, 1)")
        _require(self.affine_rotation < 90, "loss.affine-rotation", self.affine_rotation,
                 "less than 90 degrees: people stay upright")


@dataclass(kw_only=True)
class OptimConfig:
    """How it is minimised."""

    batch_size: int = 8
    """pairs in a step, over all processes"""
    accumulate: int = 1
    """parts that a step's batch is worked through in, for less memory: the same gradient, but
    BatchNorm sees one part at a time"""
    tasks: Literal["alternate", "joint"] = "joint"
    """alternate: affine and reconstruction task take turns (the paper); joint: their sum"""
    lr: float = 1e-3
    """Adam's learning rate"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """course of the learning rates over the run, after a warm-up of 2 %"""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's coefficients, for the generator"""
    phase_one: float = 1.0
    """share of the steps before the adversarial loss sets in"""
    phase_two_decoder: float = 1.0
    """factor on the learning rate of the refinement's decoder from then on (100 in the paper)"""
    phase_two_rest: float = 1.0
    """factor on the learning rate of all else in the generator from then on (0.01 in the paper)"""
    lr_discriminator: float = 1e-4
    """learning rate of the discriminator"""
    ema: float = 0.99
    """decay of the averaged weights that are evaluated and shipped; 0: the raw ones"""
    clip: float = 1.0
    """largest norm of the generator's gradient; 0: no limit"""

    def __post_init__(self):
        _require(self.batch_size >= 1, "optim.batch-size", self.batch_size, "at least 1")
        _require(1 <= self.accumulate <= self.batch_size, "optim.accumulate", self.accumulate,
                 f"1 to the batch size, {self.batch_size}")
        for name in ("lr", "phase_two_decoder", "phase_two_rest", "lr_discriminator", "clip"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, "optim." + name.replace("_", "-"), value,
                     "a finite number, 0 or more")
        _require(0 <= self.phase_one <= 1, "optim.phase-one", self.phase_one, "a share, 0 to 1")
        _require(0 <= self.ema < 1, "optim.ema", self.ema, "[0, 1)")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas,
                 "two numbers in [0, 1)")


@dataclass(kw_only=True)
class Config:
    """A whole run. The flags that scripts use most stand at the top level."""

    preset: str = "quick"
    """the preset that these values started from; recorded, not read"""
    out: str = ""
    """run folder; empty: runs/<preset>. The same command again continues the run"""
    steps: int = 320
    """training steps"""
    seed: int = 0
    """of everything random: data, initial weights, affine maps"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device has fast instructions for it, else float32"""
    tf32: bool = True
    """on a GPU, take float32 products from tensor cores, with 10 bits of mantissa (bfloat16: 7)"""
    compile: bool = False
    """torch.compile the networks (D only without R1): a slow first step, then faster ones"""
    timeout: float = 600.0
    """several processes: seconds that one waits for another before the job ends"""
    evaluate_every: int = 160
    """steps between evaluations with a sample picture; the last step always has one"""
    checkpoint_every: int = 160
    """steps between checkpoints; the last step always has one"""
    keep_checkpoints: int = 2
    """newest checkpoints to keep, at least 2"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.keep_checkpoints >= 2, "keep-checkpoints", self.keep_checkpoints,
                 "at least 2, since the newest may be the one being written")
        for name in ("evaluate_every", "checkpoint_every", "log_every"):
            _require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name),
                     "at least 1")
        _require(0 < self.timeout < math.inf, "timeout", self.timeout, "a positive number")


# Fields that may differ between a run folder and the command that continues it.
FREE_ON_RESUME = frozenset({
    "preset", "out", "device", "compile", "timeout", "evaluate_every", "checkpoint_every",
    "keep_checkpoints", "log_every", "data.root", "data.workers",
})


# By section, the fields that came after the first run folders, and what such a run had.
_LATER = {
    "model": {
        "flow_stride": lambda model: 4,
        "discriminator_sigma": lambda model: model.get("pose_sigma", 6.0),
        "limb_sigma": lambda model: 0.0,
    },
    "loss": {"joint_weight": lambda loss: 0.0, "affine_background": lambda loss: 1.0},
}


def to_dict(config: Config) -> dict:
    """Plain JSON values; tuples become lists."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """The inverse of `to_dict`; unknown or missing keys and wrong types are a `ConfigError`.

    Fields that came after the file was written: see `with_later_fields`.
    """
    return _build(Config, values, prefix="")


def with_later_fields(section: str, values: dict) -> dict:
    """The values of a section ("model"), with the fields that came after they were written as the
    run of then had them."""
    return {name: had(values) for name, had in _LATER.get(section, {}).items()} | values


def _build(cls, values: dict, prefix: str):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix or 'config'} is {values!r}, expected a table of values")
    values = with_later_fields(prefix.rstrip("."), values)
    unknown, missing = values.keys() - fields.keys(), fields.keys() - values.keys()
    if unknown or missing:
        raise ConfigError(
            f"config {prefix or 'file'}: unknown {sorted(unknown)}, missing {sorted(missing)}; "
            "it was written by another version")
    built = {}
    for name, value in values.items():
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            built[name] = _build(kind, value, prefix=f"{prefix}{name}.")
        else:
            built[name] = _typed(kind, value, prefix + name)
    return cls(**built)


def _typed(kind, value, name: str):
    """`value` as the annotation `kind` has it; JSON knows neither tuples nor choices."""
    choices = get_args(kind)
    if get_origin(kind) is Literal and value in choices:
        return value
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        kinds = choices[:1] * len(value) if choices[-1] is ... else choices
        if len(kinds) == len(value):
            return tuple(_typed(*pair, name) for pair in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = kind.__name__ if isinstance(kind, type) and not choices \
            else str(kind).removeprefix("typing.")
        raise ConfigError(f"config {name} is {value!r}, expected {expected}")
    return value


def drift(saved: Config, wanted: Config) -> list[str]:
    """Lines `field: saved -> wanted` for every field that a continued run may not change."""
    return [line for name, line in _changes(saved, wanted) if name not in FREE_ON_RESUME]


def free_changes(saved: Config, wanted: Config) -> list[str]:
    """Lines `field: saved -> wanted` for every field that has changed and may."""
    return [line for name, line in _changes(saved, wanted) if name in FREE_ON_RESUME]


def _changes(saved: Config, wanted: Config) -> list[tuple[str, str]]:
    before, now = _flatten(to_dict(saved)), _flatten(to_dict(wanted))
    return [(name, f"{name}: {before[name]!r} -> {value!r}") for name, value in now.items()
            if before[name] != value]


def _flatten(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
