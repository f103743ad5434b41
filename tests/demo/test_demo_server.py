"""The demo behind its page: questions, answers, and a hundred ways to ask wrongly."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.demo.__main__ import main
from posemodel.demo.server import DemoSite
from posemodel.poses.files import read_poses
from posemodel.runtime.main import run_main
from tests.serving import serving
from tests.small_films import Knowing, beside, frames

ROOT = Path(__file__).parents[2]
VIEWS = ("refined", "warped", "flow", "visibility")


@pytest.fixture(scope="module")
def client(workbench):
    with serving(DemoSite(workbench)) as found:
        yield found


@pytest.fixture(scope="module")
def start(client):
    status, told = client.ask("/api/start", {})
    assert status == 200
    return told


def picture(url: str) -> np.ndarray:
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def encoded(image: np.ndarray, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def text(content: str) -> str:
    return base64.b64encode(content.encode()).decode()


def question(start, **changes) -> dict:
    person = start["people"][0]
    return {"person": person["id"], "source": person["pose"], "target": person["pose"], **changes}


def moved(pose: list, joint: int, x: float, y: float) -> list:
    return [[x, y, 1] if k == joint else row for k, row in enumerate(pose)]


def upload(client, height=40, width=30) -> dict:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    status, person = client.ask("/api/upload", {"name": "a.png", "image": encoded(image)})
    assert status == 200, person
    return person


def give_joints(client, person, content: bytes, name="a.json"):
    return client.ask("/api/joints", {"person": person["id"], "name": name,
                                      "joints": base64.b64encode(content).decode()})


def test_the_page_starts_with_people_poses_and_what_the_model_is(start):
    assert len(start["people"]) >= 4 and len(start["gallery"]) >= 10
    assert start["model"]["name"] == "tiny" and "never seen a photograph" in start["model"]["about"]
    for person in start["people"]:
        assert picture(person["image"]).shape == (person["height"], person["width"], 3)
    for pose in start["gallery"]:
        joints = np.array(pose["pose"])
        assert joints.shape == (18, 3) and (np.abs(joints[:, :2]) <= 1).all()
        # The person's right is on the left of somebody who faces the camera.
        assert joints[2, 0] < joints[5, 0] and joints[8, 0] < joints[11, 0]


def test_the_page_names_nothing_outside():
    files = [file for folder in ("demo", "runtime/page")
             for file in (ROOT / "posemodel" / folder).iterdir()
             if file.suffix in (".html", ".css", ".js")]
    assert len(files) > 8
    for file in files:
        content = file.read_text()
        assert re.findall(r"https?:[^\"]*|[\"'(]//[^\"]*", content) in (
            [], ["http://www.w3.org/2000/svg"])


def test_transfer_is_what_the_model_says(client, start, workbench):
    person = start["people"][0]
    target = moved(person["pose"], 4, -0.5, -0.5)
    status, answer = client.ask("/api/transfer", question(start, target=target))
    assert status == 200 and answer["milliseconds"] > 0
    kept = workbench.person(person["id"])
    pose = np.float32(target)
    pixels = pose.copy()
    pixels[:, :2] = ((pose[:, :2] + 1) * [person["width"], person["height"]] - 1) / 2 * pose[:, 2:]
    result = workbench.model.transfer(kept.image, kept.pose, [pixels])
    for name in VIEWS:
        assert picture(answer[name]).shape == kept.image.shape
    for name, expected in (("refined", result.refined(0)), ("warped", result.warped(0))):
        assert np.abs(picture(answer[name]).astype(int) - expected).max() <= 1


def test_every_view_follows_the_pose(client, start):
    person = start["people"][0]
    first = client.ask("/api/transfer", question(start))[1]
    second = client.ask("/api/transfer", question(
        start, target=moved(person["pose"], 4, 0.6, -0.6)))[1]
    again = client.ask("/api/transfer", question(start))[1]
    for name in VIEWS:
        assert first[name] != second[name] and first[name] == again[name]


def test_joints_outside_and_missing_ones_do_not_count(client, start):
    pose = start["people"][0]["pose"]
    outside = client.ask("/api/transfer", question(start, target=moved(pose, 4, 1.5, 0)))[1]
    gone = [[9, 9, 0] if k == 4 else row for k, row in enumerate(pose)]
    missing = client.ask("/api/transfer", question(start, target=gone))[1]
    assert outside["refined"] == missing["refined"]
    status, answer = client.ask("/api/transfer", question(start, target=[[0, 0, 0]] * 18))
    assert status == 400 and "no joint" in answer["error"]


def test_correspondence_points_into_the_source(client, start, workbench):
    person = start["people"][0]
    status, answer = client.ask("/api/correspondence", question(start, at=[0.1, -0.2]))
    assert status == 200
    x, y = answer["sampled"]
    assert -1 <= x <= 1 and -1 <= y <= 1
    row = picture(answer["row"])
    assert row.shape == (8, 8, 4) and row[..., 3].max() == 235  # the cells of the 32 px view
    left, top, right, bottom = answer["rectangle"]
    assert left < right and top < bottom
    column, line = (int((v + 1) / 2 * side) for v, side in
                    ((0.1, person["width"]), (-0.2, person["height"])))
    at = workbench._last[1].locations(0)[:, line, column]
    expected = [(2 * v + 1) / side - 1 for v, side in
                zip(at, (person["width"], person["height"]), strict=True)]
    assert np.allclose([x, y], expected, atol=1e-4)


def test_pose_is_saved_as_openpose_json(client, start, tmp_path):
    person = start["people"][0]
    pose = [[0, 0, 0] if k == 17 else row for k, row in enumerate(person["pose"])]
    status, answer = client.ask("/api/pose", {"person": person["id"], "pose": pose})
    file = tmp_path / "pose.json"
    file.write_text(answer["openpose"])
    (read,) = read_poses(file)
    assert status == 200 and read.frame in (None, (person["height"], person["width"]))
    assert not read.present[17] and np.allclose(
        read.joints[0, :2], [((person["pose"][0][k] + 1) * person[side] - 1) / 2
                             for k, side in enumerate(("width", "height"))], atol=1e-3)


def test_upload_with_joints_makes_a_picture(client):
    person = upload(client)
    assert person["pose"] is None and (person["height"], person["width"]) == (40, 30)
    joints = [[10 + k % 5, 2 * k + 1, 1] for k in range(18)]
    content = json.dumps({"people": [{"pose_keypoints_2d": sum(joints, [])}]})
    status, found = give_joints(client, person, content.encode())
    assert status == 200 and len(found["pose"]) == 18
    assert found["pose"][0][0] == pytest.approx((2 * 10 + 1) / 30 - 1, abs=1e-5)
    status, made = client.ask("/api/transfer", {
        "person": person["id"], "source": found["pose"], "target": found["pose"]})
    assert status == 200 and picture(made["refined"]).shape == (40, 30, 3)


def test_joints_of_an_added_picture_are_found(workbench, monkeypatch):
    alone, both = frames(1)[0], beside(*(frames(1, person=number)[0] for number in (0, 3)))
    shown = [alone, both, alone.without_people()]
    monkeypatch.setattr(workbench, "_estimator", Knowing(shown))
    with serving(DemoSite(workbench)) as client:
        people = [client.ask("/api/upload", {"name": "a.png", "image": encoded(frame.picture)})[1]
                  for frame in shown]
        assert people[0]["notes"] == ["The joints were found in the picture."]
        assert "Of 2 people the largest is taken." in people[1]["notes"]
        assert people[2]["pose"] is None and "Nobody was found" in people[2]["notes"][0]
        found = np.array(people[0]["pose"])
        wanted = alone.people[0].pose.joints
        np.testing.assert_allclose(found[:, :2] * 48 + 47.5 * found[:, 2:], wanted[:, :2],
                                   atol=1e-2)
        # The mask came with them: the corner, where nobody is, stays as it is.
        status, made = client.ask("/api/transfer", {
            "person": people[0]["id"], "source": people[0]["pose"], "target": people[0]["pose"]})
        assert status == 200
        assert workbench.person(people[0]["id"]).mask.shape == (96, 96)
        assert np.array_equal(workbench._last[1].behind[:8, :8], alone.picture[:8, :8])


def test_joints_fit_a_picture_that_was_reduced(client):
    person = upload(client, height=1030, width=520)
    assert (person["height"], person["width"]) == (512, 258)
    joints = [[100 + k, 1000 - 50 * k, 1] for k in range(18)]
    _, found = give_joints(client, person, json.dumps(joints).encode())
    assert found["pose"][3][:2] == pytest.approx([207 / 520 - 1, 1701 / 1030 - 1], abs=1e-5)


def test_npy_files_of_joints(client):
    buffer = io.BytesIO()
    np.save(buffer, np.float32([[5, k, 1] for k in range(18)]))
    status, found = give_joints(client, upload(client), buffer.getvalue(), "a.npy")
    assert status == 200 and found["pose"][7][2] == 1


@pytest.mark.parametrize("content, says", [("", "a.txt: is empty"), ("{", "a.txt: broken JSON"),
                                           ("hello", "a.txt"), ("[[1, 2], [3]]", "a.txt")])
def test_bad_files_of_joints_are_named_as_the_user_knows_them(client, content, says):
    status, answer = give_joints(client, upload(client), content.encode(), "a.txt")
    assert status == 400 and says in answer["error"] and "/" not in answer["error"]


def test_uploads_are_limited_in_number_bytes_and_pixels(client, monkeypatch):
    from posemodel.demo import server, workbench

    first = upload(client)
    for _ in range(workbench._UPLOADS):
        upload(client)
    pose = [[0, 0, 1]] * 18
    status, answer = client.ask("/api/transfer", {
        "person": first["id"], "source": pose, "target": pose})
    assert status == 400 and "no longer kept" in answer["error"]
    monkeypatch.setattr(workbench, "MAX_IMAGE_PIXELS", 1000)
    large = {"name": "a.png", "image": encoded(np.zeros((40, 30, 3), np.uint8))}
    status, answer = client.ask("/api/upload", large)
    assert status == 400 and "1,000 pixels" in answer["error"]
    monkeypatch.setattr(server, "MAX_IMAGE_BYTES", 50)
    status, answer = client.ask("/api/upload", large)
    assert status == 400 and "at most 50" in answer["error"]
    monkeypatch.setitem(DemoSite.large, "/api/upload", 100)
    assert client.ask("/api/upload", large)[0] == 413


def malformed(client, start) -> list:
    """A hundred requests that no page of ours would send; each gives its status."""
    good = question(start)
    pose = good["target"]
    person = upload(client)["id"]
    host = f"Host: 127.0.0.1:{client.port}\r\n"
    lines = [
        "GARBAGE\r\n\r\n", "\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/x\r\n\r\n", "GET / FTP/1.1\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}{host}\r\n", "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        f"GET {'a' * 70_000} HTTP/1.1\r\n{host}\r\n",
        f"GET / HTTP/1.1\r\n{'A: b' * 20_000}\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "A: b\r\n" * 200 + "\r\n",
        f"GET / HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nhello",
        f"GET /../../etc/passwd HTTP/1.1\r\n{host}\r\n", f"GET //x HTTP/1.1\r\n{host}\r\n",
        f"GET /%2e%2e/x HTTP/1.1\r\n{host}\r\n", f"GET /style.css/ HTTP/1.1\r\n{host}\r\n",
        f"GET /index.html HTTP/1.1\r\n{host}\r\n", f"GET /?a HTTP/1.1\r\n{host}\r\n",
        f"GET http://evil.example/ HTTP/1.1\r\n{host}\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}Content-Length: x\r\n\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}",
        f"POST /api/start HTTP/1.1\r\n{host}Content-Length: {'9' * 30}\r\n\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"POST /api/start HTTP/1.1\r\n{host}Content-Length: 2\r\n\r\n{{}}"]
    lines += [f"{method} / HTTP/1.1\r\n{host}\r\n" for method in (
        "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get")]
    requests = [lambda line=line: client.raw(line.encode("latin-1")) for line in lines]

    def add(path, values, **headers):
        requests.append(lambda: client.ask(path, values, **headers)[0])

    for path in ("/", "/api", "/api/", "/api/Start", "/api/start/", "/api/start?x", "/api/../x"):
        add(path, {})
    for headers in ({"Origin": None}, {"Origin": "null"}, {"X_Token": "no"}, {"Host": "a"},
                    {"Content_Type": "text/plain"}):
        add("/api/transfer", good, **headers)
    for body in (b"", b"{", b"[]", b"1", b"\x80", b'{"person": NaN}', b"[" * 5000):
        add("/api/transfer", body)
    for value in (None, 1, "", "x", [], {}, "../../etc/passwd", "example-1\x00", True):
        add("/api/transfer", {**good, "person": value})
    bad_poses = (None, 1, "x", {}, [], pose[:17], [*pose, pose[0]], [[0, 0]] * 18,
                 [[0, 0, 1, 1]] * 18, [["0", 0, 1]] * 18, [[None, 0, 1]] * 18, [[True, 0, 1]] * 18,
                 [[1e30, 0, 1]] * 18, [[10**400, 0, 1]] * 18, [[0, 0, 0]] * 18, [{}] * 18)
    for bad in bad_poses:
        add("/api/transfer", {**good, "target": bad})
    for at in (None, 1, [], [0], [0, 0, 0], ["a", 0], [2, 0], [0, -1.01], [None, 0]):
        add("/api/correspondence", {**good, "at": at})
    for image in (None, 5, "", "####", "AAAA", text("<html>"), text("GIF89a"),
                  encoded(np.zeros((4, 4, 3), np.uint8)),
                  encoded(np.zeros((40, 40, 3), np.uint8))[:80]):
        add("/api/upload", {"name": "a.png", "image": image})
    add("/api/upload", {"image": encoded(np.zeros((40, 40, 3), np.uint8))})
    for joints in (None, "#", text("{}"), text("[" * 9000), text('{"people": 5}'), text("1e999")):
        add("/api/joints", {"person": person, "name": "a.json", "joints": joints})
    add("/api/joints", {"person": "nobody", "name": "a", "joints": text("[]")})
    add("/api/pose", {"person": person})
    add("/api/transfer", {"a": "x" * 70_000})
    return requests


def test_malformed_requests_are_refused_and_leave_it_running(client, start, caplog):
    requests = malformed(client, start)
    assert len(requests) >= 100
    statuses = [request() for request in requests]
    assert [status for status in statuses if not 400 <= status < 500] == []
    assert not caplog.records  # not one of them reached a fault of ours
    assert client.ask("/api/transfer", question(start))[0] == 200


def test_a_run_that_is_none_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "nowhere is no run folder" in error and error.count("\n") == 1
