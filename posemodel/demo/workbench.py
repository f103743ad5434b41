"""What stands behind the page: the people that it can show, and what the model makes of them.

Convention: the page speaks of joints in normalised coordinates of a person's picture
(`poses.joints`); the model and the files of joints are in its pixels.
"""

import base64
import binascii
import io
import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posemodel.data.images import read_image_bytes
from posemodel.data.pose_checks import check_pose
from posemodel.data.source import HELD_OUT_SEEDS
from posemodel.flow.pictures import flow_picture
from posemodel.inference.model import PoseTransferModel
from posemodel.inference.result import TransferResult
from posemodel.mannequins.pairs import Mannequins
from posemodel.pictures.flow_colors import heat
from posemodel.pictures.pixels import to_pictures
from posemodel.poses.estimator import Estimator
from posemodel.poses.files import choose_person, openpose_json, people_of_image, read_poses
from posemodel.poses.joints import JOINTS, normalized_to_pixels, pixels_to_normalized
from posemodel.poses.layouts import Pose
from posemodel.poses.mask import pose_mask
from posemodel.runtime.errors import UserError

MAX_IMAGE_BYTES = 12 * 2**20
MAX_IMAGE_PIXELS = 24_000_000
MAX_JOINT_BYTES = 4 * 2**20

_LONGEST_SIDE = 512  # of a picture in the page; uploads are reduced to it
_EXAMPLE_HEIGHT = 192  # mannequins are drawn finer than the model sees them, as photographs are
_EXAMPLES = (32, 2, 26, 13, 34, 9)
_UPLOADS = 8  # kept at a time; the one that was used longest ago goes first
_BODY_ROWS = 32  # of the mask of a body, so coarse that its edge is soft
_BODY_RADIUS = 3.0  # half width of a limb there


@dataclass(kw_only=True, eq=False)
class Person:
    """A person that the page can show."""

    name: str
    image: np.ndarray
    """`[H, W, 3]` uint8, as the page shows it"""
    full_size: tuple[int, int]
    """(H, W) before it was reduced"""
    pose: np.ndarray | None
    """`[18, 3]` in pixels of `image`, where it is known"""
    notes: tuple[str, ...] = ()
    """where the pose comes from, and what looks wrong with it"""
    mask: np.ndarray | None = None
    """`[H, W]` float32, 0 to 1, where it is known: the background then stays"""


