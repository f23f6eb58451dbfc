"""Every Triton kernel compiles for cards that are not here, in every precision, forward and backward."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

from maskrcnn.bench.kernels import DTYPES, TARGETS, compile_for, resources, variants
from maskrcnn.ops import bitmaps_triton, polygons_triton, sampling_triton, suppression_triton

MOST_SHARED = {
    "sm_80": 163,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
    "gfx942": 64,
}  # KiB that a program can have


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spilling(target: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compiled, not found
    code = "hsaco" if target.startswith("gfx") else "cubin"
    for dtype in DTYPES:
        for variant in variants(dtype):
            compiled = compile_for(variant, TARGETS[target])
            assert len(compiled.asm[code]) > 1000, (variant.name, dtype)
            assert compiled.metadata.shared <= MOST_SHARED[target] * 1024
            if dtype == "bf16" or variant.name.startswith(
                ("polygons", "bitmaps", "suppression")
            ):  # the tool takes a quarter of a second
                found = resources(compiled)
                assert not found.spilled, (variant.name, found)
                assert found.registers is None or 16 <= found.registers <= 255, (variant.name, found)


def test_no_kernel_is_forgotten() -> None:
    """Kernels are the jitted functions that no other one calls: their names end so."""
    modules = (sampling_triton, polygons_triton, bitmaps_triton, suppression_triton)
    kernels = {v for m in modules for name, v in vars(m).items() if name.endswith("_kernel")}
    assert {v.kernel for v in variants("fp32")} == kernels
