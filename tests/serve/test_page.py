"""The page in a real browser: pictures in, threshold, classes, downloads, errors, two tabs.

They need Chromium (`apt-get install chromium`) and are skipped, visibly, where there is none.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright import sync_api as playwright

from maskrcnn.masks.rle import rle_decode
from maskrcnn.serve import create_app
from tests.serve.conftest import NAMES, encoded, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(model):
    with running(create_app({"first": model, "second": model}, max_bytes=2**20)) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page, opened; whatever it writes to its console as an error fails the test."""
    context = browser.new_context(accept_downloads=True)
    page, errors = context.new_page(), []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("dialog", lambda d: errors.append("a dialog"))
    page.goto(address)
    page.allowed = []
    yield page
    assert [e for e in errors if not any(a in e for a in page.allowed)] == []
    context.close()


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded())
    return path


def choose(page, *paths: Path) -> None:
    page.set_input_files("#files", [str(p) for p in paths])


def show_all(page) -> None:
    """Set the threshold to 0 as a person would with the keyboard."""
    page.focus("#threshold")
    page.keyboard.press("Home")


def rows(page) -> int:
    return page.locator("#rows tr").count()


def done(page, count: int = 1) -> None:
    playwright.expect(page.locator("#status")).to_have_text(f"{count} done", timeout=20_000)


def test_a_picture_is_shown_with_its_objects(page, photo):
    choose(page, photo)
    done(page)
    show_all(page)
    playwright.expect(page.locator("#count")).to_have_text("7 objects")
    assert rows(page) == 7
    label = page.get_attribute("#canvas", "aria-label")
    assert label.startswith("photo.png: ")
    assert (
        page.locator("#rows img, #class-list img").count() == 0
    )  # a class's name is text, whatever it holds
    assert set(page.locator("#class-list label").all_inner_texts()) <= set(NAMES)
    colours = page.evaluate(
        "() => { const c = document.querySelector('#canvas'), d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data, s = new Set();"
        "for (let i = 0; i < d.length; i += 4) s.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]); return s.size }"
    )
    assert colours > 100  # noise and objects, not an empty stage


def test_threshold_and_classes_ask_the_server_nothing(page, photo):
    choose(page, photo)
    done(page)
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    show_all(page)
    scores = [float(t) for t in page.locator("#rows td:nth-child(2)").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert rows(page) == sum(s >= 0.01 for s in scores)
    show_all(page)
    page.click("#classes-none")
    assert rows(page) == 0
    name = page.locator("#class-list label").first.inner_text()
    page.locator("#class-list input").first.check()
    assert set(page.locator("#rows button").all_inner_texts()) == {name}
    page.click("#classes-all")
    assert rows(page) == 7
    assert asked == []


def test_hover_and_keys_choose_an_object(page, photo):
    choose(page, photo)
    done(page)
    show_all(page)
    page.locator("#rows button").nth(2).focus()
    assert page.locator("#rows tr.chosen").get_attribute("data-index") == "2"
    page.keyboard.press("ArrowDown")
    assert page.locator("#rows tr.chosen").get_attribute("data-index") == "3"
    box = page.locator("#canvas").bounding_box()
    for x in np.linspace(0.35, 0.65, 12):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] / 2)
        if page.locator("#tip").is_visible():
            break
    assert any(name in page.locator("#tip").inner_text() for name in NAMES)
    page.click("#zoom-in")
    page.mouse.wheel(0, -200)
    page.focus("#canvas")
    page.keyboard.press("0")


def download(page, button: str, folder: Path) -> Path:
    with page.expect_download() as waited:
        page.click(button)
    path = folder / waited.value.suggested_filename
    waited.value.save_as(path)
    return path


def test_what_is_shown_is_downloaded(page, photo, model, tmp_path):
    choose(page, photo)
    done(page)
    show_all(page)
    found = model.predict(photo).to_coco(0, model.config.category_ids)
    content = json.loads(download(page, "#save-coco", tmp_path).read_text())
    assert [i["file_name"] for i in content["images"]] == ["photo.png"]
    assert [a["segmentation"] for a in content["annotations"]] == [f["segmentation"] for f in found]
    areas = [int(rle_decode(f["segmentation"]).sum()) for f in found]
    assert [a["area"] for a in content["annotations"]] == areas  # the page's own decoder
    assert {c["id"] for c in content["categories"]} == {f["category_id"] for f in found}
    labels = json.loads(download(page, "#save-labelme", tmp_path).read_text())
    assert (labels["imagePath"], labels["imageHeight"], labels["imageWidth"]) == ("photo.png", 50, 60)
    assert len(labels["shapes"]) >= 7
    assert {s["label"] for s in labels["shapes"]} <= set(NAMES)
    with Image.open(download(page, "#save-png", tmp_path / "drawn")) as picture:
        assert picture.size == (60, 50)


def test_an_error_is_shown_and_the_page_goes_on(page, photo, tmp_path):
    page.allowed = ["400", "413"]  # the browser's own line for each
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(b"no picture")
    large.write_bytes(bytes(2**20))
    for path, words in ((broken, "not an image"), (large, "at most 1048576 bytes")):
        choose(page, path)
        playwright.expect(page.locator("#error")).to_contain_text(words)
        assert page.locator("#error").inner_text().startswith(path.name)
    choose(page, photo)
    playwright.expect(page.locator("#status")).to_have_text("1 done, 2 failed")
    assert not page.locator("#error").is_visible()


def test_samples_paste_and_the_other_model(page):
    page.click("#sample")
    done(page)
    page.evaluate(
        """async () => {
            const blob = await (await fetch("samples/1.jpg")).blob(), data = new DataTransfer();
            data.items.add(new File([blob], "pasted.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }"""
    )
    done(page, 2)
    with page.expect_response(lambda r: "model=second" in r.url) as answer:
        page.select_option("#model", "second")
    assert answer.value.json()["model"] == "second"
    done(page, 2)


def test_two_tabs_at_once(page, photo, tmp_path):
    other_photo = tmp_path / "other.png"
    other_photo.write_bytes(encoded(size=(40, 30), seed=3))
    other = page.context.new_page()
    other.goto(page.url)
    choose(page, photo, photo)
    choose(other, other_photo)
    done(page, 2)
    done(other)
    assert "photo.png" in page.get_attribute("#canvas", "aria-label")
    assert "other.png" in other.get_attribute("#canvas", "aria-label")
    other.close()


def test_a_phone_sees_all_of_it(browser, address, photo):
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    page.goto(address)
    choose(page, photo)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    context.close()


def test_a_token_is_asked_for(browser, model, photo):
    with running(create_app(model, token="good")) as address:
        page = browser.new_page()
        page.goto(address)
        playwright.expect(page.locator("#token")).to_be_visible()
        page.fill("#token", "good")
        page.keyboard.press("Tab")
        choose(page, photo)
        done(page)
        page.close()


def test_every_control_has_a_name(page, photo):
    choose(page, photo)
    done(page)
    show_all(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[tabindex], nav, aside, section")]
            .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
