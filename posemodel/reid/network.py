"""The baseline network: a ResNet with the "BNNeck" of Luo et al., "Bag of tricks and a strong
baseline for deep person re-identification" (CVPR workshops 2019)."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from posemodel.runtime.backbones import RESNETS
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import check_hash, read_weights, tensors_sha256

# Blocks of each backbone. resnet10 is for experiments on a CPU; it has no published weights.
_BLOCKS = {"resnet50": (Bottleneck, [3, 4, 6, 3]), "resnet18": (BasicBlock, [2, 2, 2, 2]),
           "resnet10": (BasicBlock, [1, 1, 1, 1])}

# Of the images that the published weights were trained on.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class ReidNetwork(nn.Module):
    """Images to a feature for distances and, in training, one for classes.

    The last stage keeps its resolution (stride 1). A BatchNorm without shift separates the feature
    that the triplet loss sees (before it) from the one that classes and ranking see (after it).
    """

    def __init__(self, *, backbone: str, identities: int):
        super().__init__()
        block, counts = _BLOCKS[backbone]
        self.backbone = ResNet(block, counts)
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        _keep_resolution(self.backbone.layer4[0])
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classes = nn.Linear(width, identities, bias=False)
        nn.init.normal_(self.classes.weight, std=0.001)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1) * 255,
                             persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, W, 3]` uint8 -> features before and after the neck, both `[B, C]` float32."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        before = self.backbone(images.contiguous(memory_format=torch.channels_last)).float()
        return before, self.neck(before)


def _keep_resolution(block: nn.Module) -> None:
    convolution = block.conv2 if isinstance(block, Bottleneck) else block.conv1
    convolution.stride = (1, 1)
    block.downsample[0].stride = (1, 1)


def load_imagenet(network: ReidNetwork, backbone: str, weights: str) -> str:
    """Start from ImageNet weights.

    Args:
        weights: "auto": from the folder of `POSEMODEL_WEIGHTS` or torch hub's cache, if they are
            there; "none"; else a folder to look into first, or a file of torchvision's weights of
            this backbone.

    Returns: what was done, a line to print.

    Raises: `UserError` for a file with other weights, or a folder without them.
    """
    if weights == "none":
        return "from scratch, as asked"
    if weights == "auto" or Path(weights).is_dir():
        folder = "" if weights == "auto" else weights
        if backbone not in RESNETS:
            return f"from scratch: {backbone} has no published weights"
        missing = RESNETS[backbone].missing(folder)
        if missing and folder:
            raise UserError(f"--weights {folder}: {missing}")
        if missing:
            return f"from scratch: {missing}"
        path = RESNETS[backbone].find(folder)
    else:
        path = Path(weights)
        if path.is_file():
            check_hash(path, str(path))
    state = {name: tensor for name, tensor in read_weights(path).items()
             if not name.startswith("fc.")}
    try:
        network.backbone.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not torchvision's weights of {backbone} "
                        f"({str(error).splitlines()[-1].strip()})") from error
    return (f"from the ImageNet weights {path} (SHA-256 of their tensors "
            f"{tensors_sha256(state)}; torchvision {torchvision.__version__})")


def batch_hard_triplet(features: Tensor, persons: Tensor, margin: float) -> Tensor:
    """Triplet loss with the hardest positive and negative of the batch (Hermans et al. 2017,
    "In defense of the triplet loss", Eq. 5), a mean over the batch.

    Args:
        features: `[B, C]`; distances are Euclidean.
        persons: `[B]` int64, each identity at least twice, at least two identities.
    """
    square = features.square().sum(1)
    distances = square[:, None] + square - 2 * features @ features.T
    distances = distances.clamp_min(1e-12).sqrt()
    same = persons[:, None] == persons
    hardest_positive = distances.where(same, -torch.inf).amax(1)
    hardest_negative = distances.where(~same, torch.inf).amin(1)
    return (margin + hardest_positive - hardest_negative).clamp_min(0).mean()
