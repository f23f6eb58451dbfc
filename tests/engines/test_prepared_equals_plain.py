"""A prepared model says what the plain one says, for every preset: in inference and in training, whatever processor the
rewrites are meant for.
"""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import maskrcnn
from maskrcnn import presets, processor
from maskrcnn.backbones.resnet import BottleneckBlock
from maskrcnn.engines.prepare import for_training, prepare
from maskrcnn.engines.rewrites import plain, rewrite
from maskrcnn.engines.table import REWRITES
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs
from tests.models.tiny import distinct_structures, objects, pictures, random_boxes, tiny

BOXES = random_boxes(40, (80, 96))
KINDS = get_args(processor.Kind)


def wide(name: str = "mask_rcnn_R_50_FPN_1x") -> MaskRCNN:
    """Small model with a pyramid wide enough for Winograd's convolutions."""
    torch.manual_seed(0)
    config = presets.get(name, tiny=True).model
    assert config.fpn is not None
    config.num_classes, config.class_names, config.category_ids = 3, (), ()
    config.fpn.out_channels = 128
    return build_model(config)


def lively(model: MaskRCNN) -> MaskRCNN:
    """Give norms statistics that do something."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 + 0.75)
            assert any(part in name for part in ("norm", "features", "spm"))
    for block in model.modules():
        if isinstance(block, BottleneckBlock) and block.conv3.norm is not None:
            # As training does: random residual blocks alone would double signal and noise at each.
            with torch.no_grad():
                block.conv3.norm.weight.fill_(0.2)  # pyright: ignore[reportCallIssue]
    return model


@torch.inference_mode()
def said(model: MaskRCNN, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Maps, RPN, heads for given RoIs: everything dense; and the scores of the detections."""
    batch = model.eval().preprocess(pictures(*sizes))
    maps = model.backbone(batch.pixels)
    logits, deltas = model.rpn.head(maps)
    found = {f"map{i}": m for i, m in enumerate(maps)}
    found |= {"objectness": torch.cat(logits, 1), "anchor_deltas": torch.cat(deltas, 1)}
    features, rois = model.roi_features(maps), RoIs.of([torch.tensor(BOXES)] * len(sizes))
    heads = getattr(model.box_head, "heads", [model.box_head])
    for k, head in enumerate(heads):
        found[f"class{k}"], found[f"box{k}"] = head.predict_rois(features, rois)
    if model.mask_head is not None:
        found["masks"] = model.mask_head(features, rois, torch.arange(len(BOXES) * len(sizes)) % 3)
    if model.keypoint_head is not None:
        found["heatmaps"] = model.keypoint_head(features, rois)
    model.box_head.config.score_threshold = 0.0
    found["scores"] = torch.cat([d.scores for d in model.detect(batch)])
    return {name: value.float() for name, value in found.items()}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        spread = float(value.std()) if value.numel() > 1 else 1.0
        assert float((found[name] - value).abs().max()) <= tolerance * max(spread, 1e-6), name


@pytest.mark.parametrize("preset", distinct_structures())
def test_in_inference(preset: str) -> None:
    """Features, logits and deltas within 2e-4 of their spread, in float32; 1e-3 after PyTorch's group norms."""
    model = lively(tiny(preset))
    expected = said(model, [(80, 96), (61, 90)])
    prepared = prepare(copy.deepcopy(model), engine="cpu")
    names = {k for k in model.state_dict() if ".norm" not in k and "num_batches" not in k}
    assert {k for k in prepared.state_dict() if k in names} <= names
    assert not any(p.requires_grad for p in prepared.parameters())
    group_norm = any(isinstance(m, nn.GroupNorm) for m in model.modules())
    compare(said(prepared, [(80, 96), (61, 90)]), expected, 1e-3 if group_norm else 2e-4)
    low = prepare(tiny(preset), "bf16", "cpu")
    assert low.dtype == torch.bfloat16
    batch = low.preprocess(pictures((61, 90)))
    result = low.detect(batch, 0.0)[0]
    assert result.boxes.dtype == result.scores.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [wide, lambda: tiny("mask_rcnn_R_50_C4_1x")], ids=["wide", "C4"])
def test_with_the_rewrites_of_every_kind_of_processor(kind: processor.Kind, build) -> None:
    model = lively(build())
    fast = copy.deepcopy(model)
    rewrite(fast, REWRITES, kind)
    sizes = [(256, 320)]
    compare(said(fast, sizes), said(model, sizes), 1e-4)
    plain(fast)
    for name, value in said(fast, sizes).items():
        assert torch.equal(value, said(model, sizes)[name]), name


@pytest.mark.parametrize("build", [wide, *(lambda n=n: tiny(n) for n in distinct_structures())])
def test_in_training(build) -> None:
    """Losses to 5e-5 of their size, gradients to 1e-4 of the largest."""
    model = build()
    if any(isinstance(m, nn.Dropout) or getattr(m, "drop_path", 0.0) for m in model.modules()):
        for module in model.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = 0.0
    fast = for_training(copy.deepcopy(model))
    size = (192, 256)
    target = [objects([[20.0, 30, 120, 150], [100, 20, 180, 60]], size)]
    sums = []
    for one in (model, fast):
        losses = one.train()(one.preprocess(pictures(size)), target)
        torch.stack(list(losses.values())).sum().backward()
        sums.append({k: v.detach() for k, v in losses.items()})
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value, rtol=5e-5, atol=1e-6)
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, parameter in fast.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            assert float((parameter.grad - gradients[name]).abs().max()) <= 1e-4 * largest, name


def test_a_copy_has_rewrites_of_its_own() -> None:
    model = for_training(wide())
    conv = model.rpn.head.conv
    other = copy.deepcopy(model).rpn.head.conv
    assert vars(conv)["forward"].__self__ is conv
    assert vars(other)["forward"].__self__ is other
    assert set(model.state_dict()) == set(wide().state_dict())


class TestEngine:
    def test_what_is_picked_is_said(self, tmp_path) -> None:
        from maskrcnn.weights.write import write_weights

        model = tiny()
        write_weights(tmp_path / "model.safetensors", model.state_dict(), model.config)
        path = tmp_path / "model.safetensors"
        assert maskrcnn.load(path, device="cpu").engine == "cpu"
        eager = maskrcnn.load(path, device="cpu", engine="eager")
        assert eager.engine == "eager"
        assert not any("forward" in vars(m) for m in eager.modules())

    @pytest.mark.parametrize(
        ("engine", "said"),
        [("cup", "engine: expected .*, got 'cup'. Did you mean 'cpu'"), (3, "engine: expected .*, got 3")],
    )
    def test_another_is_refused(self, engine: object, said: str) -> None:
        with pytest.raises(maskrcnn.UserError, match=said):
            maskrcnn.load("mask_rcnn_R_50_FPN_1x", device="cpu", engine=engine)  # type: ignore[arg-type]
