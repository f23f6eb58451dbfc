"""Every stage of inference against what detectron2 computed with the same weights and image.

Tolerances. In float64 both programs do the same arithmetic; what is left is the rounding of the reference file to
float32. In float32 the measure is the original's own distance from its float64 run (`fp32_vs_fp64` in the file): we
allow the features 1e-4 of their spread, and boxes, scores and masks three times that distance, but at least what
R50-FPN needs: the original ran with AVX-512, whose sums of 16 lanes round less than those of 8 (with AVX2 group norms'
boxes are off by 2.6 times the distance, with AVX-512 by less than twice). Without a pyramid, anchors of 724 pixels lie
at every place of the map, and box deltas are exact to 1e-5 (in float32 against float64, there and here), so that
boxes are to 0.02 pixels at best. Detections are matched one to one
by class and box: neighbours whose scores agree to the last bits change places. So do places of a heat map: in float32
one of 1,700 key points is at another place than the original's, of the same score.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.models.box_head import Detections
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import of_image
from maskrcnn.models.point_rend import PointRend
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.heatmaps import decode_heatmaps
from maskrcnn.structures import ImageBatch, Instances
from tests.parity import Parity
from tests.references import filled_detectron2_model, image_tensor, meta, read_npz

NAMES = (
    "mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_C4_3x",
    "mask_rcnn_R_50_DC5_3x",
    "mask_rcnn_R_50_FPN_3x_gn",
    "mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "cascade_mask_rcnn_R_50_FPN_3x",
    "keypoint_rcnn_R_50_FPN_3x",
    "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ",
    "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ",
    "Cityscapes/mask_rcnn_R_50_FPN",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",  # in float32 alone
    # Padded to 480 x 480, so that relative positions are resized; the cascade with 300 proposals.
    "mask_rcnn_vitdet_b_100ep",
    "cascade_mask_rcnn_vitdet_b_100ep",
    "pointrend_rcnn_R_50_FPN_3x_coco",
    # The network as it is written, without the rewrites of this processor. (PyTorch's group norms of channels-last maps
    # are too coarse for these tolerances.)
    "mask_rcnn_R_50_FPN_3x, eager",
    "mask_rcnn_R_50_C4_3x, eager",
    "keypoint_rcnn_R_50_FPN_3x, eager",
)
FILES = {
    "Cityscapes/mask_rcnn_R_50_FPN": "cityscapes_mask_rcnn_R_50_FPN",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "lvis_v0.5_mask_rcnn_R_50_FPN_1x",
}
# As `make parity` calls them; q: padded to a square.
CASES = {
    "coffee_s": "coffee, fp32",
    "coffee_s64": "coffee, fp64",
    "coffee_q": "coffee, fp32",
    "coffee_q64": "coffee, fp64",
}


class Tolerance(NamedTuple):
    feature: float  # of the level's standard deviation
    logit: float
    box: float  # pixels
    score: float
    mask: float  # logits; pixels for key points
    mask_area: float  # pixels
    coarse: float  # logits


FP64 = Tolerance(2e-6, 5e-6, 1e-4, 5e-6, 2e-4, 1, 2e-4)
# Of LVIS v0.5, which the original did not run in float64: how far its detections, 300 and not 100, are from our
# float64 run.
FROM_OUR_FP64 = {"max box d": 0.0029, "max score d": 5.7e-5}
AREA_KEYS = ("det_boxes", "det_classes", "mask_areas")
FP32_HEATMAPS = 0.004  # logits, whose spread is 1.9


def fp32_tolerance(case: dict[str, np.ndarray], pyramid: bool) -> Tolerance:
    own = meta(case)["fp32_vs_fp64"].values() or [FROM_OUR_FP64]  # of each image

    def thrice(what: str, at_least: float) -> float:
        return max(at_least, 3 * max((image.get(what, 0.0) for image in own), default=0.0))

    masks = "max mask-logit (or keypoint xy) d"
    if any(masks not in image for image in own):
        masks = "max mask-logit d"  # of the models added later

    return Tolerance(
        feature=1e-4,
        logit=2e-4,
        box=thrice("max box d", 0.005 if pyramid else 0.02),
        score=thrice("max score d", 3e-4),
        mask=thrice(masks, 0.008),
        mask_area=max(thrice("max mask area d", 3), 3 * own_area_distance(case)),
        coarse=0.008,
    )


def own_area_distance(case: dict[str, np.ndarray]) -> float:
    """Largest distance, in pixels, of the original's mask areas in float32 from those in float64, where a file has the
    two: one of them does not tell it.
    """
    if "coffee_s64/mask_areas" not in case:
        return 0.0
    ours, theirs = ({k: case[f"{tag}/{k}"] for k in AREA_KEYS} for tag in ("coffee_s", "coffee_s64"))
    distance = np.abs(ours["det_boxes"][:, None] - theirs["det_boxes"]).max(-1)
    distance += 1e6 * (ours["det_classes"][:, None] != theirs["det_classes"])
    areas = theirs["mask_areas"][distance.argmin(1)].astype(float)
    return float(np.abs(ours["mask_areas"] - areas).max())


class Stages(NamedTuple):
    batch: ImageBatch
    features: list[torch.Tensor]
    proposals: Proposals
    detections: Detections
    mask_logits: torch.Tensor | None
    coarse_logits: torch.Tensor | None  # PointRend's, of all classes
    heatmaps: torch.Tensor | None
    instances: Instances
    order: list[int]  # where the original's detections are among ours


# LVIS was not run in fp64.
RUNS = [
    (n, t)
    for n in NAMES
    for t in CASES
    if ("_q" in t) == ("vitdet" in n) and not (t.endswith("64") and n.startswith("LVIS"))
]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def run(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def name(run: tuple[str, str]) -> str:
    return run[0]


@pytest.fixture(scope="module")
def tag(run: tuple[str, str]) -> str:
    return run[1]


@pytest.fixture(scope="module")
def case(shared: Path, name: str) -> dict[str, np.ndarray]:
    preset = name.removesuffix(", eager")
    return read_npz(shared / "reference" / "detectron2" / f"{FILES.get(preset, preset)}.npz")


@pytest.fixture(scope="module")
def model(shared: Path, case: dict[str, np.ndarray], name: str) -> MaskRCNN:
    model, sha256 = filled(shared / "reference" / "detectron2", name)
    assert sha256 == meta(case)["fill_sha256"]
    return model


@functools.lru_cache(maxsize=1)
def filled(folder: Path, name: str) -> tuple[MaskRCNN, str]:
    """Make the model of a name, and the sha256 of its weights, once for its runs in float32 and in float64."""
    preset, eager = name.removesuffix(", eager"), name.endswith(", eager")
    model, sha256 = filled_detectron2_model(folder, preset, eager=eager)
    if "vitdet" in name:
        model.config.input.size_divisor = 480
        if model.config.box_head.cascade is not None:
            model.rpn.config.post_nms_topk_test = 300
    return model.eval(), sha256


@pytest.fixture(scope="module")
def tolerance(model: MaskRCNN, case: dict[str, np.ndarray], tag: str) -> Tolerance:
    return FP64 if tag.endswith("64") else fp32_tolerance(case, model.config.fpn is not None)


@pytest.fixture(scope="module")
def stages(shared: Path, model: MaskRCNN, case: dict[str, np.ndarray], tag: str) -> Stages:
    """Run all stages of inference, in the tag's precision, and keep their intermediate results."""
    model = model.to(torch.float64 if tag.endswith("64") else torch.float32)
    with Image.open(shared / "reference" / "detectron2" / "input_coffee_s_rgb.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    height, width = case[f"{tag}/orig_hw"].tolist()
    batch = model.preprocess([image_tensor(rgb)], [(height, width)])
    with torch.inference_mode():
        maps = model.backbone(batch.pixels)
        proposals = model.rpn(maps, batch.sizes)
        features = model.roi_features(maps)
        detections = model.box_head(features, proposals, batch.sizes)
        found = of_image(detections, 0)
        rois = features.rois(detections.boxes, detections.valid)
        coarse = model.mask_head.coarse(features, rois) if isinstance(model.mask_head, PointRend) else None
        with said_by(model.mask_head) as mask_logits, said_by(model.keypoint_head) as heatmaps:
            instances = model.describe(features, detections, batch)[0]
    order = matched(found, case[f"{tag}/det_boxes"], case[f"{tag}/det_classes"])
    logits, cells = (said[0] if said else None for said in (mask_logits, heatmaps))
    return Stages(batch, maps, of_image(proposals, 0), found, logits, coarse, cells, instances, order)


@contextmanager
def said_by(head: torch.nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Note what a head gives when it is called; in float64 calling it again takes seconds."""
    said: list[torch.Tensor] = []
    if head is None:
        yield said
        return

    def note(module: torch.nn.Module, inputs: tuple[object, ...], output: torch.Tensor) -> None:
        said.append(output)

    hook = head.register_forward_hook(note)
    yield said
    hook.remove()


class Check(NamedTuple):
    """One run of all stages beside the original's: `wanted` has the tag's arrays, by their names without it."""

    stages: Stages
    case: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]
    tolerance: Tolerance
    name: str
    tag: str
    parity: Parity

    def say(self, stage: str, value: float, bound: float, unit: str = "") -> None:
        self.parity(self.name, CASES[self.tag], stage, value, bound, unit)

    def compare(
        self, stage: str, actual: torch.Tensor | np.ndarray, key: str, bound: float, unit: str = ""
    ) -> None:
        self.say(stage, worst(actual, self.wanted[key]), bound, unit)


@pytest.fixture
def check(
    stages: Stages,
    case: dict[str, np.ndarray],
    tolerance: Tolerance,
    name: str,
    tag: str,
    parity: Parity,
) -> Check:
    wanted = {k.removeprefix(f"{tag}/"): v for k, v in case.items() if k.startswith(f"{tag}/")}
    return Check(stages, case, wanted, tolerance, name, tag, parity)


def matched(detections: Detections, boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """Match detections to the expected ones: for each the index of ours, of its class, with the nearest box, no two
    the same.
    """
    distance = torch.cdist(torch.from_numpy(boxes).double(), detections.boxes.double(), p=float("inf"))
    other_class = torch.from_numpy(labels)[:, None] != detections.labels
    order = (distance + 1e6 * other_class).argmin(dim=1).tolist()
    assert sorted(order) == list(range(len(detections.boxes)))
    return order


def worst(actual: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Largest difference between two arrays, which have to have one shape."""
    assert tuple(actual.shape) == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected.astype(np.float64)).max(initial=0.0))


