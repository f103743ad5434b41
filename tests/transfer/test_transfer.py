"""`python -m posemodel.transfer`: everything it writes, what it reads, what it leaves alone."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.demo.workbench import about
from posemodel.inference.model import PoseTransferModel
from posemodel.inference.programs import write_weights
from posemodel.mannequins.pairs import Mannequins
from posemodel.poses.files import openpose_json
from posemodel.poses.joints import normalized_to_pixels
from posemodel.poses.layouts import Pose
from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from posemodel.transfer import kinds as transfer_kinds
from posemodel.transfer import output as transfer_output
from posemodel.transfer.__main__ import main
from posemodel.transfer.kinds import KINDS
from tests.flow_reader import read_flo
from tests.small_runs import write_tiny_run

SHARED = Path(os.environ.get("POSEMODEL_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
FRAME = (96, 80)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def people():
    return Mannequins(size=(64, 64), seed=4).pairs(range(3))


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch):
    """Packing large PNGs would take most of the time."""
    monkeypatch.setattr(transfer_output, "_CELL", 96)
    monkeypatch.setattr(transfer_output, "_PANEL", (48, 96))


@pytest.fixture
def joints(people):
    """Joints of three poses in pixels of FRAME, `[3, 18, 3]`."""
    return normalized_to_pixels(people["target_pose"], FRAME).numpy()


@pytest.fixture
def person(tmp_path, people):
    """`--image` and `--source-pose` of a generated photograph."""
    image = ((people["source"][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(image).resize((128, 128)).save(tmp_path / "person.png")
    pose = normalized_to_pixels(people["source_pose"][0], (128, 128)).numpy()
    write_pose_file(tmp_path / "person.json", pose, (128, 128))
    return ["--image", str(tmp_path / "person.png"), "--source-pose", str(tmp_path / "person.json")]


@pytest.fixture
def poses(tmp_path, joints):
    """A folder of three target poses, whose frame is FRAME."""
    folder = tmp_path / "poses"
    folder.mkdir()
    for number, pose in zip((10, 2, 1), joints, strict=True):
        write_pose_file(folder / f"frame{number}.json", pose, FRAME)
    (folder / "notes.md").write_text("no pose")
    (folder / ".hidden.json").write_text("no pose either")
    return folder


def write_pose_file(path: Path, joints: np.ndarray, frame: tuple[int, int]) -> None:
    path.write_text(openpose_json([Pose(joints=joints, format="openpose18")], frame))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*") if file.is_file()}


def transfer(run, person, out, *words) -> dict:
    """Runs the command on the CPU; returns transfer.json."""
    assert main([str(run), *person, "--out", str(out), "--device", "cpu", *map(str, words)]) == 0
    return json.loads((out / "transfer.json").read_text())


# --- what it writes -------------------------------------------------------------------------------


def test_everything_is_written(run, person, poses, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    out = tmp_path / "deep" / "out"
    record = transfer(run, person, out, "--target-pose", poses, "--write", *KINDS)
    names = ["0_frame1", "1_frame2", "2_frame10"]
    assert [target["name"] for target in record["targets"]] == names
    kinds = ("refined", "warped", "flow_picture", "visibility", "skeleton")
    expected = {f"{kind}/{name}.png" for kind in kinds for name in names}
    expected |= {f"flow/{name}{ending}" for name in names for ending in (".npy", ".flo")}
    expected |= {"contact_sheet.png", "source_skeleton.png", "animation.gif", "transfer.json"}
    assert set(files_in(out)) == expected
    assert set(record["files"]) == expected | {"animation.mp4"} and record["finished"]

    for kind in kinds:
        with Image.open(out / kind / "1_frame2.png") as picture:
            assert picture.size == FRAME[::-1]
            assert picture.mode == ("L" if kind == "visibility" else "RGB")
            assert np.asarray(picture).std() > 1, kind
    with Image.open(out / "contact_sheet.png") as sheet:
        assert 7 * 96 < sheet.width < 9 * 96 and 3 * 96 < sheet.height < 6 * 96
    with Image.open(out / "animation.gif") as film:
        assert film.n_frames == 3 and film.info["duration"] == 500
    printed = capsys.readouterr().out
    assert f"model: {run}, 7 steps, 32 x 32 pixels, on cpu" in printed
    assert "no MP4: the package imageio-ffmpeg is not installed" in printed
    assert record["model"] == {"name": str(run), "step": 7, "image_size": [32, 32], "about": ""}
    assert record["source"]["frame"] == [128, 128] and record["targets"][0]["frame"] == [*FRAME]


def test_files_are_what_the_model_says(run, person, joints, tmp_path):
    write_pose_file(tmp_path / "b.json", joints[0], FRAME)
    out = tmp_path / "out"
    record = transfer(run, person, out, "--target-pose", tmp_path / "b.json")
    image = np.asarray(Image.open(tmp_path / "person.png"))
    source = np.reshape(json.loads((tmp_path / "person.json").read_text())
                        ["people"][0]["pose_keypoints_2d"], (18, 3))
    result = PoseTransferModel.from_run(run, "cpu").transfer(
        image, source, joints[:1], target_size=FRAME)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "refined/b.png")), result.refined(0))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "warped/b.png")), result.warped(0))
    locations = np.load(out / "flow/b.npy")
    np.testing.assert_array_equal(locations, result.locations(0))
    y, x = np.indices(FRAME)
    np.testing.assert_allclose(read_flo(out / "flow/b.flo"), locations - np.stack([x, y]),
                               atol=1e-4)
    assert record["targets"][0]["crop"] == vars(result.target_crops[0])
    assert record["source"]["crop"] == vars(result.source_crop)
    assert not (out / "animation.gif").exists()


def test_a_model_is_introduced_by_the_first_line_of_what_its_maker_says(
        run, person, joints, tmp_path, capsys):
    """The package's own says at length how it was made."""
    write_pose_file(tmp_path / "b.json", joints[0], FRAME)
    said = "Good for snails.\nMade by five commands."
    write_weights(PoseTransferModel.from_run(run, "cpu"), tmp_path / "snails.safetensors",
                  about=said)
    record = transfer(tmp_path / "snails.safetensors", person, tmp_path / "out", "--target-pose",
                      tmp_path / "b.json", "--write", "refined")
    printed = capsys.readouterr().out
    assert "\nGood for snails.\n" in printed and "five commands" not in printed
    assert record["model"]["about"] == said
    assert about(PoseTransferModel.from_file(tmp_path / "snails.safetensors")) == "Good for snails."


