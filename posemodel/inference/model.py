"""A trained model in a program of your own: a photograph, its pose, new poses, the pictures.

Convention: pictures are numpy `[H, W, 3]` uint8, RGB. Joints are `[18, 3]`, (x, y, presence), in
pixels, 0 = centre of the first pixel. The *view* is what the model sees of a picture, in the one
size that it was trained for. The *frame* is the whole picture.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

import pose_kernels
from posemodel.build import build_generator
from posemodel.config.sections import Config
from posemodel.config.stored import from_dict, to_dict
from posemodel.data.images import picture_pixels
from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.flow import visibility as visibility_scores
from posemodel.inference.background import (
    checked_mask,
    laid_behind,
    person_in_front,
    scene_of_views,
)
from posemodel.inference.crop import find_crop
from posemodel.inference.result import TransferResult
from posemodel.model.pose_transfer import PoseTransfer, Transfer
from posemodel.model.scene import Scene
from posemodel.model.warping import guided_column
from posemodel.pictures.pixels import resized, to_pictures, to_tensor
from posemodel.poses.crop import Crop
from posemodel.poses.joints import JOINTS
from posemodel.runtime import checkpoint
from posemodel.runtime.environment import choose_device
from posemodel.runtime.errors import UserError
from posemodel.runtime.folder import run_folder
from posemodel.runtime.weights import shipped_file

MEASURES = ("affine", "cycle", "peak", "correlation")
_OF_CORRELATION = {"peak", "correlation"}
#: What a model has to know about the data that it was trained on.
_VIEW = ("kind", "image_size", "fit")
#: Width / height of what `data.fit stretch` widens: the columns between DeepFashion's borders.
_STRETCHED_ASPECT = DEEPFASHION.inner_width / DEEPFASHION.frame[0]
#: Distance from locally affine, in cells of the flow's grid, at which visibility is 1 / e.
_AFFINE_UNIT = 0.1


class PoseTransferModel:
    """A generator with its weights, and what is needed to use it on any picture.

    The model was trained for one size. A picture is cut to that shape around the person
    (`find_crop`), beyond its edges they are repeated, and it is resized; results come back in the
    pixels of the frame. Nothing is trained here, and no file is ever unpickled.

    >>> from posemodel.data.images import read_image
    >>> from posemodel.poses.files import read_poses
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
        """what its maker says about it, may be empty; commands show the first line"""

    @classmethod
    def from_run(cls, path: str | Path, device: str = "auto") -> "PoseTransferModel":
        """The averaged weights of a run folder's newest valid checkpoint.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", ...

        Raises: `UserError`, also for a run that has no checkpoint yet.
        """
        path = Path(path)
        run_folder(path).require()
        newest = checkpoint.newest(path, lambda line: print(line, file=sys.stderr))
        model = cls.from_file(newest.path / "averaged.safetensors", device)
        model.name = str(path)
        return model

    @classmethod
    def from_file(cls, path: str | Path, device: str = "auto") -> "PoseTransferModel":
        """A file of `posemodel.export`, or averaged.safetensors of a checkpoint.
        Raises: `UserError`, also for a file of another version of this program."""
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
        Raises: `UserError` where the installation has none."""
        file = shipped_file()
        model = cls.from_file(file, device)
        model.name = f"the model of this package ({file.stem})"
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
    def summary(self) -> str:
        """What it is, in a line for people."""
        return (f"{self.name}, {self.step} steps, {self.size[1]} x {self.size[0]} pixels, on "
                f"{self.device}")

    @property
    def has_correlation(self) -> bool:
        """False for a method of Table 1 in the place of ours."""
        return self.generator.warping.has_correlation

    def require_correlation(self) -> None:
        """Raises: `UserError` where there is no correlation map to look at."""
        if not self.has_correlation:
            raise UserError(f"{self.name} has no correlation map: its flow is that of "
                            f"{self.config.model.flow}")

    @torch.inference_mode()
    def transfer(self, image: np.ndarray | Image.Image, source_pose: np.ndarray,
                 target_poses: Sequence[np.ndarray] | np.ndarray, *,
                 target_size: tuple[int, int] | None = None, fit: str = "person",
                 mask: np.ndarray | None = None, background: str | np.ndarray = "keep",
                 measures: Sequence[str] = ("affine",), batch_size: int = 8) -> "TransferResult":
        """One person in new poses.

        Args:
            image: the person, `[H, W, 3]` uint8, or a picture of Pillow's, read as a file: upright
                as its EXIF data say, transparent pixels over white.
            source_pose: their joints, `[18, 3]` in pixels of `image`.
            target_poses: `[N, 18, 3]` in pixels of the target frame, at least one.
            target_size: (H, W) of the target frame; None: as the image.
            fit: "person" or "frame", see `find_crop`; each pose has a crop of its own.
            mask: how much of each pixel of `image` is the person, `[H, W]`, 0 to 1 (bool and uint8
                up to 255 too): who alone is moved, over a background; None: the flow moves all.
            background: with a mask: "keep", that of `image`, the hole behind the person made up
                (`pictures.inpainting`); "white"; or a picture `[H, W, 3]` of the target frame.
            measures: of visibility, any of "affine", "cycle", "peak", "correlation"
                (`posemodel.flow.visibility`). The first costs nothing; the last two exist where
                there is a correlation (`has_correlation`).
            batch_size: poses that are worked on at a time.

        Raises: `UserError` for a pose without a joint in its picture, and where the background of
            `image` is to be kept in a frame of another size; `ValueError` for arrays of the wrong
            shape or type.
        """
        clock = _Clock(self.device)
        image = picture_pixels(image) if isinstance(image, Image.Image) else image
        _check_image(image)
        if not len(target_poses):
            raise ValueError("target_poses: expected [N, 18, 3] with at least one pose, found none")
        poses = [_checked_pose(pose) for pose in [source_pose, *target_poses]]
        self._check_measures(measures)
        source_frame = tuple(image.shape[:2])
        frame = tuple(target_size or source_frame)
        crops, seen = self._crops(poses, [source_frame, *[frame] * len(target_poses)], fit)
        source = crops[0].cut(image)
        view = resized(source, self.size)
        behind = front = None
        if mask is not None:
            mask = checked_mask(mask, source_frame)
            behind = laid_behind(image, mask, frame, background)
            mask = crops[0].cut(mask)
            front = person_in_front(source, mask)
        clock.stop("prepare")
        view_on_device, parts = to_tensor(view, self.device), []
        for first in range(1, len(crops), batch_size):
            some = slice(first, first + batch_size)
            scene = None if mask is None else scene_of_views(
                mask, front, behind, crops[some], (seen[0], seen[some]), self.size, self.device)
            parts.append(self._batch(view_on_device, seen[0], seen[some], scene, measures, clock))
        seconds = clock.seconds | {"total": clock.total()}
        views, scores = map(_joined, zip(*parts, strict=True))
        return TransferResult(
            frame=frame, source_frame=source_frame, source=source, source_crop=crops[0],
            target_crops=crops[1:], source_view=view, **views, visibility=scores, mask=mask,
            front=front, behind=behind, source_pose=seen[0], target_poses=seen[1:], seconds=seconds)

    @torch.inference_mode()
    def correspondence(self, result: TransferResult, index: int, target_xy: tuple[float, float],
                       ) -> tuple[tuple[float, float], np.ndarray]:
        """What one pixel of a result looks at.

        Args:
            result: of this model.
            index: of its pose.
            target_xy: a pixel of the target frame, inside of the crop.

        Returns: the place in the source image that it is sampled from, (x, y) in pixels; and the
            guided correlation (Eq. 9, 2) of the flow's cell that it lies in with all cells of the
            source view, `[h, w]` float32.

        Raises: `UserError` outside of the crop, and for a model without a correlation.
        """
        self.require_correlation()
        crop, (height, width) = result.target_crops[index], result.frame
        x, y = (int(np.floor(value + 0.5)) for value in target_xy)
        inside = 0 <= x - crop.left < crop.width and 0 <= y - crop.top < crop.height
        if not (inside and 0 <= x < width and 0 <= y < height):
            raise UserError(f"({target_xy[0]:g}, {target_xy[1]:g}) lies outside of the part of the "
                            "picture that was made")
        rows, columns = result.coarse_flow.shape[-2:]
        row = (2 * (y - crop.top) + 1) * rows // (2 * crop.height)
        column = (2 * (x - crop.left) + 1) * columns // (2 * crop.width)
        warping = self.generator.warping
        features = warping.encode(result.source_pose[None].to(self.device),
                                  result.target_poses[index : index + 1].to(self.device))
        guided = guided_column(*features, row * columns + column)
        at = result.locations(index)[:, y, x]
        return (float(at[0]), float(at[1])), guided.cpu().numpy()

    def _check_measures(self, measures: Sequence[str]) -> None:
        unknown = set(measures) - set(MEASURES)
        if unknown:
            raise ValueError(f"measures {sorted(unknown)}: expected any of {', '.join(MEASURES)}")
        if _OF_CORRELATION & set(measures):
            self.require_correlation()

    def _crops(self, poses: list[np.ndarray], frames: list[tuple[int, int]], fit: str
               ) -> tuple[list[Crop], Tensor]:
        """What the model sees of each frame, and the joints in there, `[N, 18, 3]`; the first ones
        are the source's."""
        crops = [find_crop(pose, frame, self.aspect, fit)
                 for pose, frame in zip(poses, frames, strict=True)]
        seen = torch.stack([crop.normalized(pose) for crop, pose in zip(crops, poses, strict=True)])
        for index, pose in enumerate(seen):
            if not pose[:, 2].any():
                who = "the source pose" if index == 0 else f"target pose {index - 1}"
                raise UserError(f"{who} has no joint inside of its picture")
        return crops, seen

    def _batch(self, view: Tensor, source_pose: Tensor, targets: Tensor, scene: Scene | None,
               measures: Sequence[str], clock: "_Clock"
               ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What a `TransferResult` has of some targets, by its names, and their visibility."""
        targets = targets.to(self.device)
        source_pose = source_pose.to(self.device).expand_as(targets)
        view = view.expand(len(targets), -1, -1, -1)
        flow = self.generator.flow(view, source_pose, targets)
        clock.stop("flow")
        transfer = self.generator.transfer(view, flow, targets, scene)
        cover = torch.ones_like(view[:, 0]) if scene is None else transfer.cover[:, 0].float()
        views = {"refined_view": to_pictures(transfer.image),
                 "warped_view": to_pictures(transfer.warped),
                 "person_view": to_pictures(transfer.person), "cover_view": cover.cpu().numpy(),
                 "coarse_flow": flow.cpu().numpy()}
        clock.stop("refine")
        scores = self._visibility(transfer, source_pose, targets, measures)
        at = pose_kernels.identity_flow(*self.size, device=flow.device).expand(
            len(flow), -1, -1, -1)
        fine = {name: pose_kernels.flow_sample(scores[name], at, self.size)[:, 0].clamp(0, 1)
                .cpu().numpy() for name in measures}
        clock.stop("visibility")
        return views, fine

    def _visibility(self, transfer: Transfer, source_pose: Tensor, targets: Tensor,
                    measures: Sequence[str]) -> dict[str, Tensor]:
        """Each measure on a scale of 0 to 1, `[B, 1, h, w]`."""
        scores = {}
        if "affine" in measures:
            scores["affine"] = (visibility_scores.affine_score(transfer.flow) / _AFFINE_UNIT).exp()
        if "cycle" in measures:
            # A method that looks at the image starts the way back from the one that it made.
            backward = self.generator.flow(transfer.image, targets, source_pose)
            scores["cycle"] = visibility_scores.cycle_score(transfer.flow, backward).exp()
        if _OF_CORRELATION & set(measures):
            features = self.generator.warping.encode(source_pose, targets)
            if "peak" in measures:
                guided = self.generator.warping.match(*features)
                scores["peak"] = visibility_scores.peak_score(guided)
            if "correlation" in measures:
                scores["correlation"] = visibility_scores.correlation_score(*features)
        return scores


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def newest_run(folder: str | Path = "runs") -> Path | None:
    """The run folder in `folder` whose checkpoints were written to last; None if there is none."""
    # LATEST is replaced with every checkpoint.
    marks = [path for path in Path(folder).glob("*/checkpoints/LATEST")
             if (path.parents[1] / "config.json").is_file()]
    return max(marks, key=lambda path: path.stat().st_mtime).parents[1] if marks else None


def _read_config(metadata: dict[str, str], path: Path) -> Config:
    """The part of the stored configuration that matters here; the rest is as in `Config()`."""
    config = to_dict(Config())
    try:
        int(metadata.get("step", 0))
        stored = json.loads(metadata["config"])
        config["model"] = dict(stored["model"])
        for name in _VIEW:
            del config["data"][name]
        config["data"] |= {name: stored["data"][name] for name in _VIEW if name in stored["data"]}
        return from_dict(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error!r})") from error


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError("image: expected [H, W, 3] uint8 or a picture of Pillow's, found "
                         f"{type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected [H, W, 3] uint8, found {image.shape} {image.dtype}")


def _checked_pose(pose: np.ndarray) -> np.ndarray:
    pose = np.asarray(pose, np.float32)
    if pose.shape != (len(JOINTS), 3) or not np.isfinite(pose).all():
        raise ValueError(f"pose: expected finite numbers [{len(JOINTS)}, 3], found {pose.shape}")
    return pose


class _Clock:
    """Adds up how long the parts of a computation take."""

    def __init__(self, device: torch.device):
        self.seconds = dict.fromkeys(("prepare", "flow", "refine", "visibility"), 0.0)
        self._device = device
        self._begun = self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        """What happened since the last stop was `name`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now

    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._begun
