"""The server process: uvicorn on one socket, until a signal ends it in good order."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from maskrcnn.errors import UserError
from maskrcnn.serve.logs import log_as_json

GRACE = 60  # seconds for what was accepted, after SIGTERM


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on; port 0 is any free one.

    Raises:
        UserError: the address is in use, is none of this machine, or may not be used.
    """
    where = f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as e:
        why = (getattr(e, "strerror", None) or str(e)).lower()
        raise UserError(f"{where}: cannot listen: {why}. Choose another --host or --port.") from None


def serve(app: FastAPI, at: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT: what was accepted is answered first, the rest refused.

    Raises:
        KeyboardInterrupt: after SIGINT.
        BaseException: what the warm-up of a model raised.
    """
    log_as_json()
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        log_level=logging.WARNING,
    )
    server = _Server(config, app)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises it again at the end
    try:
        started()
        server.run(sockets=[at])
    finally:
        signal.signal(signal.SIGTERM, before)
    if failure := app.state.service.worker.failure:
        raise failure


class _Server(uvicorn.Server):
    """uvicorn's server; it tells the service that the end has come, and ends when the models cannot be warmed up."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.service = app.state.service

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.service.worker.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop_accepting()
        await super().shutdown(sockets)
