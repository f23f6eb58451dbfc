"""GeoJSON: the same places, told by GDAL; the rules of RFC 7946."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data.writers import LabelledObject
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_encode
from maskrcnn.predict.geo import Place, check_crs, geojson, place_of
from maskrcnn.tiles import gdal

rasterio = pytest.importorskip("rasterio")
from rasterio.features import rasterize  # noqa: E402
from rasterio.warp import transform_geom  # noqa: E402

SIZE = (120, 160)
UTM = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)
TURNED = (0.4, 0.3, 500_000.0, 0.3, -0.4, 5_000_000.0)


def place(transform: tuple[float, ...] = UTM, crs: Any = "EPSG:32633") -> Place:
    wkt = None if crs is None else rasterio.crs.CRS.from_user_input(crs).to_wkt()
    return Place(Path("ortho.tif"), SIZE, transform, wkt)  # pyright: ignore[reportArgumentType]


def masks() -> list[np.ndarray]:
    """A ring with an island in it, pixels that touch at a corner, and a disc."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(y - 60, x - 50)
    ring: np.ndarray = ((away < 40) & (away > 20)) | (away < 8)
    corners = np.zeros(SIZE, bool)
    corners[10:20, 120:130] = corners[20:30, 130:140] = True
    return [ring, corners, np.hypot(y - 90, x - 130) < 15]


def objects() -> list[LabelledObject]:
    return [
        LabelledObject(k, (0, 0, 9, 9), rle_encode(mask.astype(np.uint8)), 0.9 - 0.1 * k)
        for k, mask in enumerate(masks())
    ]


def filled(
    geometry: dict[str, Any], transform: tuple[float, ...], size: tuple[int, int] = SIZE
) -> np.ndarray:
    return np.asarray(rasterize([geometry], size, transform=rasterio.Affine(*transform)), bool)


def rings(geometry: dict[str, Any]) -> list[list[np.ndarray]]:
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [[np.array(ring) for ring in part] for part in parts]


