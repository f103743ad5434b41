"""Damaged files of every kind: read properly, or refused in one line that names the file.

The files are good ones with a few random edits. How many of them are refused is counted, so that a
test whose edits do no harm fails.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posemodel.data.__main__ import main
from posemodel.data.archives import extract
from posemodel.data.images import read_image
from posemodel.data.lists import read_pairs
from posemodel.poses.annotations import COLUMNS, read_annotations
from posemodel.poses.files import read_poses
from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from tests.encrypted_zip import zip_of
from tests.small_datasets import encoded

NAMES = [f"{person:04}_c{camera}s1_000451_03.jpg" for person in (2, 7) for camera in (1, 2, 3)]
SPLIT_NAMES = {"train": NAMES, "test": [f"{int(n[:4]) + 100:04}{n[4:]}" for n in NAMES]}
TEXT_TOKENS = (b"\0", b"\xff", b"\n", b"\r", b":", b",", b"[", b"]", b"{", b'"', b"\\", b"../",
               b"-", b"-1", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"1" * 400,
               b"[" * 2000, b"\xe2\x80\xa8")
BINARY_TOKENS = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 30, b"../", b"/")


@st.composite
def edited(draw, files, tokens):
    """One of `files`, with one or two edits."""
    data = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "overwrite", "delete", "copy", "cut"]))
        if kind in ("insert", "overwrite"):
            token = draw(st.sampled_from(tokens))
            data = data[:start] + token + data[start + len(token) * (kind == "overwrite") :]
        elif kind == "delete":
            data = data[:start] + data[start + draw(st.integers(1, 40)) :]
        elif kind == "copy":
            data = data[:start] + data[start : start + draw(st.integers(1, 200))] + data[start:]
        else:
            data = data[:start]
    return data


def refusals(strategy, path: Path, check, examples: int, *, least: int = 0,
             named: str = "") -> list[str]:
    """Run `check` on edited files at `path`; the messages of its `UserError`s, more than `least`.
    Each is one line with `named` in it, by default the path."""
    messages = []

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            check(path)
        except UserError as error:
            message = str(error)
            assert (named or str(path)) in message and "\n" not in message
            messages.append(message)

    run()
    assert len(messages) > least
    return messages


# Files


def joint_rows() -> np.ndarray:
    """Six people who stand upright in 128 x 64 pixels, `[6, 18, 2]` (x, y), one joint missing."""
    y = [12, 24, 24, 42, 58, 24, 42, 58, 60, 88, 116, 60, 88, 116, 10, 10, 11, 11]
    x = [32, 32, 22, 18, 16, 42, 46, 48, 26, 25, 24, 38, 39, 40, 30, 34, 27, 37]
    rows = np.stack([np.stack([x, y], -1) + shift for shift in range(6)])
    rows[1, 4] = -1
    return rows


def annotations_csv(names=NAMES) -> bytes:
    lines = [":".join(COLUMNS)]
    for name, row in zip(names, joint_rows().tolist(), strict=True):
        xs, ys = zip(*row, strict=True)
        lines.append(f"{name}: {list(ys)}: {list(xs)}")
    return "\n".join([*lines, ""]).encode()


def pairs_csv(names=NAMES) -> bytes:
    pairs = [(a, b) for a in names for b in names if a != b and a[:4] == b[:4]]
    return "\n".join(["from,to", *(f"{a},{b}" for a, b in pairs), ""]).encode()


def images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    rgba, deep = Image.fromarray(pixels), pixels[..., 0].astype(np.uint16) * 200
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return [
        encoded(rgb, "JPEG", exif=exif), encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb, "PNG", exif=exif), encoded(rgba, "PNG"),
        encoded(rgb.convert("P"), "PNG", transparency=3), encoded(Image.fromarray(deep), "PNG"),
        encoded(rgba, "PNG", save_all=True, append_images=[rgba.rotate(180)]),
        encoded(rgb, "WEBP"), encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)]),
        encoded(rgb, "BMP"), encoded(rgb.convert("P"), "BMP"),
    ]


def joint_files() -> list[bytes]:
    xy = joint_rows()[:2].astype(float)
    rows = np.concatenate([xy, np.full((2, 18, 1), 0.9)], -1)
    people = [{"person_id": [-1], "pose_keypoints_2d": row.ravel().tolist()} for row in rows]
    openpose = {"version": 1.3, "people": people}
    coco = {"images": [{"id": 7, "file_name": NAMES[0], "height": 128, "width": 64}],
            "annotations": [{"image_id": 7, "keypoints": rows[0, :17].ravel().tolist()}]}
    mmpose = {"instance_info": [{"keypoints": xy[0, :17].tolist(), "keypoint_scores": [0.9] * 17}]}
    point = {"x": 0.4, "y": 0.5, "visibility": 0.9}
    buffer = io.BytesIO()
    np.save(buffer, rows[0])
    return [
        *(json.dumps(document).encode() for document in (
            openpose, [openpose | {"canvas_width": 64, "canvas_height": 128}], coco, mmpose,
            {"landmarks": [[point] * 33]}, rows[0].tolist(), rows[0].ravel().tolist())),
        "\n".join(" ".join(map(str, row)) for row in xy[0]).encode(),
        annotations_csv(), buffer.getvalue(),
    ]


def archives() -> list[bytes]:
    files = {"train/a.jpg": b"\xff\xd8" * 100, "train/b.jpg": bytes(700), "notes.txt": b"abc"}
    made = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        made.append(zip_of(io.BytesIO(), files, compression=compression).getvalue())
    for mode, style in (("w", tarfile.PAX_FORMAT), ("w", tarfile.GNU_FORMAT), ("w:gz", 2)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=style) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name if mode == "w:gz" else f"{'x' * 120}/{name}")
                info.size, info.mtime = len(content), 0.5
                archive.addfile(info, io.BytesIO(content))
        # Most of a small tar is its padding, where edits change nothing.
        made.append(buffer.getvalue()[: 7 * 1024 if mode == "w" else None])
    return made


# Reading


def test_annotations(tmp_path) -> None:
    def check(path: Path) -> None:
        names, joints = read_annotations(path)
        assert joints.shape == (len(names), 18, 3) and len(set(names)) == len(names)
        assert np.isfinite(joints).all() and np.isin(joints[..., 2], (0, 1)).all()
        assert all(Path(name).name == name for name in names)

    path = tmp_path / "market-annotation-train.csv"
    refusals(edited([annotations_csv()], TEXT_TOKENS), path, check, 150, least=90,
             named=f"{path}, line ")


def test_pairs(tmp_path) -> None:
    def check(path: Path) -> None:
        pairs = read_pairs(path, NAMES)
        assert pairs.shape[1] == 2 and np.isin(pairs, np.arange(len(NAMES))).all()

    path = tmp_path / "market-pairs-train.csv"
    refusals(edited([pairs_csv()], TEXT_TOKENS), path, check, 120, least=70, named=f"{path}, line ")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_images(tmp_path) -> None:
    def check(path: Path) -> None:
        image = read_image(path, max_pixels=10**6)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size

    refusals(edited(images(), BINARY_TOKENS), tmp_path / "a.jpg", check, 200, least=100)


@pytest.mark.parametrize("format", [None, "openpose18"])
def test_joints(tmp_path, format) -> None:
    def check(path: Path) -> None:
        for pose in read_poses(path, format=format, image_size=(128, 64)):
            assert pose.joints.shape == (18, 3) and np.isfinite(pose.joints).all()
            assert pose.present.any()

    path = tmp_path / "joints.json"
    refusals(edited(joint_files(), TEXT_TOKENS), path, check, 120, least=70)


def test_archives(tmp_path) -> None:
    number = 0

    def check(path: Path) -> None:
        nonlocal number
        number += 1
        out = tmp_path / f"out{number}"
        try:
            paths = extract(path, out, max_bytes=10**6)
            assert all(out in p.parents and p.is_file() for p in paths)
        finally:
            there = {p.name for p in tmp_path.iterdir()} - {path.name}
            assert there <= {f"out{n}" for n in range(1, number + 1)}
            written = [p for p in out.rglob("*") if p.is_file()]
            assert sum(p.stat().st_size for p in written) <= 10**6
            assert not list(out.rglob(".extract*"))

    path = tmp_path / "data.zip"
    refusals(edited(archives(), BINARY_TOKENS), path, check, 200, least=100)


# At the command line


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `python -m posemodel.data` in this process. A failure is a `UserError`, after a check
    that it was told in one line and that nothing was written outside of `may_write`."""

    def run(*words, may_write: Path | None = None) -> None:
        before = tree(tmp_path, may_write)
        monkeypatch.setattr(sys, "argv", ["posemodel.data", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            run_main(main)
        out, err = capsys.readouterr()
        if stop.value.code == 0:
            return
        assert stop.value.code == 2 and tree(tmp_path, may_write) == before
        if words[0] == "check" and not err:
            raise UserError(" ".join(out.split()))  # a table with the problems below it
        assert err.startswith("error: ") and err.count("\n") == 1
        raise UserError(err.strip())

    return run


def tree(root: Path, but: Path | None) -> dict[Path, bytes]:
    """All files below a folder but those below another."""
    paths = [path for path in root.rglob("*") if path != but and but not in path.parents]
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths}


def photograph() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG")


def market_folder(root: Path) -> Path:
    for split, names in SPLIT_NAMES.items():
        (root / split).mkdir(parents=True)
        for name in names:
            (root / split / name).write_bytes(photograph())
        (root / f"market-annotation-{split}.csv").write_bytes(annotations_csv(names))
        (root / f"market-pairs-{split}.csv").write_bytes(pairs_csv(names))
    return root


def market_zip() -> bytes:
    files = {f"Market-1501-v15.09.15/bounding_box_{split}/{name}": photograph()
             for split, names in SPLIT_NAMES.items() for name in names}
    return zip_of(io.BytesIO(), files).getvalue()


@pytest.mark.parametrize("name, tokens", [("market-annotation-train.csv", TEXT_TOKENS),
                                          ("market-pairs-test.csv", TEXT_TOKENS),
                                          (f"train/{NAMES[0]}", BINARY_TOKENS)])
def test_check_reports_what_is_damaged(tmp_path, command, name, tokens) -> None:
    root = market_folder(tmp_path / "market_data")
    path = root / name

    def check(path: Path) -> None:
        command("check", root)

    good = path.read_bytes()
    check(path)  # fewer than the published ones are no fault
    messages = refusals(edited([good], tokens), path, check, 25, named=str(root))
    assert sum(str(path) in message for message in messages) > 8


@pytest.mark.parametrize("damaged", ["joints.json", "a.jpg"])
def test_pose_writes_nothing_for_a_damaged_file(tmp_path, command, damaged) -> None:
    image, joints = tmp_path / "a.jpg", tmp_path / "joints.json"
    image.write_bytes(photograph())
    joints.write_bytes(joint_files()[0])
    command("pose", image, joints, "--out", tmp_path / "first.png")
    path, picture, people = tmp_path / damaged, tmp_path / "out.png", tmp_path / "out.json"

    def check(path: Path) -> None:
        command("pose", image, joints, "--out", picture, "--json", people)
        picture.unlink()
        people.unlink()

    files = joint_files()[:1] if damaged == "joints.json" else [photograph()]
    refusals(edited(files, TEXT_TOKENS), path, check, 30, least=10)


@pytest.mark.parametrize("damaged", ["market.zip", "market-annotation-train.csv"])
def test_prepare_writes_nothing_outside_of_its_folder(tmp_path, command, damaged) -> None:
    texts = market_folder(tmp_path / "texts")
    archive = tmp_path / "market.zip"
    archive.write_bytes(market_zip())
    path = archive if damaged == "market.zip" else texts / damaged
    good, number = path.read_bytes(), 0

    def check(path: Path) -> None:
        nonlocal number
        number += 1
        out = tmp_path / f"out{number}"
        command("prepare", archive, "--kind", "market", "--out", out, "--annotations", texts,
                may_write=out)
        for split in ("train", "test"):
            assert [read_image(p).shape for p in (out / split).iterdir()] == [(128, 64, 3)] * 6

    check(path)
    tokens = BINARY_TOKENS if path == archive else TEXT_TOKENS
    refusals(edited([good], tokens), path, check, 25, named=str(tmp_path), least=8)


def test_in_a_process_of_its_own(tmp_path) -> None:
    root = market_folder(tmp_path / "market_data")
    image = root / "train" / NAMES[0]
    (root / "market-annotation-train.csv").write_bytes(annotations_csv()[:-90])
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "joints.json").write_bytes(joint_files()[0][:-20])
    before = tree(tmp_path, None)
    for words, expected in (
        (("check", root), "market-annotation-train.csv, line 7: expected 3 columns"),
        (("pose", image, tmp_path / "joints.json", "--out", tmp_path / "a.png"), "broken JSON"),
        (("prepare", tmp_path / "page.zip", "--kind", "market", "--out", tmp_path / "out",
          "--annotations", root), "line 7: expected 3 columns"),
    ):
        done = subprocess.run([sys.executable, "-m", "posemodel.data", *map(str, words)],
                              capture_output=True, text=True,
                              env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == 2 and expected in done.stdout + done.stderr
        assert "Traceback" not in done.stderr and done.stderr.count("\n") == (words[0] != "check")
        assert tree(tmp_path, None) == before
