"""RoIAlign and the sum of rows beneath it, against torchvision's operator and detectron2's outputs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops import roi_align, sampling
from maskrcnn.ops.sampling import _sum_bags, sum_rows

BOXES = torch.tensor(
    [
        [0, 3.0, 4.0, 40.0, 31.0],
        [1, 10.2, 7.7, 19.9, 60.3],
        [0, -20.0, -9.0, 15.0, 12.0],  # partly outside
        [1, 60.0, 40.0, 120.0, 90.0],  # partly outside, far corner
        [0, 200.0, 200.0, 260.0, 250.0],  # outside
        [1, -90.0, -80.0, -40.0, -30.0],  # outside
        [0, 12.0, 12.0, 12.0, 30.0],  # no width
        [1, 8.0, 9.0, 8.0, 9.0],  # a point
        [0, 30.0, 20.0, 12.0, 28.0],  # negative width
        [1, 30.0, 28.0, 12.0, 20.0],  # negative both
        [0, -4.0, -4.0, 84.0, 52.0],  # the map and a cell around
        [1, 0.0, 0.0, 80.0, 48.0],  # the map
        [0, -3.9, 47.9, 80.1, 52.2],  # across the last line
        [1, 33.3, 0.1, 34.0, 47.0],  # narrow
    ]
)  # for a map of 12 x 20 cells of 4 pixels


def feature_map(dtype: torch.dtype = torch.float64, C: int = 5) -> Tensor:
    return torch.randn(2, C, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


def value_and_grad(op, x: Tensor, boxes, *args) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = op(x, boxes, *args)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad(out, x, weight.to(out.dtype))
    return out.detach(), grad


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize(("size", "scale"), [((7, 7), 0.25), ((3, 5), 0.25), ((1, 2), 0.1), ((2, 2), 1.0)])
def test_values_and_gradients_equal_torchvision(aligned, ratio, size, scale):
    x, boxes = feature_map(), BOXES.double()
    if aligned and ratio <= 0:
        boxes = boxes[boxes[:, 3] >= boxes[:, 1]]  # torchvision fails on a negative number of samples
    out, grad = value_and_grad(roi_align, x, boxes, size, scale, ratio, aligned)
    expected, expected_grad = value_and_grad(torchvision.ops.roi_align, x, boxes, size, scale, ratio, aligned)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [0, 2])
def test_random_boxes_equal_torchvision_in_fp32(ratio):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 32, 50, 68, generator=generator)
    corners = torch.rand(300, 4, generator=generator) * 300 - 10
    corners[:, 2:] = corners[:, :2] + corners[:, 2:] * 0.4
    boxes = torch.cat([torch.arange(300)[:, None] % 2, corners], dim=1)
    out, grad = value_and_grad(roi_align, x, boxes, 7, 0.25, ratio, True)
    expected, expected_grad = value_and_grad(torchvision.ops.roi_align, x, boxes, 7, 0.25, ratio, True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_keeps_boxes_in_fp32(dtype, tolerance):
    x = feature_map(dtype, C=32)
    out, grad = value_and_grad(roi_align, x, BOXES, 7, 0.25, 0, True)
    expected, expected_grad = value_and_grad(torchvision.ops.roi_align, x.float(), BOXES, 7, 0.25, 0, True)
    assert out.dtype == grad.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.float(), expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat(1, 2, 2, 2)[:, ::2, ::2, 1::2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["nchw", "channels_last", "strided", "transposed"],
)
def test_any_memory_format(layout, monkeypatch):
    monkeypatch.setattr("maskrcnn.ops.sampling.CHANNELS_PER_COPY", 2)  # of five
    x = layout(feature_map())
    out, grad = value_and_grad(roi_align, x, BOXES.double(), 7, 0.25, 2, True)
    expected, expected_grad = value_and_grad(torchvision.ops.roi_align, x, BOXES.double(), 7, 0.25, 2, True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_list_of_boxes_for_each_image():
    boxes = [BOXES[:4, 1:], BOXES[4:, 1:]]
    out = roi_align(feature_map(torch.float32), boxes, 7, 0.25)
    torch.testing.assert_close(out, torchvision.ops.roi_align(feature_map(torch.float32), boxes, 7, 0.25))


def test_no_boxes():
    x = feature_map(torch.float32).requires_grad_()
    for boxes in (torch.zeros(0, 5), [torch.zeros(0, 4), torch.zeros(0, 4)]):
        out = roi_align(x, boxes, 7)
        assert out.shape == (0, 5, 7, 7)
        out.sum().backward()
        assert x.grad is not None
        assert not x.grad.any()


def test_no_images_and_no_channels():
    assert roi_align(torch.zeros(0, 5, 12, 20), [], 7).shape == (0, 5, 7, 7)
    assert roi_align(torch.zeros(1, 0, 12, 20), [torch.zeros(1, 4)], 7).shape == (1, 0, 7, 7)


def test_turned_boxes_have_no_adaptive_samples():
    out = roi_align(feature_map(), BOXES[8:10].double(), 2, 1.0, 0, True)
    assert not out.any()


def test_boxes_that_are_not_numbers_pool_nothing():
    boxes = torch.tensor([[0, float("nan"), 1.0, 5.0, 9.0], [0, 1.0, 1.0, 9.0, 9.0]])
    out = roi_align(torch.ones(1, 2, 12, 20), boxes, 2, 0.25)
    assert not out[0].any()
    torch.testing.assert_close(out[1], torch.ones(2, 2, 2))


def test_a_wrong_shape_of_boxes_is_said():
    with pytest.raises(UserError, match=r"expected boxes of shape \(R, 5\), got \(3, 4\)"):
        roi_align(feature_map(), torch.zeros(3, 4), 7)
    with pytest.raises(UserError, match="for each of 2 images, got 1"):
        roi_align(feature_map(), [torch.zeros(3, 4)], 7)


@pytest.mark.parametrize(("size", "key"), [(7, "out_7_scale0.25_sr0_aligned"), (14, "out_14")])
def test_equals_detectron2(shared, size, key):
    units = np.load(shared / "reference" / "detectron2" / "units.npz")
    expected = torch.from_numpy(units[f"roialign/{key}"])
    rois = torch.from_numpy(units["roialign/rois"])[: len(expected)]
    out = roi_align(torch.from_numpy(units["roialign/feat"]), rois, size, 0.25, 0, True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_many_blocks_and_threads_give_the_same_bits(monkeypatch):
    x = feature_map(torch.float32, C=16)
    boxes = BOXES.repeat(20, 1)
    expected = value_and_grad(roi_align, x, boxes, 7, 0.25, 0, True)
    monkeypatch.setattr("maskrcnn.ops.sampling.PAIRS_PER_BLOCK", 1000)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out, grad = value_and_grad(roi_align, x, boxes, 7, 0.25, 0, True)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(out, expected[0])
    assert torch.equal(grad, expected[1])


@pytest.mark.parametrize("ratio", [0, 2])
def test_without_mkl_the_numbers_are_the_same(monkeypatch, ratio):
    x, boxes = feature_map(torch.float32, C=16), BOXES.repeat(20, 1)
    expected = value_and_grad(roi_align, x, boxes, 7, 0.25, ratio, True)
    calls = []
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: calls.append(1))
    ours = value_and_grad(roi_align, x, boxes, 7, 0.25, ratio, True)
    assert calls
    # Gradients are sums of some hundred numbers about 1 here, added in another order: one rounding of each is 1e-5.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=5e-5)


def test_second_derivatives():
    x = feature_map(C=1)[:, :, :5, :6].clone().requires_grad_()
    boxes = torch.tensor([[0, -1.0, 0.5, 4.2, 3.0], [1, 1.0, 1.0, 5.0, 2.5]]).double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, (2, 3), 1.0, 0, True), x)
    assert torch.autograd.gradgradcheck(lambda x: roi_align(x**2, boxes, (2, 3), 1.0, 0, True), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_of_rows_in_plain_pytorch(dtype):
    """With an empty sum among them, which is zero."""
    table = torch.arange(12.0).view(4, 3).to(dtype)
    index, ends = torch.tensor([3, 0, 1, 1]).int(), torch.tensor([0, 2, 2, 4]).int()
    weight = torch.tensor([1.0, 2.0, 0.5, 0.25]).to(dtype)
    expected = torch.tensor([[9.0, 12.0, 15.0], [0.0, 0.0, 0.0], [2.25, 3.0, 3.75]]).to(dtype)
    for sums in (sum_rows, _sum_bags):
        assert torch.equal(sums(table, index, ends, weight), expected)


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_other_devices_the_numbers_are_the_same(monkeypatch, ratio, dtype):
    """In the form for what is neither a CPU nor a CUDA device, forced upon the CPU."""
    x = feature_map(dtype)
    expected = value_and_grad(roi_align, x, BOXES, 7, 0.25, ratio, False)
    calls = []
    monkeypatch.setattr(sampling.processor, "has_sparse_products", lambda dtype: False)
    monkeypatch.setattr(sampling, "_sum_bags", lambda *bags: calls.append(1) or sum_rows(*bags))
    ours = value_and_grad(roi_align, x, BOXES, 7, 0.25, ratio, False)
    assert calls
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_registered_as_torch_operators():
    x = feature_map(torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.maskrcnn.roi_align.default, (x, BOXES, 7, 7, 0.25, 0, True))


def test_traces_as_one_graph():
    def pool(x: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(x, boxes, (7, 7), 0.25, 0, True).relu()

    x = feature_map(torch.float32).requires_grad_()
    out = torch.compile(pool, fullgraph=True, backend="aot_eager")(x, BOXES)
    torch.testing.assert_close(out, pool(x, BOXES))
    out.sum().backward()
    assert x.grad is not None


TRITON_CASES = """
import torch, torchvision
import sys
from maskrcnn.ops import sampling_triton
import maskrcnn.ops.roi_align
sampling = sys.modules["maskrcnn.ops.roi_align"]
from tests.ops.test_sampling import BOXES, feature_map, value_and_grad

