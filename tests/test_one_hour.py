"""The model can be read in one hour: from what goes in to what comes out, with what these files build on in the model's
own rooms.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import maskrcnn

PATH = (
    "structures", "ops.boxes", "ops.matching", "ops.roi_align", "backbones.resnet", "backbones.fpn",
    "models.rpn", "models.box_head", "models.mask_head", "models.mask_rcnn",
)  # fmt: skip
MOST = 2060  # lines; 1,900 before proposals and detections had a fixed size (decision 8)


def test_the_model_is_read_in_an_hour() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("maskrcnn", cache_dir=None)
    read = {f"maskrcnn.{name}" for name in PATH}
    todo = list(read)
    while todo:
        imported = graph.find_modules_directly_imported_by(todo.pop())
        new = {m for m in imported if m.startswith(("maskrcnn.models.", "maskrcnn.backbones."))} - read
        read |= new
        todo += new
    root = Path(maskrcnn.__file__).parent.parent
    lines = {m: len((root / (m.replace(".", "/") + ".py")).read_text().splitlines()) for m in read}
    assert sum(lines.values()) <= MOST, lines
