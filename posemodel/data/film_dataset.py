"""From films of people to a data set of the layout `film`.

Each clip is looked through once for joints, masks and sharpness, cut where the picture jumps, and
read once more for the frames that are kept: one fixed square for each shot, so that its background
stays where it is.
"""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.dataset_folder import encode_jpeg, encode_png
from posemodel.data.films import Film
from posemodel.data.layouts.film import FILM, SEEN
from posemodel.data.layouts.layout import ALL_SPLITS, VALIDATION
from posemodel.data.lists import write_pairs
from posemodel.data.plates import write_plate
from posemodel.poses.annotations import has_torso, write_annotations
from posemodel.poses.crop import Crop
from posemodel.poses.estimator import Estimator
from posemodel.poses.film import choose_track, tracks
from posemodel.poses.layouts import Pose
from posemodel.poses.steadiness import SOON, seconds, steadied
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import new_folder, write_aside

REPORT = "film.json"
_TEST = 0.2  # share of a shot, its last frames, that is for testing
_VALIDATION = 0.05  # share of a shot, before those, to choose settings by
_GAP = 0.05  # share of a shot between two parts
_SHORTEST = 10  # frames of a shot that are kept
_MARGIN = 1.2  # side of the square, in sides of the box of all joints
_CUT = 0.15  # mean change of a pixel, of 1, from which the picture has jumped
_DOUBLED = 12.0  # largest change of a small pixel, of 255, of a frame that is there twice
_BLURRED = 0.35  # sharpness below this share of the shot's median
_SMALL = 48  # columns and rows of the picture by which frames are compared
_MASK_ROWS = 512  # of a mask between the two readings
_TEST_PAIRS = 200  # of a shot, at most; as many to validate on
_TRAIN_PAIRS = 20_000

Progress = Callable[[str, int, int], None]


@dataclass(kw_only=True)
class ClipReport:
    """What was done with a clip: a row for people and for film.json."""

    clip: str
    frames: int = 0
    """looked at"""
    shots: int = 0
    nobody: int = 0
    """without a person whose shoulders and hips are seen"""
    doubled: int = 0
    blurred: int = 0
    short: int = 0
    """of shots with fewer than ten frames"""
    others: int = 0
    """that show somebody else alone"""
    jumps: int = 0
    """where the joints jump away and back"""
    exchanged: int = 0
    """whose left and right, found the wrong way round, were exchanged"""
    apart: float = 0.0
    """seconds from one to the next; 0: not known"""
    enough: int = 0
    """as many would have to be looked at to tell left from right by the neighbours"""
    train: int = 0
    validation: int = 0
    test: int = 0
    plates: int = 0
    """shots whose camera stands so still that what is behind the person is known from other
    frames"""
    people: int = 0
    """most people in one frame"""
    problem: str = ""
    """why nothing came of it; empty if something did"""

    def line(self) -> str:
        """For people."""
        if self.problem:
            return f"{self.clip}: left out: {self.problem}"
        blind = ""
        if self.apart > SOON:
            blind = (f"; the frames are {self.apart:.2f} s apart, too far to tell left from right "
                     "by their neighbours"
                     + f": --frames {self.enough} looks at more" * (self.enough > self.frames))
        moving = self.shots - self.plates
        behind = (f"; the camera moves in {moving} of them: what is behind the person will be made "
                  "up there" if moving else "")
        several = f", up to {self.people} people (one is followed)" if self.people > 1 else ""
        return (f"{self.clip}: {self.frames} frames, {self.shots} shot"
                f"{'s' if self.shots != 1 else ''}{several}; left out: {self.nobody} without a "
                f"person, {self.others} without this one, {self.jumps} with joints that jump, "
                f"{self.doubled} doubled, {self.blurred} blurred, {self.short} in shots too short; "
                f"left and right exchanged in {self.exchanged}; kept {self.train} to train, "
                f"{self.validation} to validate, {self.test} to test{behind}{blind}")


