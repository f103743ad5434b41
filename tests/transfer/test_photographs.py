"""Transfer of a bare photograph: joints and masks are found, motions carried over."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from posemodel.inference import background as backgrounds
from posemodel.inference.background import behind_person
from posemodel.pictures.inpainting import filling
from posemodel.poses.files import openpose_json
from posemodel.runtime.main import run_main
from posemodel.transfer import output as transfer_output
from posemodel.transfer.__main__ import main
from tests.small_films import beside, frames, knowing, write_film
from tests.small_runs import write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer_output, "_CELL", 96)
    monkeypatch.setattr(transfer_output, "_PANEL", (48, 96))


def photograph(frame, name="person.png") -> str:
    Image.fromarray(frame.picture).save(name)
    return name


def joints_of(shown, name="dance") -> str:
    """A folder of OpenPose files."""
    folder = Path(name)
    folder.mkdir()
    for index, frame in enumerate(shown):
        (folder / f"{index}.json").write_text(
            openpose_json([person.pose for person in frame.people], frame.picture.shape[:2]))
    return name


def transfer(run, *words) -> dict:
    assert main([str(run), "--out", "out", "--device", "cpu", *words]) == 0
    with open("out/transfer.json") as file:
        return json.load(file)


def test_a_photograph_and_joints_of_another(run, monkeypatch, capsys):
    driver, (person,) = frames(4, person=3), frames(1)
    knowing(monkeypatch, [person])
    record = transfer(run, "--image", photograph(person), "--drive", joints_of(driver))
    assert record["background"] == "keep" and record["drive"] == "absolute"
    assert record["source"] | {"pose": "found", "mask": "found"} == record["source"]
    said = capsys.readouterr().out
    assert len(record["targets"]) == 4 and "error" not in said
    assert record["holes"] == filling()
    assert f"background: kept; behind the person {filling()}" in said
    for target in record["targets"]:
        assert target["frame"] == [96, 96]
        with Image.open(f"out/refined/{target['name']}.png") as made:
            assert made.size == (96, 96)


def test_a_picture_of_the_place_without_the_person(run, monkeypatch, capsys):
    driver, (person,) = frames(2, person=3), frames(1)
    knowing(monkeypatch, [person])
    room = np.full_like(person.picture, (250, 0, 250))
    words = ["--image", photograph(person), "--drive", joints_of(driver)]
    Image.fromarray(room).save("room.png")
    seen = []
    monkeypatch.setattr(backgrounds, "behind_person", lambda *words:
                        seen.append(words[-1]) or behind_person(*words))
    record = transfer(run, *words, "--background", "room.png")
    assert record["background"] == "keep" and record["holes"] == "as in room.png"
    assert len(seen) == 1 and np.array_equal(seen[0], room)
    assert "background: kept; behind the person as in room.png" in capsys.readouterr().out


def test_of_several_photographs_each_pose_has_the_one_most_like_it(run, monkeypatch, capsys):
    pytest.importorskip("imageio_ffmpeg")
    people = frames(3)
    knowing(monkeypatch, people)
    files = [photograph(person, f"{index}.png") for index, person in enumerate(people)]
    poses = joints_of([people[2], people[0], people[1], people[1]])
    sheets, draw = [], transfer_output.contact_sheet
    monkeypatch.setattr(transfer_output, "contact_sheet", lambda columns, *rest, **named:
                        sheets.append(dict(columns)) or draw(columns, *rest, **named))
    record = transfer(run, "--image", *files, "--target-pose", poses, "--write", "refined")
    assert len(sheets[0]["source"]) == len(sheets[0]["refined"]) == 4  # each row shows its own
    assert [target["source"] for target in record["targets"]] == ["2.png", "0.png", "1.png",
                                                                  "1.png"]
    assert record["source"]["image"] == "0.png" and record["source"]["crop"]["height"] > 0
    assert [other["image"] for other in record["other_sources"]] == ["1.png", "2.png"]
    assert record["background"] == "keep"
    # The background is that of the first, in every picture: far from anybody it is the same.
    mask = np.max([person.people[0].mask for person in people], 0)
    far = ImageFilter.MaxFilter(21)
    near = np.asarray(Image.fromarray((mask > 0).astype(np.uint8)).filter(far)) > 0
    for target in record["targets"]:
        made = np.asarray(Image.open(f"out/refined/{target['name']}.png"))
        assert np.array_equal(made[~near], people[0].picture[~near])
    assert Path("out/animation.mp4").exists() and "3 photographs" in capsys.readouterr().out


def test_photographs_of_several_sizes(run, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    first, other = frames(1)[0], beside(*frames(2, person=3))
    knowing(monkeypatch, [first, other])
    files = [photograph(first, "0.png"), photograph(other, "1.png")]
    record = transfer(run, "--image", *files, "--drive", joints_of(frames(3, person=3)))
    assert "1.png" in {target["source"] for target in record["targets"]}
    assert all(target["frame"] == [96, 96] for target in record["targets"])
    assert record["other_sources"][0]["frame"] == [96, 192]


def test_a_film_drives(run, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    driver, (person,) = frames(5, person=3), frames(1)
    driver[2] = driver[2].without_people()
    film = write_film(Path("dance.mp4"), driver)
    knowing(monkeypatch, [person, *driver])
    record = transfer(run, "--image", photograph(person), "--drive", str(film), "--drive-as",
                      "relative")
    assert [target["name"] for target in record["targets"]] == [
        f"{index}_dance_{index:04d}" for index in range(5)]
    assert record["film"]["filled"] == [2] and record["drive"] == "relative"
    assert record["film"]["jumps"] == []  # four frames a second leave time for any pose
    assert all(target["frame"] == [96, 96] for target in record["targets"])


def test_a_picture_as_the_target_pose(run, monkeypatch, capsys):
    person, other = frames(1)[0], beside(*frames(2, person=3))
    knowing(monkeypatch, [person, other])
    record = transfer(run, "--image", photograph(person), "--target-pose",
                      photograph(other, "other.png"))
    # Its frame is another one, so that the background cannot be kept.
    assert record["targets"][0]["frame"] == [96, 192]
    assert record["background"] == "model" and record["holes"] is None
    said = capsys.readouterr().out
    assert "background: moved by the model" in said and "target: 2 people" in said


def test_whose_background(run, monkeypatch):
    person, driver = frames(1)[0], frames(2, person=3)
    image = ["--image", photograph(person)]
    own = ["--source-pose", joints_of([person], "own") + "/0.json"]
    drive = ["--drive", joints_of(driver)]
    knowing(monkeypatch, [])
    # A file of joints brings no mask, and none is looked for unasked.
    assert transfer(run, *image, *own, *drive)["background"] == "model"
    Image.fromarray((person.people[0].mask * 255).astype(np.uint8)).save("mask.png")
    record = transfer(run, *image, *own, *drive, "--mask", "mask.png", "--overwrite")
    assert record["background"] == "keep" and record["source"]["mask"] == "mask.png"
    knowing(monkeypatch, [person])
    asked = transfer(run, *image, *own, *drive, "--background", "white", "--overwrite")
    assert asked["background"] == "white" and asked["source"]["mask"] == "found"
    knowing(monkeypatch, [person])
    assert transfer(run, *image, *drive, "--background", "model",
                    "--overwrite")["background"] == "model"


def test_several_people_in_the_photograph(run, monkeypatch, capsys):
    both, driver = beside(*(frames(1, person=n)[0] for n in (0, 3))), frames(2, person=5)
    chosen = {}
    for words in ([], ["--source-person", "1"]):
        knowing(monkeypatch, [both])
        record = transfer(run, "--image", photograph(both), "--drive",
                          joints_of(driver, f"dance{len(words)}"), "--overwrite", *words)
        chosen[record["source"]["person"]] = record["source"]["crop"]["left"]
    assert set(chosen) == {0, 1} and abs(chosen[0] - chosen[1]) > 60
    assert "source: 2 people, number 1 is taken (--source-person N" in capsys.readouterr().out


@pytest.mark.parametrize("words, says", [
    ("--image person.png", "give either --target-pose"),
    ("--image person.png --drive dance --target-pose dance", "give either --target-pose"),
    ("--image person.png --drive dance --every-person", "--drive takes one person's motion"),
    ("--image person.png --drive dance --name row", "--name is a row of the file of --source-pose"),
    ("--image empty.png --drive dance", "empty.png: nobody was found in this picture"),
    ("--image person.png --drive empty.png", "empty.png: nobody was found"),
    ("--image person.png --drive nothing.mp4", "nothing.mp4: no such film"),
    ("--image person.png --drive dance --source-person 4", "--source-person 4: people"),
    ("--image person.png --drive dance --mask empty.png", "nothing in it is white"),
    ("--image person.png --drive dance --mask small.png", "expected the photograph's 96 x 96"),
    ("--image empty.png --source-pose dance/0.json --drive dance --background keep",
     "nobody was found in this picture"),
    ("--image person.png --target-pose wide.json --background keep",
     "the target poses are of pictures of another size"),
    ("--image person.png person.png --drive dance --mask small.png --source-pose dance",
     "--source-pose and --mask: of one photograph"),
    ("--image person.png empty.png --drive dance", "empty.png: nobody was found in this picture"),
    ("--image person.png --drive dance --background small.png",
     "small.png: 9 x 9 pixels, expected the photograph's 96 x 96"),
    ("--image person.png --drive dance --background kept",
     "--background kept: expected keep, white, model, or a picture of the same place"),
])
def test_mistakes_are_one_line(run, monkeypatch, capsys, words, says):
    pytest.importorskip("imageio_ffmpeg")
    person, other = frames(1)[0], frames(1, person=3)[0]
    photograph(person)
    joints_of([other, other])
    with open("wide.json", "w") as file:
        file.write(openpose_json([beside(other, other).people[0].pose], (96, 192)))
    Image.new("RGB", (96, 96)).save("empty.png")
    Image.new("RGB", (9, 9), "white").save("small.png")

    def pose_estimator(folder=""):
        return contextlib.nullcontext(
            lambda picture: person.people if picture.any() else [])

    monkeypatch.setattr("posemodel.poses.estimator.pose_estimator", pose_estimator)
    monkeypatch.setattr(sys, "argv", ["transfer", str(run), "--out", "out", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    printed = capsys.readouterr()
    assert stop.value.code == 2, printed
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert says in printed.err
