"""Dense parts of a model as recorded CUDA graphs: the host launches each as one, in inference and in training.

A graph is of one shape. Pictures are padded to a few sizes, and in the model's fixed-size form the heads see a fixed
number of RoIs, so that a few graphs serve all batches; a shape for which there is no room any more runs unrecorded.
A graph's tensors are its own: what it returned is overwritten when it runs again, after it has been used.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskrcnn.engines.seams import Run, seams_of
from maskrcnn.models.mask_rcnn import MaskRCNN

MOST_SHAPES = 16  # of one part in inference
MOST_SHAPES_IN_TRAINING = 4  # each keeps its activations
Record = Callable[[nn.Module, tuple[Tensor, ...]], Run]


class Recorded:
    """Network that is recorded once for each shape of its inputs, and then replayed."""

    def __init__(self, network: nn.Module, record: Record, most: int) -> None:
        self._network, self._record, self._most = network, record, most
        self._runs: dict[tuple[Any, ...], Run] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in inputs)
        if key not in self._runs:
            if len(self._runs) >= self._most:
                return self._network(*inputs)
            self._runs[key] = self._record(self._network, inputs)
        return self._runs[key](*inputs)


def run_as_cuda_graphs(model: MaskRCNN, record: Record | None = None) -> None:
    """Put recorded graphs in the place of a model's dense parts, for good, to predict with."""
    c = model.config.input
    model.fixed_size = True
    model.padded_sizes = few_sizes(c.min_size, c.max_size, c.size_divisor)
    for seam in list(seams_of(model)):
        seam.put(Recorded(seam.network, record or record_inference, MOST_SHAPES))


def trained_as_cuda_graphs(
    model: MaskRCNN, sizes: list[tuple[int, int]], record: Record | None = None
) -> MaskRCNN:
    """Model of the same parameters whose dense parts are recorded graphs, to train the one given with.

    sizes: what its batches are padded to.
    """
    model.fixed_size = True
    model.padded_sizes = sizes
    twin = _twin(model)
    for seam in list(seams_of(twin)):
        seam.put(Recorded(seam.network, record or record_training, MOST_SHAPES_IN_TRAINING))
    return twin


def few_sizes(shortest: int, longest: int, divisor: int) -> list[tuple[int, int]]:
    """Sizes (H, W) to pad pictures to, smallest first: those of 4:3, of what is longer, and both upright."""
    short, long = (-(-side // divisor) * divisor for side in (shortest, longest))
    usual = min(long, -(-(4 * shortest) // (3 * divisor)) * divisor)
    sides = sorted({usual, long})
    return [size for side in sides for size in dict.fromkeys(((short, side), (side, short)))]


def _twin(module: Any) -> Any:
    """Copy of a module and of those in it, all with the same parameters and buffers."""
    other = copy.copy(module)
    other._modules = {name: None if m is None else _twin(m) for name, m in module._modules.items()}
    return other


@torch.no_grad()
def record_inference(network: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """Record a network's forward pass, after three runs that choose its kernels."""
    with torch.inference_mode(False):  # the graph's own tensors are written to in any mode
        static = tuple(torch.empty_like(x).copy_(x) for x in inputs)
        _warm_up(lambda: network(*static))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = network(*static)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        for mine, theirs in zip(static, inputs, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return outputs

    return run


def record_training(network: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """Record a network's forward and backward passes, in the autocast mode of the call."""
    samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
    device = inputs[0].device.type
    how: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if torch.is_autocast_enabled(device):  # without its cache, which a graph cannot share
        how = torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)
    with how:
        return cast("Run", torch.cuda.make_graphed_callables(_OfOneShape(network), samples))


class _OfOneShape(nn.Module):
    """Network to be recorded at one shape: recording replaces a module's forward, and others share the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network(*inputs)


def _warm_up(call: Callable[[], object]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
