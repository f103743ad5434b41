"""The pages in a real browser: they work with mouse and with keyboard alone, and stay at home.

Skipped where Playwright or Chromium is missing (`pip install playwright`, `apt install chromium`).
"""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from posemodel.demo.server import DemoSite
from posemodel.poses.files import read_poses
from posemodel.study.server import StudySite
from posemodel.study.study import create_study, read_answers
from tests.serving import serving
from tests.small_films import Knowing, frames

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

PATIENCE = 20_000  # ms, for busy machines


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(workbench):
    with serving(DemoSite(workbench)) as client:
        yield client.server.url


@pytest.fixture
def browse(chromium):
    """Opens pages in which any error, and any request to elsewhere, fails the test."""
    contexts, problems = [], []

    def watch(route):
        url = route.request.url
        if url.startswith((route.request.frame.page.home, "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"request to {url}")
            route.abort()

    def open_page(address, width=1280, height=900, **options):
        contexts.append(chromium.new_context(
            viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.home = address
        page.set_default_timeout(PATIENCE)
        # The browser itself reports refused requests; a test that makes one says so.
        page.refused = "no refusal is expected"
        page.on("console", lambda m: problems.append(m.text) if page.refused not in m.text else 0)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.route("**/*", watch)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def demo(browse, address):
    """Opens the demo and waits for its first picture."""
    def open_demo(**options):
        page = browse(address, **options)
        page.wait_for_selector("html[data-ready=true]")
        settle(page, 1)
        return page

    return open_demo


def count(page) -> int:
    return int(page.get_attribute("#latency", "data-pictures") or 0)


def settle(page, pictures: int) -> None:
    """Wait for at least so many pictures since the page opened, and for quiet."""
    page.wait_for_function(
        "n => Number(document.querySelector('#latency').dataset.pictures || 0) >= n && "
        "!document.querySelector('[aria-busy=true]')", arg=pictures)


def after(page, act) -> str:
    """Do something that makes a new picture; the picture."""
    before = count(page)
    act()
    settle(page, before + 1)
    return page.get_attribute("#shown", "src")


def joint(page, number: int, editor: str = "#target-editor"):
    return page.locator(f"{editor} .joint[data-joint='{number}']")


def middle(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, locator, dx: float, dy: float) -> None:
    x, y = middle(locator)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def test_drag_changes_the_picture_and_undo_brings_it_back(demo):
    page = demo()
    first, place = page.get_attribute("#shown", "src"), middle(joint(page, 3))
    moved = after(page, lambda: drag(page, joint(page, 3), -40, -60))
    assert moved != first
    assert np.allclose(np.subtract(middle(joint(page, 3)), place), (-40, -60), atol=2)
    assert int(page.get_attribute("#latency", "data-milliseconds")) > 0
    assert after(page, lambda: page.click("#undo")) == first
    assert np.allclose(middle(joint(page, 3)), place, atol=1) and page.is_disabled("#undo")
    assert after(page, lambda: page.click("#redo")) == moved
    assert after(page, lambda: page.click("#reset")) == first
    assert after(page, lambda: page.click("#mirror")) != first
    gallery = after(page, lambda: page.click("#gallery button >> nth=5"))
    assert gallery not in (first, moved)
    other = after(page, lambda: page.click("#people button >> nth=2"))
    assert other != gallery
    assert after(page, lambda: page.keyboard.press("Control+z")) == gallery
    assert page.get_attribute("#people button >> nth=0", "aria-pressed") == "true"


def test_click_shows_where_a_pixel_comes_from(demo):
    page = demo()
    assert page.is_hidden("#row")
    page.click("#result-frame", position={"x": 150, "y": 120})
    page.wait_for_selector("#row:visible")
    assert page.locator("#sampled circle").count() > 0
    first = page.inner_text("#probe-note")
    assert "sampled from" in first
    page.click("#result-frame", position={"x": 60, "y": 250})
    page.wait_for_function("t => document.querySelector('#probe-note').innerText !== t", arg=first)
    for view in ("warped", "flow", "visibility"):
        page.click(f"[data-view={view}]")
        assert page.get_attribute("#shown", "src") == page.get_attribute(f"#{view}", "src")
    page.focus("#result-frame")
    page.keyboard.press("Escape")
    assert page.is_hidden("#row")


def test_keyboard_alone(demo):
    page = demo()
    first = page.get_attribute("#shown", "src")

    def tab_to(selector: str, limit: int = 90) -> None:
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")

    tab_to("#target-editor .joint[data-joint='7']")
    place = middle(joint(page, 7))
    fine = after(page, lambda: page.keyboard.press("ArrowUp"))
    step = place[1] - middle(joint(page, 7))[1]
    coarse = after(page, lambda: page.keyboard.press("Shift+ArrowUp"))
    assert len({first, fine, coarse}) == 3 and step > 0
    assert place[1] - middle(joint(page, 7))[1] == pytest.approx(6 * step, rel=0.1)
    gone = after(page, lambda: page.keyboard.press("Delete"))
    assert gone != coarse and joint(page, 7).is_hidden()
    assert page.evaluate("document.activeElement.matches('.joint')")
    tab_to("#missing button")
    assert after(page, lambda: page.keyboard.press("Enter")) == coarse
    assert after(page, lambda: page.keyboard.press("Control+z")) == gone
    assert after(page, lambda: page.keyboard.press("Control+Shift+z")) == coarse
    tab_to("#result-frame")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#row:visible")
    tab_to("#views button")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("[data-view=warped]", "aria-checked") == "true"


def test_narrow_screens_and_fingers(demo):
    page = demo(width=400, height=800, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for locator in page.locator("button:visible, .button:visible").all():
        box = locator.bounding_box()
        assert box["height"] >= 24 and box["width"] >= 24
    page.locator("#target-editor").scroll_into_view_if_needed()
    before, (x, y) = count(page), middle(joint(page, 4))
    finger = page.context.new_cdp_session(page)
    for kind, points in (("touchStart", [{"x": x + 6, "y": y - 6}]),
                         ("touchMove", [{"x": x - 20, "y": y - 40}]), ("touchEnd", [])):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    settle(page, before + 1)
    # Neither has the page scrolled under the finger.
    assert np.allclose(middle(joint(page, 4)), (x - 26, y - 34), atol=3)


def test_a_picture_of_ones_own(demo, tmp_path):
    page = demo()
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG")
    after(page, lambda: page.set_input_files("#image-file", {
        "name": "me.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}))
    assert page.get_attribute("#adjust", "aria-pressed") == "true"
    # The template is dragged onto the person, by the neck.
    place = middle(joint(page, 4, "#source-editor"))
    after(page, lambda: drag(page, joint(page, 1, "#source-editor"), 10, 15))
    moved = np.subtract(middle(joint(page, 4, "#source-editor")), place)
    assert np.allclose(moved, (10, 15), atol=2)
    joints = [[20 + k, 4 * k + 3, 1] for k in range(17)]
    after(page, lambda: page.set_input_files("#joints-file", {
        "name": "me.json", "mimeType": "application/json", "buffer": json.dumps(joints).encode()}))
    assert "joints from me.json" in page.inner_text("#person-note")
    with page.expect_download() as saved:
        page.click("#save-pose")
    file = tmp_path / "pose.json"
    saved.value.save_as(file)
    (pose,) = read_poses(file)
    assert np.allclose(pose.joints[0], (20, 3, 1), atol=0.01)
    with page.expect_download() as saved:
        page.click("#save-picture")
    assert saved.value.suggested_filename == "refined.png"
    saved.value.save_as(tmp_path / "refined.png")
    assert Image.open(tmp_path / "refined.png").size == (60, 90)
    page.refused = "status of 400"
    page.set_input_files("#image-file", {
        "name": "no.png", "mimeType": "image/png", "buffer": b"hello"})
    page.wait_for_selector("#problem:visible")
    assert "no.png: is no image" in page.inner_text("#problem")


def test_a_bare_photograph(demo, workbench, monkeypatch, tmp_path):
    """Its joints appear by themselves, one is dragged, the result is saved."""
    frame = frames(1)[0]
    monkeypatch.setattr(workbench, "_estimator", Knowing([frame]))
    page, buffer = demo(), io.BytesIO()
    Image.fromarray(frame.picture).save(buffer, format="PNG")
    first = after(page, lambda: page.set_input_files("#image-file", {
        "name": "me.png", "mimeType": "image/png", "buffer": buffer.getvalue()}))
    assert "The joints were found in the picture." in page.inner_text("#person-note")
    box = page.locator("#source-editor").bounding_box()
    found = frame.people[0].pose.joints
    for number in np.flatnonzero(found[:, 2]):
        # Pixel centres of a picture of 96 x 96, wherever it lies on the page.
        wanted = (found[number, :2] + 0.5) / 96 * (box["width"], box["height"])
        x, y = middle(joint(page, number, "#source-editor"))
        assert np.allclose((x - box["x"], y - box["y"]), wanted, atol=3)
    assert after(page, lambda: drag(page, joint(page, 3), -30, -40)) != first
    with page.expect_download() as saved:
        page.click("#save-picture")
    saved.value.save_as(tmp_path / "made.png")
    # The background stays: nobody is in the corner.
    with Image.open(tmp_path / "made.png") as made:
        assert np.array_equal(np.asarray(made)[:8, :8], frame.picture[:8, :8])


def test_the_newest_wish_wins(demo):
    page = demo()
    before, (x, y) = count(page), middle(joint(page, 4))
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(60):
        page.mouse.move(x - step / 2, y - step / 2)
    page.mouse.up()
    settle(page, before + 1)
    made, last = count(page) - before, page.get_attribute("#shown", "src")
    assert made < 50  # moves that came while it was busy were not all asked for
    # The same pose asked for again gives what is on the screen: it was the newest.
    assert after(page, lambda: page.evaluate(
        "import('/app.js').then(app => app.change(true))")) == last


def asked(page, text: str) -> None:
    """Wait until the study asks this."""
    page.wait_for_function("t => document.querySelector('#count').innerText.includes(t) "
                           "&& !document.querySelector('[aria-busy=true]')", arg=text)


def test_study_with_the_keyboard(browse, tmp_path):
    pairs = {f"p{n}": {key: np.full((40, 40, 3), 60 * n + k, np.uint8) for k, key in enumerate(
        ("source", "target", ("result", "ours"), ("result", "theirs")))} for n in range(2)}
    study = create_study(tmp_path / "study", methods={"ours": "a", "theirs": "b"}, pairs=pairs,
                         seed=0, repeats=0, show="warped", volunteers=1)
    with serving(StudySite(study)) as client:
        page = browse(client.server.url, width=400, height=800)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.keyboard.type("Anna")
        page.keyboard.press("Enter")
        for expected in ("1 of 2, question 1", "1 of 2, question 2", "2 of 2, question 1"):
            asked(page, expected)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            page.keyboard.press("1")
        page.reload()  # in the middle of it
        page.keyboard.type("anna")
        page.keyboard.press("Enter")
        asked(page, "question 2")
        page.keyboard.press("Backspace")
        assert page.locator("[data-choice=left].chosen").count() == 1
        page.keyboard.press("2")
        asked(page, "question 2")
        page.keyboard.press("2")
        page.wait_for_selector("#end:visible")
        page.close()
    answers, _ = read_answers(study.answers_path)
    assert [row["choice"] for row in answers] == ["left", "left", "left", "right", "right"]