@dataclass(kw_only=True, eq=False)
class _Look:
    """One person in a frame, as the first reading sees them."""

    index: int
    pose: Pose
    mask: bytes
    sharpness: float


@dataclass(kw_only=True, eq=False)
class _Shot:
    """Frames of one shot that are kept, and their square."""

    name: str
    looks: list[_Look]
    crop: Crop


def make_film_data(clips: list[Path], out: Path, estimator: Estimator, *, most: int,
                   as_found: bool = False, progress: Progress) -> list[ClipReport]:
    """Make a data set of some films.

    Args:
        clips: files of films.
        out: a folder that is not there yet; it appears when all is done.
        estimator: finds joints and masks.
        most: frames of a clip that are looked at, evenly spread.
        as_found: joints as the estimator gives them, frame by frame (see `poses.steadiness`).
        progress: is told what is counted, how many are done, and of how many.

    Raises: `UserError` where no clip gives anything, and where something is at `out`.
    """
    names = [re.sub(r"\W+", "_", clip.stem)[:60] or "clip" for clip in clips]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two clips are called {twice}; their frames are named after them: rename "
                        "one")
    reports = []
    with new_folder(out) as folder:
        splits = {split: _Split(folder, split) for split in ALL_SPLITS}
        for clip, name in zip(clips, names, strict=True):
            report = ClipReport(clip=clip.name)
            reports.append(report)
            try:
                film = Film(clip)
                frames = _look_through(film, estimator, most, report, progress)
                shots = _shots(film, name, frames, report, as_found=as_found)
            except UserError as error:
                report.problem = str(error).removeprefix(f"{clip}: ")  # told beside its name
                continue
            _write_shots(film, shots, splits, report)
        if all(report.problem for report in reports):
            raise UserError("no clip gives a data set: "
                            + "; ".join(f"{each.clip}: {each.problem}" for each in reports))
        for split in splits.values():
            split.finish()
        rows = json.dumps([asdict(each) for each in reports], indent=2)
        write_aside(folder / REPORT, rows + "\n")
    return reports


