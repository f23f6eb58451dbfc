"""Deformable operators against the outputs and gradients of InternImage's and ViT-Adapter's own code, against
`grid_sample` and against torchvision.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops import bilinear, dcnv3, deform_conv2d, ms_deform_attn
from tests.alone import run_alone

DCNV3_CASES = (
    "a_basic", "b_scale2", "c_stride2", "d_dil2", "e_pad0", "f_k5_half", "g_far", "h_s2_d2_scale2", "i_k3x5",
    "j_groups8_c16",
)  # fmt: skip
MSDA_CASES = ("l1", "l3", "l1_far", "l3_b2", "l1_p1_odd")
MSDA_NAMES = ("value", "sampling_locations", "attention_weights")
DTYPES = [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2**-6)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_grads(op, *tensors: Tensor, seed: int = 9) -> list[Tensor]:
    """Output and the gradients of all tensors, for a random gradient of the output."""
    tensors = tuple(t.detach().requires_grad_() for t in tensors)
    out = op(*tensors)
    grad = randn(*out.shape, seed=seed).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def read_case(shared, file: str, name: str) -> dict[str, np.ndarray]:
    units = np.load(shared / "reference" / "mmdetection" / f"{file}.npz")
    prefix = f"{name}/"
    return {k.removeprefix(prefix): units[k] for k in units.files if k.startswith(prefix)}


def assert_equals_reference(op, case: dict, names: tuple[str, ...], dtype: torch.dtype, tolerance: float):
    """Compare output and every gradient; half precision gets places in float32, as the models hand them over."""
    expected = {k: case[f"{k}_{'f64' if dtype == torch.float64 else 'f32'}"] for k in
                ("output", *(f"grad_{n}" for n in names))}  # fmt: skip
    places = names.index("offset") if "offset" in names else names.index("sampling_locations")
    tensors = [torch.from_numpy(case[name]).to(dtype) for name in names]
    if dtype == torch.bfloat16:
        tensors[places] = torch.from_numpy(case[names[places]])
    tensors = [t.requires_grad_() for t in tensors]
    out = op(*tensors)
    assert out.dtype == dtype
    grads = torch.autograd.grad(out, tensors, torch.from_numpy(case["grad_output"]).to(dtype))
    for (name, reference), ours in zip(expected.items(), (out, *grads), strict=True):
        error = (ours.detach().double() - torch.from_numpy(reference).double()).abs().max()
        assert error <= tolerance * max(1.0, np.abs(reference).max()), name


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", DCNV3_CASES)
def test_dcnv3_equals_the_original(shared, name, dtype, tolerance):
    case = read_case(shared, "unit_dcnv3", f"dcnv3/{name}")
    _, _, _, groups, _, kh, kw, stride, padding, dilation = (int(v) for v in case["cfg"][:10])

    def op(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return dcnv3(
            input, offset, mask, kernel_size=(kh, kw), stride=stride, padding=padding, dilation=dilation,
            groups=groups, offset_scale=float(case["cfg"][10]),
        )  # fmt: skip

    assert_equals_reference(op, case, ("input", "offset", "mask"), dtype, tolerance)


def test_dcnv3_without_offsets_is_a_mean_of_nine(shared):
    case = read_case(shared, "unit_dcnv3", "dcnv3/z_zero_offset")
    x = torch.from_numpy(case["input"])
    out = dcnv3(
        x, torch.zeros(1, 5, 7, 2 * 18), torch.full((1, 5, 7, 2 * 9), 1 / 9),
        kernel_size=3, stride=1, padding=1, dilation=1, groups=2, offset_scale=1.0,
    )  # fmt: skip
    torch.testing.assert_close(out, F.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1))
    torch.testing.assert_close(out, torch.from_numpy(case["output_f32"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", MSDA_CASES)
def test_ms_deform_attn_equals_the_original(shared, name, dtype, tolerance):
    case = read_case(shared, "unit_msdeformattn", f"msda/{name}")
    shapes = [(int(h), int(w)) for h, w in case["spatial_shapes"]]

    def op(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)

    assert_equals_reference(op, case, MSDA_NAMES, dtype, tolerance)


def attention_by_grid_sample(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    N, _, M, D = value.shape
    Q = locations.shape[1]
    maps = value.split([h * w for h, w in shapes], dim=1)
    out = value.new_zeros(N * M, D, Q)
    for level, (h, w) in enumerate(shapes):
        image = maps[level].permute(0, 2, 3, 1).reshape(N * M, D, h, w)
        grid = locations[:, :, :, level].transpose(1, 2).reshape(N * M, Q, -1, 2) * 2 - 1
        share = weights[:, :, :, level].transpose(1, 2).reshape(N * M, 1, Q, -1)
        out = out + (F.grid_sample(image, grid, align_corners=False) * share).sum(-1)
    return out.view(N, M * D, Q).transpose(1, 2)


@pytest.mark.parametrize(
    ("N", "Q", "M", "D", "P", "shapes"),
    [
        (1, 1, 1, 1, 1, [(3, 4)]),  # one of everything
        (3, 5, 2, 4, 2, [(6, 4), (3, 2)]),
        (2, 4, 1, 3, 3, [(1, 1)]),
        (1, 6, 2, 3, 2, [(1, 5), (5, 1), (2, 2), (1, 1)]),  # maps of one line, one column, one place
        (1, 400, 3, 2, 4, [(9, 7)]),
    ],
)
def test_ms_deform_attn_equals_grid_sample(N, Q, M, D, P, shapes):
    value = randn(N, sum(h * w for h, w in shapes), M, D)
    locations = randn(N, Q, M, len(shapes), P, 2, seed=1) * 0.6 + 0.5  # some outside, some far
    weights = randn(N, Q, M, len(shapes), P, seed=2)
    ours = value_and_grads(lambda v, x, w: ms_deform_attn(v, shapes, x, w), value, locations, weights)
    expected = value_and_grads(
        lambda v, x, w: attention_by_grid_sample(v, shapes, x, w), value, locations, weights
    )
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("far", [-1e30, -50.0, 1e4, 3e9, float("inf"), float("nan")])
def test_places_far_outside_add_nothing(far):
    value = randn(1, 12, 2, 3)
    locations = torch.full((1, 5, 2, 1, 2, 2), far, dtype=torch.float64)
    out, *grads = value_and_grads(
        lambda v, x, w: ms_deform_attn(v, [(3, 4)], x, w), value, locations, randn(1, 5, 2, 1, 2)
    )
    for x in (out, *grads):
        assert torch.equal(x, torch.zeros_like(x))


def test_a_place_half_a_cell_outside_takes_half():
    out = ms_deform_attn(
        torch.full((1, 12, 1, 1), 8.0),
        [(3, 4)],
        torch.tensor([0.0, 0.5]).view(1, 1, 1, 1, 1, 2),
        torch.ones(1, 1, 1, 1, 1),
    )
    assert out.item() == 4.0


def dcn_args(N=2, H=6, W=7, C=8, groups=2, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    mask = randn(N, H, W, groups, 9, seed=2).softmax(-1).flatten(3)
    return randn(N, H, W, C).to(dtype), (randn(N, H, W, groups * 18, seed=1) * 2).to(dtype), mask.to(dtype)


def dcn(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    return dcnv3(
        input, offset, mask, kernel_size=3, stride=1, padding=1, dilation=1, groups=2, offset_scale=1.0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    args = [x.to(dtype) for x in dcn_args()]
    halves = value_and_grads(dcn, *args)
    for ours, expected in zip(
        halves, value_and_grads(lambda *t: dcn(*t).to(dtype), *(x.float() for x in args)), strict=True
    ):
        assert ours.dtype == dtype
        assert torch.equal(ours, expected.to(dtype))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
    ],
    ids=["from NCHW", "strided"],
)
def test_any_layout(layout):
    args = dcn_args()
    ours = value_and_grads(dcn, *(layout(x) for x in args))
    torch.testing.assert_close(ours, value_and_grads(dcn, *args), rtol=0, atol=0)


def test_only_the_gradients_that_are_asked_for():
    args = dcn_args()
    _, *expected = value_and_grads(dcn, *args)
    for i in range(3):
        tensors = [x.detach().requires_grad_(i == j) for j, x in enumerate(args)]
        (grad,) = torch.autograd.grad(dcn(*tensors), tensors[i], randn(2, 6, 7, 8, seed=9))
        torch.testing.assert_close(grad, expected[i])


def test_the_number_of_threads_changes_no_bit():
    args = dcn_args(N=1, H=30, W=40, dtype=torch.float32)
    expected = value_and_grads(dcn, *args)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ours = value_and_grads(dcn, *args)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_what_calls_share_is_only_theirs():
    """A call finds the layout of the last one: it has to see what has changed since."""
    x, offset, mask = randn(1, 9, 11, 24), randn(1, 9, 11, 54), randn(1, 9, 11, 27).softmax(-1)

    def call(scale: float = 1.0, dilation: int = 1, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        def op(*tensors: Tensor) -> Tensor:
            return dcnv3(*tensors, groups=3, dilation=dilation, padding=dilation, offset_scale=scale)

        return value_and_grads(op, *(t.to(dtype) for t in (x, offset, mask)))

    kinds = [{}, {"scale": 2.0}, {"dilation": 2}, {"dtype": torch.float32}]
    alone = []
    for kind in kinds:
        bilinear._scratch.clear()
        alone.append(call(**kind))
    for kind, expected in zip((*kinds, *kinds), (*alone, *alone), strict=True):
        for again in (False, True):
            torch.testing.assert_close(call(**kind), expected, rtol=0, atol=0, msg=f"{kind} {again}")
        lower = value_and_grads(lambda *t: dcnv3(*t, groups=3), x[:, :7], offset[:, :7], mask[:, :7])
        assert lower[0].shape == (1, 7, 11, 24)


def test_without_mkl_the_numbers_are_the_same(monkeypatch):
    args = dcn_args(dtype=torch.float32)
    expected = value_and_grads(dcn, *args)
    calls = []
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: calls.append(1))
    ours = value_and_grads(dcn, *args)
    assert calls
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_many_blocks_and_pieces(monkeypatch):
    shapes = [(6, 4), (3, 2), (1, 5)]
    args = randn(2, 35, 2, 4), randn(2, 50, 2, 3, 2, 2, seed=1) * 0.6 + 0.5, randn(2, 50, 2, 3, 2, seed=2)
    expected = [value_and_grads(dcn, *dcn_args())]
    expected.append(value_and_grads(lambda v, x, w: ms_deform_attn(v, shapes, x, w), *args))
    monkeypatch.setattr("maskrcnn.ops.bilinear.SAMPLES_PER_BLOCK", 100)
    monkeypatch.setattr("maskrcnn.ops.bilinear.NUMBERS_PER_PIECE", 30)
    ours = [value_and_grads(dcn, *dcn_args())]
    ours.append(value_and_grads(lambda v, x, w: ms_deform_attn(v, shapes, x, w), *args))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("groups", "offset_groups", "stride", "padding", "dilation", "kernel", "with_mask", "with_bias"),
    [
        (1, 1, 1, 1, 1, (3, 3), True, True),
        (2, 4, 2, (1, 2), (2, 1), (3, 2), True, False),
        (1, 2, (1, 2), 0, 1, (1, 3), False, True),
        (4, 1, 1, 2, 2, (3, 3), False, False),
    ],
)
def test_deform_conv2d_equals_torchvision(
    groups, offset_groups, stride, padding, dilation, kernel, with_mask, with_bias
):
    x, weight = randn(2, 8, 9, 11), randn(12, 8 // groups, *kernel, seed=1)
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    h, w = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((9, 11), kernel, *pairs, strict=True)
    )
    points = offset_groups * kernel[0] * kernel[1]
    tensors = [x, randn(2, 2 * points, h, w, seed=2) * 2, weight]
    tensors += [randn(12, seed=3)] * with_bias + [randn(2, points, h, w, seed=4)] * with_mask

    def call(op):
        def run(x: Tensor, offset: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
            bias, mask = rest[0] if with_bias else None, rest[-1] if with_mask else None
            return op(x, offset, weight, bias, stride, padding, dilation, mask)

        return run

    ours = value_and_grads(call(deform_conv2d), *tensors)
    expected = value_and_grads(call(torchvision.ops.deform_conv2d), *tensors)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_mistakes_are_said_in_a_line():
    value, locations, weights = randn(1, 12, 1, 2), randn(1, 3, 1, 2, 1, 2), randn(1, 3, 1, 2, 1)
    with pytest.raises(UserError, match=r"expected maps of at least one place, got \[\(3, 4\), \(0, 5\)\]"):
        ms_deform_attn(value, [(3, 4), (0, 5)], locations, weights)
    with pytest.raises(UserError, match=r"expected value with the 20 places .* got 12"):
        ms_deform_attn(value, [(3, 4), (2, 4)], locations, weights)
    with pytest.raises(UserError, match=r"sampling_locations of shape \(1, 3, 1, 1, 1, 2\)"):
        ms_deform_attn(value, [(3, 4)], locations, weights)
    x, offset, mask = dcn_args()
    with pytest.raises(UserError, match=r"expected mask of shape \(2, 6, 7, 18\), got \(2, 6, 7, 16\)"):
        dcn(x, offset, mask[..., :16])
    with pytest.raises(UserError, match=r"expected channels divisible by 2 groups, got 7"):
        dcn(x[..., :7], offset, mask)
    with pytest.raises(UserError, match="expected an offset of 2 \\* 9 channels for each group"):
        deform_conv2d(x, randn(2, 17, 6, 7), randn(4, 6, 3, 3))


def test_empty_batches_and_no_queries():
    assert dcn(*dcn_args(N=0)).shape == (0, 6, 7, 8)
    out, *grads = value_and_grads(
        lambda v, x, w: ms_deform_attn(v, [(3, 4)], x, w),
        randn(1, 12, 2, 3),
        randn(1, 0, 2, 1, 2, 2),
        randn(1, 0, 2, 1, 2),
    )
    assert out.shape == (1, 0, 6)
    assert not grads[0].any()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_registered_as_a_torch_operator():
    rows, weight = randn(1, 12, 2, 3).requires_grad_(), randn(1, 5, 2, 4, seed=1).requires_grad_()
    offset = (randn(1, 5, 2, 4, 2, seed=2) * 3).requires_grad_()
    scale, point, at = torch.ones(4, 2).double(), randn(4, 2), randn(5, 2)
    for place in (at, None):
        args = (rows, offset, weight, scale, point, place, [3, 4])
        torch.library.opcheck(torch.ops.maskrcnn.bilinear_sum.default, args)
    assert torch.autograd.gradcheck(
        lambda *t: torch.ops.maskrcnn.bilinear_sum(*t, scale, point, at, [3, 4]), (rows, offset, weight)
    )


def three_operators(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    attended = ms_deform_attn(
        x.flatten(1, 2).unflatten(-1, (2, 4)),
        [(6, 7)],
        offset.reshape(2, 42, 2, 1, 9, 2),
        mask.reshape(2, 42, 2, 1, 9),
    )
    turned = deform_conv2d(
        x.permute(0, 3, 1, 2), offset.permute(0, 3, 1, 2), x.new_ones(4, 8, 3, 3), padding=1
    )
    return dcn(x, offset, mask).relu().sum() + attended.sum() + turned.sum()


def test_trace_as_one_graph():
    args = [x.requires_grad_() for x in dcn_args()]
    compiled = torch.compile(three_operators, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(three_operators(*args), args)
    torch.testing.assert_close(torch.autograd.grad(compiled(*args), args), expected)


# PyTorch's CPU code generator calls a compiler, which users need not have: without one there is nothing to test here,
# and the test above has traced the whole graph already. CI machines have gcc, so it runs there.
@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile's CPU code needs a C++ compiler",
)
def test_compile():
    """In a process of its own: among other tests the compiler has crashed its worker."""
    run_alone("tests.ops.test_deformable", "compiled_is_the_same()")


def compiled_is_the_same() -> None:
    args = [x.requires_grad_() for x in dcn_args()]
    compiled = torch.compile(three_operators, fullgraph=True)
    expected = torch.autograd.grad(three_operators(*args), args)
    torch.testing.assert_close(torch.autograd.grad(compiled(*args), args), expected)


def test_export():
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return three_operators(x, offset, mask)

    args = dcn_args()
    exported = torch.export.export(Model(), args)
    torch.testing.assert_close(exported.module()(*args), three_operators(*args))


TRITON_CASES = """
import torch, torchvision
from maskrcnn.ops import bilinear, deform_conv2d, ms_deform_attn
from tests.ops.test_deformable import attention_by_grid_sample, dcn, dcn_args, randn, value_and_grads