def test_batches_give_the_same_files(run, person, poses, tmp_path):
    for size in ("1", "8"):
        transfer(run, person, tmp_path / size, "--target-pose", poses, "--batch-size", size,
                 "--write", "flow")
    one, other = (np.load(tmp_path / size / "flow" / "2_frame10.npy") for size in ("1", "8"))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_many_poses_are_a_film_and_a_short_sheet(run, person, joints, tmp_path):
    np.save(tmp_path / "dance.npy", np.linspace(joints[0], joints[1], 13))
    out = tmp_path / "out"
    record = transfer(run, person, out, "--target-pose", tmp_path / "dance.npy", "--every-person",
                      "--target-size", *FRAME)
    assert [target["name"] for target in record["targets"]][::12] == ["00_dance", "12_dance"]
    with Image.open(out / "animation.gif") as film:
        assert film.n_frames == 13 and film.info["duration"] in (80, 83)  # GIF counts 10 ms
    with Image.open(out / "contact_sheet.png") as sheet:
        assert 12 * 96 < sheet.height < 15 * 96


def test_frames_of_different_sizes_make_no_animation(run, person, joints, tmp_path, capsys):
    for index, frame in enumerate([FRAME, (100, 90), FRAME]):
        write_pose_file(tmp_path / f"{index}.json", joints[index], frame)
    files = [tmp_path / f"{index}.json" for index in range(3)]
    record = transfer(run, person, tmp_path / "out", "--target-pose", *files)
    assert [target["frame"] for target in record["targets"]] == [[96, 80], [100, 90], [96, 80]]
    assert "no animation" in capsys.readouterr().out
    assert not (tmp_path / "out" / "animation.gif").exists()


