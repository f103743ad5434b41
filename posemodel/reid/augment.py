"""Every training image in other poses: sampled at the flow, nothing refined, on grey.

    DIR/manifest.json   what it was made of, and the images that the poses are from, in their order
    DIR/images.jsonl    a row for each image: its source, the image that its pose is from, SHA-256
    DIR/train/          0002_c1s1_000451_03_p00.jpg ...

The poses are drawn once and every image gets all of them: number 7 of one image stands as number 7
of any other. Work is cut into groups of images in the order of their names, and a group is always
computed as a whole, so that a stopped run continues to the same bytes.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pose_kernels
from posemodel.data.dataset_folder import DatasetFolder, encode_jpeg, open_folder
from posemodel.data.images import ImageError, image_names, read_image
from posemodel.data.layouts.market import MARKET
from posemodel.data.pair_loader import View
from posemodel.data.pair_set import PairSet
from posemodel.data.reading import open_pairs
from posemodel.data.source import check_seed
from posemodel.inference.model import PoseTransferModel
from posemodel.poses.annotations import has_torso
from posemodel.reid.config import require
from posemodel.reid.foreground import foreground
from posemodel.reid.market import generated_name, parse_name
from posemodel.runtime.errors import UserError

ON_MISSING = ("skip", "copy")
SPLIT = "train"

_POSES = 0x7265_6964  # the random stream of this module
_GROUPS_AHEAD = 2  # read before, and written after, the one that is computed


@dataclass(frozen=True, kw_only=True)
class AugmentPlan:
    """What to make."""

    poses: int
    """drawn once, for all images"""
    on_missing: str
    """what happens to an image without a single joint: skip, or copy it `poses` times"""
    seed: int
    batch_size: int
    """images that the model makes at a time"""

    def __post_init__(self):
        require(self.on_missing in ON_MISSING, "on-missing", self.on_missing,
                " or ".join(ON_MISSING))
        for flag, value in (("poses", self.poses), ("batch-size", self.batch_size)):
            require(value >= 1, flag, value, "at least 1")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """The training images, and what is known of their joints."""

    pairs: PairSet
    """the images that have a row in the annotation file"""
    names: tuple[str, ...]
    """all images of the folder, sorted"""
    row: dict[str, int]
    """name -> index in `pairs`, of the images with at least one joint"""
    candidates: np.ndarray
    """indices in `pairs` of the images whose poses are drawn: those with shoulders and hips"""

    @property
    def without_joints(self) -> list[str]:
        """The images that no flow can be made for."""
        return [name for name in self.names if name not in self.row]


@dataclass(frozen=True, kw_only=True)
class AugmentResult:
    """What a call of `augment` did."""

    generated: int
    """images made by the model, in all calls for this folder"""
    copied: int
    skipped: int
    """sources without joints that were left out"""
    written: int
    """images of this call"""
    seconds: float
    waited: dict[str, float]
    """seconds of this call that went into reading, the model, writing"""

    @property
    def bound(self) -> str:
        """What the call waited for most."""
        return max(self.waited, key=self.waited.get)


def read_sources(root: Path) -> Sources:
    """The training split of Market-1501 with its annotation file. Raises: `UserError` for what is
    missing or damaged."""
    pairs = open_pairs(root, SPLIT, kind=MARKET.kind)
    names = tuple(image_names(pairs.folder))
    for name in names:
        parse_name(name)
    seen = (pairs.joints[..., 2] > 0).any(1)
    return Sources(pairs=pairs, names=names, candidates=np.flatnonzero(has_torso(pairs.joints)),
                   row={pairs.names[index]: index for index in np.flatnonzero(seen).tolist()})


def draw_poses(candidates: np.ndarray, plan: AugmentPlan) -> np.ndarray:
    """`[plan.poses]` different ones of the candidates, a pure function of the arguments. Raises:
    `UserError` where there are too few."""
    if len(candidates) < plan.poses:
        raise UserError(f"--poses {plan.poses}: only {len(candidates)} images have both shoulders "
                        "and both hips, whose poses are drawn")
    generator = np.random.default_rng([plan.seed, _POSES])
    return candidates[generator.choice(len(candidates), plan.poses, replace=False)]


def augment(model: PoseTransferModel, root: Path, out: Path, plan: AugmentPlan, *, writers: int,
            progress: Callable[[int, int], None]) -> AugmentResult:
    """Write the images into a new folder, or continue there.

    The same arguments give the same bytes (with the same versions of torch and Pillow, on the same
    kind of device with as many threads), however often it was stopped.

    Args:
        writers: threads that decode, encode and write.
        progress: is called with images done and images in total.

    Raises: `UserError` for a folder that holds anything else, a bad image, a model of another
        shape.
    """
    require(writers >= 1, "writers", writers, "at least 1")
    sources = read_sources(root)
    drawn = draw_poses(sources.candidates, plan)
    work = _Work(model, sources, plan, drawn)
    lost = sources.without_joints
    copied = plan.poses * len(lost) if plan.on_missing == "copy" else 0
    generated = plan.poses * len(sources.row)
    start, waited = time.perf_counter(), {"reading": 0.0, "model": 0.0, "writing": 0.0}
    with open_folder(out, _recipe(model, work)) as folder:
        before = len(folder.rows)
        if not folder.complete:
            # Threads may add images at the same time: each has a file of its own, and its row is
            # one short write at the end of the list.
            with ThreadPoolExecutor(writers) as pool:
                _fill(folder, work, pool, waited, lambda: progress(len(folder.rows),
                                                                  generated + copied))
            folder.finish({"generated": generated, "copied": copied,
                           "skipped": 0 if copied else len(lost)}, [])
        return AugmentResult(generated=generated, copied=copied, skipped=0 if copied else len(lost),
                       written=len(folder.rows) - before, waited=waited,
                       seconds=time.perf_counter() - start)


class _Work:
    """The parts of the job, none of which knows of the folder."""

    def __init__(self, model: PoseTransferModel, sources: Sources, plan: AugmentPlan,
                 drawn: np.ndarray):
        frame = sources.pairs.frame
        view = View(sources.pairs, image_size=model.size, fit="pad")  # refuses another shape
        self.whole = View(sources.pairs, image_size=frame, fit="pad")
        self.model, self.sources, self.plan = model, sources, plan
        self.poses = torch.from_numpy(view.joints(sources.pairs.joints))
        self.targets = self.poses[drawn].to(model.device)
        self.targets_of = [sources.pairs.names[index] for index in drawn.tolist()]
        """names of the images that the poses are from"""
        # Where the person is in each pose, `[poses, 1, H, W]`, as the 8 bits of a mask.
        self.persons = (255 * foreground(self.targets, frame)).round() / 255

    def groups(self) -> Iterator[list[str]]:
        """Names of sources, as many at a time as the model makes images of."""
        count = max(1, self.plan.batch_size // self.plan.poses)
        with_joints = [name for name in self.sources.names if name in self.sources.row]
        lost = self.sources.without_joints if self.plan.on_missing == "copy" else []
        for names in (with_joints, lost):
            yield from (names[start : start + count] for start in range(0, len(names), count))

    def names(self, source: str) -> list[str]:
        """Of the images made of one source."""
        poses = self.plan.poses
        return [generated_name(source, number, poses) for number in range(poses)]

    def read(self, source: str) -> np.ndarray | bytes:
        """Pixels of a source in the frame `[H, W, 3]`, or its file where it is only copied."""
        path = self.sources.pairs.folder / source
        pixels = read_image(path)
        if source not in self.sources.row:
            return path.read_bytes()
        picture = self.whole.picture(pixels)
        if picture is None:
            raise ImageError(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels; an image of "
                             "Market-1501 has the shape of 64 x 128")
        return picture

    @torch.inference_mode()
    def transfer(self, sources: list[str], pictures: list[np.ndarray]) -> np.ndarray:
        """Pictures `[N * poses, H, W, 3]` uint8: all poses of the first source, of the second."""
        rows = [self.sources.row[name] for name in sources]
        device, poses = self.model.device, self.plan.poses
        source_poses = self.poses[rows].to(device)
        pixels = torch.from_numpy(np.stack(pictures)).to(device)
        every = torch.arange(len(rows) * poses, device=device)
        made = []
        for some in every.split(self.plan.batch_size):
            source, target = some // poses, some % poses
            flow = self.model.generator.warping(source_poses[source], self.targets[target]).flow
            made.append(sample_on_grey(pixels[source], flow, self.persons[target]))
        return torch.cat(made).cpu().numpy()


def sample_on_grey(pixels: Tensor, flow: Tensor, person: Tensor) -> Tensor:
    """Images sampled at the flow in their own resolution, grey around the person.

    Args:
        pixels: `[B, H, W, 3]` uint8.
        flow: target -> source, `[B, 2, h, w]`, absolute, normalised.
        person: `[B, 1, H, W]` in [0, 1].

    Returns: `[B, H, W, 3]` uint8; grey is 128.
    """
    images = pixels.permute(0, 3, 1, 2).float() - 128
    grey = pose_kernels.flow_sample(images, flow) * person + 128
    return grey.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _fill(folder: DatasetFolder, work: _Work, pool: ThreadPoolExecutor, waited: dict[str, float],
          report: Callable[[], None]) -> None:
    """All images that are not there: read ahead, computed, written behind."""
    todo = deque(group for group in work.groups()
                 if any((SPLIT, name) not in folder.rows
                        for source in group for name in work.names(source)))
    reading: deque[tuple[list[str], list[Future]]] = deque()
    writing: deque[list[Future]] = deque()

    def finish_one() -> None:
        with _timed(waited, "writing"):
            for future in writing.popleft():
                future.result()
        report()

    while todo or reading:
        while todo and len(reading) <= _GROUPS_AHEAD:
            group = todo.popleft()
            reading.append((group, [pool.submit(work.read, source) for source in group]))
        group, futures = reading.popleft()
        with _timed(waited, "reading"):
            contents = [future.result() for future in futures]
        with _timed(waited, "model"):
            jobs = _jobs(work, group, contents)
        writing.append([pool.submit(_write, folder, *job) for job in jobs
                        if (SPLIT, job[0]) not in folder.rows])
        if len(writing) > _GROUPS_AHEAD:
            finish_one()
    while writing:
        finish_one()


def _jobs(work: _Work, group: list[str], contents: list) -> Iterator[tuple]:
    """Name, source, image of the pose or None, and pixels or file of each image of a group."""
    names = [(name, source) for source in group for name in work.names(source)]
    if group[0] not in work.sources.row:
        files = [content for content in contents for _ in range(work.plan.poses)]
        return [(*name, None, file) for name, file in zip(names, files, strict=True)]
    pictures = work.transfer(group, contents)
    return [(*name, pose, picture) for name, pose, picture
            in zip(names, work.targets_of * len(group), pictures, strict=True)]


def _write(folder: DatasetFolder, name: str, source: str, pose: str | None,
           content: np.ndarray | bytes) -> None:
    data = content if isinstance(content, bytes) else encode_jpeg(content)
    folder.add_image(SPLIT, name, data, source=source, pose=pose)


def _recipe(model: PoseTransferModel, work: _Work) -> dict:
    """What decides the bytes: only the same continues."""
    weights, images = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(model.generator.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    sources = work.sources
    images.update("\n".join(sources.names).encode() + sources.pairs.joints.tobytes())
    return {"made_by": "reid augment", "weights": weights.hexdigest()[:16], "step": model.step,
            "images": images.hexdigest()[:16], "device": model.device.type, **vars(work.plan),
            # A dict: where it differs, a message names it, and not every image.
            "poses_drawn": {"images": work.targets_of}}


@contextmanager
def _timed(seconds: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start
