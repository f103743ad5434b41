"""What a run is made of: five small dataclasses, checked when they are made.

This module imports nothing heavy, so that `--help` and a misspelt flag are answered at once.
What the paper leaves open is a field here where it can be chosen; what the defaults rest on says
`docs/experiments.md`. The paper's own numbers are the `paper` preset (`presets.py`), which
`docs/paper.md` compares with the paper statement by statement.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from posemodel.runtime.errors import UserError

#: Kinds of data set: generated people, and those on disk (`data.layouts` has a file on each), of
#: which some have images with white borders.
GENERATED = "mannequins"
ON_DISK = ("deepfashion", "market", "film")
WITH_BORDERS = ("deepfashion",)
KINDS = (GENERATED, *ON_DISK)

# Pixels of an image up to which `model.flow_stride` 0 means 2, a grid of 32 x 32.
_FINE_PIXELS = 64 * 64


def _require(values: object, name: str, condition: bool, expected: str) -> None:
    """Where the condition does not hold, a `UserError` that names the field's flag."""
    if not condition:
        flag = f"{values.section}{name}".replace("_", "-")
        raise UserError(f"--{flag} is {getattr(values, name)!r}, expected {expected}")


def _require_numbers(values: object, *names: str) -> None:
    for name in names:
        _require(values, name, 0 <= getattr(values, name) < math.inf, "a finite number, 0 or more")


@dataclass(kw_only=True)
class DataConfig:
    """Where the pairs come from."""

    section = "data."

    kind: Literal[KINDS] = GENERATED
    """mannequins: generated people with exact flow and visibility; else a data set on disk"""
    root: str = ""
    """folder of the data set on disk"""
    image_size: tuple[int, int] = (64, 64)
    """height and width in pixels"""
    fit: Literal["pad", "stretch"] = "pad"
    """deepfashion in a square: with its white borders, or the columns in between stretched"""
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
    background: Literal["white", "cluttered", "still"] = "white"
    """what stands behind the mannequins: white; cluttered, another in each view; still, clutter or
    white that is the same in both views, and the moved person is laid over it"""
    hidden_joints: Literal["keep", "drop"] = "keep"
    """drop: occluded joints are missing, as a pose estimator would miss them"""
    evaluation_pairs: int = 256
    """validation or test pairs: generated from seeds that training never uses, or spread evenly
    over the list of a data set on disk"""

    def __post_init__(self):
        height, width = self.image_size
        _require(self, "image_size", min(height, width) >= 32 and height % 4 == width % 4 == 0,
                 "two multiples of 4, at least 32")
        _require(self, "turn", 0 <= self.turn <= 180, "degrees from 0 to 180")
        _require(self, "evaluation_pairs", self.evaluation_pairs >= 1, "at least 1")
        _require(self, "pairs_per_epoch", self.pairs_per_epoch >= 0, "0 or more")
        _require(self, "workers", self.workers >= 0, "0 or more")
        _require(self, "rotate", 0 <= self.rotate < 90, "degrees, less than 90")
        _require(self, "scale", 0 <= self.scale < 1, "[0, 1)")
        _require(self, "shift", 0 <= self.shift < 1, "[0, 1)")
        for name in ("root", "pairs_per_epoch", "flip", "rotate", "scale", "shift"):
            _require(self, name, not (self.generated and getattr(self, name)),
                     f"--data.kind {' or '.join(ON_DISK)} with it")
        _require(self, "fit", self.fit == "pad" or self.kind in WITH_BORDERS,
                 f"pad, but for --data.kind {' or '.join(WITH_BORDERS)}, whose images have white "
                 "borders")

    @property
    def generated(self) -> bool:
        """Whether the pairs are made as they are needed, with true flow and visibility."""
        return self.kind == GENERATED


