"""A tiny model behind the service, in process and on the loopback, and pictures to send."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import maskrcnn
from maskrcnn.models.predictor import Predictor

NAMES = ("cat", "<img src=x onerror=alert(1)>", "owl")  # a name that HTML would run


@pytest.fixture(scope="session")
def model() -> Predictor:
    """Tiny random model that finds seven things of three classes everywhere."""
    torch.manual_seed(0)
    model = maskrcnn.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
    c = model.config
    c.class_names, c.category_ids = NAMES, (2, 5, 9)
    c.box_head.score_threshold, c.box_head.detections_per_image = 0.0, 7
    c.input.min_size = c.input.max_size = 64
    return model


def encoded(kind: str = "PNG", size: tuple[int, int] = (50, 60), seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@asynccontextmanager
async def client_of(app, **options) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process; the application's threads end with it."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service", **options) as client:
        try:
            yield client
        finally:
            app.state.service.close()


@contextmanager
def running(app) -> Iterator[str]:
    """Address of an application served on the loopback."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as at:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        address = f"http://127.0.0.1:{at.getsockname()[1]}"
        try:
            wait_until(lambda: server.started)
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
            yield address
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
