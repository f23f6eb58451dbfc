"""Formats of what was found: those of data sets that tools for labelling open, COCO's results, GeoJSON and Parquet.

| format | what is written below OUT |
|---|---|
| coco | predictions.json: COCO's results, one JSON for all pictures |
| labelme | NAME.json for each picture |
| cvat | annotations.xml |
| label-studio | label_studio.json, label_studio.xml |
| yolo | labels/NAME.txt, scores/NAME.txt, classes.txt |
| geojson | NAME.geojson for each picture: polygons in WGS 84, the raster's CRS or, of others, pixels |
| parquet | predictions.parquet/, a row a picture, failed ones too, in parts |

All are `maskrcnn.data.writers.Writer`s.
"""

from __future__ import annotations

from maskrcnn.data.writers import WRITERS, Writer
from maskrcnn.predict.formats import geojson, parquet, results

FORMATS: dict[str, Writer] = {
    "coco": results,
    "labelme": WRITERS["labelme"],
    "cvat": WRITERS["cvat"],
    "label-studio": WRITERS["label-studio"],
    "yolo": WRITERS["yolo"],
    "geojson": geojson,
    "parquet": parquet,
}
