"""Published speeds of Mask R-CNN R50-FPN on GPUs, each with its source and year.

Each figure was measured by its own rules: what lies inside the clock, and which batch, differs from source to source.
MLPerf's are of many GPUs that share one model; at one node NVIDIA took 12,000 proposals over a batch and not per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "tf32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class Source:
    """Publication of figures, and how they were measured."""

    name: str
    year: int
    method: str


@dataclass(frozen=True, slots=True)
class Published:
    """Training images a second on each of `gpus` cards, with `batch` images on each; None where it is not told."""

    card: str
    precision: Precision
    images_a_second: float
    batch: int | None
    source: str  # key of `SOURCES`
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class PublishedInference:
    """Inference on one card: images a second at each batch."""

    card: str
    precision: Precision
    images_a_second: dict[int, float]
    source: str


SOURCES = {
    "lambda": Source(
        "Lambda's GPU benchmarks",
        2022,
        "maskrcnn-benchmark R50-FPN 1x, 400 iterations with the warm-up, largest batch set by hand for each card; "
        "fp32 on Ampere cards is probably TF32",
    ),
    "nvidia": Source(
        "NVIDIA DeepLearningExamples",
        2021,
        "its own R50-FPN on one node, mean over a training epoch",
    ),
    "detectron2": Source(
        "detectron2's model zoo", 2019, "R50-FPN 1x on 8 GPUs, 16 images a step, data included"
    ),
    "mmdetection": Source("MMDetection's benchmark", 2020, "R50-FPN 1x on 8 GPUs, 16 images a step"),
    "mlperf1.0": Source("MLPerf Training v1.0", 2021, "NVIDIA, global batch over mean step, CUDA graphs"),
    "mlperf2.1": Source("MLPerf Training v2.1", 2022, "NVIDIA, global batch over mean step, CUDA graphs"),
    "mlperf3.0": Source("MLPerf Training v3.0", 2023, "global batch over mean step, CUDA graphs"),
    "mlperf3.1": Source("MLPerf Training v3.1", 2023, "global batch over mean step, CUDA graphs"),
}

TRAINING = (
    Published("H100 SXM", "fp16", 179.5, 12, "mlperf3.0", gpus=8),
    Published("H100 PCIe", "fp16", 122.0, 12, "mlperf3.1", gpus=8),
    Published("A100-80 SXM", "fp16", 89.2, 12, "mlperf3.0", gpus=8),
    Published("A100 SXM", "fp16", 85.8, 12, "mlperf2.1", gpus=8),
    Published("A100 SXM", "fp16", 68.3, 12, "mlperf1.0", gpus=8),
    Published("L40S", "fp16", 58.3, 11, "mlperf3.1", gpus=8),
    Published("A100-80 SXM", "fp32", 29.35, 48, "lambda"),
    Published("A100-80 SXM", "fp16", 26.24, 48, "lambda"),
    Published("A100-80 PCIe", "fp32", 25.88, None, "lambda"),
    Published("A100-80 PCIe", "fp16", 25.56, None, "lambda"),
    Published("A100-40 SXM", "fp32", 25.09, 24, "lambda"),
    Published("A100-40 SXM", "fp16", 23.31, 24, "lambda"),
    Published("RTX 3090", "fp32", 14.5, 12, "lambda"),
    Published("RTX 3090", "fp16", 16.2, 16, "lambda"),
    Published("RTX A6000", "fp32", 12.94, 32, "lambda"),
    Published("RTX A6000", "fp16", 15.19, 32, "lambda"),
    Published("V100-32", "fp32", 10.15, 15, "lambda"),
    Published("V100-32", "fp16", 14.37, 20, "lambda"),
    Published("RTX 2080 Ti", "fp32", 8.63, 6, "lambda"),
    Published("RTX 2080 Ti", "fp16", 9.60, 6, "lambda"),
    Published("A100-80 SXM", "tf32", 23.0, None, "nvidia"),
    Published("A100-80 SXM", "fp16", 24.0, None, "nvidia"),
    Published("V100-32", "fp32", 12.0, None, "nvidia"),
    Published("V100-32", "fp16", 16.0, None, "nvidia"),
    Published("V100", "fp32", 7.8, 2, "detectron2", gpus=8),
    Published("V100", "fp32", 6.6, 2, "mmdetection", gpus=8),
)

INFERENCE = (
    PublishedInference("A100-80 SXM", "fp16", {1: 23, 2: 26, 4: 31, 8: 31}, "nvidia"),
    PublishedInference("A100-80 SXM", "tf32", {1: 25, 2: 28, 4: 29, 8: 30}, "nvidia"),
    PublishedInference("V100-32", "fp16", {1: 19, 2: 21, 4: 22, 8: 22}, "nvidia"),
    PublishedInference("V100-32", "fp32", {1: 16, 2: 17, 4: 17, 8: 18}, "nvidia"),
)
