"""Forms of a service's answers, for its OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.visualize import class_name


class Rle(BaseModel):
    """Mask as COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="Height and width of the picture")
    counts: str


class Instance(BaseModel):
    """One object, in the picture's own pixels."""

    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height")
    score: float
    category_id: int | str | None
    category: str
    segmentation: Rle | list[list[float]] | None = None
    polygons: list[list[float]] | None = Field(None, description="With segmentation=both")
    keypoints: list[float] | None = Field(None, description="x, y, score of each, in COCO's convention")


class Prediction(BaseModel):
    """Objects of a picture, best first."""

    model: str
    image_size: tuple[int, int] = Field(description="Height and width")
    instances: list[Instance]


class Model(BaseModel):
    """A model that is served."""

    name: str
    preset: str
    engine: str
    score_threshold: float
    categories: list[str]
    category_ids: list[int | str]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
    request_id: str | None = None


def describe(name: str, model: MaskRCNN) -> Model:
    """Facts of a model that a client may want."""
    c = model.config
    return Model(
        name=name,
        preset=c.name,
        engine=model.engine,
        score_threshold=c.box_head.score_threshold,
        categories=[class_name(c.class_names, k) for k in range(c.num_classes)],
        category_ids=list(c.category_ids or range(c.num_classes)),
    )


_WHY = {
    400: "Not an image, or one that is damaged",
    401: "No token, or another",
    403: "From a page of another site",
    408: "Too slow to arrive",
    413: "Too many bytes or pixels",
    415: "Of a type that holds no picture",
    422: "A bad value",
    500: "A fault of the service",
    503: "The queue is full: Retry-After tells when to come again",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Prediction,
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The objects, or the picture with them",
    },
    **{status: {"model": Problem, "description": text} for status, text in _WHY.items()},
}
_BINARY = {"type": "string", "format": "binary"}
PICTURE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY}}
            },
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}
