"""A trained model on pictures: crops, what comes back to the frame, files that are refused."""

import doctest
import json
import os
import shutil
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import pose_kernels
from posemodel.config.stored import to_dict
from posemodel.data.images import read_image
from posemodel.inference import model as inference
from posemodel.inference.crop import find_crop
from posemodel.inference.model import PoseTransferModel, newest_run
from posemodel.inference.programs import InferencePath
from posemodel.mannequins.pairs import Mannequins
from posemodel.poses.crop import Crop
from posemodel.poses.files import openpose_json
from posemodel.poses.joints import JOINTS, normalized_to_pixels
from posemodel.poses.layouts import Pose
from posemodel.runtime import weights
from posemodel.runtime.errors import UserError
from tests.small_runs import tiny_generator, write_tiny_run
from tests.tiny import random_poses, tiny_config

NOSE, NECK, ANKLE = (JOINTS.index(name) for name in ("nose", "neck", "left_ankle"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def file(run):
    """Its weights."""
    return next(run.glob("checkpoints/*/averaged.safetensors"))


@pytest.fixture(scope="module")
def model(run):
    return PoseTransferModel.from_run(run, "cpu")


@pytest.fixture(scope="module")
def people():
    """Pictures `[4, 64, 64, 3]` and joints in their pixels `[4, 18, 3]`."""
    batch = Mannequins(size=(64, 64), seed=3).pairs([0, 1])
    images = ((torch.cat([batch["source"], batch["target"]]) + 1) * 127.5).round().byte()
    poses = torch.cat([batch["source_pose"], batch["target_pose"]])
    return images.permute(0, 2, 3, 1).numpy(), normalized_to_pixels(poses, (64, 64)).numpy()


def pose_with(**joints: tuple[float, float]) -> np.ndarray:
    pose = np.zeros((18, 3), np.float32)
    for name, (x, y) in joints.items():
        pose[JOINTS.index(name)] = x, y, 1
    return pose


def standing(left: float, top: float, height: float) -> np.ndarray:
    """Joints of somebody upright, whose joints begin at (left, top)."""
    return pose_with(nose=(left + 10, top), neck=(left + 10, top + height / 5),
                     left_wrist=(left + 20, top + height / 2), right_wrist=(left, top + height / 2),
                     left_ankle=(left + 12, top + height))


# --- crops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose, frame, aspect, fit, expected", [
    (standing(0, 0, 50), (60, 100), 1.0, "frame", (0, -20, 100, 100)),  # padded evenly
    (standing(0, 0, 50), (101, 40), 0.5, "frame", (-5, 0, 50, 101)),
    (standing(20, 8, 50), (64, 64), 1.0, "person", (0, 0, 64, 64))])    # a large person
def test_whole_frame(pose, frame, aspect, fit, expected):
    left, top, width, height = expected
    assert find_crop(pose, frame, aspect, fit) == Crop(
        left=left, top=top, width=width, height=height)


def test_small_person_is_cut_out_with_a_margin():
    crop = find_crop(standing(300, 100, 100), (400, 600), 1.0, "person")
    assert (crop.width, crop.height) == (128, 128)
    assert abs(crop.left + crop.width / 2 - 310.5) <= 1 and abs(crop.top + 64 - 150.5) <= 1


def test_crop_stays_inside_of_the_frame_where_it_can():
    crop = find_crop(standing(2, 5, 100), (400, 600), 1.0, "person")
    assert (crop.left, crop.top, crop.width) == (0, 0, 128)
    crop = find_crop(standing(570, 290, 100), (400, 600), 1.0, "person")
    assert (crop.left + crop.width, crop.top + crop.height) == (600, 400)


@pytest.mark.parametrize("pose", [
    pose_with(), pose_with(nose=(30, 30)), pose_with(nose=(900, 900))])
def test_pose_without_extent_keeps_the_frame(pose):
    assert find_crop(pose, (100, 100), 1.0, "person").height == 100


def test_joints_far_outside_do_not_make_the_person_small():
    pose = standing(300, 100, 100)
    pose[ANKLE] = 310, 5000, 1
    assert find_crop(pose, (400, 600), 1.0, "person").height <= 600


