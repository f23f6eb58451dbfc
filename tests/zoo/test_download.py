"""Published files come whole from servers that misbehave, once for all processes, and stay what they were."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.errors import UserError
from maskrcnn.zoo import download
from maskrcnn.zoo.download import cached_path, fetch

CONTENT = pickle.dumps(bytes(range(256)) * 2000)  # 512,000 bytes and a few
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"weights-{DIGEST[:8]}.pkl"


@dataclass
class Server:
    """Server whose answers to the first requests are scripted; afterwards it serves CONTENT with ranges."""

    url: str
    script: list[Callable[[Any], None]] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each
    etag: str = '"one"'

    def at(self, path: str) -> str:
        return f"{self.url}/{path}"


def serve(handler: Any, content: bytes = CONTENT, *, etag: str | None = None, cut: int | None = None) -> None:
    """Send the content from the asked byte on; with `cut`, the connection ends after so many bytes."""
    etag = handler.server.state.etag if etag is None else etag
    wanted = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    first = int(wanted[1]) if wanted and handler.headers.get("If-Range") in (None, etag) else 0
    if first >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.end_headers()
        return
    handler.send_response(206 if first else 200)
    if first:
        handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - first))
    if etag:
        handler.send_header("ETag", etag)
    handler.end_headers()
    handler.wfile.write(content[first : first + cut] if cut else content[first:])


def answer(status: int, **headers: str) -> Callable[[Any], None]:
    def send(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return send


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state: Server = self.server.state  # type: ignore[attr-defined]
        state.requests.append((self.path, self.headers.get("Range")))
        (state.script.pop(0) if state.script else serve)(self)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state = Server(f"http://127.0.0.1:{http.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield http.state  # type: ignore[attr-defined]
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "MASKRCNN_MIRROR", "MASKRCNN_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    return tmp_path / "cache"


def refused(url: str) -> str:
    with pytest.raises(UserError) as caught:
        fetch(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


# --- the good case


def test_a_file_is_fetched_once(server: Server, cache: Path) -> None:
    path = fetch(server.at(f"zoo/1/{NAME}"))
    assert path == cache / "127.0.0.1" / "zoo" / "1" / NAME
    assert path.read_bytes() == CONTENT
    assert fetch(server.at(f"zoo/1/{NAME}")) == path
    assert len(server.requests) == 1
    assert visible(cache) == [NAME]
    assert not parts(cache)


def test_one_name_at_two_addresses_is_two_files(server: Server) -> None:
    server.script = [serve, lambda h: serve(h, pickle.dumps("other"))]
    assert fetch(server.at("MSRA/R-50.pkl")).read_bytes() == CONTENT
    assert fetch(server.at("torchvision/R-50.pkl")).read_bytes() == pickle.dumps("other")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached_path("https://a.example/b/c.pkl") == tmp_path / "maskrcnn/a.example/b/c.pkl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_path("https://a.example/c.pkl") == tmp_path / "home/.cache/maskrcnn/a.example/c.pkl"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "https://a.example/../x", "https://a.example/%2e%2e/x", "x"]
)
def test_odd_addresses_are_refused(url: str) -> None:
    assert f"{url}: expected" in refused(url)


# --- servers that misbehave


def test_a_cut_connection_goes_on_where_it_broke(server: Server) -> None:
    server.script = [lambda h: serve(h, cut=100_000), lambda h: serve(h, cut=200_000)]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=100000-", "bytes=300000-"]


def test_a_later_run_goes_on_from_what_came(server: Server, cache: Path) -> None:
    server.script = [
        lambda h: serve(h, cut=100_000),
        answer(503),
        answer(500),
        answer(502),
        answer(503),
        answer(504),
    ]
    message = refused(server.at("R-50.pkl"))
    assert "after 5 attempts" in message
    assert "What came is kept" in message
    assert visible(cache) == []
    assert parts(cache)[0].stat().st_size == 100_000
    assert fetch(server.at("R-50.pkl")).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=100000-"


def test_attempts_are_counted_without_progress_only(server: Server) -> None:
    server.script = [lambda h: serve(h, cut=10_000)] * 12
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert len(server.requests) == 13


def test_a_file_that_changed_on_the_server_starts_again(server: Server) -> None:
    server.script = [lambda h: serve(h, b"x" * 100_000, etag='"old"', cut=50_000)]
    assert fetch(server.at("R-50.pkl")).read_bytes() == CONTENT


def test_without_a_validator_only_a_named_digest_lets_it_go_on(server: Server) -> None:
    server.etag = ""
    server.script = [lambda h: serve(h, cut=100_000)]
    assert fetch(server.at("R-50.pkl")).read_bytes() == CONTENT
    assert server.requests[1][1] is None
    server.script = [lambda h: serve(h, cut=100_000)]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert server.requests[3][1] == "bytes=100000-"


def test_a_part_of_another_file_is_dropped(server: Server, cache: Path) -> None:
    server.etag = ""
    path = cached_path(server.at(NAME))
    path.parent.mkdir(parents=True)
    (path.parent / f".{NAME}.part").write_bytes(b"z" * 1000)
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    (path.parent / f".{NAME}.part").write_bytes(b"z" * 10**6)  # longer than the file
    path.unlink()
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_a_part_that_was_whole_is_taken(server: Server) -> None:
    path = cached_path(server.at(NAME))
    path.parent.mkdir(parents=True)
    (path.parent / f".{NAME}.part").write_bytes(CONTENT)
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert server.requests == [(f"/{NAME}", f"bytes={len(CONTENT)}-")]


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    def whole(handler: Any) -> None:
        del handler.headers["Range"]
        serve(handler)

    server.script = [lambda h: serve(h, cut=100_000), whole]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_another_range_than_asked_is_not_taken(server: Server) -> None:
    def shifted(handler: Any) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(CONTENT[5:])

    server.script = [lambda h: serve(h, cut=100_000), shifted]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_not_kept(server: Server, cache: Path) -> None:
    server.script = [lambda h: serve(h, b"wrong" * 1000)]
    message = refused(server.at(NAME))
    assert f"sha256 {DIGEST[:8]}... as its name says" in message
    assert visible(cache) == []
    assert parts(cache) == []
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_a_web_page_is_no_file(server: Server, cache: Path) -> None:
    server.script = [answer(200, Content_Type="text/html; charset=utf-8")]
    assert "got a web page" in refused(server.at("R-50.pkl"))
    assert visible(cache) == []


@pytest.mark.parametrize(
    "content", [b'{"error": "rate limit"}', b"<Error>NoSuchKey</Error>", b"version https://git-lfs", b""]
)
def test_text_is_no_weights(server: Server, cache: Path, content: bytes) -> None:
    server.script = [lambda h: serve(h, content)] if content else [answer(200)]
    assert "expected weights, got " in refused(server.at("model_final_f10217.pkl"))
    assert visible(cache) == parts(cache) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range(server: Server, status: int) -> None:
    server.script = [lambda h: serve(h, cut=100_000), answer(status, Location=f"/elsewhere/{NAME}")]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert server.requests[-1] == (f"/elsewhere/{NAME}", "bytes=100000-")


def test_a_ring_of_redirects_ends(server: Server) -> None:
    server.script = [answer(302, Location=f"/{NAME}")] * 40
    assert "the server refuses: 302" in refused(server.at(NAME))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "no such file on the server (404)"),
        (410, "no such file"),
        (403, "the server refuses: 403"),
        (401, "refuses: 401"),
    ],
)
def test_what_will_not_change_is_not_tried_again(server: Server, status: int, said: str) -> None:
    server.script = [answer(status)]
    assert said in refused(server.at(NAME))
    assert len(server.requests) == 1


def test_too_many_requests_wait_as_long_as_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    server.script = [answer(429, Retry_After="7"), answer(429, Retry_After=soon), answer(429), answer(503)]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
    assert pauses[0] == 7
    assert 25 < pauses[1] <= 30
    assert pauses[2:] == [download.FIRST_PAUSE * 4, download.FIRST_PAUSE * 8]


def test_a_long_wait_is_the_users_to_decide(server: Server) -> None:
    server.script = [answer(429, Retry_After="3600")]
    assert "asks to wait 3600 seconds" in refused(server.at(NAME))


def test_a_silent_server_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)

    def stall(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        time.sleep(0.4)

    server.script = [lambda h: time.sleep(0.4), stall]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_a_connection_closed_without_an_answer(server: Server) -> None:
    server.script = [lambda h: None]
    assert fetch(server.at(NAME)).read_bytes() == CONTENT


def test_no_server(server: Server) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    assert "cannot reach the server: connection refused" in refused(f"http://127.0.0.1:{port}/{NAME}").lower()
    assert "cannot find the server" in refused(f"http://no-such-host.invalid/{NAME}")


# --- offline and mirror


def test_offline_uses_the_cache_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_OFFLINE", "1")
    assert "MASKRCNN_OFFLINE is set" in refused(server.at(NAME))
    assert server.requests == []
    path = cached_path(server.at(NAME))
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)  # carried there by hand
    assert fetch(server.at(NAME)) == path
    monkeypatch.setenv("MASKRCNN_OFFLINE", "0")
    fetch(server.at("R-50.pkl"))
    assert len(server.requests) == 1


def test_a_mirror_takes_the_place_of_the_host(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("MASKRCNN_MIRROR", server.at("mirror/of/all/"))
    path = fetch(f"https://dl.example/zoo/{NAME}?a=1")
    assert path == cache / "dl.example/zoo" / NAME
    assert server.requests == [(f"/mirror/of/all/zoo/{NAME}?a=1", None)]
    monkeypatch.setenv("MASKRCNN_MIRROR", "mirror.example")
    assert "MASKRCNN_MIRROR: expected an address" in refused(f"https://dl.example/other/{NAME}")


# --- the disk


def test_no_space_is_seen_before_the_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    usage = type("usage", (), {"free": download.SPARE_BYTES + 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    assert "left on the disk" in refused(server.at(NAME))
    assert visible(cache) == []


def test_a_disk_that_fills_up_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def full(self: Any, *args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._Download, "_copy", full)
    assert "no space left on device. Make room" in refused(server.at(NAME))
    assert visible(cache) == []


def test_a_cache_that_cannot_be_made(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "file"))
    assert "cannot write to the cache: not a directory" in refused(server.at(NAME))


# --- what is kept


def test_a_kept_file_is_read_again_only_when_touched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(server.at("R-50.pkl"))
    hashed: list[Path] = []
    real = download._sha256
    monkeypatch.setattr(download, "_sha256", lambda p: hashed.append(p) or real(p))
    fetch(server.at("R-50.pkl"))
    assert hashed == []
    os.utime(path, (1, 1))
    fetch(server.at("R-50.pkl"))
    fetch(server.at("R-50.pkl"))
    assert hashed == [path]


def test_a_kept_file_that_changed_is_refused(server: Server) -> None:
    path = fetch(server.at("R-50.pkl"))
    path.write_bytes(CONTENT[:-1] + b"!")
    assert "expected the content that it had at first" in refused(server.at("R-50.pkl"))
    path.unlink()
    assert fetch(server.at("R-50.pkl")).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_held_to_its_name(server: Server) -> None:
    path = cached_path(server.at(NAME))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not it")
    assert "as its name says" in refused(server.at(NAME))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("model_final_f10217.pkl", ""),
        ("deit_tiny_patch16_224-a1311bcf.pth", "a1311bcf"),
        ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "bf2d0c1e"),
        ("mask_rcnn_r50_fpn_1x_coco_20200205.pth", ""),
        ("mask_rcnn-20200205.pth", ""),
        ("R-50.pkl", ""),
        ("uni-perceiver-base-L12-H768-224size-torch-pretrained_converted.pth", ""),
        (
            "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384.npz",
            "",
        ),
    ],
)
def test_digests_in_names(name: str, digest: str) -> None:
    assert download._digest_in(name) == digest


# --- several at once


def test_two_processes_at_once_download_once(server: Server, cache: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(handler: Any) -> None:
        started.set()
        assert go_on.wait(30)
        serve(handler)

    server.script = [slow]
    code = f"from maskrcnn.zoo.download import fetch; print(fetch({server.at(NAME)!r}).stat().st_size)"
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.wait(30)
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr
    assert "another process downloads it" in second.stderr.readline()
    go_on.set()
    assert [p.communicate(timeout=30)[0].strip() for p in (first, second)] == [str(len(CONTENT))] * 2
    assert len(server.requests) == 1
    assert visible(cache) == [NAME]


def test_a_killed_download_leaves_no_lock(server: Server, cache: Path) -> None:
    started = threading.Event()

    def hang(handler: Any) -> None:
        serve(handler, cut=100_000)
        handler.wfile.flush()
        started.set()
        time.sleep(0.5)

    server.script = [hang]
    code = f"from maskrcnn.zoo.download import fetch; fetch({server.at(NAME)!r})"
    killed = subprocess.Popen([sys.executable, "-c", code])
    assert started.wait(30)
    while not any(p.stat().st_size for p in parts(cache)):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert visible(cache) == []
    assert fetch(server.at(NAME)).read_bytes() == CONTENT