sampling.use_triton = lambda x: True
boxes = BOXES[[0, 2, 4, 6, 8, 12]].double()
for size, scale, ratio, aligned in [((2, 3), 0.1, 0, True), ((1, 2), 0.25, 1, False)]:
    ours = value_and_grad(sampling.roi_align, feature_map(), boxes, size, scale, ratio, aligned)
    reference = value_and_grad(torchvision.ops.roi_align, feature_map(), boxes, size, scale, ratio, aligned)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 0.03)]:
    x = feature_map(dtype)
    ours = value_and_grad(sampling.roi_align, x, BOXES[2:9:3], 2, 0.1, 0, True)
    reference = value_and_grad(torchvision.ops.roi_align, x.float(), BOXES[2:9:3], 2, 0.1, 0, True)
    assert ours[0].dtype == ours[1].dtype == dtype
    for a, b in zip(ours, reference):
        torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance)
x = feature_map(torch.float32).requires_grad_()
assert sampling.roi_align(x, torch.zeros(0, 5), 7).shape == (0, 5, 7, 7)
print("equal")
"""


@pytest.mark.slow
def test_triton_kernels_equal_torchvision():
    """In a process of its own: the interpreter is chosen when the kernels are defined."""
    pytest.importorskip("triton")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, os.path.join(root, "src"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", TRITON_CASES], env=env, capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr
