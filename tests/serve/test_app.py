"""The service's contract over HTTP: answers, refusals, limits, the frame around them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi
import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_decode
from maskrcnn.serve import create_app
from tests.serve.conftest import NAMES, client_of, encoded, wait_until

Talk = Callable[[Any], Awaitable[None]]
PNG = {"Content-Type": "image/png"}


def talk(app, talk: Talk, **options) -> None:
    """Run a conversation with an application."""

    async def run() -> None:
        async with client_of(app, **options) as client:
            await talk(client)

    asyncio.run(run())


def test_a_picture_is_answered_as_predict_finds_it(model):
    picture = encoded()
    found = model.predict(io.BytesIO(picture)).to_coco(0, model.config.category_ids)

    async def conversation(client):
        by_form = await client.post("/predict", files={"image": ("secret name.png", picture)})
        raw = await client.post("/predict", content=picture, headers=PNG)
        bare = await client.post("/predict", content=picture)
        assert by_form.status_code == raw.status_code == bare.status_code == 200
        assert by_form.json() == raw.json() == bare.json()
        answer = raw.json()
        assert answer["image_size"] == [50, 60]
        assert len(answer["instances"]) == 7
        for ours, theirs in zip(answer["instances"], found, strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.006)
            assert ours["category_id"] == theirs["category_id"]
            assert ours["category"] == NAMES[(2, 5, 9).index(ours["category_id"])]
            assert ours["segmentation"] == theirs["segmentation"]

    talk(create_app(model), conversation)


def test_the_threshold_of_a_request_is_its_own(model):
    scores = sorted(model.predict(io.BytesIO(encoded())).scores.tolist())
    middle = (scores[3] + scores[4]) / 2

    async def conversation(client):
        one, all_ = await asyncio.gather(
            client.post("/predict", content=encoded(), params={"score_threshold": middle}),
            client.post("/predict", content=encoded()),
        )
        assert len(one.json()["instances"]) == 3
        assert one.json()["instances"] == all_.json()["instances"][:3]

    talk(create_app(model, max_batch=2), conversation)


def test_masks_as_polygons_or_both(model):
    async def conversation(client):
        polygons = await client.post("/predict?segmentation=polygons", content=encoded())
        both = await client.post("/predict?segmentation=both", content=encoded())
        seen = 0
        for one, other in zip(polygons.json()["instances"], both.json()["instances"], strict=True):
            assert one["segmentation"] == other["polygons"]
            mask = rle_decode(other["segmentation"]).astype(bool)
            assert bool(one["segmentation"]) == mask.any()
            for part in one["segmentation"]:
                rows, columns = np.nonzero(mask)
                assert columns.min() <= min(part[::2]) <= max(part[::2]) <= columns.max() + 1
                assert rows.min() <= min(part[1::2]) <= max(part[1::2]) <= rows.max() + 1
                seen += 1
        assert seen

    talk(create_app(model), conversation)


def test_a_drawn_picture(model):
    async def conversation(client):
        answer = await client.post("/predict?format=png&score_threshold=0.1", content=encoded("JPEG"))
        assert answer.headers["content-type"] == "image/png"
        drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
        wanted = model.predict(io.BytesIO(encoded("JPEG")), score_threshold=0.1).draw(score_threshold=0.1)
        assert np.array_equal(drawn, wanted)

    talk(create_app(model), conversation)


def cut_form() -> tuple[bytes, dict[str, str]]:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + encoded()
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


BAD = {
    "text": (400, b"no picture", {}, "not an image"),
    "nothing": (400, b"", {}, "no bytes"),
    "cut picture": (400, encoded()[:-300], PNG, "cannot read the image"),
    "a program": (400, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, "not an image"),
    "cut form": (400, *cut_form(), "damaged or cut off"),
    "no boundary": (400, b"x", {"Content-Type": "multipart/form-data"}, "boundary"),
    "JSON": (415, b"{}", {"Content-Type": "application/json"}, "-F image=@FILE"),
    "curl -d": (415, encoded(), {"Content-Type": "application/x-www-form-urlencoded"}, "-F image=@FILE"),
    "large": (413, bytes(2**20 + 1), {}, "at most 1048576 bytes"),
    "many pixels": (413, encoded(size=(101, 100)), {}, "at most 10000 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_with_a_sentence(model, name):
    status, body, headers, words = BAD[name]

    async def conversation(client):
        answer = await client.post("/predict", content=body, headers=headers)
        assert answer.status_code == status
        assert words in answer.json()["detail"]
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
        assert (await client.post("/predict", content=encoded())).status_code == 200

    talk(create_app(model, max_pixels=10_000, max_bytes=2**20), conversation)


def test_a_bad_value_is_refused_with_its_name(model):
    async def conversation(client):
        for query, words in {
            "score_threshold=2": "score_threshold: ",
            "score_threshold=nan": "score_threshold: ",
            "format=gif": "format: ",
            "segmentation=x": "segmentation: ",
            "model=other": "model: expected one of mask_rcnn_R_50_FPN_1x",
        }.items():
            answer = await client.post(f"/predict?{query}", content=encoded())
            assert answer.status_code == 422
            assert answer.json()["detail"].startswith(words)
        no_field = await client.post("/predict", files={"photo": encoded()})
        assert (no_field.status_code, "'image'" in no_field.json()["detail"]) == (422, True)
        assert (await client.get("/predict")).status_code == 405
        assert (await client.get("/../../etc/passwd")).json()["detail"] == "Not Found"
        assert (await client.get("/static/%2e%2e/app.py")).status_code == 404

    talk(create_app(model), conversation)


def test_a_body_of_unknown_length_is_cut_at_the_limit(model):
    async def endless():
        for _ in range(100):
            yield bytes(2**16)

    async def conversation(client):
        answer = await client.post("/predict", content=endless())
        assert answer.status_code == 413

    app = create_app(model, max_bytes=2**18)
    talk(app, conversation)
    assert app.state.service.uploads.held == 0


def test_a_slow_client_is_not_waited_for(model):
    async def slow():
        yield encoded()[:10]
        await asyncio.sleep(5)

    async def conversation(client):
        assert (await client.post("/predict", content=slow())).status_code == 408

    talk(create_app(model, upload_seconds=0.1), conversation)


class Held:
    """A model's `detect` that waits until it is let go, and tells what batches it was given."""

    def __init__(self, monkeypatch, model) -> None:
        self.go, self.batches = threading.Event(), []
        detect = model.detect

        def held(batch, score_threshold=None):
            self.batches.append(len(batch))
            assert self.go.wait(20)
            return detect(batch, score_threshold)

        monkeypatch.setattr(model, "detect", held)