def test_wide_poses_fit_into_a_narrow_view():
    pose = pose_with(left_wrist=(100.0, 50.0), right_wrist=(200.0, 50.0), neck=(150.0, 40.0))
    crop = find_crop(pose, (500, 500), 0.5, "person")
    assert crop.width >= 128 and crop.height == pytest.approx(2 * crop.width, abs=1)
    with pytest.raises(ValueError, match="person, frame"):
        find_crop(pose, (500, 500), 0.5, "stretch")


def test_cut_repeats_the_edges_and_place_is_its_inverse():
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    crop = Crop(left=-2, top=3, width=12, height=5)
    part = crop.cut(picture)
    padded = np.pad(picture, ((0, 2), (2, 2), (0, 0)), mode="edge")
    np.testing.assert_array_equal(part, padded[3:8])
    frame = np.zeros_like(picture)
    crop.place(part, frame)
    np.testing.assert_array_equal(frame[3:], picture[3:])
    assert not frame[:3].any()


def test_crop_beside_the_frame_places_nothing():
    frame = np.zeros((4, 4, 3), np.uint8)
    Crop(left=9, top=-9, width=3, height=3).place(np.ones((3, 3, 3), np.uint8), frame)
    assert not frame.any()


def test_joints_outside_of_the_crop_are_missing():
    pose = pose_with(nose=(10.0, 20.0), neck=(13.5, 23.5), left_ankle=(90.0, 20.0))
    seen = Crop(left=10, top=20, width=8, height=8).normalized(pose)
    assert seen[:, 2].nonzero().flatten().tolist() == [NOSE, NECK]
    assert seen[NOSE].tolist() == pytest.approx([1 / 8 - 1, 1 / 8 - 1, 1])
    assert seen[NECK].tolist() == pytest.approx([0, 0, 1])


# --- results ------------------------------------------------------------------------------------


def test_without_a_crop_it_is_the_generator(model, people):
    images, poses = people
    small = np.asarray(Image.fromarray(images[0]).resize((32, 32), Image.Resampling.BICUBIC))
    half = (poses + [0.5, 0.5, 0]) / [2, 2, 1] - [0.5, 0.5, 0]
    half = (half * poses[..., 2:]).astype(np.float32)
    result = model.transfer(small, half[0], half[1:], fit="frame")
    with torch.no_grad():
        source = torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        expected = tiny_generator()(source.expand(3, -1, -1, -1),
                                    result.source_pose.expand(3, -1, -1), result.target_poses)
    assert result.target_poses[:, :, 2].sum() > 40
    np.testing.assert_allclose(result.coarse_flow, expected.flow, atol=1e-5)
    for ours, theirs in ((result.refined_view, expected.image),
                         (result.warped_view, expected.warped)):
        theirs = ((theirs + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        assert np.abs(ours - theirs).max() <= 0.51
    assert np.abs(result.coarse_flow[0] - result.coarse_flow[1]).max() > 0.01


def test_batches_change_nothing(model, people):
    images, poses = people
    one, all_at_once = (model.transfer(images[0], poses[0], poses, batch_size=size)
                        for size in (1, 8))
    np.testing.assert_allclose(one.coarse_flow, all_at_once.coarse_flow, atol=1e-5)
    assert len(one) == 4 and one.refined_view.shape == (4, 32, 32, 3)
    assert np.abs(one.refined_view.astype(int) - all_at_once.refined_view).max() <= 1


@pytest.fixture(scope="module")
def photograph(people):
    """A small person in a large picture, and her joints there."""
    images, poses = people
    photograph = np.full((150, 240, 3), 200, np.uint8)
    photograph[:, ::7] = 90
    photograph[50:114, 100:164] = images[0]
    return photograph, poses[0] + np.float32([100, 50, 0]) * poses[0][:, 2:]


@pytest.fixture(scope="module")
def in_frame(model, people, photograph):
    """That person in another pose, somewhere else in a frame of another size."""
    image, pose = photograph
    target = people[1][2] + np.float32([30, 60, 0]) * people[1][2][:, 2:]
    return model.transfer(image, pose, [target], target_size=(200, 180),
                          measures=inference.MEASURES)


def test_results_are_in_the_target_frame(in_frame):
    crop = in_frame.target_crops[0]
    assert in_frame.source_crop.height < 110 and crop.height < 110
    for picture in (in_frame.refined(0), in_frame.warped(0)):
        assert picture.shape == (200, 180, 3) and picture.dtype == np.uint8
        outside = np.ones((200, 180), bool)
        outside[crop.top:crop.top + crop.height, crop.left:crop.left + crop.width] = False
        assert outside.any() and (picture[outside] == 255).all() and picture[~outside].std() > 5
    assert (np.isnan(in_frame.locations(0)).all(0) == outside).all()


@pytest.mark.parametrize("fit", ["person", "frame"])
def test_warped_is_the_photograph_at_the_locations(model, in_frame, photograph, fit):
    result = in_frame
    if fit == "frame":  # with rows above and below that repeat the edge
        result = model.transfer(*photograph, [photograph[1]], fit="frame", target_size=(240, 240))
        assert result.source_crop.top < 0 and result.target_crops[0].top == 0
    image = photograph[0].astype(np.float64)
    locations, warped = result.locations(0), result.warped(0)
    known = np.isfinite(locations).all(0)
    x, y = locations[:, known].astype(np.float64)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, 239), np.minimum(top + 1, 149)
    wx, wy = (x - left)[:, None], (y - top)[:, None]
    expected = ((1 - wy) * ((1 - wx) * image[top, left] + wx * image[top, right])
                + wy * ((1 - wx) * image[bottom, left] + wx * image[bottom, right]))
    assert np.abs(warped[known] - expected).max() <= 0.6
    assert np.abs(warped[known] - image[50, 50]).max() > 50  # not all the same


def test_locations_are_the_flow_in_pixels(in_frame):
    crop, source = in_frame.target_crops[0], in_frame.source_crop
    row = crop.height // 2
    fine = pose_kernels.resize_flow(torch.from_numpy(in_frame.coarse_flow),
                                    (crop.height, crop.width))[0, :, row].numpy()
    inside = (np.abs(fine) < 0.95).all(0)
    assert inside.sum() > 10
    found = in_frame.locations(0)[:, crop.top + row, crop.left:crop.left + crop.width]
    expected = (fine + 1) / 2 * [[source.width], [source.height]] - 0.5 + [[source.left],
                                                                         [source.top]]
    np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=1e-3)


def test_moving_the_picture_moves_the_result(model, photograph):
    image, pose = photograph
    moved = np.roll(image, (7, 14), (0, 1))
    shift = np.float32([14, 7, 0]) * pose[:, 2:]
    one, other = model.transfer(image, pose, [pose]), model.transfer(moved, pose + shift, [pose])
    np.testing.assert_array_equal(one.source_view, other.source_view)
    np.testing.assert_allclose(other.locations(0) - one.locations(0),
                               np.where(np.isnan(one.locations(0)), np.nan, [[[14]], [[7]]]),
                               atol=1e-3)


def test_correspondence(in_frame, model):
    crop = in_frame.target_crops[0]
    x, y = crop.left + crop.width // 3, crop.top + crop.height // 4
    place, row = model.correspondence(in_frame, 0, (x + 0.2, y - 0.3))
    assert place == tuple(in_frame.locations(0)[:, y, x].tolist())
    with torch.no_grad():
        guided = model.generator.warping.match(*model.generator.warping.encode(
            in_frame.source_pose[None], in_frame.target_poses))[0]
    assert np.abs(row - guided[:, 0, 0].view(8, 8).numpy()).max() > 1e-3
    places = [(x, y) for x in range(crop.left, min(crop.left + crop.width, 180), 3)]
    places += [(x, y) for y in range(crop.top, min(crop.top + crop.height, 200))]
    for x, y in places:
        _, row = model.correspondence(in_frame, 0, (x, y))
        cell = [int((at + 0.5) * 8 / side) for at, side in
                ((y - crop.top, crop.height), (x - crop.left, crop.width))]
        np.testing.assert_allclose(row, guided[:, cell[0], cell[1]].view(8, 8), atol=1e-5)
    for outside in ((crop.left - 1, y), (x, crop.top + crop.height), (-1, -1), (10**9, y)):
        with pytest.raises(UserError, match="outside"):
            model.correspondence(in_frame, 0, outside)


def test_refined_is_the_warped_photograph_and_an_enlarged_correction(in_frame):
    size = (96, 64)  # of a view of 32 x 32
    refined, warped = (see(0, size).astype(float) for see in (in_frame.refined_at,
                                                              in_frame.warped_at))
    change = in_frame.refined_view[0].astype(float) - in_frame.warped_view[0]
    inside = (refined > 0) & (refined < 255)
    # Without what is clipped, the mean over the pixels that became of one is its correction.
    found = (refined - warped).reshape(32, 3, 32, 2, 3).mean((1, 3))
    whole = inside.reshape(32, 3, 32, 2, 3).all((1, 3))
    smooth = np.abs(np.diff(change, axis=0, append=0)) < 2
    assert (whole & smooth).sum() > 100
    assert np.abs(found - change)[whole & smooth].mean() < 2
    assert np.abs(change).mean() > 1  # there is something to see
    # What is finer than the view comes from the photograph.
    assert np.abs(np.diff(refined, axis=1)).mean() > 0.8 * np.abs(np.diff(warped, axis=1)).mean()
    assert in_frame.refined_at(0, (32, 32)).tolist() == in_frame.refined_view[0].tolist()


def test_correspondence_at_every_corner(in_frame, model):
    crop = in_frame.target_crops[0]
    for x in (crop.left, crop.left + crop.width - 1):
        for y in (crop.top, crop.top + crop.height - 1):
            place, row = model.correspondence(in_frame, 0, (x, y))
            assert np.isfinite(place).all() and row.shape == (8, 8)


def test_visibility_is_a_share(in_frame):
    assert set(in_frame.visibility) == {"affine", "cycle", "peak", "correlation"}
    for values in in_frame.visibility.values():
        assert values.shape == (1, 32, 32)
        assert values.min() >= 0 and values.max() <= 1 and values.std() > 1e-4


def test_methods_of_table_1_stand_in(photograph):
    changes = dict(model_flow="fomm", model_motion_input="keypoints+image")
    model = PoseTransferModel(tiny_generator(**changes), config=tiny_config(**changes),
                              name="a run", metadata={}, device=torch.device("cpu"))
    image, pose = photograph
    result = model.transfer(image, pose, [pose, pose], measures=["affine", "cycle"])
    assert result.refined(1).shape == image.shape and len(result.visibility["cycle"]) == 2
    for look in (lambda: model.transfer(image, pose, [pose], measures=["peak"]),
                 lambda: model.correspondence(result, 0, (120, 80))):
        with pytest.raises(UserError, match="a run has no correlation map.*fomm"):
            look()


def test_same_pose_is_found_again(model, photograph):
    result = model.transfer(*photograph, [photograph[1]], measures=["correlation"])
    assert result.visibility["correlation"].min() > 0.99


def test_seconds_add_up(in_frame):
    parts = {name: value for name, value in in_frame.seconds.items() if name != "total"}
    assert set(parts) == {"prepare", "flow", "refine", "visibility"} and min(parts.values()) > 0
    assert 0.5 * in_frame.seconds["total"] < sum(parts.values()) <= in_frame.seconds["total"]


def test_inputs_are_left_alone(model, photograph):
    image, pose = photograph[0].copy(), photograph[1].copy()
    model.transfer(image, pose, [pose]).warped(0)
    assert (image == photograph[0]).all() and (pose == photograph[1]).all()


@pytest.mark.parametrize("change, says",
                         [(dict(image=np.zeros((8, 8, 3))), "expected .H, W, 3. uint8"),
                          (dict(image=np.zeros((8, 8), np.uint8)), "expected .H, W, 3. uint8"),
                          (dict(image=np.zeros((0, 8, 3), np.uint8)), "expected .H, W, 3. uint8"),
                          (dict(image="photo.jpg"), "a picture of Pillow's, found str"),
                          (dict(source_pose=np.zeros((17, 3))), "18, 3"),
                          (dict(target_poses=[]), "at least one pose, found none"),
                          (dict(target_poses=np.zeros((0, 18, 3))), "at least one pose"),
                          (dict(target_poses=[np.full((18, 3), np.nan)]), "finite"),
                          (dict(measures=["afine"]), "affine, cycle")])
def test_wrong_arrays_are_refused(model, photograph, change, says):
    arguments = dict(image=photograph[0], source_pose=photograph[1], target_poses=[photograph[1]])
    with pytest.raises(ValueError, match=says):
        model.transfer(**(arguments | change))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_of_pillows_is_read_as_from_a_file(model, photograph, mode, tmp_path):
    picture = Image.fromarray(photograph[0]).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.new("L", picture.size, 100))
    picture.save(tmp_path / "photo.png")
    pose = photograph[1]
    expected = model.transfer(read_image(tmp_path / "photo.png"), pose, [pose]).refined(0)
    assert np.array_equal(model.transfer(picture, pose, [pose]).refined(0), expected)
    with Image.open(tmp_path / "photo.png") as opened:
        assert np.array_equal(model.transfer(opened, pose, [pose]).refined(0), expected)


def test_a_picture_of_pillows_is_turned_upright_as_a_file_is(model, photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(photograph[0]).copy()).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as picture:
        result = model.transfer(picture, photograph[1], [photograph[1]])
    assert np.array_equal(result.refined(0), model.transfer(*photograph, [photograph[1]]).refined(0)
                          )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_the_model_for_any_batch_and_can_be_saved(tmp_path):
    network = InferencePath(tiny_generator()).eval()

    def inputs(batch):
        return (torch.rand(batch, 3, 32, 32) * 2 - 1, random_poses(batch),
                random_poses(batch, seed=1))

    with torch.no_grad():
        torch.jit.trace(network, inputs(2), check_trace=False).save(tmp_path / "traced.pt")
        traced, given = torch.jit.load(tmp_path / "traced.pt"), inputs(3)
        for found, expected in zip(traced(*given), network(*given), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


def test_onnx_from_the_reference_is_the_model_for_any_batch(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, batch = InferencePath(tiny_generator()).eval(), torch.export.Dim("batch", min=1)

    def inputs(count):
        return (torch.rand(count, 3, 32, 32) * 2 - 1, random_poses(count),
                random_poses(count, seed=1))

    with torch.no_grad(), pose_kernels.use_implementation("reference"):
        torch.onnx.export(network, inputs(2), dynamo=True, dynamic_shapes=({0: batch},) * 3).save(
            tmp_path / "model.onnx")
        session, given = runtime.InferenceSession(tmp_path / "model.onnx"), inputs(3)
        found = session.run(None, {place.name: value.numpy() for place, value in
                                   zip(session.get_inputs(), given, strict=True)})
        for one, other in zip(found, network(*given), strict=True):
            assert np.abs(one - other.numpy()).max() < 1e-3


def test_pose_without_joints_is_refused(model, photograph):
    image, pose = photograph
    with pytest.raises(UserError, match="source pose has no joint"):
        model.transfer(image, np.zeros((18, 3)), [pose])
    with pytest.raises(UserError, match="target pose 1 has no joint"):
        model.transfer(image, pose, [pose, pose + np.float32([999, 0, 0])])


def test_narrow_and_stretched_views(photograph):
    image, pose = photograph
    for changes, aspect in ((dict(data_image_size=(64, 32)), 0.5),
                            (dict(data_kind="deepfashion", data_fit="stretch"), 176 / 256)):
        config = {"config": json.dumps(tiny_metadata(**changes))}
        model = PoseTransferModel(tiny_generator(**changes), name="",
                                  config=inference._read_config(config, "x"), metadata=config,
                                  device=torch.device("cpu"))
        result = model.transfer(image, pose, [pose])
        crop = result.target_crops[0]
        assert crop.width == pytest.approx(aspect * crop.height, abs=0.5)
        assert result.refined_view.shape[1:3] == model.size
        assert result.refined(0).shape == image.shape


def tiny_metadata(**changes) -> dict:
    return to_dict(tiny_config(**changes))


# --- loading ------------------------------------------------------------------------------------


def test_example_of_the_docstring(tmp_path, monkeypatch, people):
    images, poses = people
    write_tiny_run(tmp_path / "runs" / "quick")
    Image.fromarray(images[0]).save(tmp_path / "person.jpg")
    pose = Pose(joints=poses[0], format="openpose18")
    (tmp_path / "person.json").write_text(openpose_json([pose], (64, 64)))
    monkeypatch.chdir(tmp_path)
    tests = doctest.DocTestFinder().find(PoseTransferModel, globs={"np": np})
    examples = [test for test in tests if test.examples]
    assert len(examples) == 1
    result = doctest.DocTestRunner().run(examples[0])
    assert result.attempted >= 9 and result.failed == 0


def test_run_gives_the_averaged_weights(run, model):
    assert (model.step, model.name, model.about) == (7, str(run), "")
    for name, tensor in tiny_generator().state_dict().items():
        torch.testing.assert_close(model.generator.state_dict()[name], tensor, rtol=0, atol=0)
    assert not model.generator.training


def test_broken_checkpoint_is_said_and_passed_over(tmp_path, capsys):
    run = write_tiny_run(tmp_path / "run")
    newer = run / "checkpoints" / "step_000009"
    shutil.copytree(run / "checkpoints" / "step_000007", newer)
    (newer / "averaged.safetensors").write_bytes(b"torn")
    assert PoseTransferModel.from_run(run, "cpu").step == 7
    assert "step_000009 skipped" in capsys.readouterr().err


def test_only_what_makes_the_generator_has_to_be_known(file, tmp_path):
    config = tiny_metadata()
    del config["optim"], config["data"]["turn"]
    config["loss"]["of_another_version"] = 1
    safetensors.torch.save_file(safetensors.torch.load_file(file), tmp_path / "a.safetensors",
                                {"config": json.dumps(config)})
    model = PoseTransferModel.from_file(tmp_path / "a.safetensors", "cpu")
    assert model.config.model.stream == "auto" and model.step == 0


def _metadata(change) -> dict:
    config = tiny_metadata()
    change(config)
    return {"config": json.dumps(config)}


@pytest.mark.parametrize("metadata, says", [
    ({}, "no configuration"), ({"config": "{"}, "metadata are damaged"),
    (_metadata(lambda config: config.update(model=[1])), "metadata are damaged"),
    ({"config": "{}"}, "metadata are damaged"), ({"config": "[]"}, "metadata are damaged"),
    (_metadata(lambda config: None) | {"step": "many"}, "metadata are damaged"),
    (_metadata(lambda config: config["model"].update(colour=3)), "unknown .'colour'"),
    (_metadata(lambda config: config["model"].pop("stream")), "written by another version"),
    (_metadata(lambda config: config["data"].pop("fit")), "written by another version"),
    (_metadata(lambda config: config["model"].update(flow_depth=9)), "flow-depth"),
    (_metadata(lambda config: config["model"].update(feature_channels=7)), "not those of its conf"),
    (_metadata(lambda config: config["model"].update(refine_blocks=3)), "not those of its conf")])
def test_unusable_files(file, tmp_path, metadata, says):
    changed = tmp_path / "a.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file), changed, metadata)
    with pytest.raises(UserError, match=says) as error:
        PoseTransferModel.from_file(changed, "cpu")
    assert "\n" not in str(error.value) and str(changed) in str(error.value)


def test_no_file_no_run_no_checkpoint(tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("text.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match="no readable safetensors"):
            PoseTransferModel.from_file(tmp_path / name)
    with pytest.raises(UserError, match="no run folder"):
        PoseTransferModel.from_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint yet"):
        PoseTransferModel.from_run(tmp_path)


def test_pickles_are_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"weights": Trap()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no readable safetensors"):
        PoseTransferModel.from_file(tmp_path / "model.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_choice_of_the_model(run, file, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setattr(PoseTransferModel, "shipped", classmethod(lambda cls, device: "shipped"))
    assert newest_run(runs) is None
    assert PoseTransferModel.choose(None, "cpu", runs=runs) == "shipped"
    for name, age in (("older", 100), ("newer", 50), ("broken", 0)):
        shutil.copytree(run, runs / name)
        now = time.time() - age
        os.utime(runs / name / "checkpoints" / "LATEST", (now, now))
    (runs / "broken" / "config.json").unlink()
    assert newest_run(runs) == runs / "newer"
    assert PoseTransferModel.choose(None, "cpu", runs=runs).name == str(runs / "newer")
    assert PoseTransferModel.choose(runs / "older", "cpu").name == str(runs / "older")
    assert PoseTransferModel.choose(file, "cpu").name == str(file)


def test_shipped_model_loads_or_says_what_to_do(tmp_path, monkeypatch, file):
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="python -m posemodel.train"):
        PoseTransferModel.shipped("cpu")
    (tmp_path / "pretrained").mkdir()
    shutil.copy(file, tmp_path / "pretrained" / "small.safetensors")
    assert PoseTransferModel.shipped("cpu").name == "the model of this package (small)"
