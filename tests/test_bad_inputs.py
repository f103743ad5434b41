"""What people give by mistake: pictures, films, models, joints and crowds, through every command
that takes them. Each is refused with exit code 2 and one line: what was wrong, and where."""

import contextlib
import json
import pickle
import shlex
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("imageio_ffmpeg")

from posemodel.data.__main__ import main as data  # noqa: E402
from posemodel.poses.files import openpose_json  # noqa: E402
from posemodel.runtime.main import run_main  # noqa: E402
from posemodel.train import main as train  # noqa: E402
from posemodel.transfer.__main__ import main as transfer  # noqa: E402
from tests.small_datasets import encoded  # noqa: E402
from tests.small_films import SIZE, Frame, frames, write_film  # noqa: E402
from tests.small_runs import write_tiny_run  # noqa: E402
from tests.tiny import FLAGS  # noqa: E402

COMMANDS = {"data": data, "train": train, "transfer": transfer}
TRAIN = f"train person {shlex.join(FLAGS)} --data.workers 0 --out new"

PICTURES = [
    ("data pose gone.jpg", "gone.jpg: No such file"),
    ("data pose empty.jpg", "empty.jpg: is empty"),
    ("data pose text.jpg", "text.jpg: is no image; JPEG, PNG, WebP and BMP images are read"),
    ("data pose page.jpg", "a web page or other text, perhaps the answer to a failed download"),
    ("data pose folder.jpg", "folder.jpg: is a folder, not an image"),
    ("data pose cut.jpg", "cut.jpg: the JPEG is damaged or cut off"),
    ("data pose cut.png", "cut.png: the PNG is damaged or cut off"),
    ("data pose phone.heic", "phone.heic: is HEIC, AVIF or a video"),
    ("data pose moving.gif", "moving.gif: is a GIF"),
    ("data pose huge.png", "huge.png: 60000 x 60000 pixels"),
    ("data pose nobody.png", "nobody.png: nobody was found in this picture"),
    ("data pose crowd.png --person 12", "--person 12: people"),
    ("data pose crowd.png --person -1", "--person -1: people"),
    ("data pose me.png --mask gone/mask.png", "there is no folder gone"),
    ("data pose me.png --json me.png", "would replace what is"),
    ("transfer --image cut.jpg --drive dance", "cut.jpg: the JPEG is damaged or cut off"),
    ("transfer --image film.mp4 --drive dance", "film.mp4: is HEIC, AVIF or a video"),
    ("transfer --image nobody.png --drive dance", "nobody.png: nobody was found"),
    ("transfer --image me.png --drive empty.jpg", "empty.jpg: is empty"),
    ("transfer --image crowd.png --drive dance --source-person 12", "--source-person 12: people"),
    ("transfer --image me.png --drive dance --mask gone.png", "gone.png: No such file"),
    ("transfer --image me.png --drive dance --mask text.jpg", "text.jpg: is no image"),
    ("transfer --image me.png --drive dance --mask nobody.png", "nothing in it is white"),
    ("transfer --image me.png --drive dance --mask crowd.png", "expected the photograph's"),
]
FILMS = [
    ("data film gone.mp4 --out new", "gone.mp4: no such film"),
    ("data film folder.jpg --out new", "folder.jpg: is a folder; give the films in it by"),
    ("data film empty.mp4 --out new", "empty.mp4: no film that can be read"),
    ("data film text.mp4 --out new", "text.mp4: no film that can be read"),
    ("data film head.mp4 --out new", "head.mp4: no film that can be read"),
    ("data film sound.mp4 --out new", "sound.mp4: no film that can be read"),
    ("data film empty-room.mp4 --out new", "empty-room.mp4: no shot has 10 frames"),
    ("data film one.mp4 --out new", "one.mp4: no shot has 10 frames"),
    ("data film me.png --out new", "no shot has 10 frames"),
    ("data film film.mp4 film.mp4 --out new", "two clips are called film"),
    ("data film film.mp4 --out folder.jpg", "is there already"),
    ("data film film.mp4 --out new --frames 0", "--frames 0: expected"),
    ("transfer --image me.png --drive gone.mp4", "gone.mp4: no such film"),
    ("transfer --image me.png --drive text.mp4", "text.mp4: no film that can be read"),
    ("transfer --image me.png --drive sound.mp4", "sound.mp4: no film that can be read"),
    ("transfer --image me.png --drive empty-room.mp4", "empty-room.mp4: nobody was found"),
    ("transfer --image me.png --drive crowd.mp4 --person 12", "--person 12: nobody has this"),
]
JOINTS = [
    ("data pose me.png gone.json", "gone.json: No such file"),
    ("data pose me.png broken.json", "broken.json: broken JSON"),
    ("data pose me.png nobody.json", "nobody.json: nobody was found"),
    ("data pose me.png crowd.json --person 12", "--person 12: people with joints here: 0, 1"),
    ("transfer --image me.png --source-pose nobody.json --drive dance", "nobody.json: nobody was"),
    ("transfer --image me.png --drive nothing", "no files of joints in this folder"),
    ("transfer --image me.png --drive broken.json", "broken.json: broken JSON"),
    ("transfer --image me.png --drive stump.json", "have no limb in common"),
    ("transfer --image me.png --drive dance --smooth -1", "--smooth -1: expected"),
    ("transfer --image me.png --drive dance --fps 0", "--fps 0: expected"),
    ("transfer --image me.png --drive dance --batch-size 0", "--batch-size 0: expected"),
    ("transfer --image me.png --drive dance --device gpu", "--device gpu: no such device"),
]
MODELS = [
    ("transfer gone --image me.png --drive dance", "gone is no run folder"),
    ("transfer nothing --image me.png --drive dance", "nothing is no run folder"),
    ("transfer text.safetensors --image me.png --drive dance", "text.safetensors: no readable"),
    ("transfer cut.safetensors --image me.png --drive dance", "cut.safetensors: no readable"),
    ("transfer other.safetensors --image me.png --drive dance", "other.safetensors has no config"),
    ("transfer pickle.pt --image me.png --drive dance", "pickle.pt: no readable"),
    (f"{TRAIN} --data.root set --init gone", "gone is no run folder"),
    (f"{TRAIN} --data.root set --init nothing", "nothing is no run folder"),
    (f"{TRAIN} --data.root set --init text.safetensors", "--init text.safetensors: no"),
    (f"{TRAIN} --data.root set --init other.safetensors", "has the weights of none"),
    (f"{TRAIN} --data.root set --init pickle.pt", "--init pickle.pt: no readable"),
    (f"{TRAIN} --data.root gone", "gone is no folder"),
    (f"{TRAIN} --data.root nothing", "nothing has no film in it"),
    (f"{TRAIN} --data.root film.mp4", "film.mp4 is no folder"),
    (TRAIN, "no --data.root for the film data set"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of mistakes, and of what is right."""
    folder = tmp_path_factory.mktemp("inputs")
    shown = frames(14)
    for name in ("folder.jpg", "nothing"):
        (folder / name).mkdir()
    _write_pictures(folder, shown[0])
    _write_films(folder, shown)
    _write_joints(folder, shown[0])
    _write_models(folder)
    with _looking_at():
        assert data(["film", str(folder / "film.mp4"), "--out", str(folder / "set")]) == 0
    return folder


def _write_pictures(folder: Path, me: Frame) -> None:
    picture = Image.fromarray(me.picture)
    picture.save(folder / "me.png")
    Image.new("RGB", SIZE[::-1]).save(folder / "nobody.png")
    _crowd().save(folder / "crowd.png")
    picture.save(folder / "moving.gif")
    header = b"IHDR" + 2 * (60000).to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    huge = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    for name, content in {
            "empty.jpg": b"", "text.jpg": b"hello", "page.jpg": b"<!DOCTYPE html><html></html>",
            "cut.jpg": jpeg[: len(jpeg) // 2], "cut.png": png[: len(png) // 2],
            "phone.heic": b"\0\0\0\x18ftypheic" + bytes(90), "huge.png": huge}.items():
        (folder / name).write_bytes(content)


def _write_films(folder: Path, shown: list[Frame]) -> None:
    write_film(folder / "film.mp4", shown)
    write_film(folder / "one.mp4", shown[:1])
    for name, picture in (("empty-room", Image.new("RGB", SIZE[::-1])), ("crowd", _crowd())):
        write_film(folder / f"{name}.mp4", 12 * [Frame(np.asarray(picture), [])])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello")
    (folder / "head.mp4").write_bytes((folder / "film.mp4").read_bytes()[:200])
    import imageio_ffmpeg

    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i",
                    "sine=duration=1", folder / "sound.mp4"], check=True)


def _write_joints(folder: Path, me: Frame) -> None:
    pose = me.people[0].pose
    (folder / "dance").mkdir()
    for name, poses in (("dance/0.json", [pose]), ("crowd.json", 12 * [pose])):
        (folder / name).write_text(openpose_json(poses, SIZE))
    (folder / "broken.json").write_text('{"people": [')
    (folder / "nobody.json").write_text(json.dumps({"version": 1.3, "people": []}))
    # A nose alone has no limb that a motion could be carried over by.
    nose = np.where(np.arange(len(pose.joints))[:, None] == 0, pose.joints, 0)
    (folder / "stump.json").write_text(openpose_json([replace(pose, joints=nose)], SIZE))


def _write_models(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_tiny_run(folder / "run")
    (folder / "text.safetensors").write_text("hello")
    save_file({"layer.weight": torch.zeros(4)}, folder / "other.safetensors")
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-8])
    (folder / "pickle.pt").write_bytes(pickle.dumps({"layer.weight": [0.0]}))


def _crowd() -> Image.Image:
    return Image.new("RGB", (2 * SIZE[1], SIZE[0]), "gray")


@contextlib.contextmanager
def _looking_at():
    """An estimator that sees nobody in what is black, twelve people in what is grey, else one."""
    me = frames(1)[0].people[0]

    def look(picture: np.ndarray) -> list:
        if picture.max() < 20:
            return []
        if picture.std() > 8:
            return [me]
        pose = replace(me.pose, frame=picture.shape[:2])
        mask = np.zeros(picture.shape[:2], np.float32)
        mask[:, : SIZE[1]] = me.mask
        return [replace(me, pose=replace(pose, person=number), mask=mask) for number in range(12)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posemodel.poses.estimator.pose_estimator",
                      lambda folder="": contextlib.nullcontext(look))
        yield


@pytest.mark.parametrize(("words", "says"), [*PICTURES, *FILMS, *JOINTS, *MODELS])
def test_one_line_and_nothing_written(place, tmp_path, monkeypatch, capsys, words, says):
    command, *words = shlex.split(words)
    if command == "transfer":
        words += ["--out", "new"]
        if words[0].startswith("--"):
            words.insert(0, "run")
    words = [str(tmp_path / word) if word == "new" else word for word in words]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [command, *words])
    before = sorted(place.rglob("*"))
    with _looking_at(), pytest.raises(SystemExit) as stop:
        run_main(COMMANDS[command])
    printed = capsys.readouterr().err
    assert stop.value.code == 2, printed
    assert printed.startswith("error: ") and printed.count("\n") == 1 and says in printed, printed
    assert sorted(place.rglob("*")) == before and not list(tmp_path.iterdir())


def test_the_right_ones_are_taken(place, monkeypatch, tmp_path):
    """The same files without a mistake, so that nothing above is refused for another reason."""
    monkeypatch.chdir(place)
    with _looking_at():
        assert data(["pose", "me.png"]) == 0
        assert data(["pose", "crowd.png", "--person", "11"]) == 0
        assert transfer(["run", "--image", "me.png", "--drive", "dance", "--device", "cpu",
                         "--out", str(tmp_path / "one")]) == 0
        assert transfer(["run", "--image", "me.png", "--drive", "crowd.mp4", "--person", "11",
                         "--device", "cpu", "--out", str(tmp_path / "two")]) == 0