@dataclass(kw_only=True)
class ModelConfig:
    """The networks: M (pose encoder), C_l (flow head), R (refinement), D (discriminator)."""

    section = "model."

    flow: Literal["ours", "fomm", "mraa", "tpsmm", "gfla32", "gfla64"] = "ours"
    """what estimates the flow: M and C_l, or a method of Table 1 driven by the same key points; for
    images of 256 pixels and more in the sizes of its own paper"""
    motion_input: Literal["keypoints", "keypoints+image"] = "keypoints"
    """what such a method sees: two poses, as ours, or also the source image"""
    flow_stride: int = 0
    """image pixels in a row of a cell of the flow's grid, 2 or 4 (the paper's); 0: 2 for images of
    up to 64 x 64 pixels, where a limb is hardly wider than 4, else 4. Of all methods but gfla"""
    pose_sigma: float = 12.0
    """M: Gaussian of a joint, in pixels of an image 256 pixels high (6 in PATN's data); 0: a dot"""
    limb_sigma: float = 10.0
    """M: Gaussian of a limb, in the unit of pose_sigma, in further maps that say where along and
    across each limb a position is; 0: joints alone (the paper)"""
    encoder_channels: tuple[int, ...] = (24, 48, 48, 48, 48, 48)
    """M: width of each hidden layer, of which the first one or two halve the resolution, as often
    as the stride asks; one more layer follows"""
    feature_channels: int = 64
    """m, the length of M's feature vectors (35 in the paper)"""
    feature_norm: Literal["location", "channel", "none"] = "location"
    """which vectors of M's output get unit length; the paper allows two readings"""
    flow_depth: int = 6
    """C_l: number of conv layers, 1 to 6 (Table 2 of the paper)"""
    flow_channels: tuple[int, ...] = (32, 32, 32, 32, 32)
    """C_l: widths of the hidden layers, the last flow_depth - 1 of which are used (128, 128, 96,
    64, 32 in the paper)"""
    head_kernel: Literal[1, 3] = 1
    """C_l: rows and columns of the window of its first layer; with 1 it reads of the map what is
    said of its own position alone, with a ninth of the products of 3 (the paper does not say)"""
    flow_parametrization: Literal["residual", "absolute", "matching", "filled"] = "filled"
    """what is added to C_l's output: the identity; nothing; the expected match under Qhat; or that
    match where it is certain, continued to where it is not"""
    stream: Literal["auto", "always", "never"] = "auto"
    """make the 4D map in bands and never store it, the same flow to within rounding; auto: for
    grids of 64 x 64 and more. With a head_kernel of 1 it never is"""
    refine: Literal["posed", "detail", "paper", "none"] = "posed"
    """R. detail: features of the source at several scales, all warped, correct the warped source;
    posed: the same, and R sees the limbs of the target pose; paper: features of the coarsest scale,
    warped, become the image; none: the image is the warped source (Table 3)"""
    refine_width: int = 16
    """R: channels at full resolution; each down-sampling doubles them"""
    refine_downsamplings: int = 2
    """R: how often the resolution is halved, 0 to 2 (2 in the paper)"""
    refine_blocks: int = 2
    """R: convolutions at the coarsest scale, of the paper's R residual blocks (6 in the paper)"""
    skip: bool = False
    """the paper's R: its decoder also sees the warped image at every scale (Appendix E)"""
    discriminator_width: int = 16
    """D: channels of its first layer"""
    discriminator_layers: int = 3
    """D: number of down-sampling layers"""

    def __post_init__(self):
        for name in ("pose_sigma", "limb_sigma"):
            _require(self, name, getattr(self, name) >= 0, "a number, 0 or more")
        _require(self, "flow_stride", self.flow_stride in (0, 2, 4), "0, 2 or 4")
        _require(self, "encoder_channels", len(self.encoder_channels) >= 2, "at least two widths")
        _require(self, "flow_depth", 1 <= self.flow_depth <= 6, "1 to 6")
        _require(self, "flow_channels", len(self.flow_channels) >= self.flow_depth - 1,
                 f"at least flow-depth - 1 = {self.flow_depth - 1} widths")
        least = min(*self.encoder_channels, self.feature_channels, *self.flow_channels,
                    self.refine_width, self.discriminator_width, self.discriminator_layers)
        if least < 1:
            raise UserError(f"--model is {least}, expected widths and depths of at least 1")
        _require(self, "refine_downsamplings", self.refine_downsamplings in (0, 1, 2), "0, 1 or 2")
        _require(self, "refine_downsamplings",
                 self.refine != "paper" or self.refine_downsamplings > 0,
                 "1 or 2 with --model.refine paper, whose encoder has no other layers")
        _require(self, "refine_blocks", self.refine_blocks >= 0, "0 or more")
        _require(self, "motion_input", self.flow != "ours" or self.motion_input == "keypoints",
                 "keypoints: only with another --model.flow than ours")
        _require(self, "skip", self.refine == "paper" or not self.skip,
                 "no skip connections but with --model.refine paper")

    def stride(self, image_size: tuple[int, int]) -> int:
        """Pixels in a row of a cell of the flow's grid, for images of (H, W)."""
        return self.flow_stride or (2 if math.prod(image_size) <= _FINE_PIXELS else 4)


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised, and how much of each."""

    section = "loss."

    reconstruction: Literal["pyramid", "vgg16", "vgg16-features", "vgg16-paper",
                            "vgg19"] = "pyramid"
    """pyramid: l1 at four resolutions, no network; vgg16: the same plus l1 of VGG-16 features at
    two; vgg19: the paper's, l1 of VGG-19 features at four; vgg16-paper: that on VGG-16;
    vgg16-features: pyramid, and VGG-16 where a method of Table 1 has a loss on features. All but
    pyramid need ImageNet weights"""
    weights_folder: str = ""
    """folder of published weights, for this loss and LPIPS; looked into before that of the variable
    POSEMODEL_WEIGHTS, torch hub's cache and a download"""
    reconstruction_weight: float = 1.0
    """weight of the reconstruction loss on the refined image (Eq. 5)"""
    warped_weight: float = 1.0
    """weight of the same loss on the warped source itself (0 in the paper)"""
    affine_weight: float = 1.0
    """lambda_2, weight of the affine preserving loss (Eq. 7)"""
    affine_norm: Literal["mean", "cells"] = "mean"
    """mean: over the positions, in coordinates of [-1, 1], whatever the grid; cells: the norm as
    the paper prints it, the sum over the positions, in cells of the flow's grid (s_f runs over
    1..h_1)"""
    joint_weight: float = 1.0
    """weight, in phase one, of the distance at each joint between the flow and that joint of the
    source (0 in the paper, and for a method of Table 1 where a command does not say otherwise)"""
    affine_background: float = 0.1
    """weight in Eq. 7 of a position away from the person, where one on a limb has 1 (1 in the
    paper)"""
    adversarial: Literal["lsgan", "hinge", "nonsaturating", "paper"] = "lsgan"
    """form of Eq. 6; paper: as printed, E[1 - D(y)] + E[D(I_t)], which has no lower bound"""
    adversarial_weight: float = 0.0
    """lambda_1, weight of the adversarial loss (0.1 in the paper)"""
    feature_matching_weight: float = 0.0
    """weight of the l1 between D's features of generated and real image, summed over its layers,
    where there is an adversarial loss (10 times its weight in the FOMM family, 0 in the paper)"""
    r1_weight: float = 0.0
    """weight of R1, half the squared gradient of D at real images (0 in the paper)"""

    def __post_init__(self):
        _require_numbers(self, *(name for name in vars(self) if name.endswith("_weight")))
        _require(self, "affine_background", 0 <= self.affine_background <= 1, "[0, 1]")


@dataclass(kw_only=True)
class OptimConfig:
    """How it is minimised."""

    section = "optim."

    batch_size: int = 8
    """pairs in a step, over all processes"""
    accumulate: int = 1
    """parts that a step's batch is worked through in, for less memory: the same gradient, but
    BatchNorm sees one part at a time"""
    tasks: Literal["alternate", "joint", "lazy"] = "joint"
    """alternate: affine and reconstruction task take turns (the paper); joint: their sum; lazy:
    their sum in every other step, with twice the affine weight, and in between reconstruction"""
    lr: float = 1e-3
    """Adam's learning rate"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """course of the learning rates over the run: cosine, after a warm-up of 2 %; constant"""
    milestones: tuple[float, ...] = ()
    """shares of the steps, after each of which the learning rates are a tenth of before"""
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
        _require(self, "batch_size", self.batch_size >= 1, "at least 1")
        _require(self, "accumulate", 1 <= self.accumulate <= self.batch_size,
                 f"1 to the batch size, {self.batch_size}")
        _require_numbers(self, "lr", "phase_two_decoder", "phase_two_rest", "lr_discriminator",
                         "clip")
        _require(self, "phase_one", 0 <= self.phase_one <= 1, "a share, 0 to 1")
        _require(self, "ema", 0 <= self.ema < 1, "[0, 1)")
        _require(self, "milestones", all(0 <= share <= 1 for share in self.milestones),
                 "shares, 0 to 1")
        _require(self, "betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")


@dataclass(kw_only=True)
class Config:
    """A whole run. The flags that scripts use most stand at the top level."""

    section = ""

    preset: str = "quick"
    """the preset that these values started from; recorded, not read"""
    out: str = ""
    """run folder; empty: runs/<preset>. The same command again continues the run"""
    init: str = ""
    """run folder, or file of posemodel.export, whose weights a new run starts from: M, C_l and R,
    each where its shapes are the same; shipped: the package's model; empty: random ones"""
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
    """seconds that a process waits for another one, of the job or one that decodes images, before
    the job ends"""
    evaluate_every: int = 160
    """steps between evaluations with a sample picture; the last step always has one"""
    checkpoint_every: int = 160
    """steps between checkpoints; the last step always has one"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        for name in ("steps", "evaluate_every", "checkpoint_every", "log_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "timeout", 0 < self.timeout < math.inf, "a positive number")

    @property
    def course_depends_on_steps(self) -> bool:
        """Whether a step does something else where more steps are to follow."""
        optim = self.optim
        phases = self.loss.adversarial_weight or {optim.phase_two_decoder,
                                                  optim.phase_two_rest} != {1.0}
        # TPSMM leaves splines out in the first part of a run.
        return (optim.schedule != "constant" or bool(optim.milestones)
                or self.model.flow == "tpsmm"
                or bool(phases) and 0 < optim.phase_one < 1)

    @property
    def flow_positions(self) -> int:
        """Positions of the flow's grid."""
        size = self.data.image_size
        return math.prod(size) // self.model.stride(size) ** 2