def both(op, *tensors):
    bilinear.use_triton = lambda x: True
    ours = value_and_grads(op, *tensors)
    bilinear.use_triton = lambda x: False
    return ours, value_and_grads(op, *tensors)

for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.03), (torch.float16, 0.004)]:
    ours, expected = both(dcn, *dcn_args(N=1, H=3, W=4, C=8, dtype=dtype))
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

shapes = [(3, 2), (1, 3), (2, 2)]
args = randn(2, 13, 2, 3), randn(2, 5, 2, 3, 2, 2, seed=1) * 0.6 + 0.5, randn(2, 5, 2, 3, 2, seed=2)
args[1][0, 0, 0, 0, 0, 0] = float("nan")
args[1][0, 1] = 1e30
ours, expected = both(lambda v, l, w: ms_deform_attn(v, shapes, l, w), *args)
torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)

wide = randn(1, 4, 1, 150), randn(1, 2, 1, 1, 1, 2, seed=1), randn(1, 2, 1, 1, 1, seed=2)
ours, expected = both(lambda v, l, w: ms_deform_attn(v, [(2, 2)], l, w), *wide)
torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)

bilinear.use_triton = lambda x: True
args = randn(1, 4, 3, 4), randn(1, 36, 3, 4, seed=1) * 2, randn(2, 4, 3, 3, seed=2)
ours = value_and_grads(lambda x, o, w: deform_conv2d(x, o, w, padding=1), *args)
expected = value_and_grads(lambda x, o, w: torchvision.ops.deform_conv2d(x, o, w, padding=1), *args)
torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
assert dcn(*dcn_args(N=0)).shape == (0, 6, 7, 8)
print("equal")
"""


@pytest.mark.slow
def test_triton_kernels_equal_the_form_for_the_cpu():
    """In a process of its own: the interpreter is chosen when the kernels are defined."""
    pytest.importorskip("triton")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, os.path.join(root, "src"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", TRITON_CASES], env=env, capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr
