"""Sessions over .pt2 files that `maskrcnn export` wrote, which are looked at before PyTorch reads them.

`torch.export.load` reads tensors that a file calls pickled with a reader that runs code. Ours have none: their tensors
are plain bytes and all else is JSON. A file with anything else in it is refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.errors import UserError, one_line
from maskrcnn.ops.roi_align import roi_align  # noqa: F401 - registers its operator, as those below
from maskrcnn.ops.suppression import suppress  # noqa: F401
from maskrcnn.runtime.sessions import checked_facts

FACTS = "maskrcnn.json"  # among the extra files


class Pt2Session:
    """Exported program as a session (`runtime.sessions.Session`).

    Raises:
        UserError: no such file, a damaged one, one with a pickle or a library in it, or one that `maskrcnn export` did
            not write.
    """

    engine = "torch"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such model file.")
        try:
            with zipfile.ZipFile(path) as archive:
                _refuse_code(archive, path)
                names = [n for n in archive.namelist() if n.endswith(f"extra/{FACTS}")]
                facts = json.loads(archive.read(names[0])) if names else {}
            self.facts = checked_facts(facts, path)
            self._module: Any = torch.export.load(path).module()
        except UserError:
            raise
        except Exception as e:  # of kinds of its own
            raise UserError(
                f"{path}: expected a .pt2 model, got a damaged file ({one_line(str(e))[:120]})."
            ) from None

    @torch.inference_mode()
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = self._module(torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["image_sizes"]))
        return {name: value.numpy() for name, value in out.items()}


class CompiledSession:
    """Package of AOTInductor as a session. Opening one runs code of whoever wrote it: for files just written here."""

    engine = "aot"

    def __init__(self, path: Path) -> None:
        self._run: Any = torch._inductor.aoti_load_package(str(path))  # type: ignore[attr-defined]
        self.facts = checked_facts(self._run.get_metadata(), path)

    @torch.inference_mode()
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = self._run(torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["image_sizes"]))
        return {name: value.numpy() for name, value in out.items()}


# Members of an archive without anything that runs when it is read: no pickles, no compiled code.
HARMLESS = re.compile(
    r"data/weights/(weight_\d+|\w+_config\.json)|data/constants/(tensor_\d+|\w+_config\.json)|models/\w+\.json|"
    r"data/sample_inputs/\w+\.pt|extra/maskrcnn\.json|archive_format|archive_version|version|byteorder|\.data/\w+"
)


def _refuse_code(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a file whose reader would unpickle something or load a library.

    Raises:
        UserError: it has a pickled tensor, object or example of inputs, or a member of an unknown kind.
    """
    for name in archive.namelist():
        inside = name.split("/", 1)[-1]
        if inside.startswith("data/aotinductor/"):
            raise UserError(
                f"{path}: expected a .pt2 of --format torch, got a compiled package, which may run code. Open one "
                "that you trust with torch._inductor.aoti_load_package."
            )
        harmless = HARMLESS.fullmatch(inside) is not None
        if inside.startswith("data/sample_inputs/"):
            harmless = harmless and archive.getinfo(name).file_size == 0
        if inside.endswith("_config.json"):
            entries = json.loads(archive.read(name))["config"].values()
            harmless = harmless and not any(entry["use_pickle"] for entry in entries)
        if not harmless:
            raise UserError(
                f"{path}: expected tensors as plain bytes and a graph as JSON, got {inside}, which may run code."
            )
