"""Places of pictures on the earth, and detections as GeoJSON.

GeoJSON is RFC 7946: WGS 84, longitude first, outlines counter-clockwise, holes clockwise. In a raster's own CRS it is
GeoJSON of 2008, whose `crs` member GDAL and QGIS still read. A picture without a CRS has places of its own: what its
transform gives, or pixels of its largest level from the upper left corner, which is what QuPath takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.masks.outlines import Ring
from maskrcnn.tiles.gdal import check_gdal, gdal, is_placed, open_gdal, reason
from maskrcnn.tiles.windows import full_size

Crs = Literal["", "raster", "wgs84"]
_WGS84 = "OGC:CRS84"  # longitude first, whatever an authority says of the order


@dataclass(frozen=True, slots=True)
class Place:
    """Coordinates of a picture's pixels.

    path: for messages; size: (H, W) of its largest level; crs: of the coordinates, as WKT, or None;
    transform: (a, b, c, d, e, f): column x and row y, counted from the upper left corner of the first pixel, lie at
    (a x + b y + c, d x + e y + f).
    """

    path: Path
    size: tuple[int, int]
    transform: tuple[float, float, float, float, float, float]
    crs: str | None


class Found(Protocol):
    """Object of a picture, as `data.writers.LabelledObject` is one.

    parts: [outline, hole, hole, ...] each, rings x, y, x, y, ... in the picture's pixels.
    """

    @property
    def label(self) -> int: ...
    @property
    def score(self) -> float | None: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...
    def parts(self, tolerance: float = ...) -> list[list[Ring]]: ...


def place_of(path: str | Path) -> Place:
    """Read where a picture lies.

    Raises:
        UserError: it cannot be read, or rasterio is not installed.
    """
    check_gdal("GeoJSON")
    path = Path(path)
    raster = open_gdal(path) if path.is_file() else None
    if raster is None or not is_placed(raster):  # of a photograph GDAL does not know which way is up
        return Place(path, full_size(path), (1, 0, 0, 0, 1, 0), None)
    with raster:
        a, b, c, d, e, f = raster.transform[:6]
        crs = raster.crs.to_wkt() if raster.crs else None
        return Place(path, (raster.height, raster.width), (a, b, c, d, e, f), crs)


def check_crs(paths: Iterable[str | Path], crs: Crs) -> None:
    """Make sure that the pictures' detections can be told in the coordinates that are asked for.

    Raises:
        UserError: WGS 84 is asked for a picture without a CRS, or rasterio is not installed.
    """
    check_gdal("--format geojson")
    if crs != "wgs84":
        return
    for path in paths:
        raster = open_gdal(Path(path)) if Path(path).is_file() else None
        if raster is not None:  # what cannot be read is told when it is read
            with raster:
                if not raster.crs:
                    raise _without_crs(Path(path))


def geojson(
    place: Place,
    size: tuple[int, int],
    objects: Sequence[Found],
    class_names: Sequence[str] = (),
    *,
    crs: Crs = "",
    tolerance: float = 0.0,
) -> str:
    """Write a picture's objects as GeoJSON: a Polygon or MultiPolygon each, with its label, category and score.

    Coordinates are rounded to a thousandth of a pixel. An object without a mask is its box; one across the
    antimeridian is cut there.

    size: (H, W) of the level whose pixels the objects are in.
    crs: "wgs84", "raster" for the raster's own, "" for WGS 84 where the picture has a CRS and its own places where not.
    tolerance: pixels that an outline may move to have fewer corners.

    Raises:
        UserError: WGS 84 of a picture without a CRS, or of places that it does not know.
    """
    if crs == "wgs84" and place.crs is None:
        raise _without_crs(place.path)
    to_earth = place.crs is not None and crs != "raster"
    shapes = [o.parts(tolerance) or [[_box_ring(o.box)]] for o in objects]
    features = []
    for o, geometry in zip(objects, _geometries(place, size, shapes, to_earth), strict=True):
        name = class_names[o.label] if o.label < len(class_names) else f"class {o.label}"
        about: dict[str, Any] = {"label": o.label, "category": name, "score": o.score}
        if place.crs is None:
            about["classification"] = {"name": name}  # where QuPath looks for it
        feature = {"type": "Feature", "properties": about, "geometry": geometry}
        features.append(json.dumps(feature, ensure_ascii=False))
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if place.crs is not None and not to_earth:
        head["crs"] = {"type": "name", "properties": {"name": _name_of(place.crs)}}
    lines = ",\n".join(features)
    return f'{json.dumps(head)[:-1]}, "features": [\n{lines}\n]}}\n'


def _geometries(
    place: Place, size: tuple[int, int], shapes: list[list[list[Ring]]], to_earth: bool
) -> Iterator[dict[str, Any]]:
    """Yield each object's geometry; the places of all are told at once, for a CRS is slow to set up."""
    rings = [np.reshape(ring, (-1, 2)) for parts in shapes for part in parts for ring in part]
    own = _own(place, size, np.concatenate(rings) if rings else np.zeros((0, 2)))
    told = _on_earth(place, own) if to_earth else own
    digits = _digits(place, to_earth)
    cuts = np.cumsum([len(ring) for ring in rings])[:-1]
    each = zip(np.split(own, cuts), np.split(told, cuts), strict=True)
    for parts in shapes:
        both = [[next(each) for _ in part] for part in parts]
        polygons = [[ring for _, ring in part] for part in both]
        if to_earth and any(np.ptp(outline[:, 0]) > 180 for outline, *_ in polygons):
            polygons = _cut(place, [[ring for ring, _ in part] for part in both])
        coordinates = [
            [_closed(ring, digits, is_hole=k > 0) for k, ring in enumerate(part)] for part in polygons
        ]
        if len(coordinates) == 1:
            yield {"type": "Polygon", "coordinates": coordinates[0]}
        else:
            yield {"type": "MultiPolygon", "coordinates": coordinates}


