"""LPIPS, where its weights are at hand."""

from pathlib import Path

import torch
from torch import Tensor

from posemodel.errors import UserError

# The backbone that each net of the `lpips` package asks torchvision for.
BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class Lpips:
    """The learned perceptual metric of Zhang et al. (version 0.1), one value per pair."""

    def __init__(self, net: str, device: torch.device):
        """Uses torch hub's cache, else downloads the backbone.

        Raises: `UserError`, one line, when neither the package nor the weights can be had.
        """
        try:
            import lpips
        except ImportError as error:
            raise UserError("LPIPS needs the package lpips: pip install -e '.[eval]'") from error
        try:
            self.network = lpips.LPIPS(net=net, version="0.1", verbose=False).to(device)
        except OSError as error:
            raise UserError(
                f"LPIPS needs {BACKBONES[net]}: not in {cache_folder()}, and the download failed "
                f"({error})") from error
        self.network.requires_grad_(False)

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two images `[B, 3, H, W]` in [-1, 1] -> `[B]`."""
        return self.network(image, target).flatten()


def cache_folder() -> Path:
    """Where torch hub keeps weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def missing(net: str) -> str:
    """Why LPIPS cannot be had without a download; empty if it can."""
    try:
        import lpips  # noqa: F401
    except ImportError:
        return "the package lpips is not installed (pip install -e '.[eval]')"
    if not (cache_folder() / BACKBONES[net]).is_file():
        return f"no {BACKBONES[net]} in {cache_folder()} (--lpips {net} downloads it)"
    return ""
