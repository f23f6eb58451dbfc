"""Models on the Hugging Face hub, against a stand-in of it on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.errors import UserError
from maskrcnn.weights.convert import write_as
from maskrcnn.zoo.hub import card, fetch

pytest.importorskip("huggingface_hub")
COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload and a download ask for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if found is None:
            return self.answer({"error": "no such thing"}, 404)
        if found[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.repos[found[1]][value["path"]] = base64.b64decode(value["content"])
        return self.answer(
            {
                "success": True,
                "commitUrl": f"{self.server.address}/{found[1]}/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
        )

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        files = self.server.repos.get(found[1]) if found else None
        if found is None or files is None:
            return self.answer({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})
        if found[2] not in ("main", COMMIT):
            return self.answer({"error": "none"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if found[3] not in files:
            return self.answer(
                {"error": "none"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        content = files[found[3]]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self.answer(content, 200, headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.repos["me/other"] = {"README.md": b"something else"}
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = maskrcnn.build("mask_rcnn_mobilenet_v2_FPN", num_classes=2, tiny=True)
    model.config.class_names = ("cell", "nucleus")
    write_as(folder / "model.safetensors", model.config, model.state_dict())
    (folder / "config.json").write_text(json.dumps({"data": {"train": "/home/me/secret/nuclei", "val": ""}}))
    scores = {"AP": 0.5, "AP50": 0.75, "AP75": None}
    entry = {"kind": "eval", "iteration": 5, "bbox": scores, "segm": scores, "best": True}
    (folder / "log.jsonl").write_text(json.dumps(entry) + "\n")
    return folder


def ask(hub: Hub | None, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    address = "http://127.0.0.1:9" if hub is None else hub.address
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_x",
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )


def test_a_model_goes_up_with_its_card_and_comes_down_the_same(hub: Hub, run: Path, tmp_path: Path) -> None:
    code = """
import sys, torch, maskrcnn
from maskrcnn.cli.main import main
run, state = sys.argv[1:]
assert main(["push", run, "me/cells", "--licence", "cc-by-4.0"]) == 0
torch.save(maskrcnn.load("hf://me/cells").state_dict(), state)
"""
    there_and_back = ask(hub, tmp_path, "-c", code, str(run), str(tmp_path / "state.pt"))
    assert there_and_back.returncode == 0, there_and_back.stderr
    assert there_and_back.stdout.strip() == f"{hub.address}/me/cells"
    assert hub.repos["me/cells"]["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.repos["me/cells"]["README.md"].decode() == card(run, "me/cells", "cc-by-4.0")
    state, ours = torch.load(tmp_path / "state.pt"), maskrcnn.load(run).state_dict()
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[name], ours[name]) for name in ours)


def test_a_card_says_what_the_run_knows_and_no_path_of_the_machine(run: Path) -> None:
    text = card(run, "me/cells", "mit")
    assert "license: mit" in text
    assert "cell, nucleus" in text
    assert "| masks | 50.0 | 75.0 | - |" in text
    assert "nuclei" in text
    assert "/home/me" not in text


def test_what_the_hub_lacks_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    says = {
        "hf://me/nothing": "the hub has no such model, or not for you",
        "hf://me/other": "expected model.safetensors of maskrcnn in it, got none",
        "hf://me/other@v9": "no such revision",
    }
    code = """
import sys
from maskrcnn.errors import UserError
from maskrcnn.zoo.hub import fetch
for address in sys.argv[1:]:
    try:
        fetch(address)
    except UserError as e:
        print(str(e))
"""
    asked = ask(hub, tmp_path, "-c", code, *says)
    lines = asked.stdout.splitlines()
    assert len(lines) == len(says), asked.stderr
    for line, (address, words) in zip(lines, says.items(), strict=True):
        assert line.startswith(f"{address}: ")
        assert words in line


def test_a_hub_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    words = ("predict", str(tmp_path / "a.png"), "--model", "hf://me/x", "--out", str(tmp_path / "out"))
    asked = ask(None, tmp_path, "-m", "maskrcnn", *words, HF_HUB_OFFLINE="1")
    assert asked.returncode == 2
    assert asked.stderr.splitlines() == [
        "maskrcnn: hf://me/x: the hub cannot be reached, and the file is not in its cache. Try again."
    ]


@pytest.mark.parametrize("address", ["hf://cells", "hf://me/cells/deep", "hf://me/"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="expected hf://USER/NAME"):
        fetch(address)


def test_a_run_that_is_not_finished_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Finish the run first"):
        card(tmp_path, "me/cells")
