"""What `python -m posemodel.transfer` writes.

    DIR/
      contact_sheet.png          up to 12 of the poses with all that was made of them
      transfer.json              what was done: model, files, crops, warnings, files written
      source_skeleton.png        the joints on the photograph
      animation.gif  .mp4        of several poses; the second where imageio-ffmpeg is installed

and of each pose what `--write` chooses (`kinds.py`):

      refined/NAME.png           the finished picture, in the frame of the target pose
      warped/NAME.png            the photograph's own pixels moved by the flow
      flow/NAME.npy              "flow": where each pixel is sampled from: [2, H, W] float32,
                                 (x, y) in pixels of the photograph, NaN outside of the crop
      flow/NAME.flo              "flo": the same minus the pixel's own place: Middlebury
      flow_picture/NAME.png      the flow between the two crops in the Middlebury colours
      visibility/NAME.png        grey: 0 invented, 255 visible in the photograph (affine measure)
      skeleton/NAME.png          the target pose
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import pose_kernels
from posemodel.data.films import missing_package, write_mp4
from posemodel.data.images import inside
from posemodel.flow.files import write_flo, write_npy
from posemodel.flow.pictures import flow_picture
from posemodel.inference.result import TransferResult
from posemodel.pictures.flow_colors import heat
from posemodel.pictures.pixels import resized
from posemodel.pictures.sheet import contact_sheet
from posemodel.poses.crop import Crop
from posemodel.poses.drawing import draw_poses, draw_skeleton
from posemodel.poses.joints import normalized_to_pixels
from posemodel.poses.layouts import Pose
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside, writing
from posemodel.runtime.folder import OwnFolder
from posemodel.transfer.kinds import file_of

_RECORD, _SHEET, _SOURCE = "transfer.json", "contact_sheet.png", "source_skeleton.png"
_GIF, _MP4 = "animation.gif", "animation.mp4"
_SHEET_ROWS = 12
_CELL = 256  # rows of a picture in the contact sheet
_PANEL = (192, 360)  # fewest and most rows of a picture in the animation
_STRIP = 28  # rows of its headings
# Of zlib: higher ones take several times as long and save a tenth.
_COMPRESSION = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """One pose to come."""

    name: str
    """what its files are called"""
    file: Path
    pose: Pose
    frame: tuple[int, int]
    """(H, W) of the picture that the joints belong to"""


def planned_files(targets: list[Target], kinds: Collection[str]) -> list[str]:
    """All files of a transfer, relative to its folder."""
    files = [_RECORD, _SHEET, _SOURCE]
    if len(targets) > 1:
        files += [_GIF, _MP4]
    return files + [file_of(kind, target.name) for target in targets for kind in kinds]


class OutputFolder:
    """The folder of one transfer. Files that no transfer has written are never touched."""

    def __init__(self, path: Path, planned: list[str], *, overwrite: bool):
        """Checks, and writes nothing.

        Args:
            planned: names of the files to come.
            overwrite: the files of an earlier transfer may be replaced.

        Raises: `UserError`.
        """
        self.path, self._planned = path, planned
        self._own = OwnFolder(path, _RECORD, "earlier transfer")
        self._earlier = self._of_earlier_transfer(overwrite)
        foreign = [name for name in planned if name not in self._earlier and (path / name).exists()]
        if foreign:
            raise UserError(f"--out {path}: {foreign[0]} is there and no earlier transfer wrote it")

    def _of_earlier_transfer(self, overwrite: bool) -> list[str]:
        """The files that it names."""
        try:
            self._own.refuse_foreign()
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}") from error
        if not self._own.record.exists():
            return []
        if not overwrite:
            raise UserError(f"--out {self.path} holds an earlier transfer; --overwrite replaces it")
        with self._own.reading() as record:
            for name in record["files"]:
                inside(self.path, name)  # refuses names that lead elsewhere
            return record["files"]

    @contextlib.contextmanager
    def writing(self, record: dict) -> Iterator[None]:
        """Around all that is written. transfer.json comes first, so that an interrupted transfer
        can be replaced, and again at the end with what `record` has become.

        Raises: `UserError` where the folder cannot be written.
        """
        with writing(f"into {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            # The old record goes last: until then it names what is left of the old files.
            for name in sorted(self._earlier, key=_RECORD.__eq__):
                (self.path / name).unlink(missing_ok=True)
            self._own.write(record | {"finished": False, "files": self._planned})
            yield
            self._own.write(record | {"finished": True, "files": self._planned})

    def file(self, name: str) -> Path:
        """Where a planned file goes; its folder is made."""
        if name not in self._planned:
            raise ValueError(f"{name} was not planned")
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        return path

    def write_png(self, name: str, picture: np.ndarray | Image.Image) -> None:
        """A picture `[H, W, 3]` or `[H, W]` uint8."""
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=_COMPRESSION)
        write_aside(self.file(name), buffer.getvalue())


def write_source(folder: OutputFolder, image: np.ndarray, pose: Pose) -> None:
    """The joints on the photograph."""
    folder.write_png(_SOURCE, draw_poses(image, [pose], pose))


def write_pose(folder: OutputFolder, result: TransferResult, index: int, target: Target,
               kinds: Collection[str]) -> None:
    """The files of one pose that are of these kinds."""
    crop = result.target_crops[index]

    def colors() -> np.ndarray:
        return result.placed(index, _flow_picture(result, index, (crop.height, crop.width)))

    def seen() -> np.ndarray:
        grey = np.zeros(result.frame, np.uint8)
        found = (result.visibility["affine"][index] * 255).round().astype(np.uint8)
        crop.place(resized(found, (crop.height, crop.width)), grey)
        return grey

    pictures = {"refined": lambda: result.refined(index), "warped": lambda: result.warped(index),
                "flow_picture": colors, "visibility": seen,
                "skeleton": lambda: _skeleton_frame(target)}
    for kind in kinds:
        file = file_of(kind, target.name)
        if kind in pictures:
            folder.write_png(file, pictures[kind]())
        elif kind == "flow":
            write_npy(folder.file(file), result.locations(index))
        else:
            own = np.indices(result.frame, np.float32)[::-1]
            write_flo(folder.file(file), result.locations(index) - own)


class Sheet:
    """The contact sheet: rows of poses, columns of what was made of them."""

    def __init__(self, aspect: float, *, poses: int, every_source: bool = False):
        """Of many poses, evenly spread ones are shown.

        Args:
            aspect: width to height of a picture.
            poses: number of poses to come.
            every_source: whether each row shows its source; else the first alone.
        """
        self._every_source = every_source
        self._cell = (_CELL, max(1, round(_CELL * aspect)))
        rows = min(poses, _SHEET_ROWS)
        self._shown = {round(row * (poses - 1) / max(rows - 1, 1)) for row in range(rows)}
        self._added = 0
        self._columns: dict[str, list[np.ndarray]] = {}

    def add(self, result: TransferResult, index: int, name: str) -> None:
        """The next pose."""
        if self._added in self._shown:
            if self._every_source or not self._columns:
                self._put("source", resized(result.source, self._cell))
                self._put("source pose", self._on_source(result))
            self._put("target pose", self._on_black(result, index, name))
            self._put("warped", result.warped_at(index, self._cell))
            self._put("refined", result.refined_at(index, self._cell))
            self._put("flow", _flow_picture(result, index, self._cell))
            seen = heat(torch.from_numpy(result.visibility["affine"][index]))
            self._put("found visible", resized(seen, self._cell))
        self._added += 1

    def write(self, folder: OutputFolder, title: str) -> None:
        """Write it."""
        contact_sheet(list(self._columns.items()), folder.file(_SHEET), title=title, legend=True)

    def _put(self, column: str, picture: np.ndarray | Image.Image) -> None:
        self._columns.setdefault(column, []).append(np.asarray(picture))

    def _on_source(self, result: TransferResult) -> Image.Image:
        """The source pose on the source, which is faint."""
        joints = normalized_to_pixels(result.source_pose, self._cell).numpy()
        pose = Pose(joints=joints, format="openpose18")
        faint = resized(result.source, self._cell) // 2 + 96
        return draw_poses(faint, [pose], pose)

    def _on_black(self, result: TransferResult, index: int, name: str) -> Image.Image:
        """A target pose, with its name in the corner."""
        picture = Image.fromarray(draw_skeleton(result.target_poses[index], self._cell))
        font = ImageFont.load_default(13)
        ImageDraw.Draw(picture).text((7, 6), name, (210, 212, 216), font=font, anchor="lt")
        return picture


class Film:
    """Source, target pose and result side by side, picture by picture."""

    def __init__(self, source: np.ndarray, frame: tuple[int, int], crops: list[Crop] | None):
        """
        Args:
            source: the first photograph, `[H, W, 3]` uint8.
            frame: (H, W) of the target frame, the same for all poses.
            crops: of all poses to come, where there is nothing to be seen beyond them; None: the
                whole frame is shown.
        """
        height, width = frame
        # Left, top, right, bottom of the part of the frame in which something is to be seen.
        left, top, right, bottom = self._box = (0, 0, width, height) if crops is None else (
            max(0, min(crop.left for crop in crops)), max(0, min(crop.top for crop in crops)),
            min(width, max(crop.left + crop.width for crop in crops)),
            min(height, max(crop.top + crop.height for crop in crops)))
        rows = min(max(bottom - top, _PANEL[0]), _PANEL[1])
        # Even, as videos demand.
        self._size = tuple(2 * max(1, round(side / 2))
                           for side in (rows, (right - left) * rows / (bottom - top)))
        columns = 2 * max(1, round(source.shape[1] * self._size[0] / source.shape[0] / 2))
        self._source_size = (columns, self._size[0])
        self._panels: dict[int, Image.Image] = {}
        """of the photographs, by their identity"""
        self._file, self._ends = tempfile.TemporaryFile(), [0]  # noqa: SIM115 (closed by `close`)

    @property
    def _page_size(self) -> tuple[int, int]:
        """(columns, rows)."""
        rows, columns = self._size
        return self._source_size[0] + 2 * columns, rows + _STRIP

    def add(self, result: TransferResult, index: int, source: np.ndarray) -> None:
        """The next pose, and the photograph that it is made from."""
        rows, columns = self._size
        pose = result.target_poses[index]
        panels = {
            "source": self._photograph(source),
            "target pose": self._placed(result, index, lambda size: draw_skeleton(pose, size),
                                        np.zeros((rows, columns, 3), np.uint8)),
            "result": self._placed(result, index, lambda size: result.refined_at(index, size),
                                   self._behind(result))}
        page, left = Image.new("RGB", self._page_size, "white"), 0
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
        for title, panel in panels.items():
            page.paste(panel, (left, _STRIP))
            draw.text((left + panel.width / 2, _STRIP - 9), title, (32, 33, 36), font=font,
                      anchor="ms")
            left += panel.width
        page.save(self._file, format="PNG", compress_level=_COMPRESSION)
        self._ends.append(self._file.tell())

    def _photograph(self, source: np.ndarray) -> Image.Image:
        """A source in the place of the first one, with white where it is narrower or lower."""
        if id(source) not in self._panels:
            (columns, rows), (height, width) = self._source_size, source.shape[:2]
            # Rounding leaves no white line.
            alike = abs(width * rows / height - columns) < 2
            self._panels[id(source)] = (
                Image.fromarray(resized(source, (rows, columns))) if alike
                else ImageOps.pad(Image.fromarray(source), (columns, rows), color="white"))
        return self._panels[id(source)]

    def _behind(self, result: TransferResult) -> np.ndarray:
        if result.behind is None:
            return np.full((*self._size, 3), 255, np.uint8)
        left, top, right, bottom = self._box
        return resized(result.behind[top:bottom, left:right], self._size)

    def _placed(self, result: TransferResult, index: int,
                picture: Callable[[tuple[int, int]], np.ndarray | Image.Image],
                ground: np.ndarray) -> Image.Image:
        """What `picture` makes of the crop, in its place of the ground."""
        (left, top, right, bottom), (rows, columns) = self._box, self._size
        crop, x, y = result.target_crops[index], columns / (right - left), rows / (bottom - top)
        x_0, x_1 = (round((edge - left) * x) for edge in (crop.left, crop.left + crop.width))
        y_0, y_1 = (round((edge - top) * y) for edge in (crop.top, crop.top + crop.height))
        panel = Image.fromarray(ground)
        part = picture((max(1, y_1 - y_0), max(1, x_1 - x_0)))
        panel.paste(Image.fromarray(np.asarray(part)), (x_0, y_0))
        return panel

    def _pages(self) -> Iterator[Image.Image]:
        for begin, end in itertools.pairwise(self._ends):
            self._file.seek(begin)
            yield Image.open(io.BytesIO(self._file.read(end - begin)))

    def write(self, folder: OutputFolder, fps: float) -> None:
        """As GIF and, where imageio-ffmpeg is installed, as MP4; says what was written or why not.
        `fps`: poses per second."""
        buffer, pages = io.BytesIO(), self._pages()
        next(pages).save(buffer, format="GIF", save_all=True, duration=round(1000 / fps), loop=0,
                         append_images=pages)
        write_aside(folder.file(_GIF), buffer.getvalue())
        print(f"animation: {folder.path / _GIF}")
        why = missing_package()
        if why:
            print(f"no MP4: {why}")
            return
        file = folder.file(_MP4)
        write_mp4(file, (np.asarray(page) for page in self._pages()), fps)
        print(f"animation: {file}")

    def close(self) -> None:
        """Gives up what was kept."""
        self._file.close()


def _skeleton_frame(target: Target) -> Image.Image:
    """The target pose on black, in its frame."""
    drawn = draw_poses(np.zeros((*target.frame, 3), np.uint8), [target.pose], target.pose)
    # Small pictures are enlarged by it.
    return drawn.resize(target.frame[::-1], Image.Resampling.BOX)


def _flow_picture(result: TransferResult, index: int, size: tuple[int, int]) -> np.ndarray:
    """The flow between the two crops, `[*size, 3]` uint8."""
    coarse = torch.from_numpy(result.coarse_flow[index:index + 1])
    return flow_picture(pose_kernels.resize_flow(coarse, size)[0])

