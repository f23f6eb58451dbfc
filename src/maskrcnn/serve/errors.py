"""Answers that are no picture's: a status and a sentence, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from maskrcnn.errors import one_line

RETRY_AFTER = 2  # seconds, told to whom the queue had no place for


class RequestError(Exception):
    """A request that is refused: an HTTP status and one sentence for the client."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail = status, one_line(detail)
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER))


def error_response(error: RequestError, request_id: str = "") -> Response:
    """JSON answer of an error: `detail`, and the request's id to ask the operator with."""
    content = {"detail": error.detail} | ({"request_id": request_id} if request_id else {})
    return json_response(content, error.status, error.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(text.encode(), status, dict(headers or {}), "application/json")
