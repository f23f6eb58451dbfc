"""The page that runs a model in the browser finds what Python finds, offline, and its parts compute what Python's do.

They need Chromium (`apt-get install chromium`) and ONNX Runtime Web (`npm`, or MASKRCNN_ONNXRUNTIME_WEB names its .tgz)
and are skipped, visibly, without.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.cli.main import main
from maskrcnn.engines.exported import ExportedPredictor
from maskrcnn.errors import UserError
from maskrcnn.export.web import RUNTIME, RUNTIME_FILES, read_runtime, web_folder
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.masks.outlines import outlines
from maskrcnn.masks.paste import whole_pixel_boxes
from maskrcnn.masks.rle import rle_decode, rle_encode
from maskrcnn.runtime import ExportedModel
from maskrcnn.weights.write import write_weights
from tests.models.tiny import tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
pytestmark = pytest.mark.slow


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder's files, on the loopback."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime Web as npm gives it."""
    if given := os.environ.get("MASKRCNN_ONNXRUNTIME_WEB"):
        return Path(given)
    folder = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    if npm is not None:
        name = RUNTIME.removesuffix(".tgz").replace("web-", "web@")
        command = [npm, "pack", "--silent", name]
        subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    if not (folder / RUNTIME).is_file():
        pytest.skip(
            "no ONNX Runtime Web: npm cannot get it, and MASKRCNN_ONNXRUNTIME_WEB does not name its .tgz"
        )
    return folder / RUNTIME


@pytest.fixture(scope="module")
def folder(small_onnx: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "page"
    config = ExportedPredictor(small_onnx).config
    for _ in range(2):  # an earlier one is replaced
        with web_folder(path, config, {"size": (128, 160), "batch": 1}, read_runtime(archive)) as model:
            shutil.copy(small_onnx, model)
    assert [p.name for p in path.parent.iterdir()] == ["page"]
    return path


@pytest.fixture(scope="module")
def page(folder: Path):
    """The page, opened; errors in its console and requests to other places fail the tests."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with served(folder) as address, sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(accept_downloads=True).new_page()
        errors: list[str] = []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((address, "blob:")) else errors.append(r.url))
        page.goto(address)
        yield page
        browser.close()
        assert errors == []


def found_by(page, path: Path) -> Any:
    """Give the page a picture; its answer, as the service would give it."""
    page.set_input_files("#files", str(path))
    data = path.read_bytes().hex()
    return page.evaluate(
        """async (data) => {
            const { predict } = await import("./static/server.js");
            return predict(new Blob([Uint8Array.from(data.match(/../g), (b) => parseInt(b, 16))]));
        }""",
        data,
    )


@needs_browser
def test_the_page_finds_what_python_finds(page, small_onnx: Path, photo: Path, tmp_path: Path) -> None:
    from playwright import sync_api

    expected = ExportedModel(small_onnx).predict(photo)
    entries = expected.to_coco()
    answer = found_by(page, photo)
    assert answer["image_size"] == [70, 90]
    assert len(answer["instances"]) == len(entries) > 10
    for i, (theirs, ours) in enumerate(zip(answer["instances"], entries, strict=True)):
        np.testing.assert_allclose(
            theirs["bbox"], ours["bbox"], atol=0.02
        )  # rounded to 0.01 like the service's
        assert abs(theirs["score"] - ours["score"]) < 1e-4
        assert theirs["category_id"] == ours["category_id"]
        assert theirs["category"] in ("a", "b", "c")
        if theirs["segmentation"] == ours["segmentation"]:
            assert theirs["polygons"] == outlines(*expected.crop(i), 1.0)
        else:
            assert (rle_decode(theirs["segmentation"]) != rle_decode(ours["segmentation"])).sum() <= 1
    same = [a["segmentation"] == b["segmentation"] for a, b in zip(answer["instances"], entries, strict=True)]
    assert np.mean(same) > 0.8

    sync_api.expect(page.locator("#status")).to_have_text("1 done", timeout=20_000)
    page.focus("#threshold")
    page.keyboard.press("Home")
    assert page.locator("#rows tr").count() == len(entries)
    with page.expect_download() as waited:
        page.click("#save-coco")
    waited.value.save_as(tmp_path / "objects.json")
    assert len(json.loads((tmp_path / "objects.json").read_text())["annotations"]) == len(entries)


@needs_browser
@pytest.mark.parametrize("manual", ["export_web.md", "export_onnxruntime.md"])
def test_the_manuals_javascript_runs(page, manual: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/howto" / manual).read_text()
    code = text.split("```js\n")[1].split("```")[0]
    for said, here in (
        (
            'import { predict } from "./static/model.js"',
            "const { predict } = await import('./static/model.js')",
        ),
        # onnxruntime-node has the same calls; here the page's runtime is at hand, which model.js has set up.
        (
            'import * as ort from "onnxruntime-node"',
            "await import('./static/model.js'); const ort = await import('./runtime/ort.wasm.bundle.min.mjs')",
        ),
        ("nuclei.onnx", "model.onnx"),
    ):
        code = code.replace(said, here)
    told: list[str] = []
    page.on("console", lambda m: told.append(m.text) if m.type == "log" else None)
    page.evaluate(f"async () => {{ {code} }}")
    assert told
    assert told[0].split()[0] in ("a", "b", "c", "0", "1", "2")


@needs_browser
def test_samples_and_what_is_no_picture(page, tmp_path: Path) -> None:
    from playwright import sync_api

    page.reload()  # as if no other test had used it
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#files", str(broken))
    sync_api.expect(page.locator("#error")).to_have_text(
        "broken.png: not an image, or of a format that this browser does not read."
    )
    page.click("#sample")
    sync_api.expect(page.locator("#status")).to_have_text("1 done, 1 failed", timeout=20_000)


@needs_browser
@pytest.mark.parametrize("resize", ["pillow", "opencv", "torchvision"])
def test_the_browser_resizes_as_python_does(page, resize: Any) -> None:
    rng = np.random.default_rng(0)
    for size, least, most in (
        ((37, 53), 64, 100),
        ((90, 61), 40, 200),
        ((40, 64), 20, 99),
        ((30, 30), 30, 30),
    ):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        rgba = np.concatenate([image, np.full((*size, 1), 255, np.uint8)], 2)
        found = page.evaluate(
            """async ([data, height, width, least, most, resize]) => {
                const { resizeSize, resized } = await import("./static/resize.js");
                const [h, w] = resizeSize(height, width, least, most, resize);
                return [h, w, [...resized({ data, height, width }, h, w, resize)]];
            }""",
            [rgba.ravel().tolist(), *size, least, most, resize],
        )
        expected_size = resize_size(*size, least, most, resize)
        assert tuple(found[:2]) == expected_size
        pixels = np.array(found[2], np.float64).reshape(*expected_size, 3)
        expected = resize_image(image, expected_size, resize)
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-3 if resize == "torchvision" else 0)


@needs_browser
def test_the_browser_codes_masks_as_python_does(page) -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (9, 7), (40, 30)):
        for share in (0.0, 0.3, 0.7, 1.0):
            mask = (rng.random(size) < share).astype(np.uint8)
            rle, polygons = page.evaluate(
                """async ([cells, height, width]) => {
                    const [{ encode }, { outlines }] = await Promise.all(
                        [import("./static/rle.js"), import("./static/outlines.js")]);
                    const whole = { x: 3, y: 2, width, height, cells };
                    return [encode(whole, height + 5, width + 4), outlines(whole, 0)];
                }""",
                [mask.ravel().tolist(), *size],
            )
            framed = np.pad(mask, ((2, 3), (3, 1)))
            assert rle == rle_encode(framed)["counts"]
            ours = outlines(mask, (3, 2))
            assert sorted(map(sorted, polygons)) == sorted(map(sorted, ours))


@needs_browser
def test_the_browser_pastes_at_whole_pixels_as_python_does(page) -> None:
    boxes = np.random.default_rng(0).uniform(0, 90, (20, 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.25)
    found = page.evaluate(
        """async (boxes) => {
            const { wholePixelBox } = await import("./static/paste.js");
            return boxes.map((box) => wholePixelBox(box, 28));
        }""",
        boxes.astype(float).tolist(),
    )
    np.testing.assert_allclose(found, whole_pixel_boxes(boxes, 28), atol=1e-3)


def test_the_runtime_is_downloaded_once_and_held_to_its_checksum(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server/onnxruntime-web/-").mkdir(parents=True)
    there = tmp_path / "server/onnxruntime-web/-" / RUNTIME
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    with served(tmp_path / "server") as address:
        monkeypatch.setenv("MASKRCNN_MIRROR", address)
        with pytest.raises(UserError, match=r"no such file on the server.*--web-runtime onnxruntime-web"):
            read_runtime()
        there.symlink_to(archive)
        assert tuple(read_runtime()) == RUNTIME_FILES
    monkeypatch.setenv("MASKRCNN_OFFLINE", "1")
    assert tuple(read_runtime()) == RUNTIME_FILES
    (tmp_path / "other.tgz").write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"expected onnxruntime-web-1.30.0.tgz of sha256 d2228df7e461..., got"
    ):
        read_runtime(tmp_path / "other.tgz")


def test_mistakes_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKRCNN_OFFLINE", "1")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    model = tiny("mask_rcnn_mobilenet_v2_FPN")
    write_weights(tmp_path / "m.safetensors", model.state_dict(), model.config)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    for options, said in (
        (["--out", "full"], "full: expected a new or empty folder, got one with other files"),
        (["--out", "m.safetensors"], "m.safetensors: expected a folder to write, got a file"),
        (["--out", "new", "--web-runtime", "nowhere.tgz"], "nowhere.tgz: cannot read it: no such file"),
        (["--out", "new", "--web-runtime", "m.safetensors"], "expected onnxruntime-web-1.30.0.tgz"),
        (["--out", "new"], "MASKRCNN_OFFLINE is set"),
    ):
        assert main(["export", "--model", "m.safetensors", "--format", "web", *options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "m.safetensors"]
