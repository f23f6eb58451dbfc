"""Serve models over HTTP: pictures in, objects out, and a page to try it with.

  maskrcnn serve --model runs/cells                             http://127.0.0.1:8000
  maskrcnn serve --model cells=runs/cells --model people=mask_rcnn_R_50_FPN_3x

POST /predict takes a picture (curl -F image=@photo.jpg http://127.0.0.1:8000/predict) and answers JSON, or with
?format=png the picture drawn. /healthz, /readyz, /metrics (Prometheus) and /openapi.json are for machines. Logs go to
standard error, a JSON object a line. SIGTERM ends the service when what it has accepted is answered.

Only this machine can reach it unless --host says otherwise; give a token then, and put a proxy with TLS before it.
`pip install 'maskrcnn[serve]'` installs what it needs.
"""

from __future__ import annotations

import argparse
import copy
import os
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.model_options import add_model_options, load_model, whole_number
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.models.mask_rcnn import MaskRCNN

TOKEN_VARIABLE = "MASKRCNN_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    add("--port", type=_port, default=8000, metavar="N", help="port to listen on; 0 for any free one (8000)")
    add(
        "--token",
        metavar="TEXT",
        help=f"ask for this bearer token (or {TOKEN_VARIABLE}, which no process list shows)",
    )
    add("--max-batch", type=whole_number, metavar="N", help="pictures at a time (1 on a CPU, 8 on a GPU)")
    add("--max-queue", type=whole_number, default=16, metavar="N", help="pictures that may wait (16)")
    add(
        "--max-pixels",
        type=whole_number,
        default=50_000_000,
        metavar="N",
        help="refuse pictures of more pixels before they are decoded (50000000)",
    )
    add("--max-megabytes", type=whole_number, default=32, metavar="N", help="refuse larger requests (32)")
    add_model_options(parser, several=True)


def main(args: argparse.Namespace) -> int:
    from maskrcnn.serve import create_app
    from maskrcnn.serve.run import listen, serve
    from maskrcnn.serve.settings import check_token

    named = named_models(args.model)
    if args.weights and len(named) > 1:
        raise UserError("--weights: expected one model, got several. Give each as NAME=FILE.")
    limits: dict[str, Any] = {
        "max_queue": args.max_queue,
        "max_pixels": args.max_pixels,
        "max_bytes": args.max_megabytes * 2**20,
        "token": args.token if args.token is not None else os.environ.get(TOKEN_VARIABLE) or None,
    }
    check_token(limits["token"])  # before the models are loaded
    at = listen(args.host, args.port)
    with at:
        models = {name: _load(args, model) for name, model in named.items()}
        on_cpu = all(model.device.type == "cpu" for model in models.values())
        app = create_app(models, max_batch=args.max_batch or (1 if on_cpu else 8), **limits)
        engines = ", ".join(f"{name} (engine {model.engine})" for name, model in models.items())
        host = f"[{args.host}]" if ":" in args.host else args.host
        line = f"serving {engines} on http://{host}:{at.getsockname()[1]}"
        serve(app, at, started=lambda: print(line, flush=True))
    return 0


def named_models(given: list[str]) -> dict[str, str]:
    """Take `--model` values apart: NAME=MODEL, or a MODEL whose name is its last part without an ending.

    Raises:
        UserError: two models of one name, a part that is empty.
    """
    named: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not equals or os.path.exists(text):
            model = text
            name = (
                os.path.basename(os.path.normpath(text))
                .removesuffix(".safetensors")
                .removesuffix(".onnx")
                .removesuffix(".xml")
            )
        if not name or not model:
            raise UserError(f"--model: expected NAME=MODEL, got {text!r}.")
        if name in named:
            raise UserError(
                f"--model: expected models of different names, got {name!r} twice. Give NAME=MODEL."
            )
        named[name] = model
    return named


def _load(args: argparse.Namespace, model: str) -> MaskRCNN:
    one = copy.copy(args)
    one.model = model
    return load_model(one)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)
