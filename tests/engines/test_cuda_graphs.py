"""Recorded graphs: what is recorded when, padding, and results, with a stand-in for CUDA's recorder on the CPU.

The stand-in keeps the one trait that may hurt: tensors of its own, which are overwritten when it runs again.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import maskrcnn
from maskrcnn import presets
from maskrcnn.engines import cuda_graphs
from maskrcnn.engines.cuda_graphs import Recorded, few_sizes, run_as_cuda_graphs, trained_as_cuda_graphs
from maskrcnn.engines.prepare import prepare
from maskrcnn.engines.seams import Run
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.training.distributed import Process
from maskrcnn.training.settings import check_settings
from tests.export.test_onnx import sure
from tests.models.tiny import pictures
from tests.training.test_golden_losses import batches


class Recorder:
    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
        self.shapes.append(tuple(inputs[0].shape))
        with torch.inference_mode(False), torch.no_grad():
            static = [x.clone() for x in inputs]
            outputs = network(*static)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode(False), torch.no_grad():
                for mine, theirs in zip(static, inputs, strict=True):
                    mine.copy_(theirs)
                for mine, new in zip(outputs, network(*static), strict=True):
                    mine.copy_(new)
            return outputs

        return run


def test_a_shape_is_recorded_once_and_runs_unrecorded_when_there_is_no_room() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (2 * x,)

    record = Recorder()
    run = Recorded(Double(), record, 2)
    for n in (3, 4, 3, 5, 4):
        assert run(torch.arange(float(n)))[0].tolist() == [2.0 * i for i in range(n)]
    assert record.shapes == [(3,), (4,)]


def test_pictures_are_padded_to_four_sizes() -> None:
    assert few_sizes(800, 1333, 32) == [(800, 1088), (1088, 800), (800, 1344), (1344, 800)]
    assert few_sizes(1024, 1024, 32) == [(1024, 1024)]


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_1x", "keypoint_rcnn_R_50_FPN_1x"])
def test_detections_are_those_of_the_network_at_the_same_padding(name: str) -> None:
    model = sure(name)
    graphed, record = copy.deepcopy(model), Recorder()
    run_as_cuda_graphs(graphed, record)
    model.fixed_size, model.padded_sizes = True, graphed.padded_sizes
    for sizes in ((60, 80), (40, 90), (60, 80)):
        expected = model.detect(model.preprocess(pictures(sizes)))
        found = graphed.detect(graphed.preprocess(pictures(sizes)))
        for a, b in zip(found, expected, strict=True):
            assert len(a) == len(b) > 0
            torch.testing.assert_close(a.boxes, b.boxes)
            torch.testing.assert_close(a.scores, b.scores)
    dense = [shape for shape in record.shapes if shape[-1] == 3]
    assert len(dense) == 1  # both sizes were padded to one
    assert len(record.shapes) == len(set(record.shapes))


def test_training_has_the_losses_and_gradients_of_the_model_itself() -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    config.num_classes = 2
    torch.manual_seed(0)
    model = build_model(config).train()
    recorded: list[tuple[int, ...]] = []

    def record(network: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
        recorded.append(tuple(inputs[0].shape))
        return lambda *x: network(*x)

    twin = trained_as_cuda_graphs(model, [(128, 160), (160, 128)], record)
    images, targets, _ = next(batches(0))
    batch = model.preprocess(images)
    assert tuple(batch.pixels.shape[2:]) in ((128, 160), (160, 128))
    found = {}
    for one in (model, twin):
        torch.manual_seed(1)
        model.zero_grad()
        losses = one(batch, copy.deepcopy(targets))
        torch.stack(list(losses.values())).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found[one is twin] = losses, gradients
    for name, loss in found[False][0].items():
        torch.testing.assert_close(found[True][0][name], loss)
    assert found[True][1].keys() == found[False][1].keys()
    for name, gradient in found[False][1].items():
        torch.testing.assert_close(
            found[True][1][name], gradient, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert {shape[1:] for shape in recorded if shape[-1] == 3} == {(*batch.pixels.shape[2:], 3)}
    assert len(recorded) == 3  # pixels, boxes, masks
    copied = copy.deepcopy(model)  # as for an evaluation: the model itself has nothing recorded in it
    assert "forward" not in vars(copied.backbone)


def test_elsewhere_than_on_a_cuda_device_it_is_refused_in_one_line() -> None:
    model = maskrcnn.build("mask_rcnn_mobilenet_v2_FPN", tiny=True)
    with pytest.raises(UserError, match="cuda-graph is for CUDA devices, got cpu"):
        prepare(model, "fp32", "cuda-graph")
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True)
    config.train.cuda_graphs = True
    with pytest.raises(UserError, match=r"--train.cuda_graphs: expected one CUDA GPU"):
        check_settings(config, Process(torch.device("cpu")))


def test_cudas_own_recorders_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    model, record = sure("mask_rcnn_R_50_FPN_1x"), Recorder()
    monkeypatch.setattr(cuda_graphs, "record_inference", record)
    run_as_cuda_graphs(model)
    model.detect(model.preprocess(pictures((60, 80))))
    assert record.shapes
