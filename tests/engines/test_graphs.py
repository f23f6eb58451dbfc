"""Engines that run a model's dense parts as graphs: they say what the network says, are made once, break cleanly."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn import presets
from maskrcnn.config import ModelConfig, ResNetConfig
from maskrcnn.engines import graphs
from maskrcnn.engines.graphs import run_as_graphs
from maskrcnn.engines.prepare import choose_engine, has_compiler, prepare
from maskrcnn.engines.seams import Run, Seam, seams_of
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.predictor import predict
from tests.alone import run_alone
from tests.engines.test_prepared_equals_plain import compare, lively, said
from tests.models.tiny import pictures, tiny

CPU = torch.device("cpu")
SIZES = [(80, 96), (61, 90)]
FPN, C4, DEFORMABLE = "mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x", "mask_rcnn_internimage_t_fpn_1x_coco"


def with_all_heads() -> MaskRCNN:
    """Cascade with a mask head, a key-point head and group norms."""
    config = presets.get("scratch_mask_rcnn_R_50_FPN_3x_gn", tiny=True).model
    cascade = presets.get("cascade_mask_rcnn_R_50_FPN_3x", tiny=True).model.box_head
    config.box_head.cascade, config.box_head.class_agnostic = cascade.cascade, True
    config.keypoint_head = presets.get("keypoint_rcnn_R_50_FPN_3x", tiny=True).model.keypoint_head
    return shallow(config)


def shallow(config: ModelConfig) -> MaskRCNN:
    """Model of three classes on a ResNet-18: a third of the nodes to trace."""
    torch.manual_seed(0)
    assert isinstance(config.backbone, ResNetConfig)
    config.backbone.depth = 18
    config.num_classes, config.class_names, config.category_ids = 3, (), ()
    return build_model(config)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path))
    return tmp_path / "engines"


def swin() -> MaskRCNN:
    return tiny("mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco")


def convnext() -> MaskRCNN:
    return tiny("mask_rcnn_convnext_tiny_1k_3x")


def shallow_fpn() -> MaskRCNN:
    return shallow(presets.get(FPN, tiny=True).model)


def shallow_c4() -> MaskRCNN:
    return shallow(presets.get(C4, tiny=True).model)


# The runtimes compute in processes of their own: in a worker with everything else loaded one has crashed.
@pytest.mark.parametrize(
    "call",
    [
        *("openvino_says(with_all_heads, 1e-3)", "openvino_says(shallow_c4, 2e-4)", "onnx_says(shallow_fpn)"),
        pytest.param("openvino_says(swin, 2e-4)", marks=pytest.mark.slow),
        pytest.param("openvino_says(convnext, 2e-4)", marks=pytest.mark.slow),
        pytest.param("onnx_says(swin)", marks=pytest.mark.slow),
        pytest.param("onnx_says(convnext)", marks=pytest.mark.slow),
    ],
)
def test_a_runtime_says_what_the_network_says(call):
    run_alone("tests.engines.test_graphs", call)


def openvino_says(make: Callable[[], MaskRCNN], tolerance: float) -> None:
    """Everything dense to 2e-4 of its spread, after group norms 1e-3; of one and of several pictures, of no RoI."""
    model = lively(make())
    expected = [said(model, SIZES), said(model, SIZES[1:])]
    prepared = prepare(copy.deepcopy(model), engine="openvino")
    assert prepared.engine == "openvino"
    for wanted, sizes in zip(expected, (SIZES, SIZES[1:]), strict=True):
        compare(said(prepared, sizes), wanted, tolerance)
    low = said(prepare(model, "bf16", "openvino"), SIZES)["masks"]
    assert low.dtype == torch.float32
    assert float((low - expected[0]["masks"]).std()) < 0.1 * float(expected[0]["masks"].std())
    prepared.box_head.config.score_threshold = 1.0
    assert len(predict(prepared, pictures((60, 80))[0].permute(1, 2, 0).numpy())) == 0


def onnx_says(make: Callable[[], MaskRCNN]) -> None:
    model = lively(make())
    expected = said(model, SIZES)
    compare(said(prepare(copy.deepcopy(model), engine="onnx"), SIZES), expected, 2e-4)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler on this machine")
def test_compile_says_what_the_network_says():
    run_alone("tests.engines.test_graphs", "compile_says_what_the_network_says()")


def compile_says_what_the_network_says() -> None:
    model = lively(shallow(presets.get(C4, tiny=True).model))
    expected = said(model, SIZES)
    compare(said(prepare(copy.deepcopy(model), engine="compile"), SIZES), expected, 2e-4)


class Stub:
    """Runtime whose files say nothing: the network itself runs."""

    name, version, suffix = "stub", "1", ".txt"
    factor = 1.0

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, program: Any, path: Path) -> None:
        self.written.append(path.stem)
        path.write_text("graph")

    def open(self, path: Path, precision: str) -> Run:
        if path.read_text() != "graph":
            raise ValueError("damaged")
        network = next(s.network for s in self.seams if s.name == path.stem)
        return lambda *x: tuple(self.factor * y for y in network(*x))

    seams: list[Seam]


@pytest.fixture
def model() -> MaskRCNN:
    return tiny().eval()


@pytest.fixture
def runtime(monkeypatch, model) -> Stub:
    stub = Stub()
    stub.seams = list(seams_of(model))
    monkeypatch.setattr(Seam, "export", lambda self: None)
    return stub


def test_graphs_are_made_once_and_a_damaged_one_again(cache, model, runtime):
    expected = said(model, SIZES)
    for written in (3, 3):
        run_as_graphs(model, runtime, "fp32")
        assert len(runtime.written) == written
    compare(said(model, SIZES), expected, 1e-6)
    [folder] = cache.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["box_head_0.txt", "dense.txt", "mask_head.txt"]
    (folder / "dense.txt").write_text("gra")
    run_as_graphs(model, runtime, "fp32")
    assert len(runtime.written) == 6
    with torch.no_grad():  # other weights are another model
        model.rpn.head.deltas.weight.add_(1)
    run_as_graphs(model, runtime, "fp32")
    assert len(runtime.written) == 9
    assert len(list(cache.iterdir())) == 2


def test_only_the_latest_are_kept(cache, model, runtime):
    cache.mkdir(parents=True)
    for i in range(graphs.MOST_KEPT + 3):
        (cache / f"openvino-{i:02}").mkdir()
        (cache / f"openvino-{i:02}" / "x").touch()
    (cache / ".unfinished").mkdir()
    run_as_graphs(model, runtime, "fp32")
    kept = {p.name for p in cache.iterdir()}
    assert len(kept) == graphs.MOST_KEPT + 1
    assert ".unfinished" in kept
    assert any(name.startswith("stub-") for name in kept)


def test_without_a_cache_they_live_in_the_process(monkeypatch, tmp_path, model, runtime):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "file"))
    run_as_graphs(model, runtime, "fp32")
    assert len(runtime.written) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_graph_that_says_something_else_is_refused(cache, model, runtime):
    runtime.factor = 1.1
    with pytest.raises(UserError, match=r"^engine: stub: expected what the network computes.* in its dense"):
        run_as_graphs(model, runtime, "fp32")
    assert list(cache.iterdir()) == []


def test_a_network_as_steep_as_its_own_rounding_is_let_pass(cache, model, runtime, monkeypatch):
    """Its float32 is further from float64 than a graph usually is from it."""
    runtime.factor = 1 + 1e-2
    monkeypatch.setattr(graphs, "_double", lambda x: 1.01 * x.double() if x.is_floating_point() else x)
    run_as_graphs(model, runtime, "fp32")
    assert len(runtime.written) == 3


def test_choice():
    config, deformable = (presets.get(n).model for n in (FPN, DEFORMABLE))
    assert choose_engine(None, CPU, "fp32", deformable) == "cpu"
    assert choose_engine(None, torch.device("cuda"), "fp32", config) == "eager"
    assert choose_engine(None, CPU, "bf16", config) == "cpu"
    for name, device, precision, of, line in (
        ("opnvino", CPU, "fp32", config, "Did you mean 'openvino'"),
        ("onnx", torch.device("cuda"), "fp32", config, "onnx is for the device cpu"),
        ("onnx", CPU, "bf16", config, "onnx: expected precision fp32, got bf16"),
        ("openvino", CPU, "fp32", deformable, "its deformable convolution, DCNv3, has no form there"),
    ):
        with pytest.raises(UserError, match=line):
            choose_engine(name, device, precision, of)


@pytest.mark.parametrize(("engine", "package"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_what_is_not_installed_is_named(monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"engine: {engine}: expected .* pip install 'maskrcnn\[{engine}\]'"):
        prepare(tiny(), engine=engine)


def test_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="expected a C\\+\\+ compiler"):
        prepare(tiny(), engine="compile")