def _own(place: Place, size: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """Places (P, 2) in the raster's coordinates of points x, y of a level."""
    a, b, c, d, e, f = place.transform
    x, y = (points * (place.size[1] / size[1], place.size[0] / size[0])).T
    return np.stack([a * x + b * y + c, d * x + e * y + f], 1)


def _on_earth(place: Place, points: np.ndarray) -> np.ndarray:
    """Longitudes and latitudes (P, 2) of places in the raster's CRS."""
    from rasterio.warp import transform

    try:
        with gdal():
            lon, lat, *_ = transform(_crs(place), _WGS84, points[:, 0], points[:, 1])
    except Exception as e:
        raise _unknown(place, reason(e)) from None
    told = np.stack([lon, lat], 1)
    if not np.isfinite(told).all():
        raise _unknown(place, "some lie outside of what the CRS describes")
    return told


def _cut(place: Place, parts: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Polygons on the earth, cut at the antimeridian, of polygons in the raster's CRS."""
    from rasterio.warp import transform_geom

    closed = [[np.concatenate([ring, ring[:1]]).tolist() for ring in part] for part in parts]
    try:
        with gdal():
            cut = transform_geom(
                _crs(place),
                _WGS84,
                {"type": "MultiPolygon", "coordinates": closed},
                antimeridian_cutting=True,
            )
    except Exception as e:
        raise _unknown(place, reason(e)) from None
    polygons = cut["coordinates"] if cut["type"] == "MultiPolygon" else [cut["coordinates"]]
    return [[np.asarray(ring)[:-1, :2] for ring in part] for part in polygons]


def _closed(ring: np.ndarray, digits: int, is_hole: bool) -> list[list[float]]:
    """Ring whose last place is its first, counter-clockwise, or clockwise for a hole."""
    x, y = (ring - ring[0]).T
    if (np.dot(x, np.roll(y, -1)) < np.dot(y, np.roll(x, -1))) != is_hole:
        ring = ring[::-1]
    return np.concatenate([ring, ring[:1]]).round(digits).tolist()


def _digits(place: Place, to_earth: bool) -> int:
    """Decimals that tell a thousandth of a pixel in the middle of the picture."""
    middle = np.array(place.size[::-1]) / 2 + [[0, 0], [1, 0], [0, 1]]
    own = _own(place, place.size, middle)
    corner, right, below = _on_earth(place, own) if to_earth else own
    (a, b), (c, d) = right - corner, below - corner
    pixel = math.sqrt(abs(a * d - b * c)) or 1.0
    return max(0, 3 - math.floor(math.log10(pixel)))


def _box_ring(box: tuple[float, float, float, float]) -> Ring:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _name_of(crs: str) -> str:
    """Name of a CRS for the `crs` member: its number, or where it has none its WKT, which GDAL takes as well."""
    from rasterio.crs import CRS

    authority = CRS.from_wkt(crs).to_authority(confidence_threshold=100)
    if authority is None:
        return crs
    if authority == ("EPSG", "4326"):
        return "urn:ogc:def:crs:OGC:1.3:CRS84"  # the same with longitude first, as it is written here
    return "urn:ogc:def:crs:{}::{}".format(*authority)


def _crs(place: Place) -> Any:
    from rasterio.crs import CRS

    return CRS.from_wkt(place.crs)


def _unknown(place: Place, why: str) -> UserError:
    return UserError(f"{place.path}: its places cannot be told in WGS 84: {why}. Take --crs raster.")


def _without_crs(path: Path) -> UserError:
    return UserError(
        f"{path}: expected a CRS, to tell places in WGS 84, got none. Give it one (gdal_edit -a_srs), or take "
        "--crs raster."
    )
