"""The questions of the demo's page, and their answers."""

import json
import time
from importlib import resources

from posemodel.demo.workbench import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    MAX_JOINT_BYTES,
    Workbench,
    about,
    checked_pose,
    data_url,
    decoded,
)
from posemodel.poses.joints import FLIP_PAIRS, JOINT_COLORS, JOINTS, LIMB_COLORS, LIMBS
from posemodel.runtime.local_server import Refused, field, static_files

_JSON_ROOM = 4096  # bytes of a question beside the file in it


class DemoSite:
    """The page and its questions, for a `LocalServer`."""

    large = {"/api/upload": MAX_IMAGE_BYTES * 4 // 3 + _JSON_ROOM,
             "/api/joints": MAX_JOINT_BYTES * 4 // 3 + _JSON_ROOM}

    def __init__(self, workbench: Workbench):
        self.workbench = workbench
        self._files = static_files("posemodel.demo")
        poses = resources.files("posemodel.demo") / "poses.json"
        self._gallery = json.loads(poses.read_text(encoding="utf-8"))
        self._answers = {"/api/start": self._start, "/api/upload": self._upload,
                         "/api/joints": self._joints, "/api/transfer": self._transfer,
                         "/api/correspondence": self._correspondence, "/api/pose": self._pose}

    def get(self, path: str) -> tuple[str, bytes]:
        """One of the page's files. Raises: `Refused`."""
        if path not in self._files:
            raise Refused(404, "there is no such page")
        return self._files[path]

    def post(self, path: str, values: dict) -> dict:
        """The answer to a question. Raises: `Refused`, `UserError`."""
        if path not in self._answers:
            raise Refused(404, "there is no such question")
        return self._answers[path](values)

    def _start(self, values: dict) -> dict:
        model = self.workbench.model
        return {
            "model": {"name": model.name, "steps": model.step, "about": about(model),
                      "height": model.size[0], "width": model.size[1], "device": str(model.device)},
            "people": [self._person(person_id) for person_id in self.workbench.people()],
            "gallery": self._gallery,
            "skeleton": {"joints": [name.replace("_", " ") for name in JOINTS], "limbs": LIMBS,
                         "jointColors": JOINT_COLORS, "limbColors": LIMB_COLORS,
                         "mirrored": FLIP_PAIRS},
            "limits": {"imageBytes": MAX_IMAGE_BYTES, "imagePixels": MAX_IMAGE_PIXELS,
                       "jointBytes": MAX_JOINT_BYTES}}

    def _upload(self, values: dict) -> dict:
        name = _name(values)
        content = decoded(field(values, "image", str), MAX_IMAGE_BYTES, name)
        return self._person(self.workbench.add(content, name))

    def _joints(self, values: dict) -> dict:
        name, person_id = _name(values), field(values, "person", str)
        content = decoded(field(values, "joints", str), MAX_JOINT_BYTES, name)
        person = self.workbench.read_joints(person_id, content, name)
        pose = self.workbench.normalized(person_id)
        return {"pose": pose.tolist(), "notes": list(person.notes)}

    def _transfer(self, values: dict) -> dict:
        start = time.perf_counter()
        made = self.workbench.transfer(field(values, "person", str), *_poses(values))
        milliseconds = 1000 * (time.perf_counter() - start)
        urls = {name: data_url(picture) for name, picture in made.items()}
        return {**urls, "milliseconds": round(milliseconds, 1)}

    def _correspondence(self, values: dict) -> dict:
        at = field(values, "at", list)
        if len(at) != 2 or not all(type(v) in (int, float) and abs(v) <= 1 for v in at):
            raise Refused(400, "at: expected x and y between -1 and 1")
        sampled, row, rectangle = self.workbench.correspondence(
            field(values, "person", str), *_poses(values), at=tuple(at))
        return {"sampled": sampled, "row": data_url(row), "rectangle": rectangle}

    def _pose(self, values: dict) -> dict:
        pose = checked_pose(values.get("pose"), "pose")
        return {"openpose": self.workbench.openpose(field(values, "person", str), pose)}

    def _person(self, person_id: str) -> dict:
        person = self.workbench.person(person_id)
        pose = self.workbench.normalized(person_id)
        height, width = person.image.shape[:2]
        return {"id": person_id, "name": person.name, "image": data_url(person.image),
                "height": height, "width": width, "pose": None if pose is None else pose.tolist(),
                "notes": list(person.notes)}


def _poses(values: dict) -> tuple:
    return (checked_pose(values.get("source"), "source pose"),
            checked_pose(values.get("target"), "target pose"))


def _name(values: dict) -> str:
    """What messages call an upload: the name of the file in the user's folder, no path here."""
    name = field(values, "name", str)
    return "".join(c for c in name if c.isprintable())[:80] or "the file"
