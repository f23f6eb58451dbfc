"""Pictures for the documentation: what a run finds on the nuclei, ground truth at the left.

    python benchmarks/nuclei_pictures.py runs/nuclei --data nuclei --out docs/images/nuclei.jpg

One JPEG below 200 KB with a row for each image of `val`. The usual ones are two of stained tissue and two of
fluorescence. They are chosen by their look, not by their scores.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

import maskrcnn
from maskrcnn.data.coco import CocoData, read_coco
from maskrcnn.files import check_writable, write_atomic
from maskrcnn.images.read import read_image
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.visualize import side_by_side

IMAGES = (16, 30, 23, 9)  # positions in val.json
WIDTH = 520  # pixels of a panel
LARGEST = 200_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder, or a safetensors file of ours")
    parser.add_argument("--data", type=Path, required=True, help="the nuclei's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images/nuclei.jpg"))
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="positions in val.json, from 0")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    args = parser.parse_args()
    check_writable(args.out)
    data = read_coco(args.data / "annotations" / "val.json", args.data / "val")
    model = maskrcnn.load(args.run)
    rows = [row(model, data, i, args.score_threshold) for i in args.images]
    content = jpeg(stacked(rows))
    write_atomic(args.out, content)
    print(f"{args.out}: {len(rows)} images, {len(content) / 1000:.0f} kB")


def row(model: MaskRCNN, data: CocoData, i: int, score_threshold: float) -> np.ndarray:
    path, truth = data.image_path(i), data.ground_truth(i)
    found = model.predict(path)
    count = int((found.scores >= score_threshold).sum())
    panels = [
        fitted(truth.draw(read_image(path), data.class_names)),
        fitted(found.draw(score_threshold=score_threshold)),
    ]
    return side_by_side(panels, (f"annotated: {len(truth)}", f"found: {count}"))


def fitted(panel: np.ndarray) -> np.ndarray:
    """`panel` WIDTH pixels wide."""
    height = round(panel.shape[0] * WIDTH / panel.shape[1])
    return np.asarray(Image.fromarray(panel).resize((WIDTH, height), Image.Resampling.LANCZOS))


def stacked(rows: list[np.ndarray]) -> Image.Image:
    """Pictures under each other on white."""
    sheet = Image.new("RGB", (max(r.shape[1] for r in rows), sum(r.shape[0] for r in rows)), "white")
    y = 0
    for r in rows:
        sheet.paste(Image.fromarray(r), (0, y))
        y += r.shape[0]
    return sheet


def jpeg(sheet: Image.Image) -> bytes:
    """As good as LARGEST allows: quality first gives way, then size."""
    while True:
        for quality in (88, 80, 72, 64):
            data = io.BytesIO()
            sheet.save(data, "JPEG", quality=quality, optimize=True)
            if data.tell() <= LARGEST:
                return data.getvalue()
        sheet = sheet.resize((sheet.width * 4 // 5, sheet.height * 4 // 5), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
