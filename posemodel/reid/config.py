"""What a re-identification baseline is made of; without torch, so that `--help` answers at once."""

from dataclasses import dataclass, field

from posemodel.runtime.errors import UserError

BACKBONES = ("resnet50", "resnet18", "resnet10")


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Raises: `UserError` that names the flag, where the condition does not hold."""
    if not condition:
        raise UserError(f"--{flag} {value}: expected {expected}")


def _flag(default, metavar: str, meaning: str):
    return field(default=default, metadata={"metavar": metavar, "help": meaning})


@dataclass(frozen=True, kw_only=True)
class ReidConfig:
    """A baseline; the defaults are those of Luo et al. for Market-1501. Each field is a flag of
    `train`."""

    root: str
    augmented: str = _flag("", "DIR", "folder of augment; none: real images only")
    backbone: str = _flag("resnet50", "NAME", "resnet50, resnet18, or resnet10 for a CPU")
    weights: str = _flag("auto", "DIR|FILE", "ImageNet weights of the backbone, in a folder or a "
                         "file; auto: from the folder of the variable POSEMODEL_WEIGHTS or torch "
                         "hub's cache, if there; none: from scratch")
    image_size: tuple[int, int] = _flag((256, 128), ("HEIGHT", "WIDTH"), "")
    batch_identities: int = _flag(16, "P", "")
    batch_images: int = _flag(4, "K", "of each identity of a batch")
    generated_share: float = _flag(0.5, "X", "of a batch, where there are generated images")
    max_images: int = _flag(0, "N", "real images of each identity, spread over the cameras; 0: all")
    max_poses: int = _flag(0, "N", "generated images of each real one; 0: all")
    steps: int = _flag(24_000, "N", "about 120 epochs of Market-1501")
    lr: float = _flag(3.5e-4, "X", "")
    label_smoothing: float = _flag(0.1, "X", "")
    margin: float = _flag(0.3, "X", "of the triplet loss")
    erase: float = _flag(0.5, "X", "share of images with a random rectangle erased "
                         "(Zhong et al. 2020)")

    def __post_init__(self):
        require(self.backbone in BACKBONES, "backbone", self.backbone, ", ".join(BACKBONES))
        for flag, value in (("steps", self.steps), ("lr", self.lr)):
            require(value > 0, flag, value, "more than 0")
        for flag, value in (("generated-share", self.generated_share), ("erase", self.erase),
                            ("label-smoothing", self.label_smoothing)):
            require(0 <= value <= 1, flag, value, "a share, 0 to 1")
        for flag, value in (("max-images", self.max_images), ("max-poses", self.max_poses),
                            ("margin", self.margin)):
            require(value >= 0, flag, value, "0 or more")
        require(len(self.image_size) == 2 and min(self.image_size) >= 32, "image-size",
                self.image_size, "height and width, at least 32")