def worst_place(actual: torch.Tensor, expected: np.ndarray, tolerance: float, ties: int) -> float:
    """Largest distance of key points, but for at most so many that are elsewhere with the same score: two places of a
    heat map whose values agree to its rounding change places, with the number of threads too.
    """
    assert tuple(actual.shape) == expected.shape
    ours = actual.double().numpy()
    distance = np.abs(ours - expected)[..., :2].max(-1)
    beyond = distance > tolerance
    assert beyond.sum() <= ties
    np.testing.assert_allclose(ours[beyond][:, 2], expected[beyond][:, 2], rtol=FP32_HEATMAPS)
    return float(distance[~beyond].max())


def enlarged_alike(boxes: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    """Detections whose heat maps are enlarged to one size in both programs: all, but for at most one.

    A map is enlarged to its box's size, rounded up: a box 151.0019 pixels high in the original and 150.9995 here, by
    rounding, has all its points elsewhere.
    """
    ours, theirs = (
        np.ceil(b[:, 2:] - b[:, :2]) for b in (boxes.double().numpy(), expected.astype(np.float64))
    )
    alike = (ours == theirs).all(1)
    assert (~alike).sum() <= 1
    return alike


@pytest.mark.slow
class TestInference:
    def test_parameters(self, model: MaskRCNN, case: dict[str, np.ndarray]) -> None:
        assert sum(p.numel() for p in model.parameters()) == meta(case)["params"]
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == meta(case)["trainable_params"]

    def test_padding(self, check: Check) -> None:
        assert list(check.stages.batch.pixels.shape[2:]) == check.wanted["padded_hw"].tolist()

    def test_features(self, check: Check) -> None:
        keys = [k.removesuffix("_std") for k in check.wanted if k.startswith("feat_") and "_std" in k]
        for feature, key in zip(check.stages.features, keys, strict=True):
            spread = float(check.wanted[f"{key}_std"])
            y, x = check.wanted[f"{key}_crop_yx"]
            channels = torch.arange(8) * (feature.shape[1] // 8)
            assert list(feature.shape) == check.wanted[f"{key}_shape"].tolist()
            crop = worst(feature[0, channels, y : y + 16, x : x + 16], check.wanted[f"{key}_crop"])
            mean = abs(float(feature.double().mean()) - float(check.wanted[f"{key}_mean"]))
            check.say("features", max(crop, mean) / spread, check.tolerance.feature, "of spread")
            assert float(feature.double().std(correction=0)) == pytest.approx(spread, rel=1e-4)

    def test_proposals(self, check: Check) -> None:
        boxes, logits, _ = check.stages.proposals
        assert len(boxes) == check.wanted["n_proposals"]
        check.compare("proposals", boxes[:50], "proposal_boxes_top50", check.tolerance.box, "px")
        check.compare("objectness", logits[:50], "proposal_logits_top50", check.tolerance.logit)

    def test_detections(self, check: Check) -> None:
        found, order = check.stages.detections, check.stages.order
        assert found.labels[order].tolist() == check.wanted["det_classes"].tolist()
        check.compare("boxes", found.boxes[order], "det_boxes", check.tolerance.box, "px")
        check.compare("scores", found.scores[order], "det_scores", check.tolerance.score)

    def test_mask_logits_or_keypoints(self, check: Check) -> None:
        order, bound = check.stages.order, check.tolerance.mask
        if check.stages.mask_logits is not None:
            logits = check.stages.mask_logits[order]
            key = next(k for k in check.wanted if k.startswith("mask_logits_first"))
            check.compare("mask logits", logits[: len(check.wanted[key])], key, bound)
            check.compare("mask logits", logits.sigmoid().mean((1, 2)), "mask_prob_mean", bound)
        if check.stages.coarse_logits is not None:
            coarse = check.stages.coarse_logits[order[:10]]
            labels = check.stages.detections.labels[order[:10]]
            own = coarse[torch.arange(10), labels]
            check.compare("coarse mask logits", own, "coarse_logits_first10", check.tolerance.coarse)
        if check.stages.heatmaps is not None:
            heatmaps, boxes = check.stages.heatmaps[order], check.stages.detections.boxes[order]
            # Of the float32 run alone: in float64 their own rounding is the difference.
            logits = worst(heatmaps[:2], check.case["coffee_s/keypoint_heatmaps_first2"])
            check.say("heat maps", logits, FP32_HEATMAPS)
            alike = enlarged_alike(boxes, check.wanted["det_boxes"])
            keypoints = decode_heatmaps(heatmaps, boxes)[alike]
            expected = check.wanted["keypoints_net"][alike]
            check.say("key points", worst_place(keypoints, expected, bound, ties=2), bound, "px")
            check.say("key-point scores", worst(keypoints[..., 2], expected[..., 2]), bound)

    def test_final_boxes_and_masks(self, check: Check) -> None:
        instances, order = check.stages.instances, check.stages.order
        assert len(instances) == check.wanted["n_final"] == len(order)
        enlarged = instances.image_size[0] / check.stages.batch.image_sizes[0][0]
        bound = check.tolerance.box * enlarged
        check.compare("final boxes", instances.boxes[order], "final_boxes", bound, "px")
        if instances.keypoints is not None:
            bound = check.tolerance.mask * enlarged
            alike = enlarged_alike(check.stages.detections.boxes[order], check.wanted["det_boxes"])
            expected = check.wanted["keypoints_final"][alike]
            places = worst_place(instances.keypoints[order][alike], expected, bound, ties=2)
            check.say("final key points", places, bound, "px")
        if instances.masks is None:
            return
        bound = check.tolerance.mask_area
        check.compare("mask areas", np.asarray(instances.masks.areas())[order], "mask_areas", bound, "px")
        if "masks_first5_packed" in check.wanted:  # kept for the float32 run only
            height, width = instances.image_size
            packed = check.wanted["masks_first5_packed"]
            expected = np.unpackbits(packed)[: 5 * height * width].reshape(5, height, width).astype(bool)
            ours = np.asarray(instances.masks)[order[:5]]
            check.say("mask pixels", float((ours != expected).sum((1, 2)).max()), bound, "px")
