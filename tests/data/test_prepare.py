"""From downloads to data set folders: every image in its place, the downloads as they were."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.data import lists
from posemodel.data import prepare as module
from posemodel.data.check import check
from posemodel.data.images import read_image
from posemodel.data.layouts.deepfashion import flatten_inshop
from posemodel.data.prepare import prepare
from posemodel.data.reading import find_dataset, open_pairs
from tests.encrypted_zip import encrypted_zip_of, zip_of
from tests.small_datasets import Killed, contents, make_fashion, make_market, refusal, refused

VIEWS = {"1front": "01_1_front", "2side": "01_2_side", "3back": "01_3_back"}


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A stripe of the number's own colour down the middle of a white page; `size` is (H, W)."""
    image = np.full((*size, 3), 255, np.uint8)
    image[:, size[1] // 3 : 2 * size[1] // 3] = (10 * number % 200, 50, 100)
    return Image.fromarray(image)


def make_inshop(root: Path, *, form: str = "img", size: tuple[int, int] = (256, 256)) -> Path:
    """The In-shop benchmark's folders beside the texts of PATN, 2 people in each split."""
    texts = make_fashion(root / "texts", people=2)
    number = 0
    for split in ("train", "test"):
        for name in lists.read_list(texts / f"{split}.lst"):
            garment, _, view = name.partition("id")[2].partition("_")
            folder = root / "raw" / form / "WOMEN" / "Tees_Tanks" / f"id_{garment[:8]}"
            folder.mkdir(parents=True, exist_ok=True)
            picture(number, size).save(folder / f"{VIEWS[view[:-4]]}.jpg", quality=90)
            number += 1
        shutil.rmtree(texts / split)
    (root / "raw" / form / "WOMEN" / "Tees_Tanks" / "readme.txt").write_text("not an image")
    return root


def run(raw: Path, out: Path, *, kind: str = "deepfashion", **options) -> bool:
    return prepare(raw, out, kind=kind, progress=lambda what, done, total: None, **options)


def run_inshop(root: Path, out: str = "out", **options) -> bool:
    """Prepare what `make_inshop` made."""
    return run(root / "raw", root / out, annotations=root / "texts", **options)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "images.jsonl").open()]


def raw_files(root: Path) -> list[Path]:
    return sorted((root / "raw").rglob("*.jpg"))


@pytest.mark.parametrize("form", ["img", "Img/img", "a/b/img_highres"])
def test_images_of_the_right_size_are_copied_byte_by_byte(tmp_path, form):
    make_inshop(tmp_path, form=form)
    before = contents(tmp_path)
    assert run_inshop(tmp_path) is True
    assert before.items() <= contents(tmp_path).items()
    for split in ("train", "test"):
        pairs = open_pairs(tmp_path / "out", split)
        assert len(pairs.names) == 6 and len(pairs.pairs) == 12
        for name in pairs.names:
            path = next(path for path in raw_files(tmp_path) if flatten_inshop(
                "/".join(path.parts[-4:])) == name)
            assert (pairs.folder / name).read_bytes() == path.read_bytes()
    for path in (tmp_path / "texts").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    found = check(tmp_path / "out")
    assert found.made_by == "prepare"
    assert all("not the published split" in problem for problem in found.problems)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 12 and {row["how"] for row in rows} == {"copied"}


def test_large_images_come_out_as_the_benchmarks_small_ones(tmp_path):
    make_inshop(tmp_path, form="img_highres", size=(1101, 750))
    run_inshop(tmp_path)
    pairs = open_pairs(tmp_path / "out", "train")
    image = read_image(pairs.path(0)).astype(int)
    assert image.shape == (256, 256, 3)
    # 750 columns become 174; the stripe runs from a third to two thirds of them.
    assert image[:, :95].min() > 245 and image[:, 161:].min() > 245
    assert image[5:, 103:153, 0].max() < 30
    rows = rows_of(tmp_path / "out")
    assert {(row["how"], row["original"]) for row in rows} == {("resized", "1101 x 750")}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]["resized_by"] \
        == "Lanczos"


def test_small_files_are_preferred(tmp_path):
    make_inshop(tmp_path)
    shutil.copytree(tmp_path / "raw" / "img", tmp_path / "raw" / "a_highres")
    for path in (tmp_path / "raw" / "a_highres").rglob("*.jpg"):
        picture(1, (110, 75)).save(path)
    run_inshop(tmp_path)
    assert {row["how"] for row in rows_of(tmp_path / "out")} == {"copied"}


