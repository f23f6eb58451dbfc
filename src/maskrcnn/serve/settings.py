"""Limits of a service."""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn.errors import UserError, check_number, described

MAX_PIXELS = 50_000_000  # of a picture: 150 MB while it is decoded
MAX_BYTES = 32 * 2**20  # of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits of a service (see `create_app`); a request beyond them is refused before it costs much."""

    max_batch: int
    max_queue: int
    max_pixels: int
    max_bytes: int
    upload_seconds: float
    num_threads: int
    token: str | None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a number out of bounds, a token that no header can carry.
        """
        for name in ("max_batch", "max_queue", "max_pixels", "max_bytes", "num_threads"):
            check_number(getattr(self, name), f"serve: {name}", 1, whole=True)
        check_number(self.upload_seconds, "serve: upload_seconds", 0.01)
        check_token(self.token)


def check_token(token: object) -> None:
    """Check that a token, if there is one, can be carried by a header.

    Raises:
        UserError: it is no text, or has a space or a character beyond ASCII.
    """
    if token is None:
        return
    if not isinstance(token, str):
        raise UserError(f"serve: token: expected text, got {described(token)}.")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            "serve: token: expected letters, digits and signs of ASCII without a space. Choose another."
        )
