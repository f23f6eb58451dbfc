"""The frame of the command line: finds the verb, parses its options, turns mistakes into one line.

A verb is a module of this package with `add_arguments(parser)` and `main(args) -> int`, the exit status. One
that takes settings by their dotted names has `main(args, extra)`: `extra` is what the parser did not know.
Verbs are imported only when named, and import torch only when they run, so that `--help` answers at once.

Exit status: 0 success, 1 part of the work failed, 2 a user's mistake (one line on standard error, no
traceback), 130 interrupted (SIGINT), 143 a training that SIGTERM has ended. A traceback is a bug of ours.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from maskrcnn.engines.heap import keep_freed_memory
from maskrcnn.errors import UserError, did_you_mean, one_line
from maskrcnn.version import __version__

VERBS = {
    "train": "train or fine-tune a model on your data",
    "evaluate": "COCO numbers of a model, or of results made elsewhere",
    "predict": "boxes and masks of images, drawn and as COCO JSON",
    "doctor": "check a data set before training",
    "data": "write a data set anew: another format, divided, or several as one",
    "view": "look at a data set: its pictures with their objects, its classes and sizes",
    "serve": "models over HTTP, with a page to try them",
    "convert": "weights to a safetensors file with its config, or back to the original's",
    "export": "a model as a file for other runtimes (ONNX)",
    "push": "a trained model to the Hugging Face hub, with a card",
    "bench": "measure models on this machine: time and memory",
    "list": "the models, with their published numbers",
    "demo": "make a small data set, train on it and show the result as a page",
}

_READ_PICTURES = {"train", "data", "evaluate", "predict", "export", "doctor", "view", "demo"}

# What the file system refuses is the user's to mend. Other OSErrors are bugs.
_USERS_ERRNO = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse, but an error is a `UserError`: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("maskrcnn").strip()
        raise UserError(f"{verb + ': ' if verb else ''}{message}. See `{self.prog} --help`.")


def run() -> NoReturn:
    """The entry point of the `maskrcnn` command."""
    if sys.argv[1:2] in (["predict"], ["evaluate"], ["serve"]):
        keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of classes and files may have letters that the terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv[1:])
    except Exception:
        print(
            f"A fault of maskrcnn {__version__}. Please report it with {_machine()} and this:",
            file=sys.stderr,
        )
        raise
    sys.exit(status)


def _machine() -> str:
    """Facts of the machine for the report of a fault, as far as they can be told."""
    try:
        from maskrcnn import processor

        return processor.describe().line()
    except Exception as e:  # whatever has failed may fail here, too, and the traceback is worth more
        return f"what this machine is ({one_line(str(e))})"


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status; users' mistakes are printed, not raised."""
    try:
        status = _dispatch(list(argv))
        sys.stdout.flush()
        return status
    except UserError as e:
        return _refuse(str(e))
    except KeyboardInterrupt as e:  # an `Interrupted` says more
        print(f"maskrcnn: {e if str(e) else 'interrupted'}", file=sys.stderr)
        return getattr(e, "status", 130)
    except BrokenPipeError:
        # The reader has gone, as in `maskrcnn list | head`; Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        if e.errno not in _USERS_ERRNO:
            raise
        return _refuse(f"{e.filename or 'output'}: {(e.strerror or str(e)).lower()}.")


def _dispatch(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"maskrcnn {__version__}")
        return 0
    if verb not in VERBS:
        what = f"unknown command {verb!r}" if verb else "expected a command"
        raise UserError(f"{what}. {did_you_mean(verb, VERBS)} See `maskrcnn --help`.".replace("  ", " "))
    return _run_verb(verb, rest)


def _run_verb(verb: str, argv: list[str]) -> int:
    module = importlib.import_module(f"maskrcnn.cli.{verb}")
    parser = Parser(
        prog=f"maskrcnn {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a shortened option would change its meaning when a new one comes
    )
    module.add_arguments(parser)
    if verb in _READ_PICTURES:
        _add_max_pixels(parser)
    try:
        args, extra = parser.parse_known_args(argv)
    except SystemExit as e:  # --help has been printed
        return int(e.code or 0)
    if getattr(args, "max_pixels", None):
        from maskrcnn.images.read import set_max_pixels

        set_max_pixels(args.max_pixels)
    if len(inspect.signature(module.main).parameters) == 2:
        return module.main(args, extra)
    if extra:
        raise UserError(_unknown(verb, extra[0], parser))
    return module.main(args)


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    from maskrcnn.cli.model_options import whole_number

    parser.add_argument(
        "--max-pixels",
        type=whole_number,
        metavar="N",
        help="refuse pictures of more pixels before they are decoded (178956970, or MASKRCNN_MAX_PIXELS)",
    )


def _unknown(verb: str, word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"{verb}: unexpected argument {word!r}. See `maskrcnn {verb} --help`."
    known = [s for action in parser._actions for s in action.option_strings]
    near = did_you_mean(word.split("=")[0], known, show_all_up_to=0)
    return f"{verb}: unknown option {word!r}. {near or f'See `maskrcnn {verb} --help`.'}"


def _help() -> str:
    lines = [f"  {verb:<10}{text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: maskrcnn COMMAND ... | --help | --version",
            "",
            "Mask R-CNN: train, evaluate and predict.",
            "",
            *lines,
            "",
            "`maskrcnn COMMAND --help` tells the options of a command.",
        ]
    )


def _refuse(message: str) -> int:
    """Print a user's mistake as one line, whatever characters a file name brought in, and give the status."""
    print(f"maskrcnn: {one_line(message)}", file=sys.stderr)
    return 2