def test_video(run, person, poses, tmp_path, capsys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    transfer(run, person, tmp_path / "out", "--target-pose", poses, "--fps", "5")
    frames = ffmpeg.read_frames(str(tmp_path / "out" / "animation.mp4"))
    about = next(frames)
    assert about["fps"] == 5 and len(list(frames)) == 3 and "no MP4" not in capsys.readouterr().out


def test_of_several_poses_the_finished_pictures_alone_by_default(run, person, poses, tmp_path):
    record = transfer(run, person, tmp_path / "out", "--target-pose", poses)
    places = {name.partition("/")[0] for name in files_in(tmp_path / "out")}
    assert places == {"refined", "contact_sheet.png", "source_skeleton.png", "animation.gif",
                      "transfer.json"} | ({"animation.mp4"} & places)
    assert len([name for name in record["files"] if "/" in name]) == 3


def test_what_is_written_can_be_chosen(run, person, poses, tmp_path, capsys):
    out = tmp_path / "out"
    transfer(run, person, out, "--target-pose", poses / "frame1.json", "--write", "flo", "skeleton")
    assert set(files_in(out)) == {"contact_sheet.png", "source_skeleton.png", "transfer.json",
                                  "flow/frame1.flo", "skeleton/frame1.png"}
    assert f"files of each pose: {out / 'flow'}, {out / 'skeleton'}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(run), *person, "--target-pose", str(poses), "--out", "o", "--write", "video"])
    assert "invalid choice: 'video'" in capsys.readouterr().err


def test_the_film_shows_what_the_pictures_show(run, person, poses, tmp_path):
    out = tmp_path / "out"
    record = transfer(run, person, out, "--target-pose", poses, "--write", "refined", "warped")
    crops = [target["crop"] for target in record["targets"]]
    left, top = (max(0, min(crop[edge] for crop in crops)) for edge in ("left", "top"))
    right = min(FRAME[1], max(crop["left"] + crop["width"] for crop in crops))
    bottom = min(FRAME[0], max(crop["top"] + crop["height"] for crop in crops))
    with Image.open(out / "animation.gif") as film:
        film.seek(1)
        page = film.convert("RGB")
    rows = page.height - transfer_output._STRIP
    columns = (page.width - rows) // 2  # the photograph is a square
    with Image.open(out / "refined" / "1_frame2.png") as picture:
        result = picture.resize((columns, rows), box=(left, top, right, bottom))
    with Image.open(tmp_path / "person.png") as picture:
        source = picture.resize((rows, rows))
    for panel, expected in (((0, rows), source), ((page.width - columns, page.width), result)):
        shown = page.crop((panel[0], transfer_output._STRIP, panel[1], page.height))
        far = np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean()
        assert far < 12 and np.asarray(expected).std() > 20  # a GIF has 256 colours


def test_the_time_said_is_the_time_taken(run, person, poses, tmp_path, capsys, monkeypatch):
    slow = transfer_output.write_pose

    def write(*words):
        time.sleep(0.2)
        slow(*words)

    monkeypatch.setattr(transfer_output, "write_pose", write)
    began = time.perf_counter()
    record = transfer(run, person, tmp_path / "out", "--target-pose", poses)
    assert 0.6 < record["seconds"] < time.perf_counter() - began
    assert record["model_seconds"] < record["seconds"] - 0.6
    assert f"3 poses in {record['seconds']:.1f} s, of which the model" in capsys.readouterr().out


def test_a_large_size_is_said_before_and_is_about_right(run, person, joints, tmp_path, capsys,
                                                        monkeypatch):
    write_pose_file(tmp_path / "b.json", joints[0], FRAME)
    words = ["--target-pose", tmp_path / "b.json", "--write", "flow", "flo"]
    transfer(run, person, tmp_path / "small", *words)
    assert "will be written" not in capsys.readouterr().out
    monkeypatch.setattr(transfer_kinds, "_LARGE", 100_000)
    transfer(run, person, tmp_path / "large", *words)
    printed = capsys.readouterr().out
    assert printed.index("about 0 MB will be written into") < printed.index("1 pose in")
    said = sum(KINDS[kind].bytes_per_pixel for kind in ("flow", "flo")) * FRAME[0] * FRAME[1]
    real = sum(file.stat().st_size for file in (tmp_path / "large" / "flow").iterdir())
    assert abs(real - said) < 0.01 * said


# --- what it reads --------------------------------------------------------------------------------


def test_rows_of_a_file_of_many_images(run, person, joints, tmp_path):
    rows = ["name:keypoints_y:keypoints_x"]
    for name, pose in zip(("x.jpg", "person.png", "z.jpg"), joints, strict=True):
        y, x = (np.where(pose[:, 2] > 0, pose[:, axis], -1).round().astype(int).tolist()
                for axis in (1, 0))
        rows.append(f"{name}: {y}: {x}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    image = person[:2]
    words = [*image, "--source-pose", str(table)]
    record = transfer(run, words, tmp_path / "all", "--target-pose", table)
    assert [t["name"] for t in record["targets"]] == ["0_x", "1_person", "2_z"]
    record = transfer(run, words, tmp_path / "some", "--target-pose", table,
                      "--target-name", "z.jpg", "x.jpg")
    assert [t["name"] for t in record["targets"]] == ["0_z", "1_x"]
    record = transfer(run, [*words, "--name", "z.jpg"], tmp_path / "named", "--target-pose", table,
                      "--target-name", "z.jpg")
    seen = np.load(tmp_path / "named" / "flow" / "z.npy"), record["source"]["crop"]
    assert np.isfinite(seen[0]).any()
    Image.open(tmp_path / "person.png").save(tmp_path / "stranger.png")
    with pytest.raises(UserError, match="none of stranger.png; give one with --name"):
        main([str(run), "--image", str(tmp_path / "stranger.png"), "--source-pose", str(table),
              "--target-pose", str(table), "--out", str(tmp_path / "none")])


def test_main_person_or_every_person(run, person, joints, tmp_path):
    people = [Pose(joints=pose, format="openpose18") for pose in joints]
    people[0].joints[5:] = 0
    (tmp_path / "crowd.json").write_text(openpose_json(people, FRAME))
    record = transfer(run, person, tmp_path / "one", "--target-pose", tmp_path / "crowd.json")
    assert [target["person"] for target in record["targets"]] in ([1], [2])
    record = transfer(run, person, tmp_path / "all", "--target-pose", tmp_path / "crowd.json",
                      "--every-person")
    assert [target["person"] for target in record["targets"]] == [0, 1, 2]


def test_format_and_units_are_passed_on(run, person, joints, tmp_path):
    """Few joints, which may be pixels, of both files."""
    for name, pose in (("a", joints[1]), ("b", joints[0])):
        fractions = np.where(pose[:, 2:] > 0, pose[:, :2] / FRAME[::-1], np.nan)
        fractions[2:] = np.nan
        np.save(tmp_path / f"{name}.npy", fractions)
    person[3] = str(tmp_path / "a.npy")
    words = ["--target-pose", tmp_path / "b.npy", "--target-size", *FRAME]
    with pytest.raises(UserError, match="a.npy: .* too few to tell.*give --units fractions"):
        transfer(run, person, tmp_path / "out", *words)
    with pytest.raises(UserError, match="18 x 2 numbers, expected 17"):
        transfer(run, person, tmp_path / "out", *words, "--format", "coco17")
    record = transfer(run, person, tmp_path / "out", *words, "--units", "fractions")
    assert record["targets"][0]["frame"] == [*FRAME]
    assert (record["source"]["format"], record["source"]["units"]) == ("openpose18", "fractions")


def test_a_film_is_recorded_and_said(run, person, joints, tmp_path, capsys):
    folder = tmp_path / "film"
    folder.mkdir()
    for index in range(3):
        people = [] if index == 1 else [Pose(joints=pose, format="openpose18") for pose in joints]
        (folder / f"{index}.json").write_text(openpose_json(people, FRAME))
    record = transfer(run, person, tmp_path / "out", "--target-pose", folder, "--person", "1",
                      "--smooth")
    assert record["film"] == {"frames": 3, "people": 3, "person": 1, "found_in": 2, "filled": [1],
                              "cuts": [], "exchanged": [], "jumps": []}
    printed = capsys.readouterr().out
    assert "film: 3 people in 3 frames, number 1 is followed, found in 2" in printed
    assert "film: number 1 was not found in 1 of 3 frames (1); filled" in printed
    assert "joints smoothed over 1 frames" in printed


def test_the_source_of_several_people_and_of_another_image(run, person, joints, tmp_path, capsys):
    people = [Pose(joints=pose * np.float32([1.3, 1.3, 1]), format="openpose18") for pose in joints]
    (tmp_path / "b.json").write_text(openpose_json(people, (128, 128)))
    words = [*person[:2], "--source-pose", str(tmp_path / "b.json")]
    target = ["--target-pose", tmp_path / "person.json"]
    record = transfer(run, words, tmp_path / "one", *target, "--source-person", "2")
    assert record["source"]["person"] == 2
    assert "source: 3 people, number 2 is taken" in capsys.readouterr().out
    with pytest.raises(UserError, match="--source-person 7: people with joints here: 0, 1, 2"):
        transfer(run, words, tmp_path / "none", *target, "--source-person", "7")
    y, x = people[0].joints[:, 1::-1].T.astype(int).tolist()
    (tmp_path / "row.csv").write_text(f"name:keypoints_y:keypoints_x\nother.png: {y}: {x}\n")
    words[3] = str(tmp_path / "row.csv")
    record = transfer(run, words, tmp_path / "other", *target)
    assert "names the image of these joints other.png" in record["source"]["warnings"][0]
    assert "warning: source: the file names" in capsys.readouterr().out
    (tmp_path / "film.json").write_text(json.dumps([{"people": []}, json.loads(
        (tmp_path / "b.json").read_text())]))
    words[3] = str(tmp_path / "film.json")
    with pytest.raises(UserError, match="film.json: is a film of 2 frames, where the joints of"):
        transfer(run, words, tmp_path / "film", *target)


def test_doubtful_poses_are_said(run, person, joints, tmp_path, capsys):
    write_pose_file(tmp_path / "b.json", joints[0] + np.float32([50, 0, 0]), FRAME)
    record = transfer(run, person, tmp_path / "out", "--target-pose", tmp_path / "b.json")
    assert "lie outside of the image" in record["targets"][0]["warnings"][0]
    assert "warning: b: " in capsys.readouterr().out and record["source"]["warnings"] == []


def test_a_long_film_does_not_repeat_its_warnings(run, person, joints, tmp_path, capsys):
    np.save(tmp_path / "far.npy", np.stack([joints[0] + np.float32([50, 0, 0])] * 9))
    record = transfer(run, person, tmp_path / "out", "--target-pose", tmp_path / "far.npy",
                      "--target-size", *FRAME)
    printed = capsys.readouterr().out
    assert all(target["warnings"] for target in record["targets"])
    assert printed.count("lie outside of the image") == 3
    assert "warning: 6 more of 9 target poses have warnings: see transfer.json" in printed


def test_weird_names_stay_in_the_folder(run, person, joints, tmp_path):
    file = tmp_path / "a b$..json"
    write_pose_file(file, joints[0], FRAME)
    record = transfer(run, person, tmp_path / "out", "--target-pose", file)
    assert (tmp_path / "out" / "refined" / f"{record['targets'][0]['name']}.png").is_file()
    assert set(files_in(tmp_path / "out")) == set(record["files"])


# --- what it leaves alone -------------------------------------------------------------------------


def test_foreign_folder_is_never_written(run, person, poses, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for words in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="not empty and is no earlier transfer"):
            transfer(run, person, out, "--target-pose", poses, *words)
    assert files_in(out) == {"thesis.txt": b"years of work"}


def test_earlier_transfer_is_replaced_on_demand_only(run, person, poses, tmp_path):
    out = tmp_path / "out"
    transfer(run, person, out, "--target-pose", poses)
    before = files_in(out)
    with pytest.raises(UserError, match="--overwrite replaces it"):
        transfer(run, person, out, "--target-pose", poses)
    assert files_in(out) == before
    (out / "refined" / "thesis.txt").write_text("years of work")
    record = transfer(run, person, out, "--target-pose", poses / "frame1.json", "--overwrite")
    left = files_in(out)
    assert set(left) == {*record["files"], "refined/thesis.txt"}
    assert "refined/frame1.png" in left and "refined/0_frame1.png" not in left
    (out / "refined" / "2_frame10.png").write_text("somebody else's")
    with pytest.raises(UserError, match="2_frame10.png is there and no earlier transfer wrote it"):
        transfer(run, person, out, "--target-pose", poses, "--overwrite")
    assert files_in(out) == left | {"refined/2_frame10.png": b"somebody else's"}


@pytest.mark.parametrize("record, says", [
    ("{", "damaged"), ("{}", "damaged"), ('{"files": 3}', "damaged"), ('{"files": [3]}', "damaged"),
    ('{"files": ["../thesis.txt"]}', "refused"), ('{"files": ["/thesis.txt"]}', "refused")])
def test_record_that_is_not_ours(run, person, poses, tmp_path, record, says):
    (tmp_path / "thesis.txt").write_text("years of work")
    out = tmp_path / "out"
    out.mkdir()
    (out / "transfer.json").write_text(record)
    with pytest.raises(UserError, match=says):
        transfer(run, person, out, "--target-pose", poses, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert files_in(out) == {"transfer.json": record.encode()}


def test_interrupted_transfer_can_be_replaced(run, person, poses, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        def interrupt(*_):
            raise KeyboardInterrupt
        patch.setattr("posemodel.transfer.output.Film.write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            transfer(run, person, out, "--target-pose", poses)
    assert json.loads((out / "transfer.json").read_text())["finished"] is False
    assert transfer(run, person, out, "--target-pose", poses, "--overwrite")["finished"]


def test_nothing_is_written_before_all_is_read(run, person, poses, tmp_path):
    (poses / "frame3.json").write_text("{}")
    with pytest.raises(UserError, match="frame3.json"):
        transfer(run, person, tmp_path / "out", "--target-pose", poses)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, says", [
    ("--batch-size 0", "--batch-size 0"), ("--fps 0", "--fps 0"), ("--fps nan", "--fps nan"),
    ("--target-size 0 9", "--target-size"), ("--format coco", "no format is called"),
    ("--device abacus", "--device abacus"), ("--target-pose empty", "no files of joints"),
    ("--image none.jpg", "none.jpg"), ("--out file/out", "file/out"),
    ("--target-name x", "names no images"), ("--units inches", "no units are called"),
    ("--smooth 0", "--smooth 0"), ("--person 9", "--person 9: nobody has this number; there are 0"),
    ("--person 0 --every-person", "give one of the two")])
def test_mistakes_are_one_line(run, person, poses, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["transfer", str(run), *person, "--target-pose", str(poses),
                                      "--out", "out", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert says in printed.err and not (tmp_path / "out").exists()


@pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="no shared data")
def test_coco_photograph_in_three_poses(run, poses, tmp_path):
    photo = next((SHARED / "coco").glob("*.jpg"))
    person = ["--image", str(photo), "--source-pose", str(photo.with_suffix(".json"))]
    record = transfer(run, person, tmp_path / "out", "--target-pose", poses, "--write", "warped")
    assert record["finished"] and len(record["targets"]) == 3
    assert record["source"]["format"] == "coco17" and record["source"]["warnings"] == []
    crop = record["source"]["crop"]
    assert crop["height"] < 400 and crop["top"] >= 0  # she is small in the picture
    with Image.open(tmp_path / "out" / "warped" / "0_frame1.png") as picture:
        assert np.asarray(picture).std() > 10
