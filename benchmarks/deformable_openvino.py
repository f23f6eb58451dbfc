"""DCNv3's sampling as GridSample in OpenVINO, beside our operator: whether deformable families gain from a graph.

    python benchmarks/deformable_openvino.py [--rounds N] [--out FILE]

The maps of InternImage-T at 800x1088. Seconds of both and the largest difference; ours runs in PyTorch with channels
last, as in the model; OpenVINO gets its inputs in the same layout and its answer is not copied.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import processor
from maskrcnn.ops.deformable import dcnv3

LEVELS = [
    (200, 272, 64, 4),
    (100, 136, 128, 8),
    (50, 68, 256, 16),
    (25, 34, 512, 32),
]  # H, W, channels, groups


class GridSampled(nn.Module):
    """DCNv3 of 3x3 points by `grid_sample`: groups are images of their own."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        N, H, W, C = x.shape
        G, K = self.groups, 9
        y, xs = torch.arange(H, dtype=x.dtype), torch.arange(W, dtype=x.dtype)
        base = torch.stack([xs[None, :].expand(H, W), y[:, None].expand(H, W)], -1)
        k = torch.arange(-1, 2, dtype=x.dtype)
        points = torch.stack([k[:, None].expand(3, 3), k[None, :].expand(3, 3)], -1).reshape(K, 2)  # x-major
        at = base[None, :, :, None, None] + points + offset.view(N, H, W, G, K, 2)
        at = (2 * at + 1) / torch.tensor([W, H], dtype=x.dtype) - 1
        at = at.permute(0, 3, 1, 2, 4, 5).reshape(N * G, H, W * K, 2)
        maps = x.view(N, H, W, G, C // G).permute(0, 3, 4, 1, 2).reshape(N * G, C // G, H, W)
        samples = F.grid_sample(maps, at, align_corners=False).view(N, G, C // G, H, W, K)
        weights = mask.view(N, H, W, G, K).permute(0, 3, 1, 2, 4)[:, :, None]
        return (samples * weights).sum(-1).permute(0, 3, 4, 1, 2).reshape(N, H, W, C)


def compiled(module: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        torch.onnx.export(module, inputs, path, dynamo=True, opset_version=20, verbose=False)
        return openvino.Core().compile_model(
            openvino.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for H, W, C, G in LEVELS:
        torch.manual_seed(0)
        inputs = (
            torch.randn(1, H, W, C),
            torch.randn(1, H, W, G * 18),
            torch.rand(1, H, W, G, 9).softmax(-1).flatten(3),
        )
        request = compiled(GridSampled(G).eval(), inputs).create_infer_request()  # type: ignore[attr-defined]
        arrays = [t.numpy() for t in inputs]
        ours: list[float] = []
        theirs: list[float] = []
        with torch.inference_mode():
            for turn in range(args.rounds + 1):
                started = time.perf_counter()
                a = dcnv3(*inputs, groups=G)
                middle = time.perf_counter()
                request.infer(arrays, share_inputs=True)
                ended = time.perf_counter()
                if turn:
                    ours.append(middle - started)
                    theirs.append(ended - middle)
        b = request.get_output_tensor(0).data
        row = {"map": [H, W, C, G], "ours": statistics.median(ours), "openvino": statistics.median(theirs)}
        row["difference"] = float(np.abs(a.numpy() - b).max())
        rows.append(row)
        print(
            f"{H}x{W}x{C}: ours {row['ours'] * 1e3:.1f} ms, OpenVINO {row['openvino'] * 1e3:.1f} ms, "
            f"largest difference {row['difference']:.1e}"
        )
    if args.out:
        args.out.write_text(
            json.dumps({"machine": processor.describe().line(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