def area(ring: np.ndarray) -> float:
    x, y = (ring - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


@pytest.mark.parametrize("transform", [UTM, TURNED])
@pytest.mark.parametrize("crs", ["wgs84", "raster", ""])
def test_gdal_finds_the_masks_where_they_are(transform, crs):
    found = json.loads(geojson(place(transform), SIZE, objects(), ["ring", "two"], crs=crs))
    assert found["type"] == "FeatureCollection"
    for mask, feature in zip(masks(), found["features"], strict=True):
        geometry = feature["geometry"]
        if crs != "raster":
            assert all(13 < lon < 17 and 44 < lat < 47 for p in rings(geometry) for r in p for lon, lat in r)
            geometry = transform_geom("EPSG:4326", "EPSG:32633", geometry)
        np.testing.assert_array_equal(filled(geometry, transform), mask)
    assert [f["properties"] for f in found["features"]] == [
        {"label": 0, "category": "ring", "score": 0.9},
        {"label": 1, "category": "two", "score": 0.8},
        {"label": 2, "category": "class 2", "score": 0.7},
    ]


@pytest.mark.parametrize("crs", ["wgs84", "raster"])
def test_rings_are_closed_and_turn_by_the_right_hand_rule(crs):
    for feature in json.loads(geojson(place(), SIZE, objects(), crs=crs))["features"]:
        for outline, *holes in rings(feature["geometry"]):
            assert area(outline) > 0
            assert all(area(hole) < 0 for hole in holes)
            for ring in (outline, *holes):
                assert len(ring) >= 4
                assert ring[0].tolist() == ring[-1].tolist()
    kinds = [f["geometry"]["type"] for f in json.loads(geojson(place(), SIZE, objects()))["features"]]
    assert kinds == ["MultiPolygon", "MultiPolygon", "Polygon"]


def test_only_the_rasters_own_crs_is_named():
    laea = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=45 +lon_0=15 +ellps=GRS80 +units=m")
    named = {"EPSG:32633": "urn:ogc:def:crs:EPSG::32633", "EPSG:4326": "urn:ogc:def:crs:OGC:1.3:CRS84"}
    for crs, name in named.items():
        own = json.loads(geojson(place(crs=crs), SIZE, [], crs="raster"))
        assert own["crs"] == {"type": "name", "properties": {"name": name}}
    own = json.loads(geojson(place(crs=laea), SIZE, [], crs="raster"))
    assert rasterio.crs.CRS.from_wkt(own["crs"]["properties"]["name"]) == laea
    assert "crs" not in json.loads(geojson(place(), SIZE, objects(), crs="wgs84"))
    assert json.loads(geojson(place(), SIZE, [])) == {"type": "FeatureCollection", "features": []}


def test_objects_of_a_level_lie_where_the_level_does():
    mask = masks()[2]
    small = [LabelledObject(0, (0, 0, 9, 9), rle_encode(mask[::2, ::2].astype(np.uint8)), 0.5)]
    (feature,) = json.loads(geojson(place(), (60, 80), small, crs="raster"))["features"]
    level = (1.0, 0.0, UTM[2], 0.0, -1.0, UTM[5])
    np.testing.assert_array_equal(filled(feature["geometry"], level, (60, 80)), mask[::2, ::2])


def test_without_a_mask_an_object_is_its_box():
    box = [LabelledObject(0, (10.5, 20, 30, 40.25), None, 0.5)]
    (feature,) = json.loads(geojson(place(crs=None, transform=(1, 0, 0, 0, 1, 0)), SIZE, box))["features"]
    (((outline,),),) = (rings(feature["geometry"]),)
    assert {tuple(p) for p in outline.tolist()} == {(10.5, 20), (30, 20), (30, 40.25), (10.5, 40.25)}


def test_without_a_crs_places_are_pixels_and_the_class_is_where_qupath_looks():
    found = json.loads(geojson(place((1, 0, 0, 0, 1, 0), None), SIZE, objects()[2:], ["a", "b", "Tumour"]))
    (feature,) = found["features"]
    np.testing.assert_array_equal(filled(feature["geometry"], (1, 0, 0, 0, 1, 0)), masks()[2])
    assert feature["properties"]["classification"] == {"name": "Tumour"}
    assert "crs" not in found


def test_a_tolerance_leaves_corners_out():
    exact, fewer = (
        rings(json.loads(geojson(place(), SIZE, objects()[2:], tolerance=t))["features"][0]["geometry"])[0][0]
        for t in (0.0, 1.0)
    )
    assert len(fewer) < len(exact) / 2


def test_an_object_across_the_antimeridian_is_cut_there():
    crossing = place((30, 0, 262_500, 0, -30, 5_003_000), "EPSG:32601")  # 180 degrees lie in its middle
    mask = np.zeros(SIZE, bool)
    mask[40:80, 20:140] = True
    text = geojson(crossing, SIZE, [LabelledObject(0, (0, 0, 9, 9), rle_encode(mask.astype(np.uint8)), 0.5)])
    (feature,) = json.loads(text)["features"]
    longitudes = [[lon for lon, _ in outline] for (outline,) in rings(feature["geometry"])]
    assert sorted(min(part) > 0 for part in longitudes) == [False, True]
    assert all(max(part) - min(part) < 1 for part in longitudes)
    assert {abs(lon) for part in longitudes for lon in part if abs(abs(lon) - 180) < 1e-9}
    pixels = (
        sum(
            abs(area(np.array(ring)))
            for part in transform_geom("EPSG:4326", "EPSG:32601", feature["geometry"])["coordinates"]
            for ring in part
        )
        / 30**2
    )
    assert pixels == pytest.approx(mask.sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        (None, UTM, r"ortho\.tif: expected a CRS, to tell places in WGS 84, got none"),
        ("EPSG:32633", (1e9, 0, 1e15, 0, 1e9, 1e15), r"ortho\.tif: its places cannot be told in WGS 84: "),
    ],
)
def test_wgs84_that_cannot_be_told_is_one_line(crs, transform, message):
    with pytest.raises(UserError, match=message) as caught:
        geojson(place(transform, crs), SIZE, objects(), crs="wgs84")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_the_place_of_a_file(tmp_path, crs):
    path = tmp_path / "ortho.tif"
    options = {"height": 20, "width": 30, "count": 1, "dtype": "uint8", "transform": rasterio.Affine(*UTM)}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, **options) as file:
        file.write(np.ones((1, 20, 30), np.uint8))
    found = place_of(path)
    assert (found.size, found.transform) == ((20, 30), UTM)
    assert (found.crs is None) == (crs is None)
    check_crs([path], "raster")
    if crs is None:
        with pytest.raises(UserError, match=r"ortho\.tif: expected a CRS"):
            check_crs([path], "wgs84")
    else:
        check_crs([path], "wgs84")


def test_a_photograph_that_stands_upright_by_its_exif_is_in_its_upright_pixels(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg", exif=exif)
    found = place_of(tmp_path / "photo.jpg")
    assert (found.size, found.transform, found.crs) == ((30, 20), (1, 0, 0, 0, 1, 0), None)


def test_geojson_needs_the_extra(monkeypatch):
    monkeypatch.setattr(gdal, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the package rasterio.*pip install 'maskrcnn\[geo\]'"):
        check_crs([], "")
