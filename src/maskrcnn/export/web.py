"""A model as a folder of static files: a page that finds objects in the browser itself, offline, from any web server.

The page is the service's own; `page/server.js` beside this file takes the place of its requests and runs the model with
ONNX Runtime Web. That is 14 MB of WebAssembly, more than all of this package, so it does not come along: it is fetched
once from npm's registry, held to its checksum, and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.config import ModelConfig, to_dict
from maskrcnn.errors import UserError
from maskrcnn.files import atomic_folder
from maskrcnn.zoo.download import fetch

FACTS = "model.json"  # the model's settings; also marks the folder as one of these
RUNTIME = "onnxruntime-web-1.30.0.tgz"
RUNTIME_URL = f"https://registry.npmjs.org/onnxruntime-web/-/{RUNTIME}"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
NUM_SAMPLES = 6  # that the page's button goes through

_LICENSE = """\
ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm are ONNX Runtime Web 1.30.0 as it is on npm
(https://github.com/microsoft/onnxruntime), under this license:

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

# Of the service's page: what is said there, and what is said where there is no server.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_CHANGES = (
    (
        '<meta charset="utf-8">',
        f'<meta charset="utf-8">\n  <meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
    ),
    ("They go to this server only, and it keeps none.", "They stay in this browser."),
    ('<details id="access">', '<details id="access" hidden>'),
    (
        '<p id="status" role="status" aria-live="polite"></p>',
        '<p id="status" role="status" aria-live="polite">This page needs a web server: run '
        "<code>python3 -m http.server</code> in its folder.</p>",
    ),
)


@contextlib.contextmanager
def web_folder(
    path: Path, config: ModelConfig, fixed: dict[str, Any], runtime: dict[str, bytes]
) -> Iterator[Path]:
    """Yield the path to write the ONNX file to; a page around it is at `path` when the block ends well.

    fixed: `size` and `batch` that the graph is exported with, None where any will do; runtime: `read_runtime`'s files.
    """
    with atomic_folder(path, FACTS) as folder:
        yield folder / "model.onnx"
        _write_page(folder, runtime)
        fixed = {k: v for k, v in fixed.items() if v is not None}
        (folder / FACTS).write_text(json.dumps({"config": to_dict(config), "fixed": fixed}, indent=1))


def _write_page(folder: Path, runtime: dict[str, bytes]) -> None:
    for name in ("static", "runtime", "samples"):
        (folder / name).mkdir()
    package = files("maskrcnn")
    # The service's page as files: its package is not imported, which needs more than exporting does.
    for source in (package / "serve" / "page", package / "export" / "page"):  # ours replaces its server.js
        for file in source.iterdir():
            if file.name.endswith((".js", ".css", ".svg")):
                (folder / "static" / file.name).write_bytes(file.read_bytes())
    (folder / "index.html").write_text(
        _html((package / "serve" / "page" / "index.html").read_text("utf-8")), "utf-8"
    )
    for name, content in runtime.items():
        (folder / "runtime" / name).write_bytes(content)
    (folder / "runtime" / "LICENSE").write_text(_LICENSE)
    for number in range(NUM_SAMPLES):
        (folder / "samples" / f"{number}.jpg").write_bytes(_sample(number))


def read_runtime(archive: str | Path | None = None) -> dict[str, bytes]:
    """Read ONNX Runtime Web's files: from `archive`, as `npm pack` gives it, else from the cache or the network.

    Raises:
        UserError: it cannot be had, or is of another version or content.
    """
    if archive is None:
        try:
            archive = fetch(RUNTIME_URL)
        except UserError as e:
            raise UserError(
                f"{e} Or give --web-runtime {RUNTIME}, from `npm pack onnxruntime-web@1.30.0`."
            ) from None
    try:
        content = Path(archive).read_bytes()
    except OSError as e:
        raise UserError(f"{archive}: cannot read it: {(e.strerror or str(e)).lower()}.") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != RUNTIME_SHA256:
        raise UserError(
            f"{archive}: expected {RUNTIME} of sha256 {RUNTIME_SHA256[:12]}..., got {digest[:12]}.... "
            "Get it with `npm pack onnxruntime-web@1.30.0`."
        )
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return {name: _member(tar, f"package/dist/{name}") for name in RUNTIME_FILES}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None  # the checksum says so
    return file.read()


def _html(page: str) -> str:
    for said, here in _CHANGES:
        assert page.count(said) == 1, said
        page = page.replace(said, here)
    return page


def _sample(number: int) -> bytes:
    from PIL import Image

    from maskrcnn.data.synthetic import random_scene

    out = io.BytesIO()
    scene = random_scene(np.random.default_rng([7, number]), (320, 448))
    Image.fromarray(scene.image()).save(out, "JPEG", quality=90)
    return out.getvalue()
