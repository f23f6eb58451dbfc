"""An exported model says what the model says, at any size, in batches and where nothing is, and is used like one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.cli.main import main
from maskrcnn.engines.exported import ExportedPredictor
from maskrcnn.errors import UserError
from maskrcnn.export.check import compare
from maskrcnn.export.onnx_file import write_onnx
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.predictor import Predictor
from maskrcnn.weights.write import write_weights
from tests.models.tiny import pictures, tiny

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SHALLOW = 18  # a ResNet where other parts are tested: one of 50 layers takes a quarter longer to export


def sure(name: str, depth: int | None = None) -> Predictor:
    """Small model whose last layers are scaled until it finds a handful of objects, and says so with some certainty."""
    model = tiny(name, depth).eval().requires_grad_(False)
    batch = model.preprocess(pictures((96, 128)))
    maps = model.backbone(batch.pixels)
    logits, deltas = model.rpn.head(maps)
    model.rpn.head.objectness.weight.div_(torch.cat(logits, 1).std())
    model.rpn.head.deltas.weight.div_(5 * torch.cat(deltas, 1).std())
    proposals, features = model.rpn(maps, batch.sizes), model.roi_features(maps)
    rois = features.rois(proposals.boxes, proposals.valid)
    heads = model.box_head.heads if isinstance(model.box_head, CascadeHead) else [model.box_head]
    for head in heads:
        logits, _ = head.predict_rois(features, rois)  # pyright: ignore[reportAttributeAccessIssue]
        scale = 3 / logits.std(0).mean()
        head.class_predictor.weight *= scale  # pyright: ignore[reportAttributeAccessIssue]
        head.class_predictor.bias.sub_(scale * logits.mean(0))  # pyright: ignore[reportAttributeAccessIssue]
    model.box_head.config.score_threshold = 0.4
    return model


@pytest.fixture(scope="module")
def model() -> Predictor:
    return sure("mask_rcnn_R_50_FPN_1x")


@pytest.fixture(scope="module")
def path(model: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, exported by the command, which compares it on four cases."""
    folder = tmp_path_factory.mktemp("onnx")
    write_weights(folder / "model.safetensors", model.state_dict(), model.config)
    path = folder / "model.onnx"
    assert main(["export", "--model", str(folder / "model.safetensors"), "--out", str(path)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.safetensors"]
    return path


def picture(size: tuple[int, int] = (96, 128)) -> np.ndarray:
    return pictures(size)[0].permute(1, 2, 0).numpy()


@pytest.mark.slow
def test_it_says_what_the_model_says_and_is_used_like_it(
    model: Predictor, path: Path, tmp_path: Path
) -> None:
    exported = ExportedPredictor(path)
    found = compare(model, exported, picture(), None, None)
    assert {d.case for d in found} == {"the picture", "noise", "another size", "three sizes at once"}
    assert sum(d.count for d in found) > 10
    for difference in found:
        assert difference.passed(), difference.line()

    Image.fromarray(picture((70, 90))).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    command = ["predict", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(path)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(written) == len(model.predict(tmp_path / "a.png").to_coco("a")) > 0
    assert {e["segmentation"]["size"][0] for e in written} == {70}
    assert maskrcnn.load(path).engine == "onnx"
    np.testing.assert_allclose(exported.predict(picture()).boxes, model.predict(picture()).boxes, atol=0.05)

    other = sure("mask_rcnn_R_50_FPN_1x")  # a difference is noticed
    assert other.mask_head is not None
    other.mask_head.predictor.get_parameter("bias").add_(1.0)
    assert not all(d.passed() for d in compare(other, exported, picture(), None, None))


@pytest.mark.slow
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_cascade_of_one_size_without_a_detection(
    tmp_path: Path, scores: Literal["softmax", "sigmoid"]
) -> None:
    model = sure("cascade_mask_rcnn_R_50_FPN_1x", SHALLOW)
    model.box_head.config.scores = scores
    write_onnx(model, tmp_path / "a.onnx", size=(96, 128), batch=1)
    exported = ExportedPredictor(tmp_path / "a.onnx")
    for difference in compare(model, exported, picture(), (96, 128), 1):
        assert difference.passed(), difference.line()
    assert len(exported.detect(exported.preprocess(pictures((50, 60))), 1.0)[0]) == 0
    with pytest.raises(UserError, match="up to 96 x 128 pixels, got 128 x 128"):
        exported.preprocess(pictures((100, 128)))
    with pytest.raises(UserError, match="takes 1 pictures at a time, got 2"):
        exported.preprocess(pictures((50, 60), (50, 60)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco", None),
        ("mask_rcnn_convnext_tiny_1k_3x", None),
        ("pointrend_rcnn_R_50_FPN_1x_coco", SHALLOW),
    ],
)
def test_swin_convnext_and_point_rend(tmp_path: Path, name: str, depth: int | None) -> None:
    model = sure(name, depth)
    write_onnx(model, tmp_path / "a.onnx", size=(96, 128), batch=1)
    for difference in compare(model, ExportedPredictor(tmp_path / "a.onnx"), picture(), (96, 128), 1):
        assert difference.passed(), difference.line()


@pytest.mark.slow
def test_key_points(tmp_path: Path) -> None:
    model = sure("keypoint_rcnn_R_50_FPN_1x", SHALLOW)
    write_onnx(model, tmp_path / "a.onnx", size=(96, 128), batch=1)
    assert not model.fixed_size
    exported = ExportedPredictor(tmp_path / "a.onnx")
    for difference in compare(model, exported, picture(), (96, 128), 1):
        assert difference.count > 0
        assert difference.passed(), difference.line()
    found, expected = exported.predict(picture()), model.predict(picture())
    assert found.keypoints is not None
    assert found.keypoints.shape == (len(found), 17, 3)
    assert expected.keypoints is not None
    np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "a.pt"], "ends in .onnx"),
        (["--out", "a.onnx", "--size", "100", "128"], "multiples of 32, got 100 128"),
        (["--out", "a.onnx", "--batch", "0"], "--batch: expected at least 1"),
    ],
)
def test_mistakes_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny()
    write_weights(tmp_path / "m.safetensors", model.state_dict(), model.config)
    assert main(["export", "--model", "m.safetensors", *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mask_rcnn_internimage_t_fpn_1x_coco", "DCNv3"),
        ("mask_rcnn_deit_adapter_small_fpn_3x_coco", "deformable attention"),
        ("mask_rcnn_R_50_FPN_1x_dconv_c3-c5", "deformable convolution"),
    ],
)
def test_what_cannot_be_exported_says_so(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.* has no ONNX form"):
        write_onnx(tiny(name).eval(), tmp_path / "a.onnx")


def test_other_files_are_refused(tmp_path: Path) -> None:
    import onnx

    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged file"):
        maskrcnn.load(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="no such model file"):
        maskrcnn.load(tmp_path / "b.onnx")
    with pytest.raises(UserError, match="expected precision fp32"):
        maskrcnn.load(tmp_path / "a.onnx", precision="bf16")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(other, str(tmp_path / "c.onnx"))
    with pytest.raises(UserError, match="got form none"):
        maskrcnn.load(tmp_path / "c.onnx")
