"""Pictures: known colours for known inputs, and sheets that open."""

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel import pictures
from posemodel.data.keypoints import JOINT_COLORS, JOINTS


def color_of(x: float, y: float, max_flow: float = 10.0, dtype=torch.float32) -> tuple:
    flow = torch.tensor([x, y], dtype=dtype).view(2, 1, 1)
    return tuple(pictures.flow_to_color(flow, max_flow).flatten().tolist())


@pytest.mark.parametrize("x, y, color", [
    (10, 0, (255, 0, 0)),
    (0, 10, (255, 229, 0)),
    (-10, 0, (0, 209, 255)),
    (0, -10, (88, 0, 255)),
    (0, 0, (255, 255, 255)),
])
def test_flow_directions_have_the_colours_of_the_middlebury_wheel(x, y, color):
    assert color_of(x, y) == pytest.approx(color, abs=1)


def test_flow_colour_depends_on_nothing_but_the_flow():
    small, large = torch.zeros(2, 1, 2), torch.zeros(2, 1, 2)
    small[0], large[0] = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 9.0])
    one, other = (pictures.flow_to_color(flow, 10.0) for flow in (small, large))
    assert torch.equal(one[..., 0], other[..., 0])


def test_long_flow_is_drawn_like_the_longest():
    assert color_of(30, 40, max_flow=5) == color_of(3, 4, max_flow=5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_flow_that_is_no_number_is_drawn(value):
    flow = torch.zeros(2, 4, 5)
    flow[0, 1, 2] = value
    image = pictures.flow_to_color(flow, 3.0)
    assert image.shape == (3, 4, 5) and image.dtype == torch.uint8
    assert (image[:, 0, 0] == 255).all()


def test_flow_in_half_precision():
    assert color_of(10, 0, dtype=torch.bfloat16) == (255, 0, 0)


def pose_with(**joints: tuple[float, float]) -> torch.Tensor:
    pose = torch.zeros(len(JOINTS), 3)
    for name, (x, y) in joints.items():
        pose[JOINTS.index(name)] = torch.tensor([x, y, 1.0])
    return pose


def test_missing_joints_are_not_drawn():
    assert pictures.draw_skeleton(torch.zeros(18, 3), (64, 48)).shape == (3, 64, 48)
    assert not pictures.draw_skeleton(torch.zeros(18, 3), (64, 48)).any()


def test_a_joint_is_drawn_where_it_is_in_its_colour():
    image = pictures.draw_skeleton(pose_with(right_wrist=(0.5, -0.5)), (128, 64))
    rows, columns = image.any(dim=0).nonzero(as_tuple=True)
    # x = .5 of 64 columns is column 47.5, y = -.5 of 128 rows is row 31.5.
    assert (rows.float().mean().item(), columns.float().mean().item()) == \
        pytest.approx((31.5, 47.5), abs=0.6)
    assert len(rows) < 60
    assert tuple(image[:, 31, 47].tolist()) == JOINT_COLORS[JOINTS.index("right_wrist")]


def test_a_limb_needs_both_joints():
    ends = pose_with(right_elbow=(-0.6, 0.0), right_wrist=(0.6, 0.0))
    apart = pose_with(right_elbow=(-0.6, 0.0), left_wrist=(0.6, 0.0))
    assert pictures.draw_skeleton(ends, (64, 64))[:, 31, 32].any()
    assert not pictures.draw_skeleton(apart, (64, 64))[:, 31, 32].any()


def test_skeleton_may_leave_the_frame():
    pictures.draw_skeleton(pose_with(nose=(3.0, -4.0), neck=(0.0, 0.0)), (64, 64))


def test_heat_rises_and_marks_what_is_no_number():
    image = pictures.heat(torch.tensor([[0.0, 0.5, 1.0, 7.0, float("nan")]]))
    light = image.float().mean(dim=0)[0]
    assert light[0] < light[1] < light[2]
    assert torch.equal(image[..., 2], image[..., 3])
    assert image[:, 0, 4].tolist() == [128, 128, 128]


def test_contact_sheet_keeps_pixels_and_takes_mixed_sizes(tmp_path):
    red = torch.zeros(3, 32, 32, dtype=torch.uint8)
    red[0, 7, 9] = 250
    fine = torch.full((3, 128, 128), 77, dtype=torch.uint8)
    path = tmp_path / "sheet.png"
    pictures.contact_sheet([("source", [red, red]), ("pose", [fine])], path, title="step 1",
                           legend={"flow": "flow", "heat": "score"})
    sheet = np.array(Image.open(path))
    assert sheet.shape[2] == 3
    # 32 pixels are enlarged 3 times to be at least 96: each pixel is a sharp block, in both rows.
    blocks = (sheet == (250, 0, 0)).all(axis=-1)
    assert blocks.sum() == 2 * 9
    assert (sheet == 77).all(axis=-1).sum() >= 95 * 95
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("legend", [None, "flow", "heat"])
def test_contact_sheet_with_one_image(tmp_path, legend):
    image = torch.zeros(3, 256, 176, dtype=torch.uint8)
    pictures.contact_sheet([("a rather long name of a column", [image])], tmp_path / "one.png",
                           legend=legend)
    assert Image.open(tmp_path / "one.png").width >= 176


def test_contact_sheet_scale(tmp_path):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    widths = []
    for scale in (1, 4):
        pictures.contact_sheet([("x", [image])], tmp_path / "x.png", scale=scale)
        widths.append(Image.open(tmp_path / "x.png").width)
    assert widths[1] - widths[0] == 3 * 32
