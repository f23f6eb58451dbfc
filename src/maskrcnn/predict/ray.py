"""Prediction over a cluster with Ray Data: paths, URLs or bytes in, Parquet out, picture by picture once.

Actors, each with a copy of the model, take a part's pictures at a time, decode them where they compute, and write the
part whole or not at all, in the form of `predict.formats.parquet`. An actor that dies is started again by Ray and does
its part again, under the same name; a job that is started again skips the pictures that are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.data.writers import Job
from maskrcnn.errors import UserError, one_line
from maskrcnn.files import check_writable_folder
from maskrcnn.images.bands import read_bands
from maskrcnn.images.read import read_image
from maskrcnn.predict.formats import parquet
from maskrcnn.predict.write import changed, labelled

_SECONDS = 60  # for a server to answer
_MOST_BYTES = 1 << 30  # of a picture from a server


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Model that an actor loads: the arguments of `maskrcnn.load` and of `Predictor.predict`."""

    model: str
    weights: str | None = None
    engine: str | None = None
    precision: str = "fp32"
    device: str | None = None
    min_size: int | None = None
    max_size: int | None = None
    score_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Pictures that a job predicted, that failed, and that were done before."""

    images: int
    failed: int
    before: int


def predict_dataset(
    source: Sequence[str | Path] | Any,
    out: str | Path,
    model: ModelSpec,
    *,
    image: str = "image",
    name: str | None = None,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = 8,
    rows_per_part: int = 256,
) -> Counts:
    """Predict a list of paths or URLs, or a column of a `ray.data.Dataset`, and write `out`/predictions.parquet.

    `ray.init` is yours to call where the cluster is another than the default. `out` and paths have to be on a disk that
    all machines see. A picture that cannot be read is a row with its error.

    image: the column of paths, http(s) addresses or encoded bytes; name: the column that names a picture in the
    results, by default `image`, which then may not be bytes.
    actors: copies of the model, with `num_cpus` and `num_gpus` (also a part of one) each.
    batch_size: pictures that the network sees at once; rows_per_part: pictures of a part.

    Raises:
        UserError: Ray is missing, the folder may not be written or has parts of other settings, bytes without names.
    """
    try:
        import ray.data
    except ImportError:
        raise UserError(
            "maskrcnn.predict.ray: expected the package ray, got none. Run: pip install 'maskrcnn[ray]'"
        ) from None
    out = check_writable_folder(Path(out).absolute())
    here = {
        f: str(Path(v).absolute())
        for f, v in asdict(model).items()
        if f in ("model", "weights") and v and Path(v).exists()
    }
    model = replace(model, **here)  # workers have folders of their own
    settings = json.dumps(asdict(model) | {"changed": changed(model.model, model.weights)})
    done = parquet.done(out, settings)
    key = name or image
    if isinstance(source, ray.data.Dataset):
        data = source
        before = len(done)
        if done:
            data = data.filter(lambda row: row[key] not in done)
    else:
        left = [str(path) for path in source if str(path) not in done]
        before = len(source) - len(left)
        if not left:
            return Counts(0, 0, before)
        blocks = max(actors, math.ceil(len(left) / rows_per_part))
        data = ray.data.from_items([{image: path} for path in left], override_num_blocks=blocks)
    counts = data.map_batches(
        Worker,
        fn_constructor_args=(model, str(out), settings, image, key, batch_size, max(1, int(num_cpus))),
        batch_size=rows_per_part,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    images = failed = 0
    for row in counts.iter_rows():
        images += row["images"]
        failed += row["failed"]
    return Counts(images, failed, before)


class Worker:
    """Actor of Ray Data: loads the model once, and turns pictures to a part of the table."""

    def __init__(
        self,
        spec: ModelSpec,
        out: str,
        settings: str,
        image: str,
        name: str,
        batch_size: int,
        num_threads: int,
    ) -> None:
        import torch

        from maskrcnn import zoo

        torch.set_num_threads(num_threads)
        self.model = zoo.load(
            spec.model, spec.weights, device=spec.device, precision=spec.precision, engine=spec.engine
        )
        self.sizes: dict[str, Any] = {
            "min_size": spec.min_size,
            "max_size": spec.max_size,
            "score_threshold": spec.score_threshold,
        }
        self.job = Job(Path(out), tuple(self.model.config.class_names), settings=settings)
        self.image, self.name, self.batch_size = image, name, batch_size
        self.readers = ThreadPoolExecutor(4)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """Write a part of these pictures, and return how many they were and how many failed."""
        names = [str(name) for name in batch[self.name]]
        read = partial(_read, input=self.model.config.input)
        found: list[Any] = list(self.readers.map(read, batch[self.image], names))
        good = [k for k, picture in enumerate(found) if isinstance(picture, np.ndarray)]
        for first in range(0, len(good), self.batch_size):
            chosen = good[first : first + self.batch_size]
            instances = self.model.predict([found[k] for k in chosen], **self.sizes)
            for k, one in zip(chosen, instances, strict=True):
                found[k] = one.to("cpu")
        rows = [
            parquet.encode(labelled(Path(name), one), self.job) | {"image": name}
            for name, one in zip(names, found, strict=True)
        ]
        # Named by its pictures: a part that is done twice is there once.
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
        parquet.write_part(self.job, f"part-{digest}.parquet", rows)
        return {"images": [len(good)], "failed": [len(rows) - len(good)]}


def _read(source: Any, name: str, input: InputConfig) -> np.ndarray | UserError:
    """Decode a picture, by the rules and limits of `images.read`, or its bands, by those of `images.bands`."""
    try:
        if isinstance(source, bytes):
            source = _Named(source, name)
        elif str(source).startswith(("http://", "https://")):
            source = _Named(_fetched(str(source)), name)
        else:
            source = str(source)
        return read_bands(source, input) if input.channels else read_image(source)
    except UserError as e:
        return e


def _fetched(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        raise UserError(f"{address}: cannot be fetched: {one_line(str(e))}.") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{address}: expected at most {_MOST_BYTES >> 20} MiB, got more.")
    return content


class _Named(io.BytesIO):
    """Bytes under the name that messages give them."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name