@pytest.fixture
def held(monkeypatch, model):
    app_of = create_app

    def make(**limits):
        app = app_of(model, **limits)
        app.state.service.start()
        wait_until(lambda: app.state.service.ready)
        return app, Held(monkeypatch, model)

    return make


def test_a_full_queue_answers_503_with_the_time_to_come_again(held):
    app, gate = held(max_queue=2, max_batch=4)
    worker = app.state.service.worker

    async def conversation(client):
        first = asyncio.create_task(client.post("/predict", content=encoded()))
        await until(lambda: gate.batches == [1])
        rest = [asyncio.create_task(client.post("/predict", content=encoded())) for _ in range(2)]
        await until(lambda: worker.num_waiting == 2)
        refused = await client.post("/predict", content=encoded())
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "maskrcnn_queue_length 2" in (await client.get("/metrics")).text
        gate.go.set()
        answers = await asyncio.gather(first, *rest)
        assert [a.status_code for a in answers] == [200] * 3
        assert gate.batches == [1, 2]  # what waited went together

    talk(app, conversation)


def test_pictures_of_other_sizes_wait_for_a_batch_of_their_own(held, model, monkeypatch):
    monkeypatch.setattr(model.config.input, "max_size", 640)
    app, gate = held(max_batch=4)

    async def conversation(client):
        first = asyncio.create_task(client.post("/predict", content=encoded()))
        await until(lambda: gate.batches == [1])
        sizes = [(50, 60), (50, 150), (52, 61)]
        rest = []
        for i, size in enumerate(sizes, 1):
            rest.append(asyncio.create_task(client.post("/predict", content=encoded(size=size))))
            await until(lambda i=i: len(app.state.service.worker._waiting) == i)
        gate.go.set()
        answers = await asyncio.gather(first, *rest)
        assert [a.json()["image_size"] for a in answers[1:]] == [list(s) for s in sizes]
        assert gate.batches == [1, 2, 1]

    talk(app, conversation)


