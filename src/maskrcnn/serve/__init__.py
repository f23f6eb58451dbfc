"""Models over HTTP: a web application that answers pictures with objects, and a page to try it with."""

from maskrcnn.errors import UserError

try:
    from maskrcnn.serve.app import create_app
except ModuleNotFoundError as e:
    if (e.name or "").split(".")[0] not in ("fastapi", "starlette", "uvicorn", "python_multipart"):
        raise
    raise UserError(
        f"serve: expected FastAPI, uvicorn and python-multipart, got no {e.name}. Do `pip install 'maskrcnn[serve]'`."
    ) from None

__all__ = ["create_app"]
