"""Compilation of the Triton kernels for cards that need not be there, and what the compiled code takes of them.

`python -m maskrcnn.bench.kernels` prints the table of all kernels, precisions and cards.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maskrcnn.ops import bitmaps_triton, polygons_triton, sampling_triton, suppression_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "sm_120": GPUTarget("cuda", 120, 32),  # RTX 50
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300
}
DTYPES = ("fp32", "fp16", "bf16", "fp64")


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is launched: types of its arguments, and its constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4

    def source(self) -> ASTSource:
        names = self.kernel.arg_names
        signature = {n: "constexpr" if n in self.constants else self.types[n] for n in names}
        # As of tensors that the allocator made: addresses are multiples of 16.
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
        return ASTSource(self.kernel, signature, self.constants, aligned)


@dataclass(frozen=True)
class Resources:
    """Resources of one program: shared memory in bytes, registers of a thread, bytes or registers spilled.

    None: the tools that tell are not at hand.
    """

    shared: int
    registers: int | None
    spilled: int | None


def variants(dtype: str) -> Iterator[Variant]:
    """Launches of every kernel, forward and backward, with maps of `dtype`."""
    real = "fp64" if dtype == "fp64" else "fp32"  # what is summed in
    acc = tl.float64 if real == "fp64" else tl.float32
    if dtype == "fp32":  # masks know no other
        yield Variant(
            "polygons",
            polygons_triton._polygons_kernel,
            {
                **dict.fromkeys(("edges", "boxes"), "*fp32"),
                **dict.fromkeys(("last", "starts"), "*i32"),
                "index": "*i64",
                "out": "*i1",
            },
            {"SIZE": 28, "BLOCK": 1024},
        )
        yield Variant(
            "bitmaps",
            bitmaps_triton._bitmaps_kernel,
            {
                "bits": "*u8",
                "starts": "*i64",
                "crops": "*i32",
                "boxes": "*fp32",
                "index": "*i64",
                "out": "*i1",
                "H": "i32",
                "W": "i32",
            },
            {"SIZE": 28, "BLOCK": 1024, "SWAPPED": False},
        )
        counts = dict.fromkeys(("N", "W", "limit"), "i32")
        tables = {"groups": "*i32", "words": "*i32", "kept": "*i32", **counts}
        yield Variant(
            "suppression: overlaps",
            suppression_triton._overlaps_kernel,
            {"boxes": "*fp32", "threshold": "fp32", **tables},
            {"BITS": suppression_triton.ROWS},
        )
        yield Variant(
            "suppression: choice",
            suppression_triton._keep_kernel,
            tables,
            {"BITS": suppression_triton.ROWS, "BLOCK_W": 256},  # of up to 8,192 boxes
            num_warps=suppression_triton.WARPS,
        )
    for backward in (False, True):
        direction = "backward" if backward else "forward"
        sizes = dict.fromkeys(("C", "H", "W", "P", "Q", "ratio"), "i32")
        rows = real if backward else dtype
        yield Variant(
            f"roi_align {direction}",
            sampling_triton._roi_align_kernel,
            {"rows": f"*{rows}", "boxes": f"*{real}", "bins": f"*{dtype}", **sizes},
            {"ALIGNED": True, "BACKWARD": backward, "ACC": acc, "BLOCK": 256},
        )
        yield Variant(
            f"bilinear {direction}",
            sampling_triton._bilinear_kernel,
            {
                **dict.fromkeys(("rows", "offset", "weight", "out", "offset_grad", "weight_grad"), f"*{dtype}"),
                **dict.fromkeys(("scale", "point", "at"), f"*{real}"),
                **dict.fromkeys(("M", "S", "Q", "G", "D", "K", "points_of_map"), "i32"),
                "rows_grad": f"*{real}",
                "maps": "*i64",
            },
            {
                "HAS_AT": True, "BACKWARD": backward, "FOR_ROWS": backward, "FOR_PLACES": backward, "ACC": acc,
                "BLOCK_M": 16, "BLOCK_D": 32,
            },
        )  # fmt: skip


def compile_for(variant: Variant, target: GPUTarget) -> Any:
    """Compile a launch for a card, down to its machine code."""
    return triton.compile(variant.source(), target=target, options={"num_warps": variant.num_warps})


def resources(compiled: Any) -> Resources:
    """Read what the compiled code takes, off the code itself."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        found = {
            name: int(value)
            for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count): +(\d+)", compiled.asm["amdgcn"])
        }
        return Resources(shared, found.get("vgpr_count"), found.get("vgpr_spill_count"))
    words = _cuobjdump(compiled.asm["cubin"])
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", words)}
    spilled = found["STACK"] + found["LOCAL"] if "STACK" in found else None
    return Resources(shared, found.get("REG"), spilled)


def _cuobjdump(cubin: bytes) -> str:
    """Resource usage of machine code in words, by the tool that Triton brings; nothing where it does not run."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        try:
            done = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return ""
    return done.stdout + done.stderr


def table() -> str:
    """Markdown table: a row for each kernel and precision, for each card `shared / registers / spilled`."""
    lines = ["| kernel | precision | " + " | ".join(TARGETS) + " |", "|---" * (2 + len(TARGETS)) + "|"]
    for dtype in DTYPES:
        for variant in variants(dtype):
            cells = []
            for target in TARGETS.values():
                r = resources(compile_for(variant, target))
                cells.append(
                    " / ".join("?" if v is None else str(v) for v in (r.shared, r.registers, r.spilled))
                )
            lines.append(f"| {variant.name} | {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
