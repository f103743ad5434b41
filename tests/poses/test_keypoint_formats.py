"""Files of joints: every kind by a case made by hand, real files, and anything else in a file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posemodel.poses.annotations import write_annotations
from posemodel.poses.files import (
    choose_person,
    openpose_json,
    people_of_image,
    read_pictures,
    read_poses,
    same_image,
)
from posemodel.poses.layouts import LAYOUTS, Pose
from posemodel.runtime.errors import UserError
from tests.small_datasets import SHARED, refused

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=100)

# 18 OpenPose joints; the right wrist (4) and the left ear (17) are missing.
JOINTS = np.array([
    (129, 24), (122, 49), (103, 49), (95, 86), (0, 0), (141, 49), (144, 85), (155, 117),
    (112, 114), (118, 167), (125, 216), (134, 114), (126, 168), (122, 214),
    (124, 19), (132, 19), (115, 20), (0, 0),
], float)
PRESENT = JOINTS.any(1)
EXPECTED = np.column_stack([JOINTS, PRESENT]).astype(np.float32)
# The same person by COCO, in its order: no neck.
COCO = EXPECTED[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
OF_COCO = EXPECTED.copy()
OF_COCO[1] = (122, 49, 1)  # between (103, 49) and (141, 49)


def write(folder, content, name="joints.json"):
    path = folder / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read_one(path, **options):
    (pose,) = read_poses(path, **options)
    return pose


def assert_joints(pose, expected, atol=0.0):
    np.testing.assert_allclose(pose.joints, expected, rtol=0, atol=atol)


def assert_valid(pose):
    assert pose.joints.shape == (18, 3) and pose.joints.dtype == np.float32
    assert np.isfinite(pose.joints).all() and np.isin(pose.joints[:, 2], (0, 1)).all()
    assert pose.present.any() and not pose.joints[~pose.present].any()


# --- OpenPose -------------------------------------------------------------------------------------


def openpose(*people, **fields):
    people = [{"person_id": [-1], "pose_keypoints_2d": np.ravel(rows).tolist()} for rows in people]
    return {"version": 1.3, "people": people, **fields}


def body25(joints):
    """Rows of BODY_25: the hips' middle is number 8, six joints of the feet follow."""
    return np.concatenate([joints[:8], [[7, 7, 0.9]], joints[8:], np.full((6, 3), 5.0)])


def test_openpose_json_of_18_and_25_joints(tmp_path):
    document = openpose(EXPECTED * (1, 1, 0.6), body25(EXPECTED))
    first, second = read_poses(write(tmp_path, document))
    assert_joints(first, EXPECTED)
    assert_joints(second, EXPECTED)
    assert (first.format, second.format) == ("openpose18", "body25")
    assert (first.person, second.person) == (0, 1)
    assert first.frame is None and first.name is None


def test_openpose_json_without_body_or_with_the_old_key(tmp_path):
    people = [{"pose_keypoints_2d": [], "hand_left_keypoints_2d": [1, 2, 0.5]},
              {"pose_keypoints_2d": None}, {"pose_keypoints_2d": [0] * 54},
              {"pose_keypoints": EXPECTED.ravel().tolist()}]
    pose = read_one(write(tmp_path, {"people": people}))
    assert_joints(pose, EXPECTED)
    assert pose.person == 3


def test_controlnet_json_states_its_canvas(tmp_path):
    rows = EXPECTED / (512, 256, 1)
    canvas = {"canvas_height": 256, "canvas_width": 512}
    in_pixels, in_fractions = openpose(EXPECTED, **canvas), openpose(rows, **canvas)
    for document in (in_pixels, in_fractions, [in_fractions]):
        pose = read_one(write(tmp_path, document), image_size=(99, 99))
        assert_joints(pose, EXPECTED, atol=1e-4)
        assert pose.frame == (256, 512)
    refused("fractions of an image; give its size", read_poses, write(tmp_path, openpose(rows)))
    given_format = read_one(write(tmp_path, openpose(rows)), format="openpose18-normalized",
                            image_size=(256, 512))
    assert_joints(given_format, EXPECTED, atol=1e-4)


def test_openpose_json_round_trip(tmp_path):
    first = read_poses(write(tmp_path, openpose(EXPECTED, EXPECTED * (0.7, 1.1, 1))))
    text = openpose_json(first, (256, 200))
    second = read_poses(write(tmp_path, text))
    assert len(second) == 2
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before.joints, after.joints)
        assert after.frame == (256, 200)


def candidates(folder):
    rows = [(33, 44, 0.01, 0)]  # too faint to count
    rows += [(*xy, 0.9, index) for index, xy in enumerate(JOINTS[PRESENT].tolist(), 1)]
    indices = np.full(18, -1)
    indices[PRESENT] = np.arange(1, len(rows))
    indices[4] = 0
    person, half = [*indices, 24.5, 16], [*indices[:8], *[-1] * 10, 7.5, 7]
    np.savetxt(folder / "a_candidate.txt", rows)
    np.savetxt(folder / "a_subset.txt", [half, person])
    return folder / "a_candidate.txt", folder / "a_subset.txt"


def test_openpose_text_from_either_file(tmp_path):
    for path in candidates(tmp_path):
        half, person = read_poses(path)
        assert_joints(person, EXPECTED)
        assert_joints(half, EXPECTED * (np.arange(18) < 8)[:, None])
        assert (person.person, person.score, half.score) == (1, 24.5, 7.5)


def test_openpose_text_with_a_damaged_or_missing_partner(tmp_path):
    candidate, subset = candidates(tmp_path)
    subset.write_text(subset.read_text().replace("-1.000000000000000000e+00", "99", 1))
    refused("a_subset.txt: person 0 has joints that are none of", read_poses, candidate)
    subset.write_text("1 2 3\n")
    refused("expected 4 and 20", read_poses, candidate)
    subset.unlink()
    refused("a_candidate.txt belongs together with a_subset.txt", read_poses, candidate)


# --- COCO and its relatives -----------------------------------------------------------------------


def coco_document():
    flags = np.where(np.arange(17) % 2, 1, 2) * COCO[:, 2]
    keypoints = np.column_stack([COCO[:, :2], flags]).ravel().astype(int).tolist()
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 300, "width": 200},
                   {"id": 8, "file_name": "b.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "keypoints": [0] * 51},
                        {"id": 2, "image_id": 7, "category_id": 1, "keypoints": keypoints},
                        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
                        {"id": 4, "image_id": 8, "category_id": 1, "keypoints": keypoints}],
    }


def test_coco_annotations(tmp_path):
    path = write(tmp_path, coco_document())
    first, second = read_poses(path)
    for pose in (first, second):
        assert_joints(pose, OF_COCO)
    assert (first.name, first.frame, first.person) == ("a.jpg", (300, 200), 1)
    assert (second.name, second.frame, second.format) == ("b.jpg", None, "coco17")
    assert read_one(path, name="b.jpg").person == 3
    refused("no joints of c.jpg; did you mean", read_poses, path, name="c.jpg")


def test_coco_results_and_mmpose_predictions(tmp_path):
    flat = {"image_id": "x.jpg", "category_id": 1, "keypoints": COCO.ravel().tolist(), "score": 2.5}
    mmpose = {"keypoints": COCO[:, :2].tolist(), "keypoint_scores": (COCO[:, 2] * 0.8).tolist(),
              "bbox_score": 0.75}
    nested = {"meta_info": {}, "instance_info": [mmpose]}
    transformers = [{"keypoints": COCO[:, :2].tolist(), "scores": COCO[:, 2].tolist()}]
    rtmlib = {"keypoints": [COCO[:, :2].tolist()], "scores": [COCO[:, 2].tolist()]}
    for document, name, score in (([flat], "x.jpg", 2.5), ([mmpose], None, 0.75),
                                  (transformers, None, None), ([transformers], None, None),
                                  (rtmlib, None, None),
                                  (mmpose, None, 0.75), (nested, None, 0.75)):
        pose = read_one(write(tmp_path, document))
        assert_joints(pose, OF_COCO)
        assert (pose.name, pose.score, pose.format) == (name, score, "coco17")


@pytest.mark.parametrize("rows", [COCO.ravel(), COCO, COCO[:, :2], COCO[:, :2].ravel()])
def test_plain_lists(tmp_path, rows):
    assert_joints(read_one(write(tmp_path, rows.tolist())), OF_COCO)


# --- MediaPipe ------------------------------------------------------------------------------------


def landmarks(with_visibility=True):
    """33 landmarks in an image of 256 x 512 (h x w); joints that are missing are hardly visible."""
    rows = {0: 0, 2: 15, 5: 14, 7: 17, 8: 16, 11: 5, 12: 2, 13: 6, 14: 3, 15: 7, 16: 4,
            23: 11, 24: 8, 25: 12, 26: 9, 27: 13, 28: 10}
    points = []
    for row in range(33):
        x, y, here = EXPECTED[rows[row]].tolist() if row in rows else (300, 200, 1)
        point = {"x": (x + 0.5) / 512, "y": (y + 0.5) / 256, "z": -0.1}
        points.append(point | {"visibility": 0.99 if here else 0.2} if with_visibility else point)
    return points


def test_mediapipe_landmarks_however_deep(tmp_path):
    points, metres = landmarks(), [{"x": 0.0, "y": 0.0, "z": 0.0}] * 33
    hand = [{"x": 0.5, "y": 0.5}] * 21
    for document in (
        points, {"poseLandmarks": points, "leftHandLandmarks": hand, "poseWorldLandmarks": metres},
        {"landmarks": [points], "worldLandmarks": [metres]},
        {"pose_landmarks": {"landmark": points}},
    ):
        pose = read_one(write(tmp_path, document), image_size=(256, 512))
        assert_joints(pose, OF_COCO, atol=1e-3)
        assert (pose.format, pose.frame) == ("mediapipe33", (256, 512))
    all_there = read_one(write(tmp_path, landmarks(False)), image_size=(256, 512))
    assert all_there.present.all()


def test_mediapipe_people_are_in_order(tmp_path):
    other = [point | {"x": point["x"] + 0.1} for point in landmarks()]
    for document in ([landmarks(), other], {"0": landmarks(), "1": other}):
        first, second = read_poses(write(tmp_path, document), image_size=(256, 512))
        assert (first.person, second.person) == (0, 1)
        assert second.joints[0, 0] - first.joints[0, 0] == pytest.approx(51.2, abs=1e-3)


# --- data sets, arrays ----------------------------------------------------------------------------


def test_annotation_csv(tmp_path):
    path = tmp_path / "fasion-annotation-test.csv"
    rows = np.stack([EXPECTED, np.zeros_like(EXPECTED), EXPECTED[::-1]])
    write_annotations(path, ["a.jpg", "b.jpg", "c.jpg"], rows)
    first, third = read_poses(path)
    assert_joints(first, EXPECTED)
    assert_joints(third, EXPECTED[::-1])
    assert (first.name, third.name, first.format) == ("a.jpg", "c.jpg", "openpose18")
    assert_joints(read_one(path, name="c.jpg"), EXPECTED[::-1])
    refused("nobody was found in b.jpg: no person with a visible joint", read_poses, path,
            name="b.jpg")
    refused("did you mean", read_poses, path, name="d.jpg")
    refused("holds openpose18, not coco17", read_poses, path, format="coco17")


def test_y_comes_first_in_the_csv(tmp_path):
    ys, xs = np.where(PRESENT[:, None], JOINTS, -1).T[::-1].astype(int).tolist()
    path = write(tmp_path, f"name:keypoints_y:keypoints_x\nn.jpg: {ys}: {xs}\n", "a.csv")
    assert_joints(read_one(path), EXPECTED)


def test_vunet_array(tmp_path):
    """Fractions show that they are no pixels; who says that they are is believed."""
    fractions = np.where(PRESENT[:, None], JOINTS / (512, 256), -1)
    path = write(tmp_path, fractions, "pose.npy")
    for words in ({}, {"format": "openpose18-normalized"}, {"units": "fractions"}):
        pose = read_one(path, image_size=(256, 512), **words)
        assert_joints(pose, EXPECTED, atol=1e-4)
        assert (pose.format, pose.units, pose.frame) == ("openpose18", "fractions", (256, 512))
    assert not read_one(path, units="pixels").joints[:, :2].max() > 1


@pytest.mark.parametrize("separator", [" ", "\t", ", "])
def test_nted_text(tmp_path, separator):
    rows = np.where(PRESENT[:, None], JOINTS, -1)
    np.savetxt(tmp_path / "a.txt", rows, delimiter=separator)
    pose = read_one(tmp_path / "a.txt")
    assert_joints(pose, EXPECTED)
    assert pose.format == "openpose18"


def test_npy_of_several_people(tmp_path):
    people = np.stack([COCO, COCO * (0.5, 0.5, 1), COCO * (1, 1, 0)])
    first, second = read_poses(write(tmp_path, people, "people.npy"))
    assert_joints(first, OF_COCO)
    assert_joints(second, OF_COCO * (0.5, 0.5, 1))
    assert (second.person, second.format) == (1, "coco17")


def test_wholebody_array(tmp_path):
    rows = np.concatenate([COCO, np.full((116, 3), 9.0)])
    pose = read_one(write(tmp_path, rows, "body.npy"))
    assert_joints(pose, OF_COCO)
    assert pose.format == "wholebody133"


def test_threshold(tmp_path):
    path = write(tmp_path, openpose(EXPECTED * (1, 1, 0.4)))
    assert len(read_poses(path, threshold=0.4)) == 1
    refused("no person with a visible joint", read_poses, path, threshold=0.5)


def test_npz_of_joints_and_scores(tmp_path):
    """As rtmlib and others keep them; also whatever is alone in a file."""
    path = tmp_path / "joints.npz"
    people = np.stack([COCO, COCO * (0.5, 0.5, 1)])
    scores = people[..., 2]
    for arrays in ({"keypoints": people[..., :2], "scores": scores, "boxes": np.ones((2, 4))},
                   {"keypoints": people[..., :2], "keypoint_scores": scores[..., None]},
                   {"anything": people}):
        np.savez(path, **arrays)
        first, second = read_poses(path)
        assert_joints(first, OF_COCO)
        assert_joints(second, OF_COCO * (0.5, 0.5, 1))
        assert (second.person, second.format) == (1, "coco17")
    np.savez(path, a=people, b=scores)
    refused("has the arrays a, b; expected joints under one of the names keypoints", read_poses,
            path)
    np.savez(path, keypoints=people, scores=scores[:1])
    refused(r"shape .2, 17, 3. with scores of the shape .1, 17.", read_poses, path)
    np.savez(path, keypoints=np.array([{}], object))
    refused("broken .npz", read_poses, path)


@pytest.mark.parametrize("count", [18, 25])
def test_openpose_people_of_two_numbers_a_joint(tmp_path, count):
    """tf-pose's 36 numbers, in fractions."""
    rows = (EXPECTED if count == 18 else body25(EXPECTED))[:, :2] / (512, 256)
    flat = rows.ravel().tolist()
    assert len(flat) == 2 * count
    for content in ({"people": [{"pose_keypoints_2d": flat}]}, flat, [flat],
                    " ".join(map(str, flat))):
        pose = read_one(write(tmp_path, content), image_size=(256, 512))
        assert_joints(pose, EXPECTED, atol=1e-3)
        assert pose.units == "fractions"
    np.save(tmp_path / "flat.npy", flat)
    assert_joints(read_one(tmp_path / "flat.npy", image_size=(256, 512)), EXPECTED, atol=1e-3)


@pytest.mark.parametrize(("rows", "name"), [(26, "halpe26"), (136, "halpe136")])
def test_halpe(tmp_path, rows, name):
    """AlphaPose's; the neck of Halpe, row 18, is another than OpenPose's."""
    body = np.concatenate([COCO, np.full((rows - 17, 3), 9.0)])
    result = [{"image_id": "a.jpg", "keypoints": body.ravel().tolist(), "score": 2.9}]
    pose = read_one(write(tmp_path, result))
    assert_joints(pose, OF_COCO)
    assert (pose.format, pose.name) == (name, "a.jpg")


@pytest.mark.parametrize("more", ["", " 0.93", " 0.93 4"])
def test_ultralytics_text(tmp_path, more):
    rows = COCO / (512, 256, 1)
    people = [rows, rows * (0.5, 1, 1)]
    text = "".join(f"0 0.5 0.5 0.2 0.4 {' '.join(map(str, row.ravel()))}{more}\n"
                   for row in people)
    first, second = read_poses(write(tmp_path, text, "a.txt"), image_size=(256, 512))
    assert_joints(first, OF_COCO, atol=1e-3)
    assert_joints(second, OF_COCO * (0.5, 1, 1), atol=1e-3)
    assert (second.person, second.format, second.units) == (1, "coco17", "fractions")
    without = " ".join(map(str, rows[:, :2].ravel()))
    pose = read_one(write(tmp_path, f"0 .5 .5 .2 .4 {without}", "b.txt"), image_size=(256, 512))
    assert_joints(pose, OF_COCO, atol=1e-3)
    refused("nobody was found", read_poses, write(tmp_path, "", "c.txt"))


def ultralytics(rows):
    x, y, seen = rows.T.tolist()
    return {"name": "person", "class": 0, "confidence": 0.9, "box": {"x1": 1, "y1": 2},
            "keypoints": {"x": x, "y": y, "visible": seen}}


def test_ultralytics_json(tmp_path):
    pose = read_one(write(tmp_path, [ultralytics(COCO)]))
    assert_joints(pose, OF_COCO)
    assert pose.score == 0.9 and pose.units == "pixels"
    pose = read_one(write(tmp_path, [ultralytics(COCO / (512, 256, 1))]), image_size=(256, 512))
    assert_joints(pose, OF_COCO, atol=1e-3)
    short = ultralytics(COCO)
    short["keypoints"]["x"] = [1.0]
    refused(r"keypoints: columns of \[1, 17\] numbers", read_poses, write(tmp_path, [short]))


def test_named_points(tmp_path):
    """As tensorflow.js writes them."""
    points = [{"x": x, "y": y, "score": score, "name": "joint"} for x, y, score in COCO.tolist()]
    assert_joints(read_one(write(tmp_path, [{"keypoints": points, "score": 0.8}])), OF_COCO)


def test_null_and_nan_are_missing_joints(tmp_path):
    """As JSON, Python and pandas write what they do not have."""
    for nothing in (None, float("nan")):
        rows = COCO.tolist()
        rows[10] = [nothing] * 3  # the wrist, which is missing anyhow
        rows[3] = [nothing] * 3
        expected = OF_COCO.copy()
        expected[17] = 0  # left ear
        flat = [number for row in rows for number in row]
        for document in (rows, flat, [{"keypoints": flat}],
                         [row if row[0] == row[0] and row[0] is not None else None
                          for row in rows]):
            assert_joints(read_one(write(tmp_path, document)), expected)
        points = landmarks()
        points[0] = {"x": nothing, "y": nothing, "visibility": nothing}
        points[2] = None
        pose = read_one(write(tmp_path, points), image_size=(256, 512))
        assert np.flatnonzero(~pose.present).tolist() == [0, 4, 15, 17]


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_text_as_windows_writes_it(tmp_path, code):
    for content in (json.dumps(openpose(EXPECTED)),
                    "\n".join(" ".join(map(str, row)) for row in EXPECTED.tolist())):
        path = tmp_path / "joints.txt"
        path.write_bytes(content.encode(code))
        assert_joints(read_one(path), EXPECTED)


# --- films ----------------------------------------------------------------------------------------


def places(pictures):
    """Of each frame the x of everybody's nose."""
    return [[round(float(pose.joints[0, 0])) for pose in people] for people in pictures.people]


def at(x):
    return EXPECTED + np.float32([x, 0, 0]) * EXPECTED[:, 2:]


def coco_at(x):
    return COCO + np.float32([x, 0, 0]) * COCO[:, 2:]


def mmpose(frame, *xs):
    return {"frame_id": frame, "instances": [
        {"keypoints": coco_at(x)[:, :2].tolist(), "keypoint_scores": COCO[:, 2].tolist()}
        for x in xs]}


def mediapipe(x):
    return [point | {"x": point["x"] + x / 512} for point in landmarks()]


FILMS = {
    "OpenPose": [openpose(at(0)), openpose(), openpose(at(20), at(300))],
    "OpenPose by name": {"1.png": openpose(at(0)), "2.png": openpose(),
                         "3.png": openpose(at(20), at(300))},
    "MMPose": [mmpose(0, 0), mmpose(1), mmpose(2, 20, 300)],
    "MMPose's file": {"meta_info": {}, "instance_info": [
        mmpose(3, 0), mmpose(4), mmpose(5, 20, 300)]},
    "MMPose's inferencer": {"predictions": [mmpose(0, x, *more)["instances"] if x is not None
                                            else [] for x, *more in ([0], [None], [20, 300])]},
    "AlphaPose": [{"image_id": f"{frame}.jpg", "keypoints": coco_at(x).ravel().tolist()}
                  for frame, x in ((7, 0), (9, 20), (9, 300), (10, 30))],
    "lines": "\n".join(json.dumps(frame) for frame in (
        {"frame": 1, "predictions": mmpose(0, 0)["instances"]}, {"frame": 2, "predictions": []},
        {"frame": 3, "predictions": mmpose(0, 20, 300)["instances"]})),
    "arrays in a document": {
        "keypoints": [[coco_at(0)[:, :2].tolist()], [],
                      [coco_at(x)[:, :2].tolist() for x in (20, 300)]],
        "scores": [[COCO[:, 2].tolist()], [], [COCO[:, 2].tolist()] * 2]},
    "results with frames": [{"frame": frame, "keypoints": coco_at(x).ravel().tolist()}
                            for frame, x in ((3, 0), (5, 20), (5, 300), (6, 30))],
    "Ultralytics": [[ultralytics(coco_at(0))], [],
                    [ultralytics(coco_at(20)), ultralytics(coco_at(300))]],
    "MediaPipe": [{"landmarks": [mediapipe(0)], "worldLandmarks": []}, {"landmarks": []},
                  {"landmarks": [mediapipe(20), mediapipe(300)]}],
    "MediaPipe's older dumps": [{"poseLandmarks": mediapipe(0)}, {"poseLandmarks": None},
                                {"poseLandmarks": mediapipe(20)}],
    "lists of landmarks": [mediapipe(0), None, mediapipe(20)],
    "lists": [[coco_at(0).tolist()], [], [coco_at(20).tolist(), coco_at(300).tolist()]],
    "a list of one person": [coco_at(0).tolist(), None, coco_at(20).tolist()],
}


@pytest.mark.parametrize("name", FILMS)
def test_films(tmp_path, name):
    path = write(tmp_path, FILMS[name])
    pictures = read_pictures(path, image_size=(256, 512))
    assert pictures.film
    first, nobody, third, *more = places(pictures)
    assert (first, nobody, third[:1]) == ([129], [], [149])
    assert third[1:] in ([], [429]) and more in ([], [[159]])
    if name not in ("OpenPose by name", "AlphaPose", "results with frames"):
        refused("is a film of 3 frames, where the joints of one picture.*--frame N", read_poses,
                path, image_size=(256, 512))
    refused("nobody was found in frame 1", read_poses, path, frame=1, image_size=(256, 512))
    assert read_poses(path, frame=2, image_size=(256, 512))[0].joints[0, 0] == pytest.approx(
        149, abs=1e-3)
    refused("has no frame 7; expected 0 to", read_poses, path, frame=7, image_size=(256, 512))


def test_a_frame_that_was_left_out(tmp_path):
    """MMPose counts its frames; every fifth frame is nevertheless all there is."""
    film = read_pictures(write(tmp_path, [mmpose(3, 0), mmpose(4, 10), mmpose(6, 30)]))
    assert places(film) == [[129], [139], [], [159]]
    film = read_pictures(write(tmp_path, [mmpose(0, 0), mmpose(5, 10), mmpose(10, 30)]))
    assert places(film) == [[129], [139], [159]]
    film = read_pictures(write(tmp_path, [mmpose(0, 0), mmpose(10**9, 10), mmpose(3, 30)]))
    assert places(film) == [[129], [139], [159]]


@pytest.mark.parametrize("kind", ["npy", "npz", "json"])
def test_arrays_of_films(tmp_path, kind):
    def written(array):
        path = tmp_path / f"film.{kind}"
        if kind == "npz":
            np.savez(path, keypoints=array[..., :2], scores=array[..., 2])
        elif kind == "npy":
            np.save(path, array)
        else:
            path.write_text(json.dumps(array.tolist()))
        return read_pictures(path)

    frames = np.stack([coco_at(x) for x in (0, 10, 20, 30)])
    nobody = np.zeros_like(COCO)
    film = written(np.stack([frames, np.stack([coco_at(300), nobody, nobody, coco_at(310)])], 1))
    assert film.film and places(film) == [[129, 429], [139], [149], [159, 439]]
    one = written(frames)  # [T, K, 3] of one person
    assert one.film and places(one) == [[129], [139], [149], [159]]
    path = write(tmp_path, [{"keypoints": rows.tolist()} for rows in frames], "results.json")
    assert read_pictures(path).film and places(read_pictures(path)) == places(one)
    people = written(np.stack([coco_at(x) for x in (0, 100, 200, 300)]))  # beside each other
    assert not people.film and places(people) == [[129, 229, 329, 429]]


def test_numbered_images_are_a_film_and_others_are_not(tmp_path):
    def film_of(names):
        rows = np.stack([at(x) for x in range(len(names))])
        rows[1] = 0
        write_annotations(tmp_path / "a.csv", names, rows)
        return read_pictures(tmp_path / "a.csv")

    film = film_of(["f_01.png", "f_02.png", "f_04.png"])
    assert film.film and places(film) == [[129], [], [], [131]]
    for names in (["a.jpg", "b.jpg", "c.jpg"], ["1_2.jpg", "2_3.jpg", "3_3.jpg"],
                  ["000139.jpg", "000285.jpg", "000632.jpg"]):
        assert not film_of(names).film


def test_the_image_of_a_row(tmp_path):
    assert same_image("val2017/000000000785.jpg", "000000000785.png")
    assert same_image("785", "000000000785.jpg") and same_image("c:\\b\\A.JPG", "a.jpg")
    assert not same_image("a.jpg", "b.jpg") and not same_image("786", "000000000785.jpg")
    path = write(tmp_path, coco_document())
    assert people_of_image(read_poses(path), "b.png", where="")[0].name == "b.jpg"
    refused("2 images and none of c.jpg", people_of_image, read_poses(path), "c.jpg", where="x")


# --- what is refused ------------------------------------------------------------------------------


def changed(document, place, value):
    """The document with another value at a place, such as ("people", 0)."""
    document = json.loads(json.dumps(document))
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return document


OPENPOSE = openpose(EXPECTED)
NUMBERS = ("people", 0, "pose_keypoints_2d")


@pytest.mark.parametrize(("content", "message"), [
    ("", "is empty"),
    ("\n \n", "is empty"),
    ("hello there", "line 1 is no row of numbers"),
    (", ;\n,", "has no number in it"),
    ("1 2\n3\n", "line 2 has 1 numbers, not 2"),
    ("1 2\n3 4\n", "2 joints; formats"),
    ('{"people": [', "broken JSON"),
    ("[" * 100_000, "broken JSON"),
    ("[" + "9" * 5000 + "]", "broken JSON"),
    ("{}", "no joints found"),
    ("[]", "nobody was found"),
    ("[null, []]", "nobody was found"),
    ('{"people": []}', "nobody was found: the list of people is empty"),
    ('{"annotations": []}', "nobody was found"),
    ('{"predictions": [[]]}', "nobody was found"),
    ('{"frame_id": 3, "instances": []}', "nobody was found"),
    ('{"landmarks": []}', "nobody was found"),
    ('{"poseLandmarks": null, "faceLandmarks": [{"x": 0.1, "y": 0.1}]}', "nobody was found"),
    ({"people": [{"pose_keypoints_2d": [0] * 54}]}, "no person with a visible joint"),
    ('{"a": 1}\n{"b": }', "line 2: broken JSON"),
    ({"keypoints": [COCO.tolist()] * 2, "scores": [1]}, "2 lists of keypoints with scores .1."),
    ('[{"people": []}, 7]', r"\[1\] is 7, not the joints of a picture like those beside it"),
    ("[[[[1, 2]]], 5]", r"\[1\] is 5, not a list of people"),
    ("[" * 500 + "]" * 500, "expected a finite number|nobody was found"),
    ('{"people": {"0": 1}}', "people is {'0': 1}, expected a list"),
    ('{"people": [5]}', r"people\[0\] has no pose_keypoints_2d"),
    ("[1, 2, 3]", "3 numbers, expected 34 .17 x 2. or"),
    ("[[1, 2], [3]]", "rows of different lengths"),
    ('[{"x": 1, "y": 2}]', r"lists of \[1\] landmarks, expected 33"),
    ("name:keypoints_y:keypoints_x\n", "header but no rows"),
    ("name:keypoints_y:keypoints_x\na.jpg: [1]: [2]\n", "line 2"),
    (changed(OPENPOSE, NUMBERS, [1.0] * 53), r"people\[0\].pose_keypoints_2d: 53 numbers, exp"),
    (changed(OPENPOSE, (*NUMBERS, 5), "12"), r"2d\[5\]: expected a finite .*'12'"),
    (changed(OPENPOSE, (*NUMBERS, 5), True), r"pose_keypoints_2d\[5\]: expected a finite"),
    (changed(OPENPOSE, (*NUMBERS, 5), None), "joint 1 has no confidence"),
    (changed(OPENPOSE, (*NUMBERS, 3), None), r"joint 1 lies at \(nan, 49\)"),
    (changed(OPENPOSE, (*NUMBERS, 5), 10**400), r"pose_keypoints_2d\[5\]: .*a huge number"),
    (changed(OPENPOSE, (*NUMBERS, 5), float("nan")), "joint 1 has no confidence"),
    (changed(OPENPOSE, (*NUMBERS, 5), float("-inf")), "-Infinity is no JSON number"),
    (json.dumps(OPENPOSE).replace("129.0", "1e999"), r"\[0\]: expected a finite .*found inf"),
    (changed(OPENPOSE, NUMBERS, {"0": 1}), "expected a list of numbers, found {'0': 1}"),
    (OPENPOSE | {"canvas_height": 3}, "canvas_height and canvas_width are .3, None."),
    (OPENPOSE | {"canvas_height": -3, "canvas_width": "a"}, "expected whole pixels"),
    (changed(coco_document(), ("annotations", 3, "keypoints"), [1] * 48),
     r"annotations\[3\].keypoints: 48 numbers"),
    (changed(coco_document(), ("images", 1), {"id": 8}), r"images\[1\] has no id or no file_n"),
    ([{"keypoints": COCO[:, :2].tolist(), "keypoint_scores": [1]}], "17 joints with 1 scores"),
    ([{"keypoints": COCO.tolist(), "score": "high"}], r"\[0\]: score: expected a finite"),
    (changed(landmarks(), (4,), {"x": 0.1, "y": 0.2}), r"\[4\] has no visibility"),
    (changed(landmarks(), (5, "x"), 450.0), "a joint lies at .450, "),
])
def test_nonsense_is_refused_with_its_place(tmp_path, content, message):
    path = write(tmp_path, content)
    text = refused(message, read_poses, path, image_size=(256, 256))
    assert text.startswith(str(path)) and len(text) < len(str(path)) + 500


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x93NUMPY", "broken .npy"), (b"PK\x03\x04 cut", "broken .npz"),
     (b"\x93NUMPY\x01\x00\xff\xff{", "broken .npy"),
     (b"\xff\xd8\xff\xe0 a photograph", "neither text nor a .npy array")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "joints.npy"
    path.write_bytes(content)
    refused(message, read_poses, path)


def test_arrays_of_objects_and_of_a_false_size_are_refused(tmp_path):
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{"a": 1}], object), allow_pickle=True)
    huge = write(tmp_path, COCO, "huge.npy")
    huge.write_bytes(huge.read_bytes().replace(b"(17, 3), }         ", b"(17000000000, 3), }"))
    for path in (objects, huge):
        refused("broken .npy", read_poses, path)


def test_paths_that_are_no_files(tmp_path):
    refused("No such file", read_poses, tmp_path / "nowhere.json")
    refused("directory", read_poses, tmp_path)
    refused("null", read_poses, "a\0b")


def test_wrong_requests(tmp_path):
    path = write(tmp_path, OPENPOSE)
    refused("no format is called 'coco'; formats: openpose18", read_poses, path, format="coco")
    refused("18 x 3 numbers, expected 17", read_poses, path, format="coco17")
    refused("names no images", read_poses, path, name="a.jpg")
    with pytest.raises(UserError, match="holds mediapipe33, not coco17"):
        read_poses(write(tmp_path, landmarks()), format="coco17")


# --- anything -------------------------------------------------------------------------------------


def read_or_refuse(path, **options):
    for read in (read_poses, read_pictures):
        try:
            poses = read(path, **options)
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            continue
        if read is read_pictures:
            assert poses.people
            poses = [pose for people in poses.people for pose in people]
        else:
            assert poses
        for pose in poses:
            assert_valid(pose)


def samples(folder):
    candidates(folder)
    write_annotations(folder / "a.csv", ["a.jpg"], EXPECTED[None])
    write(folder, COCO, "a.npy")
    write(folder, OPENPOSE | {"canvas_height": 300, "canvas_width": 300}, "openpose.json")
    write(folder, coco_document(), "coco.json")
    write(folder, landmarks(), "landmarks.json")
    write(folder, FILMS["MMPose"], "mmpose.json")
    write(folder, FILMS["Ultralytics"], "ultralytics.json")
    write(folder, FILMS["lists"], "lists.json")
    np.savez(folder / "a.npz", keypoints=COCO[:, :2], scores=COCO[:, 2])
    np.savetxt(folder / "a.txt", JOINTS)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def sample_files(tmp_path_factory):
    return samples(tmp_path_factory.mktemp("samples"))


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12),
              st.one_of(st.binary(max_size=6),
                        st.sampled_from([b"-1", b"NaN", b"1e400", b"null", b"[", b"}", b":"]))),
    min_size=1, max_size=4,
)


@PROPERTY
@given(st.integers(0, 11), EDITS, st.sampled_from([None, *LAYOUTS]))
def test_damaged_files_are_read_or_refused(sample_files, number, edits, format):
    path = sample_files[number]
    whole = path.read_bytes()
    damaged = whole
    for at, removed, added in edits:
        start = round(at * len(damaged))
        damaged = damaged[:start] + added + damaged[start + removed :]
    try:
        path.write_bytes(damaged)
        read_or_refuse(path, format=format, image_size=(300, 300))
    finally:
        path.write_bytes(whole)


KEYS = st.sampled_from(["people", "pose_keypoints_2d", "annotations", "images", "keypoints",
                        "keypoint_scores", "id", "image_id", "file_name", "height", "width",
                        "canvas_height", "canvas_width", "instance_info", "score", "landmarks", "x",
                        "y", "visibility", "instances", "frame_id", "predictions", "visible"])
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
                   st.sampled_from([34, 51, 54, 75, 133]).map(lambda count: [1.5] * count),
                   st.just([{"x": 0.5, "y": 0.5}] * 33))
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@PROPERTY
@given(DOCUMENTS, st.sampled_from([None, (64, 64)]))
def test_any_json_is_read_or_refused(sample_files, document, image_size):
    path = sample_files[0].with_name("any.json")
    path.write_text(json.dumps(document))
    read_or_refuse(path, image_size=image_size)


# --- real files -----------------------------------------------------------------------------------


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


def test_real_coco_photograph():
    pose = read_one(real("coco/000000000785.json"))
    assert (pose.name, pose.frame) == ("000000000785.jpg", (425, 640))
    assert pose.present.all()
    nose, neck, right_wrist, left_ear = pose.joints[[0, 1, 4, 17], :2].tolist()
    assert (nose, neck) == ([367, 81], [378.5, 118.5])
    assert (right_wrist, left_ear) == ([309, 178], [386, 78])


def test_real_openpose_text():
    pose = read_one(real("openpose/03_1_front_candidate.txt"))
    assert np.flatnonzero(~pose.present).tolist() == [10, 13]  # the ankles
    assert pose.joints[[1, 7, 17], :2].tolist() == [[128, 69], [172, 171], [145, 28]]
    assert pose.score == pytest.approx(28.2165, abs=1e-4)


def test_real_market_annotations():
    poses = read_poses(real("market-annotation-train.csv"))
    assert len(poses) == 12_936 - 419  # those rows have no joint
    first = poses[0]
    assert first.name == "0224_c6s1_055726_02.jpg"
    assert first.joints[[0, 1, 17], :2].tolist() == [[39, 8], [37, 23], [47, 8]]
    assert np.mean([pose.present.sum() for pose in poses]) * len(poses) / 12_936 == pytest.approx(
        13.38, abs=0.005
    )


def test_the_person_chosen_has_most_joints_then_the_largest_box():
    def person(count, height):
        joints = np.zeros((18, 3), np.float32)
        joints[:count] = 1
        joints[0] = (5, height, 1)
        return Pose(joints=joints, format="openpose18")

    few_and_large, small, large = person(4, 900), person(9, 20), person(9, 40)
    assert choose_person([few_and_large, small, large]) is large
    nobody = Pose(joints=np.zeros((18, 3), np.float32), format="openpose18")
    assert choose_person([nobody]) is nobody
