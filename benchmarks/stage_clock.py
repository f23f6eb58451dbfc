"""Where the time of a Mask R-CNN goes, ours or torchvision's, stage by stage.

The stages' functions are wrapped for as long as the clock runs. A stage called by another is counted once, as
itself; what belongs to no stage is "other". The backward pass is cut where it goes on from the outputs of one stage
to its inside: autograd runs it in the reverse order of the forward pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import roi_heads as torchvision_roi_heads

from maskrcnn.models import mask_rcnn, pooling
from maskrcnn.models.mask_rcnn import MaskRCNN

STAGES = (
    "preprocess",
    "ResNet",
    "FPN",
    "RPN head",
    "proposals",
    "RPN losses",
    "RoI sampling",
    "RoI pooling",
    "box head",
    "mask head",
    "paste",
    "backward: RoI heads",
    "backward: RPN",
    "backward: FPN",
    "backward: ResNet",
    "optimizer",
    "other",
)


class StageClock:
    """Seconds of each stage of each run; `with clock.watch(model): with clock.run(): model...`."""

    def __init__(self) -> None:
        self.runs: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._inner = [0.0]  # of each open stage: the seconds that stages inside it took
        self._backward: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._now[name] += seconds - self._inner.pop()
            self._inner[-1] += seconds

    @contextmanager
    def run(self) -> Iterator[None]:
        self._now = defaultdict(float)
        with self.stage("other"):
            yield
        self.runs.append(dict(self._now))

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, its time split over the stages that `watch` saw going forward."""
        last = time.perf_counter()
        start, self._backward = last, {}
        loss.backward()
        ends = {**self._backward, "ResNet": time.perf_counter()}
        for name in ("RoI heads", "RPN", "FPN", "ResNet"):
            if name in ends:
                self._now[f"backward: {name}"] += ends[name] - last
                last = ends[name]
        self._inner[-1] += last - start

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        calls = _calls_of_ours(model) if isinstance(model, MaskRCNN) else _calls_of_torchvision(model)
        originals = [(owner, name, getattr(owner, name), name in vars(owner)) for owner, name, _ in calls]
        for (owner, name, stage), (_, _, call, _) in zip(calls, originals):
            setattr(owner, name, self._timed(call, stage))
        try:
            yield
        finally:
            for owner, name, call, own in originals:
                if own:
                    setattr(owner, name, call)
                else:
                    delattr(owner, name)

    def _timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        # The backward pass of the stages after one is over when the gradients of its outputs are used.
        before = {"RPN head": "RoI heads", "FPN": "RPN", "ResNet": "FPN"}.get(stage)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                output = call(*args, **kwargs)
            if before and torch.is_grad_enabled():
                for tensor in _tensors(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda _: self._end(before))
            return output

        return timed

    def _end(self, name: str) -> None:
        # A hook runs when autograd goes on behind its tensor, which it does only after all that came later going
        # forward: the first of a stage's outputs is the one.
        self._backward.setdefault(name, time.perf_counter())

    def medians(self) -> dict[str, float]:
        """Stage -> median seconds over the runs, in the order of `STAGES`."""
        return {
            stage: float(torch.tensor([run.get(stage, 0.0) for run in self.runs]).median())
            for stage in STAGES
            if any(stage in run for run in self.runs)
        }


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for v in values for tensor in _tensors(v)]


def _calls_of_ours(model: MaskRCNN) -> list[tuple[Any, str, str]]:
    return [
        (mask_rcnn, "resize_image", "preprocess"),
        (model, "preprocess", "preprocess"),
        (model.backbone.body, "forward", "ResNet"),
        (model.backbone.fpn, "forward", "FPN"),
        (model.rpn.head, "forward", "RPN head"),
        (model.rpn, "forward", "proposals"),
        (model.rpn, "loss", "proposals"),
        (model.rpn, "_losses", "RPN losses"),
        (model.box_head, "sample", "RoI sampling"),
        (pooling.RoIFeatures, "_pool", "RoI pooling"),
        (model.box_head, "forward", "box head"),
        (model.box_head, "loss", "box head"),
        (model.mask_head, "forward", "mask head"),
        (model.mask_head, "loss", "mask head"),
        (model, "_finish", "paste"),
    ]


def _calls_of_torchvision(model: Any) -> list[tuple[Any, str, str]]:
    heads = model.roi_heads
    return [
        (model.transform, "forward", "preprocess"),
        (model.backbone.body, "forward", "ResNet"),
        (model.backbone.fpn, "forward", "FPN"),
        (model.rpn.head, "forward", "RPN head"),
        (model.rpn, "forward", "proposals"),
        (model.rpn, "assign_targets_to_anchors", "RPN losses"),
        (model.rpn.box_coder, "encode", "RPN losses"),
        (model.rpn, "compute_loss", "RPN losses"),
        (heads, "select_training_samples", "RoI sampling"),
        (heads.box_roi_pool, "forward", "RoI pooling"),
        (heads.mask_roi_pool, "forward", "RoI pooling"),
        (heads.box_head, "forward", "box head"),
        (heads.box_predictor, "forward", "box head"),
        (heads, "postprocess_detections", "box head"),
        (torchvision_roi_heads, "fastrcnn_loss", "box head"),
        (heads, "forward", "mask head"),  # what is left: mask head, its predictor, its loss
        (model.transform, "postprocess", "paste"),
    ]
