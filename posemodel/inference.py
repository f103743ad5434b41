"""A trained model in a program of your own: a photograph, its pose, new poses, the pictures.

Convention: pictures are numpy `[H, W, 3]` uint8, RGB. Joints are `[18, 3]`, (x, y, presence), in
pixels, 0 = centre of the first pixel. The *view* is what the model sees of a picture, in the one
size that it was trained for. The *frame* is the whole picture.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

import pose_kernels
from posemodel import visibility as visibility_scores
from posemodel.config import Config, ConfigError, from_dict, to_dict, with_later_fields
from posemodel.data.keypoints import JOINTS, pixels_to_normalized
from posemodel.engine import checkpoint
from posemodel.engine.environment import choose_device
from posemodel.errors import UserError
from posemodel.model.pose_transfer import PoseTransfer, Transfer, build_generator
from posemodel.model.warping import WarpingNetwork

FITS = ("person", "frame")
MEASURES = ("affine", "cycle", "peak", "correlation")
_OF_CORRELATION = {"peak", "correlation"}

#: Around the joints, as a share of the longer side of their box: for hair, hands and feet. A person
#: who stands then fills about as much of the view as in training.
_MARGIN = 0.14
#: A person who needs less of the frame than this is small in it, and gets a crop.
_SMALL = 0.7
#: DeepFashion's people stand in the middle 176 of 256 columns, which `data.fit stretch` widens.
_STRETCHED_ASPECT = 176 / 256
#: Distance from locally affine, in cells of the flow's grid, at which visibility is 1 / e.
_AFFINE_UNIT = 0.1
#: Source positions worked on at a time when a row of the correlation map is made.
_BAND = 1024


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle in whole pixels of a frame; it may reach beyond the edges."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """These pixels of a picture `[H, W, 3]`; beyond its edges they are repeated."""
        rows = np.arange(self.top, self.top + self.height).clip(0, picture.shape[0] - 1)
        columns = np.arange(self.left, self.left + self.width).clip(0, picture.shape[1] - 1)
        return picture[rows][:, columns]

    def place(self, part: np.ndarray, frame: np.ndarray) -> None:
        """Write `[height, width, ...]` at this place of a frame; what is beyond it is dropped."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.height, frame.shape[0])
        right = min(self.left + self.width, frame.shape[1])
        frame[top:bottom, left:right] = part[top - self.top : bottom - self.top,
                                             left - self.left : right - self.left]

    def normalized(self, pose: np.ndarray) -> Tensor:
        """Joints `[18, 3]` in pixels of the frame -> normalised coordinates of this rectangle;
        those outside of it are missing."""
        pixels = torch.from_numpy(pose - np.float32([self.left, self.top, 0]))
        inside = pixels_to_normalized(pixels, (self.height, self.width))
        return inside * (inside[:, :2].abs() <= 1).all(1, keepdim=True)


