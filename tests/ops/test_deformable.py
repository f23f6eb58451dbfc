"""The deformable operators against the outputs and gradients of InternImage's and ViT-Adapter's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops import dcnv3, deform_conv2d, ms_deform_attn

DCNV3_CASES = (
    "a_basic", "b_scale2", "c_stride2", "d_dil2", "e_pad0", "f_k5_half", "g_far", "h_s2_d2_scale2", "i_k3x5",
    "j_groups8_c16",
)  # fmt: skip
MSDA_CASES = ("l1", "l3", "l1_far", "l3_b2", "l1_p1_odd")


def assert_equals_reference(op, case, inputs, dtype, tolerance):
    """Output and every gradient, with the reference's float64 files where dtype is float64."""
    suffix = "f64" if dtype == torch.float64 else "f32"
    tensors = [torch.from_numpy(case[name]).to(dtype).requires_grad_() for name in inputs]
    out = op(*tensors)
    assert out.dtype == dtype
    grads = torch.autograd.grad(out, tensors, torch.from_numpy(case["grad_output"]).to(dtype))
    for name, ours in zip(("output", *(f"grad_{n}" for n in inputs)), (out, *grads), strict=True):
        assert ours.dtype == dtype
        expected = torch.from_numpy(case[f"{name}_{suffix}"]).double()
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            ours.detach().double(),
            expected,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m: f"{name}: {m}",
        )


def read_case(shared, file: str, name: str) -> dict[str, np.ndarray]:
    units = np.load(shared / "reference" / "mmdetection" / f"{file}.npz")
    prefix = f"{name}/"
    return {k.removeprefix(prefix): units[k] for k in units.files if k.startswith(prefix)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", DCNV3_CASES)
def test_dcnv3_equals_the_original(shared, name, dtype, tolerance):
    case = read_case(shared, "unit_dcnv3", f"dcnv3/{name}")
    _, _, _, groups, _, kh, kw, stride, padding, dilation = (int(v) for v in case["cfg"][:10])

    def op(input, offset, mask):
        return dcnv3(
            input, offset, mask, kernel_size=(kh, kw), stride=stride, padding=padding, dilation=dilation,
            groups=groups, offset_scale=float(case["cfg"][10]),
        )  # fmt: skip

    assert_equals_reference(op, case, ("input", "offset", "mask"), dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", MSDA_CASES)
def test_ms_deform_attn_equals_the_original(shared, name, dtype, tolerance):
    case = read_case(shared, "unit_msdeformattn", f"msda/{name}")
    shapes = [(int(h), int(w)) for h, w in case["spatial_shapes"]]

    def op(value, sampling_locations, attention_weights):
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)

    names = ("value", "sampling_locations", "attention_weights")
    assert_equals_reference(op, case, names, dtype, tolerance)