def test_a_picture_that_fails_in_the_model_harms_no_other(held, model, monkeypatch):
    app, gate = held(max_batch=4)
    detect = model.detect

    def fails(batch, score_threshold=None):
        if batch.original_sizes[0] == (50, 60) and (len(batch) > 1 or float(batch.pixels.sum()) == bad_sum):
            raise RuntimeError("a path: /somewhere/secret.py")
        return detect(batch, score_threshold)

    bad = encoded(seed=5)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(bad)).resize((64, 53), 2))).permute(2, 0, 1)
    bad_sum = float(model.preprocess([pixels]).pixels.sum())
    gate.go.set()
    monkeypatch.setattr(model, "detect", fails)

    async def conversation(client):
        answers = await asyncio.gather(
            *(client.post("/predict", content=c) for c in (encoded(), bad, encoded(seed=1)))
        )
        assert sorted(a.status_code for a in answers) == [200, 200, 500]
        text = next(a for a in answers if a.status_code == 500).text
        assert "secret" not in text
        assert "Traceback" not in text

    talk(app, conversation)


def test_who_goes_away_is_not_computed(held):
    app, gate = held(max_batch=1)
    worker = app.state.service.worker

    async def conversation(client):
        first = asyncio.create_task(client.post("/predict", content=encoded()))
        await until(lambda: gate.batches == [1])
        await leaves(app, worker)
        assert worker.num_waiting == 0
        gate.go.set()
        assert (await first).status_code == 200
        assert gate.batches == [1]
        lines = (await client.get("/metrics")).text.splitlines()
        assert 'maskrcnn_requests_total{method="POST",route="/predict",status="499"} 1' in lines

    talk(app, conversation)
    assert app.state.service.uploads.held == 0


