"""Pictures `[H, W, 3]` uint8 and tensors `[B, 3, H, W]` in [-1, 1]: the conversions."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As `data.pair_loader.View` resizes: bicubic, averaging where it reduces."""
    image = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def to_tensor(picture: np.ndarray, device: torch.device) -> Tensor:
    """`[H, W, 3]` uint8 -> `[1, 3, H, W]` in [-1, 1]."""
    return to_images(torch.from_numpy(picture.copy()).to(device)[None])


def to_images(pictures: Tensor) -> Tensor:
    """`[B, H, W, 3]` uint8 -> `[B, 3, H, W]` in [-1, 1], on the same device."""
    pixels = pictures.permute(0, 3, 1, 2)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_pictures(images: Tensor) -> np.ndarray:
    """`[B, 3, H, W]` in [-1, 1] -> `[B, H, W, 3]` uint8."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
