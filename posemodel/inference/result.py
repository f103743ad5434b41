"""What a transfer gives: pictures, flow and visibility, in the view and in the target frame."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel.inference.background import scene_of_views
from posemodel.model.scene import Scene
from posemodel.pictures.pixels import resized, to_pictures, to_tensor
from posemodel.poses.crop import Crop

CPU = torch.device("cpu")
# Share of a pixel that the person has to cover at least for its correction to be believed.
_COVERED = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferResult:
    """One person in N poses. What ends in `_view` is as the model saw or made it; `refined`,
    `warped` and `locations` give the same in the pixels of the target frame. Where there is a mask,
    the pictures show the person alone before `behind`."""

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
    person_view: np.ndarray
    """`[N, H, W, 3]` uint8: as `refined_view`, before it was laid over `behind`"""
    cover_view: np.ndarray
    """`[N, H, W]` float32, 0 to 1: how much of each pixel the person covers; 1 without a `mask`"""
    coarse_flow: np.ndarray
    """`[N, 2, h, w]` float32, as the model gives it: absolute sampling locations (x, y) in the
    source view, normalised, pixel centres"""
    visibility: dict[str, np.ndarray]
    """`[N, H, W]` float32 by measure, 0 (invented) to 1 (visible in the source)"""
    mask: np.ndarray | None
    """`[h, w]` float32 beside `source`, 0 to 1: the person; None: the flow moves all there is"""
    front: np.ndarray | None
    """`[h, w, 3]` uint8: the person of `source`, their colours continued over their edge, which is
    what the flow moves; with `mask`"""
    behind: np.ndarray | None
    """`[H, W, 3]` uint8, of the target frame: what the person is laid over; with `mask`"""
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
        size = self.source_view.shape[:2]
        return pose_kernels.resize_flow(torch.from_numpy(self.coarse_flow), size).numpy()

    def refined(self, index: int) -> np.ndarray:
        """The finished picture of one pose in the target frame, `[H, W, 3]` uint8.

        It is as sharp as `warped`: what the refinement network changed at the size of the view, of
        the person and of what they cover, is enlarged and added there.
        """
        crop = self.target_crops[index]
        return self.placed(index, self.refined_at(index, (crop.height, crop.width)))

    def refined_at(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The same of the crop alone, in any size (H, W)."""
        view = self.refined_view.shape[1:3]
        if size[0] <= view[0] and size[1] <= view[1]:
            return resized(self.refined_view[index], size)
        cover = torch.from_numpy(self.cover_view[index])[None, None]
        change = to_tensor(self.person_view[index], CPU) - self._sampled(index, view)
        # What R makes of a pixel that is hardly the person's is seen nowhere in the view.
        change = _enlarged(change * cover, size) / _enlarged(cover, size).clamp_min(_COVERED)
        image = self._sampled(index, size) + change
        if self.mask is None:
            return to_pictures(image)[0]
        scene = self._scene(index, size)
        more = cover - self._scene(index, view).cover(self._flow(index))
        cover = scene.cover(self._flow(index)) + _enlarged(more, size)
        return to_pictures(scene.covered(image, cover.clamp(*scene.bounds)))[0]

    def warped(self, index: int) -> np.ndarray:
        """The source's own pixels moved by the flow, in the target frame, `[H, W, 3]` uint8.

        The flow is applied to the source in its own resolution: sharper than `warped_view`.
        """
        crop = self.target_crops[index]
        return self.placed(index, self.warped_at(index, (crop.height, crop.width)))

    def warped_at(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The same of the crop alone, in any size (H, W)."""
        return to_pictures(self._moved(index, size))[0]

    def _moved(self, index: int, size: tuple[int, int]) -> Tensor:
        moved = self._sampled(index, size)
        return moved if self.mask is None else self._scene(index, size).under(moved,
                                                                              self._flow(index))

    def _flow(self, index: int) -> Tensor:
        return torch.from_numpy(self.coarse_flow[index : index + 1])

    def _sampled(self, index: int, size: tuple[int, int]) -> Tensor:
        """The source, or the person in it, at the flow: `[1, 3, *size]`. In the size of the view,
        what the model saw."""
        view = tuple(size) == self.refined_view.shape[1:3]
        if self.front is not None:
            picture = resized(self.front, size) if view else self.front
        else:
            picture = self.source_view if view else self.source
        return pose_kernels.flow_sample(to_tensor(picture, CPU), self._flow(index), size)

    def _scene(self, index: int, size: tuple[int, int]) -> Scene:
        """In a crop of (H, W) pixels, without what `_sampled` samples."""
        some = slice(index, index + 1)
        return scene_of_views(self.mask, None, self.behind, self.target_crops[some],
                              (self.source_pose, self.target_poses[some]), size, CPU)

    def in_frame(self, index: int, view: np.ndarray) -> np.ndarray:
        """A picture of the size of the view `[H, W, 3]` uint8, brought back to its crop of the
        target frame. Outside of the crop, where nothing was estimated, the frame is white or, where
        there is a mask, as `behind`."""
        crop = self.target_crops[index]
        return self.placed(index, resized(view, (crop.height, crop.width)))

    def placed(self, index: int, part: np.ndarray) -> np.ndarray:
        """The same of a picture of the size of the crop."""
        frame = np.full((*self.frame, 3), 255, np.uint8) if self.behind is None \
            else self.behind.copy()
        self.target_crops[index].place(part, frame)
        return frame

    def locations(self, index: int) -> np.ndarray:
        """Where each pixel of the target frame is sampled from, `[2, H, W]` float32: (x, y) in
        pixels of the source image; NaN outside of the crop."""
        crop, source = self.target_crops[index], self.source_crop
        flow = pose_kernels.resize_flow(torch.from_numpy(self.coarse_flow[index : index + 1]),
                                        (crop.height, crop.width))[0]
        x, y = source.pixels(flow).numpy()
        # Beyond the edges of the crop and of the image their last pixels are repeated.
        height, width = self.source_frame
        x = x.clip(max(source.left, 0), min(source.left + source.width, width) - 1)
        y = y.clip(max(source.top, 0), min(source.top + source.height, height) - 1)
        frame = np.full((*self.frame, 2), np.nan, np.float32)
        crop.place(np.stack([x, y], axis=-1), frame)
        return np.moveaxis(frame, -1, 0)


def _enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size, mode="bilinear", align_corners=False)