def _look_through(film: Film, estimator: Estimator, most: int, report: ClipReport,
                  progress: Progress) -> list[list[list[_Look]]]:
    """The people of each frame of each shot, without frames that are there twice."""
    expected = max(1, round(film.fps * film.seconds))
    step = max(1, -(-expected // most))
    if film.fps:
        report.apart = step / film.fps
        report.enough = math.ceil(expected / max(1, math.floor(SOON * film.fps)))
    shots: list[list[list[_Look]]] = [[]]
    before = None
    for index, frame in enumerate(film.frames()):
        if index % step:
            continue
        report.frames += 1
        progress("frames", min(index + step, expected), expected)
        small = np.asarray(Image.fromarray(frame).resize((_SMALL, _SMALL), Image.Resampling.BOX),
                           np.float32)
        change = np.abs(small - before) if before is not None else None
        before = small
        if change is not None and change.max() <= _DOUBLED:
            report.doubled += 1
            continue
        if change is not None and change.mean() > 255 * _CUT:
            shots.append([])
        people = [person for person in estimator(frame) if has_torso(person.pose.joints[None])[0]]
        report.people = max(report.people, len(people))
        report.nobody += not people
        shots[-1].append([_Look(index=index, pose=person.pose, mask=_packed(person.mask),
                                sharpness=_sharpness(frame, person.pose)) for person in people])
    return shots


def _shots(film: Film, name: str, frames: list[list[list[_Look]]], report: ClipReport, *,
           as_found: bool) -> list[_Shot]:
    """The shots of a film that are long enough, each with the person who stands out in it."""
    kept = []
    for looks in (part for shot in frames
                  for part in _followed(shot, film.fps, report, as_found=as_found)):
        middle = np.median([look.sharpness for look in looks])
        sharp = [look for look in looks if look.sharpness >= _BLURRED * middle]
        report.blurred += len(looks) - len(sharp)
        if len(sharp) < _SHORTEST:
            report.short += len(sharp)
            continue
        joints = np.stack([look.pose.joints for look in sharp])
        kept.append(_Shot(name=f"{name}_s{len(kept)}", looks=sharp,
                          crop=_square(joints, film.size)))
    report.shots = len(kept)
    if not kept:
        raise UserError(f"no shot has {_SHORTEST} frames in which the shoulders and hips of one "
                        f"person are seen; of {report.frames} frames {report.nobody} show nobody "
                        "like that")
    return kept


def _followed(frames: list[list[_Look]], fps: float, report: ClipReport, *,
              as_found: bool) -> list[list[_Look]]:
    """The person who stands out in some frames; where nobody is near where anybody was, the film
    was cut."""
    people = [[look.pose for look in looks] for looks in frames]
    if not any(people):
        return []
    track = choose_track(tracks(people), None)
    looks = {frame: next(look for look in frames[frame] if look.pose is pose)
             for frame, pose in track.poses.items()}
    report.others += sum(bool(poses) for poses in people) - len(track.poses)
    if not as_found:
        # A frame without the person says nothing, whatever its time.
        steady = steadied(track, seconds([looks[frame].index if frame in looks else 0
                                          for frame in range(len(frames))], fps))
        track = steady.track
        report.exchanged += len(steady.exchanged)
        report.jumps += len(steady.jumps)
    parts: dict[int, list[_Look]] = {}
    for frame, pose in track.poses.items():
        parts.setdefault(track.shots[frame], []).append(replace(looks[frame], pose=pose))
    return list(parts.values())


def _square(joints: np.ndarray, frame: tuple[int, int]) -> Crop:
    """The fixed square of a shot, inside of the frame where it can be."""
    xy = joints[joints[..., 2] > 0][:, :2].clip(0, (frame[1] - 1, frame[0] - 1))
    low, high = xy.min(0), xy.max(0)
    side = max(2, round(_MARGIN * float((high - low).max())))
    left, top = ((low + high) / 2 - (side - 1) / 2).round().astype(int).tolist()
    return Crop(left=left, top=top, width=side, height=side).inside(frame)


def _sharpness(frame: np.ndarray, pose: Pose) -> float:
    """Variance of the Laplacian of the person's box, 128 pixels large."""
    xy = pose.joints[pose.joints[:, 2] > 0, :2]
    corners = np.stack([xy.min(0), xy.max(0)]).astype(int)
    low, high = corners.clip(0, np.array(frame.shape[1::-1]) - 1)
    part = Image.fromarray(frame[low[1]:high[1] + 1, low[0]:high[0] + 1])
    grey = np.asarray(part.convert("L").resize((128, 128), Image.Resampling.BILINEAR), np.float32)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def _packed(mask: np.ndarray) -> bytes:
    """A mask as a small PNG: thousands of them have to be kept."""
    scale = min(1.0, _MASK_ROWS / mask.shape[0])
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    picture = Image.fromarray((mask * 255).round().astype(np.uint8))
    return encode_png(np.asarray(picture.resize(size, Image.Resampling.BOX)))


# --- writing ------------------------------------------------------------------------------------


class _Split:
    """The files of one split, as they grow."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = folder, split
        self.names: list[str] = []
        self.joints: list[np.ndarray] = []
        self.pairs: list[tuple[int, int]] = []
        self.images = folder / split
        self.masks = folder / FILM.masks.format(split)
        for place in (self.images, self.masks):
            place.mkdir(parents=True)

    def add(self, name: str, picture: np.ndarray, mask: np.ndarray, joints: np.ndarray) -> int:
        """One image; returns its index."""
        self.names.append(name)
        self.joints.append(joints)
        index = len(self.names) - 1
        image_file, mask_file = self.files(index)
        write_aside(image_file, encode_jpeg(picture))
        write_aside(mask_file, encode_png(mask))
        return index

    def files(self, index: int) -> tuple[Path, Path]:
        """An image and its mask."""
        name = self.names[index]
        return self.images / name, (self.masks / name).with_suffix(".png")

    def finish(self) -> None:
        """The text files."""
        write_annotations(self.folder / FILM.file_name("annotation", self.split), self.names,
                          np.stack(self.joints))
        write_pairs(self.folder / FILM.file_name("pairs", self.split), self.names,
                    np.array(self.pairs, np.int64).reshape(-1, 2))


def _write_shots(film: Film, shots: list[_Shot], splits: dict[str, _Split],
                 report: ClipReport) -> None:
    """The second reading: frames, masks, joints and pairs of every shot."""
    draws, more_draws = np.random.default_rng(0), np.random.default_rng(1)
    where: dict[int, list[tuple[_Shot, _Look, str]]] = {}
    for shot in shots:
        for part, looks in _parts(shot.looks, draws, more_draws).items():
            for look in looks:
                where.setdefault(look.index, []).append((shot, look, part))
    placed: dict[tuple[str, str], list[int]] = {}
    for index, frame in enumerate(film.frames()):
        for shot, look, part in where.get(index, ()):
            split = next(split for split in ALL_SPLITS if part in (split, SEEN.get(split)))
            name = f"{part if part in SEEN.values() else ''}{shot.name}_{index:06d}.jpg"
            placed.setdefault((shot.name, part), []).append(
                splits[split].add(name, *_cut(shot.crop, frame, look)))
    for shot in shots:
        train = placed[shot.name, "train"]
        splits["train"].pairs += _sample([(a, b) for a in train for b in train if a != b],
                                         _TRAIN_PAIRS, draws)
        for split, seen in SEEN.items():
            splits[split].pairs += [(a, b) for b in placed[shot.name, split]
                                    for a in placed[shot.name, seen]]
        for split in ALL_SPLITS:
            kept = getattr(report, split) + len(placed[shot.name, split])
            setattr(report, split, kept)
        files = [splits["train"].files(at) for at in train]
        report.plates += write_plate(splits["train"].folder / FILM.plates / shot.name,
                                     *zip(*files, strict=True))


def _parts(looks: list[_Look], draws: np.random.Generator,
           more_draws: np.random.Generator) -> dict[str, list[_Look]]:
    """The frames of a shot by what they are for: a split, or the sources of its pairs."""
    test = max(2, round(_TEST * len(looks)))
    validation, gap = (max(least, round(share * len(looks)))
                       for least, share in ((2, _VALIDATION), (1, _GAP)))
    early = looks[: len(looks) - test - gap]
    train = early[: len(early) - validation - gap]

    def some(frames: list[_Look], targets: int, order: np.random.Generator) -> list[_Look]:
        chosen = order.permutation(len(frames))[: max(1, _TEST_PAIRS // targets)]
        return [frames[at] for at in chosen.tolist()]

    return {"train": train, VALIDATION: early[-validation:], "test": looks[-test:],
            # Of all that comes before it: without a validation part the test pairs are the same.
            SEEN["test"]: some(early, test, draws),
            SEEN[VALIDATION]: some(train, validation, more_draws)}


def _cut(crop: Crop, frame: np.ndarray, look: _Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, mask and joints of a frame in its square."""
    size = FILM.frame[::-1]
    mask = np.asarray(Image.open(io.BytesIO(look.mask)).resize(frame.shape[1::-1],
                                                               Image.Resampling.BILINEAR))
    picture, mask = (np.asarray(Image.fromarray(crop.cut(each)).resize(
        size, Image.Resampling.BICUBIC)) for each in (frame, mask))
    joints = look.pose.joints.copy()
    scale = FILM.frame[0] / crop.height
    joints[:, :2] = (joints[:, :2] - (crop.left, crop.top) + 0.5) * scale - 0.5
    inside = ((joints[:, :2] > -0.5) & (joints[:, :2] < FILM.frame[0] - 0.5)).all(1)
    return picture, mask, joints * (inside & (joints[:, 2] > 0))[:, None]


def _sample(pairs: list, most: int, draws: np.random.Generator) -> list:
    """At most so many of them, in their order."""
    if len(pairs) <= most:
        return pairs
    return [pairs[index] for index in np.sort(draws.permutation(len(pairs))[:most]).tolist()]
