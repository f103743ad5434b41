"""How images are measured: one recorded protocol per table, because "SSIM" is not one number.

The same pair of images scores .64 to .95 under the SSIM of five published repositories. A
`Protocol` holds everything that such a number depends on, is saved beside it as JSON, and
`prepare` and `compare` do what it says. The presets named after other methods compute what the
evaluation script of their repository computes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from posemodel.evaluation import metrics
from posemodel.evaluation.lpips import Lpips


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How an image is stored before it is measured."""

    kind: str = "float"
    """float (not stored at all), png (8 bits) or jpeg"""
    rounding: str = "round"
    """to 8 bits: round, or truncate (as `astype(uint8)` does)"""
    quality: int | None = None
    """of jpeg, with Pillow's chroma subsampling 4:2:0"""

    def __post_init__(self):
        if self.kind not in ("float", "png", "jpeg") or self.rounding not in ("round", "truncate"):
            raise ValueError(f"no such codec: {self}")
        if (self.quality is not None) != (self.kind == "jpeg"):
            raise ValueError(f"quality belongs to jpeg alone: {self}")


@dataclass(frozen=True, kw_only=True)
class Ssim:
    """A variant of SSIM; see `metrics.structural_similarity`. Channels are averaged."""

    window: str = "gaussian"
    """gaussian or uniform"""
    width: float = 1.5
    """sigma of a gaussian window, side of a uniform one"""
    sample_covariance: bool = False
    data_range: float | str = 255.0
    """on the 0..255 scale; "result": the range of values that the result happens to have"""
    border: str = "crop"
    """crop: only pixels whose window lies in the image; reflect: all pixels"""

    def __call__(self, result: Tensor, target: Tensor) -> Tensor:
        """`[B, 3, H, W]`, `[B, 3, H, W]` on 0..255 -> `[B]`."""
        data_range = self.data_range
        if data_range == "result":
            data_range = result.flatten(1).amax(1) - result.flatten(1).amin(1)
        window = {"sigma": self.width} if self.window == "gaussian" else {"uniform": self.width}
        return metrics.structural_similarity(
            result, target, data_range=data_range, sample_covariance=self.sample_covariance,
            border=self.border, **window)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that the numbers of one table depend on."""

    name: str
    image: str
    """which of the model's images is measured: warped or refined"""
    size: tuple[int, int]
    """(H, W) that images are brought to"""
    fit: str = "stretch"
    """stretch, or crop (scaled to the height, then the middle columns)"""
    resize_filter: str = "bilinear"
    """bilinear or bicubic, antialiased; not used where the size is right already"""
    pad: int = 0
    """white columns added left and right before measuring"""
    result_codec: Codec = Codec()
    target_codec: Codec = Codec()
    ssim: Mapping[str, Ssim]
    """variants by the name of their result"""
    mask_ssim: bool = False
    """also each SSIM of both images times the target's mask, as mask_NAME"""
    l1_range: float | None = None
    """l1 is stated for pixel values of this range; None leaves it out"""
    l1_low: int | None = None
    """also l1 of both images reduced to this many rows by area; enlarging them again by whole
    pixels does not change it"""
    mae: bool = False
    """sum of absolute differences over sum of values"""
    psnr: bool = False
    lpips: tuple[str, ...] = ()
    """nets; input in [-1, 1]"""
    lpips_version: str = "0.1"
    fid_weights: str | None = None
    """a name in `evaluation.fid.FEATURES`; None: no FID"""
    fid_reference: str | None = None
    """the images it compares with"""

    def __post_init__(self):
        if self.image not in ("warped", "refined"):
            raise ValueError(f"protocol {self.name}: image is {self.image!r}; expected warped or "
                             "refined")
        if self.fid_weights is not None and self.image != "refined":
            raise ValueError(f"protocol {self.name}: FID is for refined images only; a warped "
                             "image does not claim to look real")
        if self.fit not in ("stretch", "crop"):
            raise ValueError(f"protocol {self.name}: fit is {self.fit!r}; expected stretch or crop")

    def at(self, size: tuple[int, int]) -> "Protocol":
        """The same for images of another size; its name says so."""
        return self if size == self.size else replace(
            self, name=f"{self.name}-{size[0]}x{size[1]}", size=size)

    def record(self, *, pairs: int, commit: str | None) -> dict:
        """What is saved beside the numbers, ready for JSON; how many images entered a FID is filled
        in when they are known.

        Args:
            pairs: how many pairs are measured.
            commit: the version of this code; None where there is no repository.
        """
        return {**asdict(self), "pairs": pairs, "fid_images": None, "fid_reference_images": None,
                "commit": commit, "channels": "mean over R, G and B", "torch": torch.__version__,
                "pillow": PIL.__version__}


# The SSIM that PATN's tool, GFLA's and CFLD's "ssim_256" share.
_RESULT_RANGE = Ssim(data_range="result")
# GFLA's and CFLD's "ssim": scikit-image's defaults, but a window of 51 pixels.
_WIDE = Ssim(window="uniform", width=51, sample_covariance=True)
_TRUNCATED_JPEG = Codec(kind="jpeg", rounding="truncate", quality=75)

PAPER = Protocol(name="paper", image="warped", size=(256, 256), ssim={"ssim": Ssim()},
                 l1_range=255.0, l1_low=32, lpips=("alex", "vgg"))
"""Table 1 of the paper. It names the metrics; the variant of SSIM is the most common one."""

PATN = Protocol(
    name="patn", image="refined", size=(256, 176), fit="crop", pad=40,
    result_codec=_TRUNCATED_JPEG, target_codec=_TRUNCATED_JPEG, ssim={"ssim": _RESULT_RANGE})
