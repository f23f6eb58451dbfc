"""Web application that answers pictures with the objects in them: `create_app`.

A request goes through three places: the event loop reads it (`uploads`), threads decode the picture and encode the
answer (`answers`), and one thread runs the model (`worker`). Each holds a bounded number of pictures.
"""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from maskrcnn.errors import UserError, described
from maskrcnn.images.bands import refuse_bands
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.serve import schema
from maskrcnn.serve.answers import Segmentation, as_json, as_png, decode
from maskrcnn.serve.errors import RequestError, error_response, json_response
from maskrcnn.serve.frame import Frame
from maskrcnn.serve.metrics import CONTENT_TYPE, Metrics
from maskrcnn.serve.settings import MAX_BYTES, MAX_PIXELS, Settings
from maskrcnn.serve.uploads import Uploads, picture_in
from maskrcnn.serve.worker import BatchTime, Job, RefusedError, Worker
from maskrcnn.structures import Instances
from maskrcnn.version import __version__

PAGE = Path(__file__).parent / "page"
DRAW_THRESHOLD = 0.5  # of a PNG, where none is asked for
NUM_SAMPLES = 6

T = TypeVar("T")


def create_app(
    models: MaskRCNN | Mapping[str, MaskRCNN],
    *,
    max_batch: int = 1,
    max_queue: int = 16,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    upload_seconds: float = 30.0,
    num_threads: int = 2,
    token: str | None = None,
) -> FastAPI:
    """Make a web application that serves models, to run or to mount in one of your own.

    models: a model, or several by name; the first is the one that answers where a request names none.
    max_batch: pictures that the model takes at a time. max_queue: accepted pictures that may wait for it.
    max_pixels, max_bytes: of a picture, and of a request. upload_seconds: for a request to arrive whole.
    num_threads: threads that decode pictures and encode answers.
    token: text that requests must bring as `Authorization: Bearer TOKEN`.

    The models begin to warm up when the application starts, or where it is mounted with the first request to it.
    `app.state.service.close()` ends its threads once what was accepted is answered; the application does so itself
    when it shuts down.

    Raises:
        UserError: no model, a name that is no text, a limit out of bounds.
    """
    settings = Settings(
        max_batch=max_batch,
        max_queue=max_queue,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        upload_seconds=upload_seconds,
        num_threads=num_threads,
        token=token,
    )
    service = Service(_by_name(models), settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="maskrcnn",
        description="Objects in pictures: boxes, masks and key points, by Mask R-CNN.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    _add_routes(app, service)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.add_exception_handler(RequestError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_bad_value)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Frame, metrics=service.metrics, token=service.settings.token)
    return app


class Service:
    """Models with the threads around them; a request's way from its bytes to its answer."""

    def __init__(self, models: Mapping[str, MaskRCNN], settings: Settings) -> None:
        self.models, self.settings = dict(models), settings
        self.metrics = Metrics(queued=lambda: self.worker.num_waiting, ready=lambda: float(self.ready))
        self.worker = Worker(models, settings.max_batch, settings.max_queue, self._observe)
        self.uploads = Uploads(settings.max_bytes, settings.upload_seconds)
        self._threads = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="maskrcnn-pictures")

    @property
    def ready(self) -> bool:
        """True once the models are warm, until the service is about to end."""
        return self.worker.ready.is_set() and not self.worker.stopping

    def start(self) -> None:
        """Start the thread of the models, which warms them up first."""
        self.worker.start()

    def stop_accepting(self) -> None:
        """Refuse pictures from now on; those accepted are still answered."""
        self.worker.stop_accepting()

    def close(self) -> None:
        """Refuse pictures from now on, and end the threads when those accepted are answered."""
        self.worker.close()
        self._threads.shutdown()

    async def predict(
        self,
        request: Request,
        name: str | None,
        score_threshold: float | None,
        form: Literal["json", "png"],
        segmentation: Segmentation,
    ) -> Response:
        """Answer a request with the objects in its picture.

        Raises:
            RequestError: see `uploads`, `answers.decode`; an unknown model (422), a full queue (503).
        """
        name = self._name(name)
        self.start()
        log = request.state.log
        async with self.uploads.body(request) as body:
            picture = picture_in(body, request.headers.get("content-type", ""))
            log |= {"model": name, "bytes": len(picture)}
            work = asyncio.create_task(self._work(name, picture, score_threshold, form, segmentation, log))
            return await _unless_gone(request, work)

    async def _work(
        self,
        name: str,
        picture: bytes,
        score_threshold: float | None,
        form: Literal["json", "png"],
        segmentation: Segmentation,
        log: dict[str, Any],
    ) -> Response:
        model = self.models[name]
        if form == "png" and score_threshold is None:
            score_threshold = DRAW_THRESHOLD
        instances = await self._detect(name, picture, score_threshold, log)
        log["instances"] = len(instances)
        self.metrics.instances.add(len(instances), name)
        if form == "png":
            png = await self._in_thread(as_png, instances, picture, score_threshold or 0.0)
            return Response(png, media_type="image/png")
        return await self._in_thread(
            lambda: json_response(as_json(instances, model.config, name, segmentation))
        )

    async def _detect(
        self, name: str, picture: bytes, score_threshold: float | None, log: dict[str, Any]
    ) -> Instances:
        """Decode a picture and have the model look at it; its place in the queue is taken before it is decoded."""
        try:
            self.worker.reserve()
        except RefusedError as e:
            raise RequestError(503, f"{e}. Try again later.") from None
        try:
            c = self.models[name].config.input
            decoded = await self._in_thread(decode, picture, c, self.settings.max_pixels)
        except BaseException:
            self.worker.release()
            raise
        log["size"] = list(decoded.original_size)
        job = Job(name, decoded.pixels, decoded.original_size, score_threshold)
        self.worker.submit(job)
        try:
            return await asyncio.wrap_future(job.found)
        except asyncio.CancelledError:
            self.worker.withdraw(job)
            raise

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(function, *args)
        )

    def _name(self, name: str | None) -> str:
        if name is None:
            return next(iter(self.models))
        if name not in self.models:
            raise RequestError(422, f"model: expected one of {', '.join(self.models)}, got another.")
        return name

    def _observe(self, batch: BatchTime) -> None:
        self.metrics.pictures.add(batch.size, batch.model)
        self.metrics.model_seconds.observe(batch.seconds, batch.model)
        self.metrics.batch_size.observe(batch.size)
        for seconds in batch.waited:
            self.metrics.queue_seconds.observe(seconds)


