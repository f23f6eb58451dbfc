"""A training step and inference on fake tensors of a GPU: all that they make is on it, and nothing waits for it.

The model is moved to the pretended device, all else is where the code itself puts it: what is made elsewhere by mistake
meets a tensor of the GPU, which PyTorch refuses. Triton's kernels are behind registered operators, of which fake
tensors take the shapes; the way to them is the GPU's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from maskrcnn.engines.seams import seams_of
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops import transfer
from maskrcnn.structures import GroundTruth, ImageBatch
from tests.models.test_fixed_size import SIZES, learnt
from tests.models.tiny import objects, tiny
from tests.waits import Waits

CUDA = torch.device("cuda")
NAMES = (
    "mask_rcnn_R_50_FPN_1x",
    "mask_rcnn_R_50_C4_1x",
    "cascade_mask_rcnn_R_50_FPN_1x",
    "keypoint_rcnn_R_50_FPN_1x",
    "pointrend_rcnn_R_50_FPN_1x_coco",
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_1x_coco",
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco",
    "mask_rcnn_convnext_tiny_1k_3x",
    "mask_rcnn_vitdet_b_100ep",
    "mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ",
)


@pytest.fixture(autouse=True)
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave memory as it is: fake tensors know none that is pinned, and PyTorch needs a GPU for it."""
    monkeypatch.setattr(transfer, "pinned", lambda tensor: tensor)


def pretended(name: str) -> MaskRCNN:
    """Model moved to the pretended device: its parameters and buffers, and nothing that it may keep elsewhere."""
    model = tiny(name)
    model.fixed_size = True
    with FakeTensorMode():
        for module in model.modules():
            for kept in cast("tuple[Any, ...]", (module._parameters, module._buffers)):
                for key, value in kept.items():
                    if value is not None:
                        there = torch.empty_strided(
                            value.shape, value.stride(), dtype=value.dtype, device=CUDA
                        )
                        trained = isinstance(value, nn.Parameter)
                        kept[key] = nn.Parameter(there, value.requires_grad) if trained else there
    return model


def mode_of(model: MaskRCNN) -> FakeTensorMode:
    weight: Any = next(model.parameters())
    weight.fake_mode.allow_non_fake_inputs = True
    return weight.fake_mode


def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """Walk the graph of a loss node by node, as PyTorch's engine does, which asks a GPU for its streams: gradients of
    its leaves.
    """
    uses, seen, todo = Counter[Any](), set[Any](), [loss.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node not in seen:
            seen.add(node)
            after = [following for following, _ in node.next_functions if following is not None]
            uses.update(after)
            todo += after
    given: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready, found = [loss.grad_fn], {}
    while ready:
        node = ready.pop()
        mine = given.pop(node, {})
        if hasattr(node, "variable"):
            if 0 in mine:
                found[node.variable] = mine[0]
            continue
        values = [mine.get(i) for i in range(len(node._input_metadata))]
        if hasattr(
            node, "apply"
        ):  # an operator whose gradient is Python, with an answer for what is no tensor too
            grads = [g for g, need in zip(node.apply(*values), node.needs_input_grad, strict=True) if need]
        else:
            out = node(*values)
            out = out if isinstance(out, tuple) else (out,)
            grads = [g for g, (n, _) in zip(out, node.next_functions, strict=True) if n is not None]
        after = [(n, i) for n, i in node.next_functions if n is not None]
        for (following, i), grad in zip(after, grads, strict=True):
            if grad is not None:
                about = following._input_metadata[i]
                grad = grad.sum_to_size(about.shape).to(about.dtype)
                there = given.setdefault(following, {})
                there[i] = grad if i not in there else there[i] + grad
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)
    return found


def test_gradients_are_those_of_pytorchs_engine() -> None:
    weight = torch.randn(3, 3, requires_grad=True)
    first, second = (weight @ weight).split([1, 2])
    loss = first.sum() + (second * weight[:2]).sum()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        torch.testing.assert_close(backward(loss)[weight], weight.grad)


def assert_a_step_is_on_the_device(model: MaskRCNN, batch: ImageBatch, targets: list[GroundTruth]) -> None:
    there = [target.to(CUDA) for target in targets]
    with Waits() as waits:
        loss = torch.stack(list(model(batch, there).values())).sum()
        with torch.no_grad():
            gradients = backward(loss)
    assert set(gradients) == {p for p in model.parameters() if p.requires_grad}
    assert {gradient.device.type for gradient in gradients.values()} == {"cuda"}
    assert not waits.found, waits.found


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_on_the_device_and_nothing_waits(name: str) -> None:
    model = pretended(name).train()
    with mode_of(model):
        assert_a_step_is_on_the_device(model, *learnt(model))
        sizes = torch.tensor([[96, 128], [80, 100]], device=CUDA)
        with Waits() as waits, torch.no_grad():
            features, found = model.eval().detect_boxes(torch.rand(2, 3, 96, 128, device=CUDA), sizes)
            masks, keypoints = model.details(features, found)
        answer = [value for value in (*found, masks, keypoints) if value is not None]
        assert {value.device.type for value in answer} == {"cuda"}
        assert not waits.found, waits.found


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_graph_copies_nothing_from_the_host(name: str) -> None:
    """What is copied while a CUDA graph is recorded is read anew at each replay, from memory that was given back."""
    model = pretended(name).eval()
    with mode_of(model), torch.no_grad(), Waits(any_copy=True) as waits:
        for seam in seams_of(model):
            seam.network(*(torch.zeros_like(example, device=CUDA) for example in seam.examples))
    assert not waits.found, waits.found


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_1x", "pointrend_rcnn_R_50_FPN_1x_coco"])
def test_pictures_without_objects_and_bitmaps_do_not_wait_either(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision, as most train there."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    drawn = objects([[20.0, 30, 50, 50]], SIZES[0])
    assert drawn.masks is not None
    bitmaps = dataclasses.replace(drawn, masks=drawn.masks.filled())
    model = pretended(name).train()
    with mode_of(model), torch.autocast("cuda", torch.bfloat16):
        assert_a_step_is_on_the_device(model, learnt(model)[0], [bitmaps, objects([], SIZES[1])])
