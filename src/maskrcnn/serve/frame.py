"""Frame around every request: its id, the token, security headers, the log line, the metrics, and what went wrong."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskrcnn.serve.errors import RequestError, error_response
from maskrcnn.serve.logs import LOGGER
from maskrcnn.serve.metrics import Metrics

# The page is ours alone and asks no other host for anything; pictures that it holds itself are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PROTECTED = {"/predict", "/models", "/metrics"}  # with a token; the page holds nothing secret
ROUTES = PROTECTED | {"/", "/healthz", "/readyz", "/openapi.json"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Frame:
    """ASGI middleware that is the same for every route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None) -> None:
        self.app, self.metrics, self.token = app, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, headers = time.perf_counter(), Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        asked = headers.get("x-request-id", "")
        request_id = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"], state["log"] = request_id, {}
        status = 0

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                # A page of one version must not meet scripts of another.
                page = path == "/" or path.startswith(("/static/", "/samples/"))
                out.setdefault("Cache-Control", "no-cache" if page else "no-store")
            await send(message)

        try:
            self._check(path, scope["method"], headers)
            await self.app(scope, receive, send_framed)
        except RequestError as error:
            await error_response(error, request_id)(scope, receive, send_framed)
        except Exception:
            LOGGER.exception("a fault of the service", extra={"fields": {"request_id": request_id}})
            if not status:
                error = RequestError(500, "a fault of the service; its log has more under this request's id.")
                await error_response(error, request_id)(scope, receive, send_framed)
        finally:
            self._count(scope, path, status, time.perf_counter() - started, state)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        """Refuse who has not the token, and what a page of another site has its visitors send.

        Raises:
            RequestError: 401 or 403.
        """
        if method == "POST" and headers.get("sec-fetch-site") == "cross-site":
            raise RequestError(403, "requests from pages of other sites are not taken.")
        if self.token is None or path not in PROTECTED:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not same:
            raise RequestError(
                401, "expected the header `Authorization: Bearer TOKEN`.", {"WWW-Authenticate": "Bearer"}
            )

    def _count(self, scope: Scope, path: str, status: int, seconds: float, state: dict[str, Any]) -> None:
        known = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        route = (
            path if path in ROUTES else "static" if path.startswith(("/static/", "/samples/")) else "other"
        )
        status = status or 499  # the client left before its answer
        self.metrics.requests.add(1, known, route, str(status))
        self.metrics.seconds.observe(seconds, route)
        client = scope.get("client")
        fields = {
            "request_id": state["request_id"],
            "client": client[0] if client else None,
            "method": known,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics", "static") else logging.INFO
        LOGGER.log(level, "request", extra={"fields": fields | state["log"]})