async def leaves(app, worker) -> None:
    """Speak ASGI to the application: a whole picture, and then the client is gone."""
    left = asyncio.Event()
    messages = [{"type": "http.request", "body": encoded(), "more_body": False}]

    async def receive():
        if messages:
            return messages.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/predict", "raw_path": b"/predict", "query_string": b"", "headers": [], "client": ("c", 1),
        "server": ("service", 80), "root_path": "",
    }  # fmt: skip
    request = asyncio.create_task(app(scope, receive, send))
    await until(lambda: len(worker._waiting) == 1)
    left.set()
    await request


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def test_a_token_guards_what_costs_or_tells(model):
    async def conversation(client):
        for path in ("/predict", "/models", "/metrics"):
            send = client.post if path == "/predict" else client.get
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic good"}):
                answer = await send(path, headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for path in ("/", "/healthz", "/openapi.json", "/static/app.js"):
            assert (await client.get(path)).status_code == 200
        good = {"Authorization": "Bearer good"}
        assert (await client.get("/models", headers=good)).status_code == 200
        assert (await client.post("/predict", content=encoded(), headers=good)).status_code == 200

    talk(create_app(model, token="good"), conversation)


def test_pages_of_other_sites_are_kept_out(model):
    async def conversation(client):
        answer = await client.post("/predict", content=encoded(), headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        answer = await client.get("/", headers={"Origin": "http://elsewhere"})
        assert "access-control-allow-origin" not in answer.headers
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"

    talk(create_app(model), conversation)


def test_readiness_follows_the_warm_up(model, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr("maskrcnn.serve.worker.warm_up", lambda model: go.wait(20))

    async def conversation(client):
        early = await client.get("/readyz")
        assert early.status_code == 503
        assert early.headers["Retry-After"]
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        go.set()
        await until(lambda: client._transport.app.state.service.ready)
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        client._transport.app.state.service.stop_accepting()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/predict", content=encoded())).status_code == 503

    talk(create_app(model), conversation)


def test_several_models_answer_by_name(model):
    other = maskrcnn.build("mask_rcnn_R_50_FPN_1x", num_classes=1, tiny=True).eval()
    other.config.box_head.score_threshold = 0.0

    async def conversation(client):
        listed = (await client.get("/models")).json()
        assert [m["name"] for m in listed] == ["first", "other"]
        assert listed[0]["categories"] == list(NAMES)
        assert listed[0]["category_ids"] == [2, 5, 9]
        answer = await client.post("/predict?model=other", content=encoded())
        assert answer.json()["model"] == "other"
        assert {i["category"] for i in answer.json()["instances"]} <= {"class 0"}
        assert (await client.post("/predict", content=encoded())).json()["model"] == "first"

    talk(create_app({"first": model, "other": other}), conversation)


def test_requests_are_logged_as_json_without_what_is_in_them(model, caplog):
    from maskrcnn.serve.logs import JsonFormatter

    async def conversation(client):
        await client.post(
            "/predict", files={"image": ("secret.png", encoded())}, headers={"X-Request-ID": "my-1"}
        )
        odd = await client.get("/healthz", headers={"X-Request-ID": "bad id\x7f"})
        assert odd.headers["X-Request-ID"] != "bad id\x7f"

    with caplog.at_level(logging.INFO, "maskrcnn.serve"):
        talk(create_app(model), conversation)
    lines = [JsonFormatter().format(r) for r in caplog.records if r.name == "maskrcnn.serve"]
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["request_id"], line["status"], line["route"]) == ("my-1", 200, "/predict")
    assert (line["instances"], line["size"]) == (7, [50, 60])
    assert "secret" not in lines[0]


def test_the_description_names_every_route(model):
    async def conversation(client):
        description = (await client.get("/openapi.json")).json()
        assert set(description["paths"]) == {"/predict", "/models", "/healthz", "/readyz", "/metrics"}
        post = description["paths"]["/predict"]["post"]
        assert set(post["requestBody"]["content"]) == {
            "multipart/form-data",
            "image/*",
            "application/octet-stream",
        }
        assert {"200", "400", "413", "415", "422", "503"} <= set(post["responses"])

    talk(create_app(model), conversation)


def test_the_application_can_be_mounted_in_another(model):
    own, inner = fastapi.FastAPI(), create_app(model, token="t")
    own.mount("/objects", inner)
    own.state.service = inner.state.service

    async def conversation(client):
        answer = await client.post(
            "/objects/predict", content=encoded(), headers={"Authorization": "Bearer t"}
        )
        assert answer.status_code == 200
        assert (await client.post("/objects/predict", content=encoded())).status_code == 401
        page = await client.get("/objects/")
        assert "static/app.js" in page.text
        assert (await client.get("/objects/static/app.js")).status_code == 200
        assert (await client.get("/objects/samples/0.jpg")).content[:2] == b"\xff\xd8"

    talk(own, conversation)


@pytest.mark.parametrize(
    "given", [{}, None, {"": 1}, {1: None}], ids=["no model", "none", "empty name", "number"]
)
def test_models_that_are_none_are_refused(given):
    with pytest.raises(UserError, match="create_app: models"):
        create_app(given)


@pytest.mark.parametrize("limits", [{"max_batch": 0}, {"max_queue": 1.5}, {"token": ""}, {"token": "a b"}])
def test_limits_out_of_bounds_are_refused(model, limits):
    with pytest.raises(UserError, match="serve: "):
        create_app(model, **limits)
