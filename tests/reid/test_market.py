"""Names of Market-1501, real and generated, and small choices of its images."""

from pathlib import Path

import numpy as np
import pytest

from posemodel.reid.market import (
    Crops,
    describe,
    few_per_person,
    generated_name,
    open_split,
    parse_generated,
    parse_name,
    read_crops,
)
from tests.small_datasets import refused


@pytest.mark.parametrize("name, expected", [("0002_c1s1_000451_03.jpg", (2, 1)),
                                            ("-1_c3s2_000451_03.jpg", (-1, 3)),
                                            ("0000_c6s1_000001_00.jpg", (0, 6)),
                                            ("1501_c2s1_000451_03_p07.jpg", (1501, 2))])
def test_identity_and_camera(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize("name", ["portrait.jpg", "x0002_c1s1.jpg", "-2_c1s1_000001_01.jpg"])
def test_other_names_are_refused(name):
    refused("no name of Market-1501", parse_name, name)


def test_generated_names_come_back():
    for number, poses, name in ((7, 25, "_p07"), (7, 5, "_p07"), (7, 101, "_p007")):
        made = generated_name("0002_c1s1_000451_03.jpg", number, poses)
        assert made == f"0002_c1s1_000451_03{name}.jpg"
        assert parse_generated(made) == ("0002_c1s1_000451_03", number)
        assert parse_name(made) == (2, 1)
    refused("no name of a generated image", parse_generated, "0002_c1s1_000451_03.jpg")


def crops(*names: str) -> Crops:
    numbers = np.array([parse_name(name) for name in names])
    return Crops(folder=Path("x"), names=names, persons=numbers[:, 0], cameras=numbers[:, 1])


def test_few_images_are_spread_over_the_cameras():
    some = crops("0001_c1_a.jpg", "0001_c1_b.jpg", "0001_c2_c.jpg", "0001_c2_d.jpg",
                 "0001_c3_e.jpg", "0002_c1_f.jpg")
    assert few_per_person(some, 1).tolist() == [True, False, False, False, False, True]
    assert few_per_person(some, 3).tolist() == [True, False, True, False, True, True]
    assert few_per_person(some, 4).tolist() == [True, True, True, False, True, True]
    assert few_per_person(some, 9).all()


def test_what_a_split_holds_is_said():
    some = crops("0001_c1_a.jpg", "0001_c2_a.jpg", "0000_c1_a.jpg", "-1_c1_a.jpg", "-1_c1_b.jpg")
    assert describe(some) == "5 images, 1 identities, 2 cameras, 1 distractors, 2 junk"
    assert describe(some.take(some.persons > 0)) == "2 images, 1 identities, 2 cameras"


def test_missing_folders_are_said(tmp_path):
    refused("has no folder query", open_split, tmp_path, "query")
    (tmp_path / "query").mkdir()
    refused("has no images", open_split, tmp_path, "query")
    refused("is no folder", read_crops, tmp_path / "nowhere")
