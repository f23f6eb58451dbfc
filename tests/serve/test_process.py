"""`maskrcnn serve` as a process: it starts, answers, ends in good order; mistakes are one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from maskrcnn.cli.main import main
from maskrcnn.cli.serve import named_models
from maskrcnn.errors import UserError
from maskrcnn.images.read import MAX_PIXELS_VARIABLE
from maskrcnn.serve import create_app
from maskrcnn.serve.run import listen
from maskrcnn.serve.run import serve as serve_app
from maskrcnn.weights.convert import write_as
from tests.serve.conftest import encoded, wait_until


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_as(path, model.config, model.state_dict())
    return path


def _heed_ctrl_c() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def service(*words: object):
    """A running service: its process and address."""
    command = [sys.executable, "-m", "maskrcnn", "serve", "--port", "0", *map(str, words)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": _heed_ctrl_c}
    with subprocess.Popen(command, text=True, **how) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            address = line.rsplit(" ", 1)[1].strip()
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200, 60)
            yield process, address
        finally:
            process.kill()


def test_sigterm_finishes_what_is_accepted_and_refuses_the_rest(weights):
    big = ("--min-size", 1000, "--max-size", 1000, "--max-queue", 8, "--num-threads", 1)
    with service("--model", f"tiny={weights}", *big) as (process, address), ThreadPoolExecutor(8) as pool:
        posts = [
            pool.submit(httpx.post, f"{address}/predict", content=encoded(), timeout=60) for _ in range(6)
        ]
        wait_until(lambda: waiting(address) >= 2)
        already = [p for p in posts if p.done()]
        accepted = waiting(address)
        process.send_signal(signal.SIGTERM)
        answers = [p.result() for p in posts]
        assert all(a.status_code == 200 for a in answers if a.status_code != 503)
        assert sum(a.status_code == 200 for a in answers) >= len(already) + accepted
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
    requests = [json.loads(line) for line in err.splitlines()]
    assert {line["message"] for line in requests} == {"request"}


def waiting(address: str) -> int:
    text = httpx.get(f"{address}/metrics").text
    return next(
        int(line.split()[1]) for line in text.splitlines() if line.startswith("maskrcnn_queue_length ")
    )


def test_ctrl_c_ends_it_without_a_traceback(weights):
    with service("--model", weights) as (process, address):
        assert httpx.get(f"{address}/models").json()[0]["name"] == "tiny"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "maskrcnn: interrupted"


def test_models_are_named_by_the_user_or_by_their_file(tmp_path):
    assert named_models(["runs/cells", "b=runs/cells", "x/tiny.safetensors"]) == {
        "cells": "runs/cells",
        "b": "runs/cells",
        "tiny": "x/tiny.safetensors",
    }
    odd = tmp_path / "a=b"
    odd.touch()
    assert named_models([str(odd)]) == {"a=b": str(odd)}
    for given in (["a=", "x"], ["=x"], ["cells", "runs/cells"]):
        with pytest.raises(UserError, match="--model: "):
            named_models(given)


@pytest.fixture(autouse=True)
def own_limit(monkeypatch):
    """The limit of pixels that a command sets holds for its process, which is all tests' here."""
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "50000000")


def serve(*words: object) -> int:
    return main(["serve", *map(str, words)])


def test_an_address_in_use_is_one_line(weights, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--model", weights, "--port", port) == 2
    assert capsys.readouterr().err.startswith(
        f"maskrcnn: 127.0.0.1:{port}: cannot listen: address already in use"
    )


def test_mistakes_are_one_line(weights, capsys, monkeypatch):
    for words, told in {
        ("--model", weights, "--port", "99999"): "--port",
        ("--model", weights, "--host", "no.such.host.invalid"): "cannot listen",
        ("--model", weights, "--token", "a b"): "token",
        (
            "--model",
            f"a={weights}",
            "--model",
            f"b={weights}",
            "--weights",
            weights,
            "--port",
            0,
        ): "--weights",
        ("--model", "mask_rcn_R_50_FPN_3x", "--port", 0): "Did you mean",
        ("--model", weights, "--tta"): "unknown option '--tta'",
    }.items():
        assert serve(*words) == 2
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1


def test_what_is_not_installed_is_named(weights):
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from maskrcnn.cli.main import main\n"
        f"sys.exit(main(['serve', '--model', {str(weights)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'maskrcnn[serve]'" in done.stderr


def test_a_model_that_cannot_warm_up_ends_the_service(model, monkeypatch, capsys):
    def fails(model):
        raise RuntimeError("no such operator")

    monkeypatch.setattr("maskrcnn.serve.worker.warm_up", fails)
    monkeypatch.setattr("maskrcnn.serve.run.log_as_json", lambda: None)
    with listen("127.0.0.1", 0) as at, pytest.raises(RuntimeError, match="no such operator"):
        serve_app(create_app(model), at)
