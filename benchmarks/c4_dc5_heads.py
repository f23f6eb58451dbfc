"""The heads of C4 and DC5 on the CPU, beside the same networks in plain PyTorch and torchvision.

    python benchmarks/c4_dc5_heads.py [--rounds 3] [--training] [--threads 2]

1,000 boxes on the map of an 800x1216 image at stride 16 (50x76).

C4   RoIAlign 14x14 of 1,024 channels, then res5 on every RoI, the mean, class and box predictors.
DC5  RoIAlign 7x7 of 2,048 channels, then two fully connected layers of 1,024, class and box predictors.

Plain is what one writes without us: NCHW, `torchvision.ops.roi_align` (aligned, adaptive), torchvision's own
`resnet50().layer4` with its frozen batch norm, `nn.Linear`. Both have the same weights and give the same numbers,
which is checked before anything is timed. With --training: 512 boxes, forward and backward. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn import presets
from maskrcnn.config import ResNetConfig
from maskrcnn.engines.norms import fold_norms
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.build import build_shared_res5
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures

MAP, STRIDE = (50, 76), 16
RESULTS = Path(__file__).parent / "results"
NAMES = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "shortcut": "downsample.0"}


def boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    side = 20 * 25 ** torch.rand(count, 1, generator=generator)
    image = torch.tensor([MAP[1] * STRIDE, MAP[0] * STRIDE])
    centre = torch.rand(count, 2, generator=generator) * image
    return torch.cat([(centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, image)], dim=1)


class Ours(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        config = presets.get(name).model
        assert isinstance(config.backbone, ResNetConfig)
        config.backbone.stride_in_1x1 = False  # as in torchvision's ResNet
        shared = build_shared_res5(config)
        self.res5, channels = shared or (None, 2048)
        self.in_channels = 1024 if shared else 2048
        self.head = BoxHead(channels, config.num_classes, config.box_head)

    def forward(self, feature: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.head.predict_rois(RoIFeatures([feature], (STRIDE,), self.res5), RoIs.of([rois]))
        return logits, deltas.flatten(1)


class Plain(nn.Module):
    """The same weights, without any code of ours."""

    def __init__(self, ours: Ours) -> None:
        super().__init__()
        head = ours.head
        self.size = head.config.pool_size * (2 if ours.res5 is not None else 1)
        self.res5 = None if ours.res5 is None else self._copy_res5(ours.res5)
        self.fcs = nn.ModuleList(self._copy(fc) for fc in head.fcs)
        self.classes, self.boxes = self._copy(head.class_predictor), self._copy(head.box_predictor)

    @staticmethod
    def _copy(linear: nn.Module) -> nn.Linear:
        copy = nn.Linear(linear.weight.shape[1], linear.weight.shape[0])
        copy.load_state_dict(linear.state_dict())
        return copy

    @staticmethod
    def _copy_res5(ours: nn.Module) -> nn.Module:
        layer4 = resnet50(norm_layer=FrozenBatchNorm2d).layer4
        state = {}
        for key, value in ours.state_dict().items():
            block, layer, rest = key.split(".", 2)
            norm = rest.startswith("norm.")
            theirs = NAMES[layer]
            if norm:
                theirs = "downsample.1" if layer == "shortcut" else f"bn{layer[-1]}"
            state[f"{block}.{theirs}.{rest.removeprefix('norm.')}"] = value
        layer4.load_state_dict(state)
        return layer4

    def forward(self, feature: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        x = torchvision_roi_align(feature, RoIs.of([rois]).with_image_index(), self.size, 1 / STRIDE, 0, True)
        x = x.flatten(1) if self.res5 is None else self.res5(x).mean((2, 3))
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.classes(x), self.boxes(x)


def make_calls(name: str, training: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    ours = Ours(name)
    for key, value in ours.state_dict().items():
        if key.endswith("conv3.norm.weight"):
            value.fill_(0.2)  # keeps random activations in size
    plain = Plain(ours)
    rois = boxes(512 if training else 1000)
    feature = torch.randn(1, ours.in_channels, *MAP)
    with torch.inference_mode():
        for a, b in zip(ours(feature, rois[:50]), plain(feature, rois[:50]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    if not training:
        fold_norms(ours)
    ours = ours.to(memory_format=torch.channels_last)
    maps = {"ours": feature.to(memory_format=torch.channels_last), "plain": feature}
    bf16 = torch.bfloat16

    def run(model: nn.Module, x: Tensor) -> None:
        if not training:
            with torch.inference_mode():
                model(x, rois)
            return
        x = x.detach().requires_grad_(True)
        sum(part.sum() for part in model(x, rois)).backward()

    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: run(plain, maps["plain"]),
        "ours": lambda: run(ours, maps["ours"]),
    }
    if not training:
        import copy

        half = copy.deepcopy(ours).to(bf16)
        calls["ours bf16"] = lambda: run(half, maps["ours"].to(bf16))
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--training", action="store_true", help="forward and backward too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in ("mask_rcnn_R_50_C4_3x", "mask_rcnn_R_50_DC5_3x"):
        for training in (False, True)[: 2 if args.training else 1]:
            calls = make_calls(name, training)
            seconds: dict[str, list[float]] = {key: [] for key in calls}
            for turn in range(args.rounds + 1):
                for key, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if turn:
                        seconds[key].append(time.perf_counter() - start)
            median = {key: statistics.median(values) for key, values in seconds.items()}
            rows.append(
                {
                    "model": name,
                    "pass": "forward and backward, 512 RoIs" if training else "forward, 1000 RoIs",
                    "seconds": {key: round(value, 3) for key, value in median.items()},
                    "ratio": {k: round(median["plain"] / v, 2) for k, v in median.items() if k != "plain"},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads, "rows": rows}
    (RESULTS / "c4_dc5_heads.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