class Workbench:
    """One model, a few example people, and the uploads. Safe to use from several threads."""

    def __init__(self, model: PoseTransferModel, estimator: Estimator | None = None):
        """`estimator` finds joints and masks in the pictures that are added; None: nobody does."""
        self.model = model
        self._estimator, self._looking = estimator, threading.Lock()
        self._lock = threading.Lock()
        self._examples = {f"example-{n}": person
                          for n, person in enumerate(_draw_examples(model.size), 1)}
        self._uploads: OrderedDict[str, Person] = OrderedDict()
        self._last: tuple[tuple, TransferResult] | None = None
        # The first pass is slow: allocations, and the colour map's import.
        first = next(iter(self._examples))
        pose = self.normalized(first)
        self.transfer(first, pose, pose)
        if estimator is not None:
            estimator(self.person(first).image)

    def people(self) -> dict[str, Person]:
        """Examples, then uploads, by id."""
        with self._lock:
            return {**self._examples, **self._uploads}

    def person(self, person_id: str) -> Person:
        """Raises: `UserError` for an upload that is no longer kept."""
        with self._lock:
            if person_id in self._uploads:
                self._uploads.move_to_end(person_id)
                return self._uploads[person_id]
            if person_id in self._examples:
                return self._examples[person_id]
        raise UserError(f"this picture is no longer kept (the last {_UPLOADS} uploads are): "
                        "add it again")

    def normalized(self, person_id: str) -> Tensor | None:
        """The pose of a person as the page has it, `[18, 3]`."""
        person = self.person(person_id)
        if person.pose is None:
            return None
        return pixels_to_normalized(torch.from_numpy(person.pose), person.image.shape[:2])

    def add(self, content: bytes, name: str) -> str:
        """An upload, from the bytes of an image file -> its id. Raises: `UserError`."""
        image = read_image_bytes(content, name=name, max_pixels=MAX_IMAGE_PIXELS)
        full_size = image.shape[:2]
        if min(full_size) < 16:
            raise UserError(f"{name}: {full_size[1]} x {full_size[0]} pixels; at least 16 x 16 are "
                            "needed")
        reduced = _reduced(image)
        person_id = secrets.token_hex(8)
        person = Person(name=name, image=reduced, full_size=full_size, pose=None)
        if self._estimator is not None:
            self._look_at(person)
        with self._lock:
            self._uploads[person_id] = person
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return person_id

    def _look_at(self, person: Person) -> None:
        """Find joints and mask."""
        with self._looking:
            found = self._estimator(person.image)
        if not found:
            person.notes = ("Nobody was found in this picture.",)
            return
        person.pose, person.mask = found[0].pose.joints, found[0].mask
        person.notes = ("The joints were found in the picture.",)
        if len(found) > 1:
            person.notes += (f"Of {len(found)} people the largest is taken.",)

    def read_joints(self, person_id: str, content: bytes, name: str) -> Person:
        """Joints of a person, from a file in any known format. Raises: `UserError`."""
        person = self.person(person_id)
        # The reader takes a path. The name in it is ours: the page's is used in messages only.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "joints"
            path.write_bytes(content)
            try:
                poses = read_poses(path, image_size=person.full_size)
            except UserError as error:
                raise UserError(str(error).replace(str(path), name)) from error
        poses = people_of_image(poses, person.name, where=name,
                                otherwise="give a file of this image alone")
        chosen = choose_person(poses)
        notes = check_pose(chosen, person.full_size, person.name)
        if len(poses) > 1:
            notes.insert(0, f"{len(poses)} people in the file; the one with the most joints is "
                            "taken")
        normalized = pixels_to_normalized(torch.from_numpy(chosen.joints), person.full_size)
        person.pose = normalized_to_pixels(normalized, person.image.shape[:2]).numpy()
        person.notes = tuple(notes)
        # Whose mask it was is not known any more.
        person.mask = None
        return person

    def transfer(self, person_id: str, source_pose: Tensor, target_pose: Tensor
                 ) -> dict[str, np.ndarray]:
        """`refined`, `warped`, `flow` and `visibility`, `[H, W, 3]` uint8, the size of the person's
        picture; the latter two are pale where the target pose says that no body is. Poses
        `[18, 3]` are normalised. Raises: `UserError`."""
        result = self._result(person_id, source_pose, target_pose)
        flow = torch.from_numpy(result.flow[0])
        seen = torch.from_numpy(result.visibility["affine"][0])
        body = _body(result.target_poses[0], flow.shape[-2:])
        return {"refined": result.refined(0), "warped": result.warped(0),
                "flow": result.in_frame(0, _pale(flow_picture(flow), body)),
                "visibility": result.in_frame(0, _pale(heat(seen), body))}

    def correspondence(self, person_id: str, source_pose: Tensor, target_pose: Tensor,
                       at: tuple[float, float]) -> tuple[list[float], np.ndarray, list[float]]:
        """What a place of the result looks at.

        Args:
            at: (x, y), normalised.

        Returns: where it is sampled from (x, y), normalised; the row of the guided correlation as
            a picture `[h, w, 4]` uint8, transparent where it is low; and the rectangle of the
            source that this covers (left, top, right, bottom), normalised.

        Raises: `UserError` where nothing was made.
        """
        result = self._result(person_id, source_pose, target_pose)
        size = self.person(person_id).image.shape[:2]
        x, y, _ = normalized_to_pixels(torch.tensor([*at, 1.0]), size).tolist()
        place, row = self.model.correspondence(result, 0, (x, y))
        crop = result.source_crop
        left, top = crop.left - 0.5, crop.top - 0.5  # of the first pixel
        shown = pixels_to_normalized(torch.tensor(
            [[*place, 1], [left, top, 1], [left + crop.width, top + crop.height, 1]]), size)
        sampled, *corners = shown[:, :2].tolist()
        return sampled, _overlay(row), sum(corners, [])

    def openpose(self, person_id: str, pose: Tensor) -> str:
        """A normalised pose as OpenPose JSON, in pixels of the person's picture."""
        size = self.person(person_id).image.shape[:2]
        joints = normalized_to_pixels(pose, size).numpy()
        return openpose_json([Pose(joints=joints, format="openpose18")], size)

    def _result(self, person_id: str, source_pose: Tensor, target_pose: Tensor) -> TransferResult:
        """The last one is kept: a click asks about what has just been made."""
        person = self.person(person_id)
        poses = torch.stack([source_pose, target_pose])
        key = (person_id, poses.numpy().tobytes())
        with self._lock:
            if self._last is None or self._last[0] != key:
                source, *targets = normalized_to_pixels(poses, person.image.shape[:2]).numpy()
                self._last = (key, self.model.transfer(person.image, source, targets,
                                                       mask=person.mask))
            return self._last[1]


def data_url(picture: np.ndarray) -> str:
    """A picture `[H, W, 3 or 4]` uint8 as a PNG in a URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str, limit: int, name: str) -> bytes:
    """Bytes of base64. Raises: `UserError`."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: not base64") from error
    if len(content) > limit:
        raise UserError(f"{name}: {len(content):,} bytes; at most {limit:,} are taken")
    return content


def checked_pose(rows: list, name: str) -> Tensor:
    """`[18, 3]` float32 out of JSON, joints outside of the picture missing. Raises: `UserError`."""
    whole = isinstance(rows, list) and len(rows) == len(JOINTS) and all(
        isinstance(row, list) and len(row) == 3
        and all(type(value) in (int, float) and abs(value) <= 100 for value in row) for row in rows)
    if not whole:
        raise UserError(f"{name}: expected {len(JOINTS)} rows of x, y and presence")
    pose = torch.tensor(rows, dtype=torch.float32)
    present = (pose[:, 2] > 0) & (pose[:, :2].abs() <= 1).all(1)
    pose[:, 2] = present
    return pose * present[:, None]


def about(model: PoseTransferModel) -> str:
    """What a model is and what it is not good for, in a few sentences."""
    height, width = model.size
    if model.about:
        return model.about.splitlines()[0]
    if model.config.data.generated:
        return (f"Trained on generated mannequins of {width} × {height} pixels. It has never seen "
                "a photograph, a face or real cloth: with photographs it shows how the method "
                "moves and invents pixels, not a good picture. Its results are about as sharp as "
                "that size allows.")
    return (f"Trained on {model.config.data.kind} images of {width} × {height} pixels; on other "
            "kinds of pictures, crops and poses it will do worse.")


def _draw_examples(size: tuple[int, int]) -> list[Person]:
    scale = max(1, round(_EXAMPLE_HEIGHT / size[0]))
    frame = (scale * size[0], scale * size[1])
    pairs = Mannequins(size=frame, turn=45.0, seed=HELD_OUT_SEEDS["test"]).pairs(_EXAMPLES)
    people = zip(to_pictures(pairs["source"]), pairs["source_pose"], strict=True)
    return [Person(name=f"mannequin {number}", image=image, full_size=frame,
                   pose=normalized_to_pixels(pose, frame).numpy())
            for number, (image, pose) in enumerate(people, 1)]


def _body(pose: Tensor, size: tuple[int, int]) -> np.ndarray:
    """About where a body is, `[H, W]` from 0 to 1, by its joints `[18, 3]`, normalised."""
    small = (_BODY_ROWS, max(1, round(_BODY_ROWS * size[1] / size[0])))
    joints = normalized_to_pixels(pose, small).numpy()
    mask = Image.fromarray(pose_mask(joints, small, radius=_BODY_RADIUS).astype(np.float32))
    return np.asarray(mask.resize(size[::-1], Image.Resampling.BILINEAR))


def _pale(image: np.ndarray, body: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` uint8, mostly white outside of the body."""
    strength = 0.15 + 0.85 * body[..., None]
    return np.uint8(np.round(255 - (255 - image.astype(np.float32)) * strength))


def _reduced(image: np.ndarray) -> np.ndarray:
    scale = _LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(picture)


def _overlay(row: np.ndarray) -> np.ndarray:
    """A row of the map, `[h, w]`, with the largest value fully opaque."""
    share = np.clip(row / max(float(row.max()), 1e-12), 0, 1)
    color = heat(torch.from_numpy(share))
    # The square root keeps second best places in sight.
    return np.dstack([color, np.uint8(np.round(235 * np.sqrt(share)))])
