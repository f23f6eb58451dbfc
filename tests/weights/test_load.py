"""Weight files of every format load by name and shape, or are refused in one line that says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskrcnn import presets, zoo
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.detectron2 import DETECTRON2, from_detectron2, to_detectron2
from maskrcnn.weights.write import write_weights
from maskrcnn.zoo import download
from maskrcnn.zoo import table as zoo_table

R50 = "mask_rcnn_R_50_FPN_3x"
MOBILENET = "mask_rcnn_mobilenet_v2_FPN"


def tiny(name: str = R50, num_classes: int = 3, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    return zoo.build(name, num_classes, tiny=True)


def detectron2_state(model: MaskRCNN) -> dict[str, np.ndarray]:
    named = {to_detectron2(k): v.numpy() for k, v in model.state_dict().items()}
    return {k: v for k, v in named.items() if k is not None}


def same(a: MaskRCNN, b: MaskRCNN) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


def refusal(action: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(
    params=["zoo .pkl", "trainer .pth", "legacy .pth", "safetensors with config", "run", "safetensors"]
)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MaskRCNN, Path]:
    """Model, and its weights in one of the formats."""
    model = tiny(seed=1)
    theirs = detectron2_state(model)
    path = tmp_path / "weights"
    match request.param:
        case "zoo .pkl":
            constants = {"pixel_mean": np.zeros((3, 1, 1), np.float32)}
            constants["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)  # pyright: ignore[reportArgumentType]
            path.write_bytes(
                pickle.dumps({"model": theirs | constants, "__author__": "Detectron2 Model Zoo"}, 2)
            )
        case "trainer .pth" | "legacy .pth":
            content = {"model": {k: torch.from_numpy(v) for k, v in theirs.items()}, "iteration": 7}
            torch.save(content, path, _use_new_zipfile_serialization=request.param == "trainer .pth")
        case "safetensors with config":
            write_weights(path, model.state_dict(), model.config)
        case "run":
            path.mkdir()
            write_weights(path / "model.safetensors", model.state_dict(), model.config)
        case "safetensors":
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model, path


def test_every_format_fills_the_model(saved: tuple[MaskRCNN, Path]) -> None:
    model, path = saved
    other = tiny(seed=2)
    assert not same(model, other)
    assert load_weights(other, path) == []
    assert same(model, other)


def test_our_files_carry_their_config(tmp_path: Path) -> None:
    model = tiny(num_classes=2)
    model.config.class_names = ("cat", "dog")
    write_weights(tmp_path / "a.safetensors", model.state_dict(), model.config)
    assert read_weights(tmp_path / "a.safetensors").config == model.config
    assert same(zoo.restore(tmp_path / "a.safetensors"), model)


def test_a_running_run_gives_its_best_or_its_last(tmp_path: Path) -> None:
    best, last = tiny(seed=1), tiny(seed=2)
    write_weights(tmp_path / "checkpoints/iteration_10/model.safetensors", last.state_dict(), last.config)
    (tmp_path / "last").write_text("checkpoints/iteration_10\n")
    assert same(zoo.restore(tmp_path), last)
    write_weights(tmp_path / "best.safetensors", best.state_dict(), best.config)
    assert same(zoo.restore(tmp_path), best)


# --- detectron2's names


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in model.state_dict().items()}


def gn_variant() -> MaskRCNN:
    config = presets.get(R50).model
    config.backbone.norm = config.fpn.norm = config.box_head.norm = config.mask_head.norm = "gn"  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    config.box_head.num_convs, config.box_head.num_fcs = 4, 1
    return build_model(config)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("mask_rcnn_R_50_FPN_1x", lambda: zoo.build("mask_rcnn_R_50_FPN_1x")),
        ("mask_rcnn_R_50_FPN_3x", lambda: zoo.build("mask_rcnn_R_50_FPN_3x")),
        ("mask_rcnn_R_50_FPN_3x_gn", gn_variant),
    ],
)
def test_detectron2s_names_and_shapes_are_ours_renamed(shared: Path, name: str, build: Any) -> None:
    with gzip.open(shared / "reference/detectron2/state_shapes.json.gz") as file:
        theirs: dict[str, list[int]] = json.load(file)[name]
    with torch.device("meta"):
        ours = shapes(build())
    assert DETECTRON2.matches(theirs)
    assert not DETECTRON2.matches(ours)
    assert {from_detectron2(k): v for k, v in theirs.items()} == ours
    assert {to_detectron2(k): v for k, v in ours.items()} == theirs


def test_what_has_no_place_keeps_its_name_and_is_refused(tmp_path: Path) -> None:
    state = detectron2_state(tiny()) | {"roi_heads.keypoint_head.score.weight": np.zeros(1, np.float32)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": state}))
    message = refusal(load_weights, tiny(), tmp_path / "a.pkl")
    assert "1 unexpected (roi_heads.keypoint_head.score.weight)" in message


# --- what does not fit


def test_mismatches_are_counted_and_listed(tmp_path: Path) -> None:
    model = tiny()
    state: dict[str, Tensor] = dict(model.state_dict())
    for i in range(4):
        del state[f"mask_head.convs.{i}.weight"]
    state["neck.weight"] = torch.zeros(1)
    state["rpn.head.deltas.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "a.safetensors")
    message = refusal(load_weights, model, tmp_path / "a.safetensors")
    assert "4 missing (mask_head.convs.0.weight; ...)" in message
    assert "1 unexpected (neck.weight)" in message
    assert "1 of another shape (rpn.head.deltas.bias 3, not 12)" in message
    assert same(model, tiny()), "a refused file must leave the model as it was"


def test_other_classes_are_refused_or_get_new_heads(tmp_path: Path) -> None:
    trained = tiny(num_classes=5, seed=1)
    write_weights(tmp_path / "five.safetensors", trained.state_dict(), trained.config)
    model, fresh = tiny(num_classes=3), tiny(num_classes=3).state_dict()
    message = refusal(load_weights, model, tmp_path / "five.safetensors")
    assert "box_head.class_predictor.weight 6x32, not 4x32" in message
    (note,) = load_weights(model, tmp_path / "five.safetensors", new_head=True)
    assert "has 5 classes" in note
    for name, value in model.state_dict().items():
        is_head = name.startswith(("box_head.class_pred", "box_head.box_pred", "mask_head.pred"))
        assert torch.equal(value, fresh[name] if is_head else trained.state_dict()[name]), name


def test_heads_that_fit_are_kept(tmp_path: Path) -> None:
    trained, model = tiny(seed=1), tiny(seed=2)
    write_weights(tmp_path / "three.safetensors", trained.state_dict(), trained.config)
    assert load_weights(model, tmp_path / "three.safetensors", new_head=True) == []
    assert same(model, trained)


def test_heads_kept_for_classes_of_other_names_are_told(tmp_path: Path) -> None:
    trained, model = tiny(seed=1), tiny(seed=2)
    trained.config.class_names, model.config.class_names = ("cat", "dog", "cow"), ("cat", "dog", "hen")
    write_weights(tmp_path / "three.safetensors", trained.state_dict(), trained.config)
    (note,) = load_weights(model, tmp_path / "three.safetensors", new_head=True)
    assert "has 3 classes too (cat, dog, cow): the heads are kept" in note
    assert "in their order (cat, dog, hen)" in note
    assert same(model, trained)


def test_the_same_classes_in_another_order_are_reordered(tmp_path: Path) -> None:
    trained, model = tiny(seed=1), tiny(seed=2)
    trained.config.class_names, model.config.class_names = ("cat", "dog", "cow"), ("cow", "cat", "dog")
    write_weights(tmp_path / "three.safetensors", trained.state_dict(), trained.config)
    (note,) = load_weights(model, tmp_path / "three.safetensors", new_head=True)
    assert "same classes in another order" in note
    its, ours = trained.state_dict(), model.state_dict()
    name = "box_head.class_predictor.weight"
    assert torch.equal(ours[name], its[name][[2, 0, 1, 3]])  # background stays the last
    name = "box_head.box_predictor.bias"
    assert torch.equal(ours[name].view(3, 4), its[name].view(3, 4)[[2, 0, 1]])
    name = "mask_head.predictor.weight"
    assert torch.equal(ours[name], its[name][[2, 0, 1]])
    assert torch.equal(ours["box_head.fcs.0.weight"], its["box_head.fcs.0.weight"])


# --- backbones


def test_a_torchvision_classifier_fills_the_backbone(shared: Path) -> None:
    path = shared / "data/weights/mobilenet_v2_imagenet.pt"
    model, untouched = zoo.build(MOBILENET, 2), zoo.build(MOBILENET, 2)
    heads = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("backbone.body.")}
    notes = load_weights(model, path)
    assert len(notes) == 2
    assert "start at random" in notes[0]
    assert "features.18.0.weight" in notes[1]
    original = torch.load(path, weights_only=True)
    original = original.get("state_dict", original)
    filled = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.body.")}
    assert len(filled) == sum(k.startswith("backbone.body.") for k in untouched.state_dict())
    for name, value in filled.items():
        assert torch.equal(value, original[name.removeprefix("backbone.body.")]), name
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())


def test_a_backbone_is_no_detector(shared: Path) -> None:
    path = shared / "data/weights/mobilenet_v2_imagenet.pt"
    assert "got a backbone's" in refusal(zoo.load, MOBILENET, path, device="cpu")
    assert "missing" in refusal(load_weights, tiny(), path)


# --- files that are no weights


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "got an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "got a web page"),
        (b"\n <html>", "got a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a Git LFS pointer"),
        (b'{"images": []}', "got a JSON file"),
        (b"name,size\nweights,7\n", "got a text file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "got a file of an unknown format"),
        (b"PK\x03\x04 and then nothing", "got a damaged one"),
        (b"\x80\x02}", "got a damaged one"),
        (b"\xff\0\0\0\0\0\0\0{", "got a damaged one"),
        (pickle.dumps([1, 2]), "expected weights by name, got list"),
        (pickle.dumps({"model": {"a": "text"}}), "expected weights by name, got 'a': str"),
        (pickle.dumps({}), "expected weights by name"),
        (
            pickle.dumps({"x.weight": np.zeros(2)}),
            "expected weights of a known model, got 1 with names like x.weight",
        ),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(content)
    message = refusal(read_weights, path)
    assert message.startswith(f"{path}: ")
    assert what in message


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "no such weight file" in refusal(read_weights, tmp_path / "a.pkl")
    assert "model.safetensors" in refusal(read_weights, tmp_path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_cut_off_files_are_refused(saved: tuple[MaskRCNN, Path], fraction: float) -> None:
    _, path = saved
    path = path / "model.safetensors" if path.is_dir() else path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert f"{path}: expected a whole" in refusal(read_weights, path)


# --- files that want to run code


class Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_that_call_are_refused(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    content = {"model": {"a": torch.zeros(2)}, "extra": Harm(marker)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert f"{path}: expected" in refusal(read_weights, path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_harm_put_into_a_torch_zip_is_refused(tmp_path: Path, protocol: int) -> None:
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            harm = pickle.dumps(Harm(marker), protocol) if name.endswith("data.pkl") else good.read(name)
            bad.writestr(name, harm)
    message = refusal(read_weights, path)
    assert f"{path}: expected" in message
    assert not marker.exists()


# --- by name


def test_a_published_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        presets.PRESETS, R50, lambda: presets.shrink(presets.detectron2.mask_rcnn_R_50_FPN_3x())
    )
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path))
    monkeypatch.setenv("MASKRCNN_OFFLINE", "1")
    entry = zoo_table.find(R50)
    assert entry
    assert entry.weights
    path = download.cached_path(entry.weights)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps({"model": detectron2_state(tiny(num_classes=80, seed=3))}))
    assert zoo.published_weights(R50) == path
    assert same(zoo.restore(R50), tiny(num_classes=80, seed=3))


def test_load_by_name_takes_the_files_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        presets.PRESETS, R50, lambda: presets.shrink(presets.detectron2.mask_rcnn_R_50_FPN_3x())
    )
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": detectron2_state(tiny(num_classes=7))}))
    model = zoo.load(R50, tmp_path / "a.pkl", device="cpu")
    assert model.config.num_classes == 7
    assert not model.training
    assert zoo.load(R50, tmp_path / "a.pkl", device="cpu", precision="bf16").dtype == torch.bfloat16


def test_load_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKRCNN_OFFLINE", "1")
    assert "Did you mean 'mask_rcnn_R_50_FPN_1x'" in refusal(zoo.load, "mask_rcnn_R50_FPN_1x")
    assert "model_final_f10217.pkl: not in the cache" in refusal(zoo.load, R50, device="cpu")
    assert "none are published" in refusal(zoo.load, MOBILENET, device="cpu")
    assert "no such weight file" in refusal(zoo.load, "runs/mine")
    assert "expected cpu, cuda, mps, xpu or cuda:1, got 'gpu'" in refusal(zoo.load, R50, device="gpu")
    assert "got 'int8'" in refusal(zoo.load, R50, precision="int8")
    save_file(tiny().state_dict(), tmp_path / "a.safetensors")
    assert "without their config" in refusal(zoo.load, tmp_path / "a.safetensors", device="cpu")
    other = tiny(MOBILENET)
    write_weights(tmp_path / "b.safetensors", other.state_dict(), other.config)
    assert f"expected weights of {R50}, got those of {MOBILENET}" in refusal(
        zoo.load, R50, tmp_path / "b.safetensors", device="cpu"
    )


POINT_REND = "pointrend_rcnn_R_50_FPN_1x_coco"


def test_point_rend_in_another_order_says_the_same_of_each_class(tmp_path: Path) -> None:
    trained, model = tiny(POINT_REND, seed=1), tiny(POINT_REND, seed=2)
    trained.config.class_names, model.config.class_names = ("cat", "dog", "cow"), ("cow", "cat", "dog")
    write_weights(tmp_path / "three.safetensors", trained.state_dict(), trained.config)
    load_weights(model, tmp_path / "three.safetensors", new_head=True)
    features = RoIFeatures([torch.randn(1, 16, 20, 20)], (4,))
    rois = RoIs.of([torch.tensor([[5.0, 5, 60, 50], [20, 10, 40, 70]])])
    assert trained.mask_head is not None
    assert model.mask_head is not None
    with torch.no_grad():
        its = trained.mask_head(features, rois, torch.tensor([0, 2]))  # cat, cow
        ours = model.mask_head(features, rois, torch.tensor([1, 0]))
    torch.testing.assert_close(ours, its)


def test_point_rend_of_other_classes_gets_a_new_point_head(tmp_path: Path) -> None:
    trained, model = tiny(POINT_REND, num_classes=5, seed=1), tiny(POINT_REND, seed=2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    write_weights(tmp_path / "five.safetensors", trained.state_dict(), trained.config)
    (note,) = load_weights(model, tmp_path / "five.safetensors", new_head=True)
    assert "has 5 classes; the last layers of the heads and the point head start at random" in note
    new = ("box_head.class_pred", "box_head.box_pred", "mask_head.point_head.", "mask_head.coarse_head.pred")
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith(new) else trained.state_dict()[name]), name


@pytest.mark.parametrize(("name", "of_file"), [(POINT_REND, R50), (R50, POINT_REND)])
def test_another_kind_of_mask_head_starts_at_random(name: str, of_file: str, tmp_path: Path) -> None:
    trained, model = tiny(of_file, seed=1), tiny(name, seed=2)
    fresh = {n: value.clone() for n, value in model.state_dict().items()}
    write_weights(tmp_path / "other.safetensors", trained.state_dict(), trained.config)
    notes = load_weights(model, tmp_path / "other.safetensors", new_head=True)
    assert any("has another kind of mask head; the model's starts at random" in note for note in notes)
    for n, value in model.state_dict().items():
        assert torch.equal(value, fresh[n] if n.startswith("mask_head.") else trained.state_dict()[n]), n
