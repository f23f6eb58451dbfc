"""Settings of a run: data, augmentation, optimiser, training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from maskrcnn.config.bounds import Between, Count, NotNegative, Positive, Share
from maskrcnn.config.model import ModelConfig


@dataclass(kw_only=True, slots=True)
class TTAConfig:
    """Test-time augmentation: each picture is seen in several sizes, and mirrored, and the views are merged."""

    min_sizes: tuple[int, ...] = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)  # of the shortest side
    max_size: int = 4000
    horizontal_flip: bool = True  # each size mirrored too


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of a training image, in this order: window, resize or jitter, crop, flips, colour."""

    window_share: tuple[float, float] | None = (
        None  # random window: of height and width, each a share of this range
    )
    min_sizes: tuple[Count, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for the shortest side
    max_size: Count = 1333
    jitter_scale: tuple[float, float] | None = None  # large-scale jitter: the image's size times this range
    antialias: bool = True  # False: plain bilinear, as OpenCV's
    zoom_sizes: tuple[int, ...] = ()  # if any: half of the images first get one of these shortest sides
    zoom_crop: tuple[int, int] = (384, 600)  # ... and are cropped to a height and a width of this range
    crop_size: tuple[int, int] | None = None  # (H, W) random crop, after resizing; padded if smaller
    horizontal_flip: Share = 0.5  # probability
    vertical_flip: Share = 0.0
    rotate90: Share = 0.0  # probability of a quarter turn
    brightness: float = 0.0  # factor drawn from 1 - x .. 1 + x; likewise the next three
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: Share = 0.0  # probability


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Data set and loader: the place of the images, and how they are served."""

    train: str = ""  # a label file, or a folder of any known format
    train_images: str = ""  # image folder; empty: found by itself
    val: str = ""  # likewise; empty: the validation part of `train`, if it has one
    val_images: str = ""
    format: str = ""  # of both (see docs/data.md); empty: found out
    val_fraction: float = 0.0  # of the training images, split off where there is no validation part
    batch_size: Count = 16  # images per optimiser step, over all processes and accumulation steps
    num_workers: int = 2  # per process; 0: load in the training process
    aspect_grouping: bool = True
    repeat_threshold: Share = (
        0.0  # an image is seen more often for a class that fewer than this share of them have
    )
    skip_empty: bool = True  # leave images without objects out of training
    on_error: Literal["repair", "refuse"] = "repair"  # what to do with defects that have a stated repair
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule. Rates are for `reference_batch_size` images and scale linearly from there."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: NotNegative = 0.02
    reference_batch_size: Count = 16
    scale_lr: bool = True
    momentum: Share = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4  # biases too
    weight_decay_norm: float = 0.0
    weight_decay_vectors: float | None = None  # of all that has one dimension; None: no such rule
    no_decay_names: tuple[str, ...] = ()  # parameters with one of these in their name have no decay
    layer_decay: float = 1.0  # factor of the rate for every layer further from the backbone's end
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[int, ...] = (60_000, 80_000)  # iterations
    gamma: float = 0.1
    final_lr_fraction: NotNegative = 0.0  # where cosine ends
    warmup_iterations: Annotated[int, Between(0)] = 1000
    warmup_factor: Share = 1e-3
    clip_grad_norm: float | None = None
    accumulation_steps: Count = 1


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Training run: its length, its precision, and what is kept of it."""

    iterations: Count = 90_000  # optimiser steps
    max_minutes: float | None = None  # stop training by the clock; the schedule then follows the clock too
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"  # auto: the faster of bf16 and fp32 here
    loss_scale: Positive = 65536.0  # in fp16, to begin with: it adapts
    tf32: bool = False  # on CUDA: matrix products of factors rounded to 10 bits, several times as fast
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False  # on one CUDA GPU: dense parts are recorded, and batches padded to four sizes
    seed: int = 0
    ema_decay: float | None = None  # keep an exponential average of the weights, and evaluate and save that
    log_every: Count = 20
    checkpoint_every: Count = 5000
    keep_checkpoints: Count = 2  # older ones are removed; the best is always kept
    evaluate_every: int = 5000  # 0: only at the end
    evaluate_max_detections: int = 100
    # Before an evaluation, batch norms' statistics are renewed over so many batches.
    precise_norm_batches: Annotated[int, Between(0)] = 0
    early_stopping: int = 0  # evaluations without a better AP before stopping; 0: never
    weights: str = ""  # initial weights: a file, or empty for random
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()  # extras of these names


@dataclass(kw_only=True, slots=True)
class Config:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