"""`tool/getMetrics_fashion.py`: white borders are added to both before SSIM, which raises it. Its
images are cut from one JPEG strip of five; ours are stored one by one, which differs in the chroma
of the outermost columns only. PCKh is in `evaluation.pckh`."""

MARKET = Protocol(
    name="market", image="refined", size=(128, 64), result_codec=_TRUNCATED_JPEG,
    target_codec=_TRUNCATED_JPEG, ssim={"ssim": _RESULT_RANGE}, mask_ssim=True, l1_range=2.0)
"""`tool/getMetrics_market.py` of PATN; the masks are `poses.mask`'s."""

GFLA = Protocol(name="gfla", image="refined", size=(256, 256), result_codec=_TRUNCATED_JPEG,
                target_codec=Codec(kind="png"), ssim={"ssim": _WIDE, "ssim_256": _RESULT_RANGE},
                l1_range=1.0, mae=True, psnr=True, lpips=("alex",), fid_weights="fid-inception",
                fid_reference="all training images")
"""`script/metrics.py`: results are read back from JPEG files, targets as the data set has them. It
drops the last images that fill no batch of 64 from LPIPS and FID; here all are measured, and FID
enlarges images as TensorFlow does, not as PyTorch does."""

CFLD = Protocol(name="cfld", image="refined", size=(256, 176), resize_filter="bicubic",
                result_codec=Codec(kind="png", rounding="truncate"), target_codec=Codec(kind="png"),
                ssim={"ssim": _WIDE, "ssim_256": _RESULT_RANGE}, psnr=True, lpips=("alex",),
                fid_weights="imagenet-inception", fid_reference="all training images")
"""`models/metrics.py` and `pose_transfer_test.py`. Its FID stands on torchvision's Inception."""

PROTOCOLS = {protocol.name: protocol for protocol in (PAPER, PATN, MARKET, GFLA, CFLD)}


def prepare(images: Tensor, protocol: Protocol, codec: Codec) -> Tensor:
    """Images `[B, 3, H, W]` in [-1, 1] as the protocol sees them: float64 on 0..255."""
    values = (_fit(images, protocol) + 1) / 2 * 255
    values = values.clamp(0, 255)
    if codec.kind != "float":
        values = values.round() if codec.rounding == "round" else values.floor()
    if codec.kind == "jpeg":
        values = torch.stack([_jpeg(image, codec.quality) for image in values]).to(values)
    return F.pad(values.double(), (protocol.pad, protocol.pad), value=255.0)


@torch.no_grad()
def compare(protocol: Protocol, results: Sequence[Tensor], target: Tensor, *,
            masks: Tensor | None = None, lpips: Mapping[str, Lpips] | None = None,
            ) -> list[dict[str, Tensor]]:
    """The protocol's metrics of each pair.

    Everything runs on the device of the images, in float64, but LPIPS.

    Args:
        results, target: images of the same pairs and their one target, `[B, 3, h, w]`, as `prepare`
            returns them.
        masks: `[B, 1, h, w]` bool; without them the masked metrics are left out.
        lpips: networks by their net; those that are not there are left out.

    Raises: `ValueError` for masks of another size. Returns: for each result `[B]` by name.
    """
    rows = [_compare(protocol, result, target, masks) for result in results]
    for net in protocol.lpips:
        if lpips and net in lpips:
            images, wanted = ([(image / 127.5 - 1).float() for image in some]
                              for some in (results, [target]))
            for row, values in zip(rows, lpips[net].distances(images, *wanted), strict=True):
                row[f"lpips_{net}"] = values
    return rows


def _compare(protocol: Protocol, result: Tensor, target: Tensor,
             masks: Tensor | None) -> dict[str, Tensor]:
    """All but LPIPS."""
    values = {name: ssim(result, target) for name, ssim in protocol.ssim.items()}
    if protocol.mask_ssim and masks is not None:
        if masks.shape[-2:] != result.shape[-2:]:
            raise ValueError(f"masks have {tuple(masks.shape[-2:])} pixels, the images of protocol "
                             f"{protocol.name} {tuple(result.shape[-2:])}")
        values |= {f"mask_{name}": ssim(result * masks, target * masks)
                   for name, ssim in protocol.ssim.items()}
    if protocol.l1_range is not None:
        l1 = partial(metrics.l1, result, target, scale=protocol.l1_range / 255)
        values["l1"] = l1()
        if protocol.l1_low is not None:
            values[f"l1_{protocol.l1_low}"] = l1(rows=protocol.l1_low)
    if protocol.mae:
        values["mae"] = metrics.mae(result, target)
    if protocol.psnr:
        values["psnr"] = metrics.psnr(result, target, data_range=255.0)
    return values


def _fit(images: Tensor, protocol: Protocol) -> Tensor:
    images, (height, width) = images.float(), protocol.size
    scaled = width
    if protocol.fit == "crop":
        scaled = round(images.shape[-1] * height / images.shape[-2])
        if scaled < width:
            raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} are too narrow "
                             f"to be cropped to {height} x {width}")
    if images.shape[-2:] != (height, scaled):
        images = F.interpolate(images, size=(height, scaled), mode=protocol.resize_filter,
                               antialias=True)
    left = (scaled - width) // 2
    return images[..., left:left + width]


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """`[3, H, W]` of whole numbers 0..255, written and read back."""
    pixels = image.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    with Image.open(buffer) as stored:
        return torch.from_numpy(np.array(stored)).permute(2, 0, 1)