@pytest.mark.parametrize("password", [None, "secret"])
@pytest.mark.parametrize("give", ["folder", "file"])
def test_an_archive(tmp_path, give, password):
    make_inshop(tmp_path)
    run_inshop(tmp_path, "plain")
    archive = tmp_path / "texts" / "img.zip"
    files = {path.relative_to(tmp_path / "raw").as_posix(): path.read_bytes()
             for path in raw_files(tmp_path)}
    if password:
        encrypted_zip_of(archive, files, password.encode())
    else:
        zip_of(archive, files)
    shutil.rmtree(tmp_path / "raw")
    # The texts lie beside the archive.
    run(archive if give == "file" else archive.parent, tmp_path / "out", password=password)
    plain, out = contents(tmp_path / "plain"), contents(tmp_path / "out")
    assert plain.keys() == out.keys()
    assert all(plain[name] == out[name] for name in plain if name != "manifest.json")


def test_both_spellings_in_the_texts(tmp_path):
    make_inshop(tmp_path)
    for path in (tmp_path / "texts").glob("*.csv"):
        text = path.read_text()
        path.write_text(text.replace("fashionWOMENTees_Tanks", "fasionWOMENTeesTanks"))
    run_inshop(tmp_path)
    names = open_pairs(tmp_path / "out", "train").names
    assert len(names) == 6 and all(name.startswith("fasionWOMENTeesTanks") for name in names)
    assert len(list((tmp_path / "out" / "train").iterdir())) == 6


@pytest.mark.parametrize("size, how", [((128, 64), "copied"), ((100, 52), "resized")])
def test_market(tmp_path, size, how):
    raw = make_market(tmp_path / "Market-1501-v15.09.15", form="bounding_box_{}", pairs=False)
    for number, path in enumerate(sorted(raw.glob("bounding*/*.jpg"))):
        picture(number, size).save(path, "JPEG", quality=80)
    out = tmp_path.parent / f"{tmp_path.name}_out"
    run(tmp_path, out, kind="market")
    pairs = open_pairs(out, "train")
    assert len(pairs.names) == 12 and len(pairs.pairs) == 24
    assert read_image(pairs.path(0)).shape == (128, 64, 3)
    same = pairs.path(3).read_bytes() == (raw / "bounding_box_train" / pairs.names[3]).read_bytes()
    assert same == (how == "copied")


def test_a_stopped_one_continues(tmp_path, monkeypatch):
    make_inshop(tmp_path, form="img_highres", size=(110, 75))
    run_inshop(tmp_path, "whole")
    seen = []

    def encode(image):
        seen.append(1)
        if len(seen) == 5:
            raise Killed
        return original(image)

    original = module.encode_jpeg
    monkeypatch.setattr(module, "encode_jpeg", encode)
    with pytest.raises(Killed):
        run_inshop(tmp_path)
    refused("prepare was stopped", open_pairs, tmp_path / "out", "train")
    run_inshop(tmp_path)
    assert len(seen) == 12 + 1  # four of twelve were there
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run_inshop(tmp_path) is False
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_a_damaged_image_is_named_and_can_be_mended(tmp_path):
    make_inshop(tmp_path)
    path = raw_files(tmp_path)[4]
    data = path.read_bytes()
    path.write_bytes(data[:300])
    assert str(path) in refusal(run_inshop, tmp_path)
    path.write_bytes(data)
    assert run_inshop(tmp_path) is True


def test_missing_images_are_named_before_anything_is_copied(tmp_path):
    make_inshop(tmp_path)
    raw_files(tmp_path)[0].unlink()
    text = refusal(run_inshop, tmp_path)
    assert "1 of the 6 images of the train split" in text and "InShopRetrieval" in text
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done(tmp_path):
    make_inshop(tmp_path)
    raw, texts, out = tmp_path / "raw", tmp_path / "texts", tmp_path / "out"
    assert "no such file" in refusal(run, tmp_path / "nothing", out)
    assert "inside of the download" in refusal(run, raw, raw / "out", annotations=texts)
    assert "has no DeepFashion" in refusal(run, raw, out)
    assert "neither images" in refusal(run, texts, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "not empty" in refusal(run, raw, out, annotations=texts)
    assert contents(out) == {"mine.txt": b"mine"}
    (texts / "fasion-resize-pairs-test.csv").unlink()
    assert "pairs of the test split" in refusal(run, raw, tmp_path / "other", annotations=texts)
    (texts / "fasion-resize-annotation-test.csv").unlink()
    text = refusal(run, raw, tmp_path / "other", annotations=texts)
    assert "annotations of the test split" in text


def test_another_download_does_not_continue(tmp_path):
    make_inshop(tmp_path)
    run_inshop(tmp_path)
    shutil.copytree(tmp_path / "raw", tmp_path / "other")
    text = refusal(run, tmp_path / "other", tmp_path / "out", annotations=tmp_path / "texts")
    assert "holds another set" in text
    assert find_dataset(tmp_path / "out").kind == "deepfashion"