def find_crop(pose: np.ndarray, frame: tuple[int, int], aspect: float, fit: str) -> Crop:
    """The part of a frame that the model is shown.

    Args:
        pose: `[18, 3]` in pixels.
        frame: (H, W).
        aspect: width to height of the crop.
        fit: "frame": the smallest crop that holds the whole frame. "person": of a person who is
            small in it the box of the joints with a margin, since models are trained on people who
            fill the picture; moved to lie inside of the frame where it can.
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: expected one of {', '.join(FITS)}")
    height, width = frame
    whole = _crop(((width - 1) / 2, (height - 1) / 2), max(height, width / aspect), aspect)
    xy = pose[pose[:, 2] > 0, :2]
    if fit == "frame" or not len(xy):
        return whole
    # Joints that are guessed beyond the edge shall not make the person small.
    xy = xy.clip(0, (width - 1, height - 1))
    low, high = xy.min(0), xy.max(0)
    across, down = high - low + 2 * _MARGIN * (high - low).max()
    side = max(down, across / aspect)
    if side > _SMALL * whole.height or side < 2:
        return whole
    crop = _crop((low + high) / 2, side, aspect)
    return Crop(left=_inside(crop.left, crop.width, width),
                top=_inside(crop.top, crop.height, height), width=crop.width, height=crop.height)


class PoseTransferModel:
    """A generator with its weights, and what is needed to use it on any picture.

    The model was trained for one size. A picture is cut to that shape around the person
    (`find_crop`), beyond its edges they are repeated, and it is resized; results come back in the
    pixels of the frame. Nothing is trained here, and no file is ever unpickled.

    >>> from posemodel.data.images import read_image
    >>> from posemodel.data.keypoint_formats import read_poses
    >>> from posemodel.inference import PoseTransferModel
    >>> model = PoseTransferModel.from_run("runs/quick")
    >>> photo = read_image("person.jpg")
    >>> pose = read_poses("person.json")[0].joints
    >>> lower = pose + np.float32([0, 5, 0])        # another pose: the same, 5 pixels lower
    >>> result = model.transfer(photo, pose, [lower])
    >>> result.refined(0).shape == photo.shape      # the person in the new pose
    True
    >>> x, y = result.locations(0)[:, 40, 30]       # where pixel (30, 40) looks into the photo
    """

    def __init__(self, generator: PoseTransfer, *, config: Config, name: str,
                 metadata: dict[str, str], device: torch.device):
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.config, self.device = config, device
        self.name = name
        """what it was made from, for people: a run folder, a file"""
        self.metadata = metadata
        """what the file of weights states: "step", "about", "config" of the training as JSON"""
        self.step = int(metadata.get("step", 0))
        """training steps behind it"""
        self.about = metadata.get("about", "")
        """what its maker says about it; may be empty"""

    @classmethod
    def from_run(cls, path: str | Path, device: str = "auto") -> "PoseTransferModel":
        """The averaged weights of a run folder's newest valid checkpoint.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", ...

        Raises: `UserError`, also for a run that has no checkpoint yet.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is no run folder: it has no config.json")
        found = checkpoint.load_latest(path / "checkpoints")
        if found is None:
            raise UserError(f"{path} has no checkpoint yet; train it first")
        for line in found.skipped:
            print(f"warning: {line}", file=sys.stderr)
        model = cls.from_file(found.path / "averaged.safetensors", device)
        model.name = str(path)
        return model

    @classmethod
    def from_file(cls, path: str | Path, device: str = "auto") -> "PoseTransferModel":
        """A file of `posemodel.export`, or averaged.safetensors of a checkpoint.

        Fields of the model's configuration that the file does not have, since it is older than
        they are, have what such a model had (`config.with_later_fields`), else their defaults.

        Raises: `UserError`.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: no readable safetensors file ({error})") from error
        if "config" not in metadata:
            raise UserError(f"{path} has no configuration in it; files of posemodel.export and "
                            "averaged.safetensors of a checkpoint have one")
        config = _read_config(metadata, path)
        generator = build_generator(config.model, config.data.image_size)
        try:
            generator.load_state_dict(weights)
        except RuntimeError as error:
            # torch names every tensor, over many lines.
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(f"{path}: the weights are not those of its configuration ({reason})"
                            ) from error
        return cls(generator, config=config, name=str(path), metadata=metadata,
                   device=choose_device(device)[0])

    @classmethod
    def shipped(cls, device: str = "auto") -> "PoseTransferModel":
        """The small model that comes with the package; `about` says what it is good for.

        Raises: `UserError` where the installation has none.
        """
        folder = Path(str(resources.files("posemodel") / "pretrained"))
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError("no model comes with this installation; train one with "
                            "python -m posemodel.train and give its run folder")
        model = cls.from_file(files[0], device)
        model.name = f"the model of this package ({files[0].stem})"
        return model

    @classmethod
    def choose(cls, run: str | Path | None, device: str = "auto", *,
               runs: str | Path = "runs") -> "PoseTransferModel":
        """What the commands use: `run`, a run folder or a safetensors file, if it is given; else
        the newest run in the folder `runs`; else the model of the package."""
        chosen = newest_run(runs) if run is None else Path(run)
        if chosen is None:
            return cls.shipped(device)
        return cls.from_file(chosen, device) if chosen.is_file() else cls.from_run(chosen, device)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the view."""
        return self.config.data.image_size

    @property
    def aspect(self) -> float:
        """Width to height of what the view shows."""
        if self.config.data.fit == "stretch":
            return _STRETCHED_ASPECT
        return self.size[1] / self.size[0]

    @property
    def has_correlation(self) -> bool:
        """False for a method of Table 1 in the place of ours."""
        return isinstance(self.generator.warping, WarpingNetwork)

    def require_correlation(self) -> None:
        """Raises: `UserError` where there is no correlation map to look at."""
        if not self.has_correlation:
            raise UserError(f"{self.name} has no correlation map: its flow is that of "
                            f"{self.config.model.flow}")

    @torch.inference_mode()
    def transfer(self, image: np.ndarray, source_pose: np.ndarray,
                 target_poses: Sequence[np.ndarray] | np.ndarray, *,
                 target_size: tuple[int, int] | None = None, fit: str = "person",
                 measures: Sequence[str] = ("affine",), batch_size: int = 8) -> "TransferResult":
        """One person in new poses.

        Args:
            image: the person, `[H, W, 3]` uint8.
            source_pose: their joints, `[18, 3]` in pixels of `image`.
            target_poses: `[N, 18, 3]` in pixels of the target frame.
            target_size: (H, W) of the target frame; None: as the image.
            fit: "person" or "frame", see `find_crop`; each pose has a crop of its own.
            measures: of visibility, any of "affine", "cycle", "peak", "correlation"
                (`posemodel.visibility`). The first costs nothing; the last two exist where there
                is a correlation (`has_correlation`).
            batch_size: poses that are worked on at a time.

        Raises: `UserError` for a pose without a joint in its picture; `ValueError` for arrays of
            the wrong shape or type.
        """
        start = time.perf_counter()
        _check_image(image)
        poses = [_checked_pose(pose) for pose in [source_pose, *target_poses]]
        unknown = set(measures) - set(MEASURES)
        if unknown:
            raise ValueError(f"measures {sorted(unknown)}: expected any of {', '.join(MEASURES)}")
        if _OF_CORRELATION & set(measures):
            self.require_correlation()
        frame = tuple(target_size or image.shape[:2])
        crops = [find_crop(pose, image.shape[:2] if index == 0 else frame, self.aspect, fit)
                 for index, pose in enumerate(poses)]
        normalized = torch.stack(
            [crop.normalized(pose) for crop, pose in zip(crops, poses, strict=True)])
        for index, pose in enumerate(normalized):
            if not pose[:, 2].any():
                who = "the source pose" if index == 0 else f"target pose {index - 1}"
                raise UserError(f"{who} has no joint inside of its picture")
        source = crops[0].cut(image)
        view = _resized(source, self.size)
        seconds = {"prepare": time.perf_counter() - start, "flow": 0.0, "refine": 0.0,
                   "visibility": 0.0}
        tensor = _to_tensor(view, self.device)
        parts = [self._batch(tensor, normalized[0], batch, measures, seconds)
                 for batch in normalized[1:].split(batch_size)]
        seconds["total"] = time.perf_counter() - start
        return TransferResult(
            model=self, frame=frame, source_frame=tuple(image.shape[:2]), source=source,
            source_crop=crops[0], target_crops=crops[1:], source_view=view,
            refined_view=np.concatenate([part[0] for part in parts]),
            warped_view=np.concatenate([part[1] for part in parts]),
            coarse_flow=np.concatenate([part[2] for part in parts]),
            visibility={name: np.concatenate([part[3][name] for part in parts])
                        for name in measures},
            source_pose=normalized[0], target_poses=normalized[1:], seconds=seconds)

    def _batch(self, view: Tensor, source_pose: Tensor, targets: Tensor, measures: Sequence[str],
               seconds: dict[str, float]) -> tuple:
        """Refined and warped views, coarse flow and visibility of some targets."""
        clock = _Clock(self.device, seconds)
        targets = targets.to(self.device)
        source_pose = source_pose.to(self.device).expand_as(targets)
        view = view.expand(len(targets), -1, -1, -1)
        flow = self.generator.flow(view, source_pose, targets)
        clock.stop("flow")
        transfer = self.generator.transfer(view, flow)
        pictures = [_to_pictures(images) for images in (transfer.image, transfer.warped)]
        clock.stop("refine")
        found = self._visibility(transfer, source_pose, targets, measures)
        at = pose_kernels.identity_flow(*self.size, device=flow.device).expand(
            len(flow), -1, -1, -1)
        fine = {name: pose_kernels.flow_sample(score, at, self.size)[:, 0].clamp(0, 1).cpu().numpy()
                for name, score in found.items()}
        clock.stop("visibility")
        return *pictures, flow.cpu().numpy(), fine

    def _visibility(self, transfer: Transfer, source_pose: Tensor, targets: Tensor,
                    measures: Sequence[str]) -> dict[str, Tensor]:
        """Each measure on a scale of 0 to 1, `[B, 1, h, w]`."""
        found = {}
        if "affine" in measures:
            found["affine"] = (visibility_scores.affine_score(transfer.flow) / _AFFINE_UNIT).exp()
        if "cycle" in measures:
            # A method that looks at the image starts the way back from the one that it made.
            backward = self.generator.flow(transfer.image, targets, source_pose)
            found["cycle"] = visibility_scores.cycle_score(transfer.flow, backward).exp()
        if _OF_CORRELATION & set(measures):
            features = self.generator.warping.encode(source_pose, targets)
            if "peak" in measures:
                guided = self.generator.warping.match(*features)
                found["peak"] = visibility_scores.peak_score(guided)
            if "correlation" in measures:
                found["correlation"] = visibility_scores.correlation_score(*features)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferResult:
    """One person in N poses. What ends in `_view` is as the model saw or made it; `refined`,
    `warped` and `locations` give the same in the pixels of the target frame."""

    model: PoseTransferModel
    frame: tuple[int, int]
    """(H, W) of the target frame"""
    source_frame: tuple[int, int]
    """(H, W) of the source image"""
    source: np.ndarray
    """the source's crop in its own resolution, `[h, w, 3]`"""
    source_crop: Crop
    target_crops: list[Crop]
    source_view: np.ndarray
    """`[H, W, 3]` uint8"""
    refined_view: np.ndarray
    """`[N, H, W, 3]` uint8"""
    warped_view: np.ndarray
    """`[N, H, W, 3]` uint8: the source view moved by the flow, nothing refined"""
    coarse_flow: np.ndarray
    """`[N, 2, h, w]` float32, as the model gives it: absolute sampling locations (x, y) in the
    source view, normalised, pixel centres"""
    visibility: dict[str, np.ndarray]
    """`[N, H, W]` float32 by measure, 0 (invented) to 1 (visible in the source)"""
    source_pose: Tensor
    """`[18, 3]` in the source view, normalised"""
    target_poses: Tensor
    """`[N, 18, 3]` in the target views, normalised"""
    seconds: dict[str, float]
    """what it took: keys "prepare", "flow", "refine", "visibility" and "total" of these"""

    def __len__(self) -> int:
        return len(self.target_crops)

    @property
    def flow(self) -> np.ndarray:
        """The flow at the size of the view, `[N, 2, H, W]` float32, normalised."""
        return pose_kernels.resize_flow(torch.from_numpy(self.coarse_flow), self.model.size).numpy()

    def refined(self, index: int) -> np.ndarray:
        """The finished picture of one pose in the target frame, `[H, W, 3]` uint8."""
        return self.in_frame(index, self.refined_view[index])

    def warped(self, index: int) -> np.ndarray:
        """The source's own pixels moved by the flow, in the target frame, `[H, W, 3]` uint8.

        The flow is applied to the source in its own resolution: sharper than `warped_view`.
        """
        crop = self.target_crops[index]
        frame = self._blank()
        crop.place(self.warped_at(index, (crop.height, crop.width)), frame)
        return frame

    def warped_at(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The same of the crop alone, in any size (H, W)."""
        moved = pose_kernels.flow_sample(
            _to_tensor(self.source, torch.device("cpu")),
            torch.from_numpy(self.coarse_flow[index : index + 1]), size)
        return _to_pictures(moved)[0]

    def in_frame(self, index: int, view: np.ndarray) -> np.ndarray:
        """A picture of the size of the view `[H, W, 3]` uint8, brought back to its crop of the
        target frame. Outside of the crop, where nothing was estimated, the frame is white."""
        crop = self.target_crops[index]
        frame = self._blank()
        crop.place(_resized(view, (crop.height, crop.width)), frame)
        return frame

    def locations(self, index: int) -> np.ndarray:
        """Where each pixel of the target frame is sampled from, `[2, H, W]` float32: (x, y) in
        pixels of the source image; NaN outside of the crop."""
        crop, source = self.target_crops[index], self.source_crop
        fine = pose_kernels.resize_flow(torch.from_numpy(self.coarse_flow[index : index + 1]),
                                        (crop.height, crop.width))[0].numpy()
        height, width = self.source_frame
        axes = []
        for at, first, side, end in ((fine[0], source.left, source.width, width),
                                     (fine[1], source.top, source.height, height)):
            inside = ((at + 1) * (side / 2) - 0.5).clip(0, side - 1)
            # Beyond the edges of the image its last pixels are repeated.
            axes.append((inside + first).clip(0, end - 1))
        frame = np.full((*self.frame, 2), np.nan, np.float32)
        crop.place(np.stack(axes, axis=-1), frame)
        return np.moveaxis(frame, -1, 0)

    @torch.inference_mode()
    def correspondence(self, index: int, target_xy: tuple[float, float]
                       ) -> tuple[tuple[float, float], np.ndarray]:
        """What one pixel of a result looks at.

        Args:
            target_xy: a pixel of the target frame, inside of the crop.

        Returns: the place in the source image that it is sampled from, (x, y) in pixels; and the
            guided correlation (Eq. 9, 2) of the flow's cell that it lies in with all cells of the
            source view, `[h, w]` float32.

        Raises: `UserError` outside of the crop, and for a model without a correlation.
        """
        self.model.require_correlation()
        crop, (height, width) = self.target_crops[index], self.frame
        x, y = (int(np.floor(value + 0.5)) for value in target_xy)
        inside = 0 <= x - crop.left < crop.width and 0 <= y - crop.top < crop.height
        if not (inside and 0 <= x < width and 0 <= y < height):
            raise UserError(f"({target_xy[0]:g}, {target_xy[1]:g}) lies outside of the part of the "
                            "picture that was made")
        rows, columns = self.coarse_flow.shape[-2:]
        row = (2 * (y - crop.top) + 1) * rows // (2 * crop.height)
        column = (2 * (x - crop.left) + 1) * columns // (2 * crop.width)
        warping = self.model.generator.warping
        features = warping.encode(self.source_pose[None].to(self.model.device),
                                  self.target_poses[index : index + 1].to(self.model.device))
        guided = _guided_row(*features, row * columns + column, warping.eps)
        at = self.locations(index)[:, y, x]
        return (float(at[0]), float(at[1])), guided.cpu().numpy()

    def _blank(self) -> np.ndarray:
        return np.full((*self.frame, 3), 255, np.uint8)


def newest_run(folder: str | Path = "runs") -> Path | None:
    """The run folder in `folder` whose checkpoints were written to last; None if there is none."""
    # LATEST is replaced with every checkpoint.
    marks = [path for path in Path(folder).glob("*/checkpoints/LATEST")
             if (path.parents[1] / "config.json").is_file()]
    return max(marks, key=lambda path: path.stat().st_mtime).parents[1] if marks else None


def _guided_row(source: Tensor, target: Tensor, position: int, eps: float) -> Tensor:
    """Column t of Qhat, `[hs, ws]`, from features `[1, m, hs, ws]` and `[1, m, ht, wt]`: the whole
    map would be too large to keep for a click."""
    size = source.shape[-2:]
    source, target = source.float().flatten(2)[0], target.float().flatten(2)[0]    # [m, S], [m, T]
    best = torch.cat([(band.T @ target).amax(1) for band in source.split(_BAND, dim=1)])
    u = (target[:, position] @ source).pow(3) / best.clamp_min(eps)                # Eq. 1, 9
    return (u / u.norm().clamp_min(eps)).view(size)                                # Eq. 2


def _read_config(metadata: dict[str, str], path: Path) -> Config:
    """The part of the stored configuration that matters here; fields that it does not have are as
    they were then (`with_later_fields`), else as they are today."""
    config = to_dict(Config())
    try:
        int(metadata.get("step", 0))
        stored = json.loads(metadata["config"])
        config["model"].update(with_later_fields("model", dict(stored["model"])))
        config["data"].update({name: stored["data"][name] for name in ("kind", "image_size", "fit")
                               if name in stored["data"]})
        return from_dict(config)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error!r})") from error


def _crop(middle: Sequence[float], height: float, aspect: float) -> Crop:
    """A crop of at least this height around a place in pixel coordinates."""
    rows = max(1, int(np.ceil(height - 1e-6)))
    columns = max(1, round(rows * aspect))
    return Crop(left=round(float(middle[0]) - (columns - 1) / 2),
                top=round(float(middle[1]) - (rows - 1) / 2), width=columns, height=rows)


def _inside(first: int, length: int, end: int) -> int:
    """A span moved into 0 .. end, or to its middle if it is longer."""
    return min(max(first, 0), end - length) if length <= end else (end - length) // 2


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected [H, W, 3] uint8, found {image.shape} {image.dtype}")


def _checked_pose(pose: np.ndarray) -> np.ndarray:
    pose = np.asarray(pose, np.float32)
    if pose.shape != (len(JOINTS), 3) or not np.isfinite(pose).all():
        raise ValueError(f"pose: expected finite numbers [{len(JOINTS)}, 3], found {pose.shape}")
    return pose


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As `data.pair_loader.View` resizes: bicubic, averaging where it reduces."""
    image = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def _to_tensor(picture: np.ndarray, device: torch.device) -> Tensor:
    """`[H, W, 3]` uint8 -> `[1, 3, H, W]` in [-1, 1]."""
    pixels = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None]
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def _to_pictures(images: Tensor) -> np.ndarray:
    """`[B, 3, H, W]` in [-1, 1] -> `[B, H, W, 3]` uint8."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class _Clock:
    """Adds up how long the parts of a computation take."""

    def __init__(self, device: torch.device, seconds: dict[str, float]):
        self._device, self._seconds = device, seconds
        self._start = time.perf_counter()

    def stop(self, name: str) -> None:
        """What happened since the last stop was `name`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[name] += now - self._start
        self._start = now
