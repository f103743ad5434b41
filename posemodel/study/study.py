"""A study on disk.

    DIR/
      study.json     methods, pairs, and which blinded name is whose: not for volunteers
      images/        pictures under random names, all PNG
      answers.jsonl  one line for each answer, on the disk before the volunteer goes on
"""

import fcntl
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import new_folder
from posemodel.runtime.folder import OwnFolder

VERSION = 2
# Seconds that another process may keep the answers locked; it needs milliseconds.
_PATIENCE = 10.0

# The two questions of Appendix D, which estimates the pose better and which generates the invisible
# parts better; the wording is ours.
QUESTIONS = {"pose": "Which one shows the new pose better?",
             "invisible": "Which one fills in better what the picture of the person does not show?"}
SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class StudyPair:
    """A person, the real picture in the new pose, and what each method made of them."""

    name: str
    source: str
    """blinded file name"""
    target: str
    """blinded file name"""
    results: dict[str, str]
    """blinded file name by method"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is in study.json."""

    folder: Path
    methods: dict[str, str]
    """name -> where its pictures came from; the first one is compared with each other one"""
    pairs: list[StudyPair]
    seed: int
    repeats: float
    show: str
    volunteers: int
    """how many are expected"""

    @property
    def image_names(self) -> set[str]:
        """All blinded file names."""
        return {name for pair in self.pairs
                for name in (pair.source, pair.target, *pair.results.values())}

    @property
    def answers_path(self) -> Path:
        """Where the answers are."""
        return self.folder / "answers.jsonl"


def create_study(folder: Path, *, methods: dict[str, Path], pairs: dict[str, dict[str, np.ndarray]],
                 seed: int, repeats: float, show: str, volunteers: int) -> Study:
    """Write a study; the folder appears entirely or not at all.

    Args:
        pairs: by name; the pictures `[H, W, 3]` uint8 of a pair are "source", "target" and, as
            `("result", method)`, one for each method.
        repeats: share of comparisons that come twice.
        volunteers: how many are expected.

    Raises: `UserError`.
    """
    if not 0 <= repeats <= 0.5:
        raise UserError(f"--repeats {repeats:g}: expected 0 to 0.5")
    if volunteers < 1:
        raise UserError(f"--volunteers {volunteers}: expected at least 1")
    with new_folder(folder) as temporary:
        (temporary / "images").mkdir()
        written = [_write_pair(temporary / "images", name, pictures, list(methods))
                   for name, pictures in pairs.items()]
        study = Study(folder=folder, methods={name: str(path) for name, path in methods.items()},
                      pairs=written, seed=seed, repeats=repeats, show=show, volunteers=volunteers)
        values = {"version": VERSION, **asdict(study), "questions": QUESTIONS}
        del values["folder"]
        _own(temporary).write(values)
        (temporary / "answers.jsonl").touch()
    return study


def open_study(folder: Path) -> Study:
    """Raises: `UserError`."""
    with _own(folder).reading() as values:
        if values["version"] != VERSION or values["questions"] != QUESTIONS:
            raise UserError("it was written by another version, which asks other questions; go on "
                            "there, or make a new study with python -m posemodel.study new")
        pairs = [StudyPair(**pair) for pair in values["pairs"]]
        return Study(folder=folder, pairs=pairs, **{
            name: values[name] for name in ("methods", "seed", "repeats", "show", "volunteers")})


def _own(folder: Path) -> OwnFolder:
    return OwnFolder(folder, "study.json", "study")


def append_answer(path: Path, answer: dict) -> None:
    """Add a line; it is on the disk when this returns. Safe for several threads and processes.
    Raises: `UserError` where another process keeps the file locked."""
    line = json.dumps(answer, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        _lock(file, path)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            # A line that a power cut left torn must not swallow this one.
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: another process has kept it locked for "
                                f"{_PATIENCE:g} s; end that one, and answer again") from None
            time.sleep(0.01)


def read_answers(path: Path) -> tuple[list[dict], int]:
    """All answers in the order they came, and the number of lines that cannot be read."""
    answers, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            answers.append(json.loads(line))
        except ValueError:
            damaged += 1
    return answers, damaged


def latest(answers: list[dict]) -> dict[tuple[str, int, str], dict]:
    """By volunteer, trial and question, the last answer: volunteers may go back."""
    return {(row["volunteer"], row["trial"], row["question"]): row for row in answers}


def _write_pair(folder: Path, name: str, pictures: dict, methods: list[str]) -> StudyPair:
    def write(picture: np.ndarray) -> str:
        blinded = secrets.token_hex(8) + ".png"
        Image.fromarray(picture).save(folder / blinded)
        return blinded

    sizes = {method: pictures["result", method].shape[:2] for method in methods}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{method} {size[1]} x {size[0]}" for method, size in sizes.items())
        raise UserError(f"pair {name}: pictures of different sizes would not be blinded ({told})")
    return StudyPair(name=name, source=write(pictures["source"]), target=write(pictures["target"]),
                     results={method: write(pictures["result", method]) for method in methods})
