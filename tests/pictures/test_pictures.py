"""Pictures: known colours for known inputs, and sheets that open."""

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel.pictures.flow_colors import flow_to_color, heat
from posemodel.pictures.pixels import to_pictures
from posemodel.pictures.sheet import contact_sheet


def color_of(x: float, y: float, max_flow: float = 10.0, dtype=torch.float32) -> tuple:
    flow = torch.tensor([x, y], dtype=dtype).view(2, 1, 1)
    return tuple(flow_to_color(flow, max_flow).flatten().tolist())


@pytest.mark.parametrize("x, y, color",
                         [(10, 0, (255, 0, 0)), (0, 10, (255, 229, 0)), (-10, 0, (0, 209, 255)),
                          (0, -10, (88, 0, 255)), (0, 0, (255, 255, 255))])
def test_flow_directions_have_the_colours_of_the_middlebury_wheel(x, y, color):
    assert color_of(x, y) == pytest.approx(color, abs=1)


def test_flow_colour_depends_on_nothing_but_the_flow():
    small, large = torch.zeros(2, 1, 2), torch.zeros(2, 1, 2)
    small[0], large[0] = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 9.0])
    one, other = (flow_to_color(flow, 10.0) for flow in (small, large))
    assert (one[:, 0] == other[:, 0]).all()


def test_long_flow_is_drawn_like_the_longest():
    assert color_of(30, 40, max_flow=5) == color_of(3, 4, max_flow=5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_flow_that_is_no_number_is_drawn(value):
    flow = torch.zeros(2, 4, 5)
    flow[0, 1, 2] = value
    image = flow_to_color(flow, 3.0)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image[0, 0] == 255).all()


def test_flow_in_half_precision():
    assert color_of(10, 0, dtype=torch.bfloat16) == (255, 0, 0)


def test_heat_rises_and_marks_what_is_no_number():
    image = heat(torch.tensor([[0.0, 0.5, 1.0, 7.0, float("nan")]]))
    light = image.mean(axis=2)[0]
    assert light[0] < light[1] < light[2] and (image[:, 2] == image[:, 3]).all()
    assert image[0, 4].tolist() == [128, 128, 128]


def test_contact_sheet_keeps_pixels_and_takes_mixed_sizes(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[7, 9, 0] = 250
    fine = np.full((128, 128, 3), 77, np.uint8)
    path = tmp_path / "sheet.png"
    contact_sheet([("source", [red, red]), ("pose", [fine])], path, title="step 1",
                  legend=True)
    sheet = np.array(Image.open(path))
    assert sheet.shape[2] == 3
    # 32 pixels are enlarged 3 times to be at least 96: each pixel is a sharp block, in both rows.
    blocks = (sheet == (250, 0, 0)).all(axis=-1)
    assert blocks.sum() == 2 * 9 and (sheet == 77).all(axis=-1).sum() >= 95 * 95
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("legend", [False, True])
def test_contact_sheet_with_one_image(tmp_path, legend):
    image = np.zeros((256, 176, 3), np.uint8)
    contact_sheet([("a rather long name of a column", [image])], tmp_path / "one.png",
                  legend=legend)
    assert Image.open(tmp_path / "one.png").width >= 176


def test_titles_of_columns_stay_apart(tmp_path):
    image = np.zeros((128, 128, 3), np.uint8)
    contact_sheet(2 * [("no loss on the warped image", [image])], tmp_path / "two.png")
    heading = np.array(Image.open(tmp_path / "two.png").convert("L"))[28:52]
    gap = 28 + 128  # the margin, and the first column
    assert (heading[:, gap : gap + 10] == 255).all()
    assert (heading[:, 28:gap] < 200).any() and (heading[:, gap + 10 :] < 200).any()


def test_pixels_of_tensors():
    picture, = to_pictures(torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1))
    assert picture.flatten().tolist() == [0, 128, 255]