async def _unless_gone(request: Request, work: asyncio.Task[Response]) -> Response:
    """Wait for the answer; the work is dropped when the client goes away.

    Raises:
        RequestError: the client has gone (499), or what the work raises.
    """
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise RequestError(499, "the client has gone.")
    finally:
        for task in (gone, work):
            task.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses=schema.RESPONSES, openapi_extra=schema.PICTURE, summary="Find objects")
    async def predict(
        request: Request,
        score_threshold: Annotated[
            float | None,
            Query(ge=0, le=1, description="Leave out objects that score less (model's own, 0.05)."),
        ] = None,
        format: Annotated[
            Literal["json", "png"], Query(description="JSON, or the picture with the objects drawn.")
        ] = "json",
        segmentation: Annotated[
            Segmentation, Query(description="Masks as COCO's compressed RLE, as polygons, or both.")
        ] = "rle",
        model: Annotated[str | None, Query(description="One of /models; by default the first.")] = None,
    ) -> Response:
        return await service.predict(request, model, score_threshold, format, segmentation)

    @app.get("/models", summary="Models and their classes")
    async def models() -> list[schema.Model]:
        return [schema.describe(name, model) for name, model in service.models.items()]

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Are the models warm?", responses={503: {"model": schema.Problem}})
    async def readyz() -> dict[str, str]:
        service.start()
        if not service.ready:
            raise RequestError(
                503, "about to end." if service.worker.stopping else "the models are warming up."
            )
        return {"status": "ready"}

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/samples/{number}.jpg", include_in_schema=False)
    async def sample(number: Annotated[int, UrlPath(ge=0, lt=NUM_SAMPLES)]) -> Response:
        return Response(await asyncio.to_thread(_sample, number), media_type="image/jpeg")


@functools.cache
def _sample(number: int) -> bytes:
    """Draw a small picture to try the page with."""
    from PIL import Image

    from maskrcnn.data.synthetic import random_scene

    out = io.BytesIO()
    scene = random_scene(np.random.default_rng([7, number]), (320, 448))
    Image.fromarray(scene.image()).save(out, "JPEG", quality=90)
    return out.getvalue()


def _by_name(models: MaskRCNN | Mapping[str, MaskRCNN]) -> dict[str, MaskRCNN]:
    if isinstance(models, Mapping):
        named = dict(models)
    elif hasattr(models, "detect"):
        named = {models.config.name: models}
    else:
        raise UserError(f"create_app: models: expected a model, or models by name, got {described(models)}.")
    if not named:
        raise UserError("create_app: models: expected one model or more, got none.")
    for name in named:
        if not isinstance(name, str) or not name:
            raise UserError(f"create_app: models: expected names, got {described(name)}.")
        refuse_bands(named[name].config.input, f"create_app: {name}")
    return named


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, request.state.request_id)


async def _on_bad_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = str(first["loc"][-1])
    detail = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return error_response(RequestError(422, detail), request.state.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = RequestError(error.status_code, str(error.detail), error.headers)
    return error_response(refusal, request.state.request_id)
