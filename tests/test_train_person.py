"""A model of one's own: from a film to a data set, a run from other weights, and its pictures."""

import json
import shutil

import pytest

pytest.importorskip("imageio_ffmpeg")

from posemodel.config.presets import person  # noqa: E402
from posemodel.config.sections import Config  # noqa: E402
from posemodel.data.__main__ import main as data_main  # noqa: E402
from posemodel.engine.starting_weights import start_from  # noqa: E402
from posemodel.evaluate import main as evaluate_main  # noqa: E402
from posemodel.inference.model import PoseTransferModel  # noqa: E402
from posemodel.pictures.inpainting import filling  # noqa: E402
from posemodel.train import main as train_main  # noqa: E402
from tests.small_datasets import refused  # noqa: E402
from tests.small_films import frames, knowing, with_sides_exchanged, write_film  # noqa: E402
from tests.small_runs import write_tiny_run  # noqa: E402
from tests.tiny import FLAGS  # noqa: E402


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A data set of a short film."""
    folder, shown = tmp_path_factory.mktemp("film"), frames(14)
    with pytest.MonkeyPatch.context() as monkeypatch:
        knowing(monkeypatch, shown)
        assert data_main(["film", str(write_film(folder / "me.mp4", shown)), "--out",
                          str(folder / "set")]) == 0
    return folder / "set"


def test_joints_as_they_are_found(tmp_path, monkeypatch, capsys):
    shown = [with_sides_exchanged(frame) if index == 5 else frame
             for index, frame in enumerate(frames(14))]
    clip = str(write_film(tmp_path / "me.mp4", shown, fps=5))
    for words, count in (([], 1), (["--as-found"], 0)):
        knowing(monkeypatch, shown)
        assert data_main(["film", clip, "--out", str(tmp_path / f"set{count}"), *words]) == 0
        assert f"left and right exchanged in {count};" in capsys.readouterr().out


def test_from_a_film_to_a_model(film, tmp_path, capsys):
    origin = write_tiny_run(tmp_path / "origin")
    command = ["person", *FLAGS, "--data.root", str(film), "--data.workers", "0", "--init",
               str(origin), "--out", str(tmp_path / "mine")]
    assert train_main(command) == 0
    evaluations = tmp_path / "mine" / "eval.jsonl"
    rows = [json.loads(line) for line in evaluations.read_text().splitlines()]
    # What it started from is measured too, once, and what it is about: the person.
    assert [row["step"] for row in rows] == [0, 3, 6]
    for row in rows:
        assert (row["data"], row["split"], row["pairs"]) == ("film", "validation", 4)
        assert row["copy_person_l1"] > row["copy_l1"] > 0 and row["refined_person_l1"] > 0
    said = capsys.readouterr().out
    assert "refined person, l1" in said and "no validation list" not in said
    assert (tmp_path / "mine" / "samples" / "step_000006.png").exists()
    assert train_main(command) == 0
    assert evaluations.read_text().count('"step": 0,') == 1
    assert PoseTransferModel.from_run(tmp_path / "mine", "cpu").step == 6
    numbers = tmp_path / "numbers.json"
    words = [str(tmp_path / "mine"), "--lpips", "none", "--json", str(numbers), "--picture",
             str(tmp_path / "sheet.png")]
    found = {}
    for split in ("validation", "test"):
        assert evaluate_main([*words, "--split", split]) == 0
        found[split] = json.loads(numbers.read_text())
        assert found[split]["split"] == split and found[split]["holes"] == filling(plate=True)
    assert f"behind the people: {filling(plate=True)}" in capsys.readouterr().out
    assert found["validation"]["refined_person_l1"] == pytest.approx(
        rows[-1]["refined_person_l1"], rel=1e-4)
    assert found["test"]["copy_person_l1"] != found["validation"]["copy_person_l1"]


def test_a_mistake_in_init_does_not_take_the_folder(film, tmp_path, capsys):
    command = ["person", *FLAGS, "--data.root", str(film), "--data.workers", "0", "--out",
               str(tmp_path / "mine"), "--init"]
    refused("no run folder", train_main, [*command, str(tmp_path / "gone")])
    assert not (tmp_path / "mine").exists()
    origin = write_tiny_run(tmp_path / "origin")
    assert train_main([*command, str(origin)]) == 0
    # What it started from may be gone when it goes on.
    shutil.rmtree(origin)
    assert train_main([*command, str(origin)]) == 0


def test_methods_of_table_1_keep_the_background_too(film, tmp_path):
    assert train_main(["person", *FLAGS, "--data.root", str(film), "--data.workers", "0", "--init",
                       "", "--model.flow", "fomm", "--steps", "1", "--out",
                       str(tmp_path / "fomm")]) == 0
    row = json.loads((tmp_path / "fomm" / "eval.jsonl").read_text())
    # An untrained flow moves hardly anything, and what is nobody's stays to the bit: the whole
    # picture is off by less than the person alone would make it.
    assert row["warped_l1"] < 0.8 * row["copy_person_l1"]


def test_the_preset_has_the_networks_of_the_package(monkeypatch):
    """All of the package's weights fit."""
    from posemodel.build import build_generator

    config: Config = person()
    shipped = PoseTransferModel.shipped("cpu")
    generator = build_generator(config.model, config.data.image_size)
    lines = start_from(generator, shipped.generator.state_dict(), "it")
    assert lines == ["M starts from it", "C_l starts from it", "R starts from it"]
    assert config.data.image_size == shipped.size and config.init == "shipped"
