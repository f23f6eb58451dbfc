"""Configuration: every setting, declared once.

Plain dataclasses, one per part of the product. A preset (`maskrcnn.presets`) is a function that returns
a fresh `Config`; the command line changes fields by their dotted names (`--optim.lr 0.01`); the resolved
config is saved as JSON with every run and checkpoint and can be read back. No torch here.

Sizes are pixels, `(height, width)` where two are given. "Per image" counts are before batching.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from maskrcnn.errors import UserError, did_you_mean, shown

T = TypeVar("T")
Norm = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]


@dataclass(frozen=True)
class Between:
    """Bounds of a setting, themselves allowed, which are looked at where it comes from a file or a command line."""

    low: float
    high: float = math.inf

    def __get_pydantic_core_schema__(self, kind: Any, schema_of: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, schema_of(kind))

    def check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            reach = f"from {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"
            raise ValueError(f"expected a number {reach}, got {value:g}")
        return value


Count = Annotated[int, Between(1)]
Share = Annotated[float, Between(0, 1)]
NotNegative = Annotated[float, Between(0)]
Positive = Annotated[float, Between(1e-9)]
Cells = Annotated[int, Between(1, 256)]  # along a side of a pooled RoI


@dataclass(kw_only=True, slots=True)
class InputConfig:
    """Image format that the network expects, and the test-time size."""

    pixel_mean: tuple[float, float, float] = (103.530, 116.280, 123.675)  # in channel_order
    pixel_std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    channel_order: Literal["BGR", "RGB"] = "BGR"
    min_size: Annotated[int, Between(1, 2**14)] = 800  # shortest side at test time
    max_size: Annotated[int, Between(1, 2**20)] = 1333  # longest side at test time
    size_divisor: Annotated[int, Between(1, 1024)] = 32  # padded height and width are multiples of this
    # Whose bilinear resize, and whose rule for the size.
    resize: Literal["pillow", "opencv", "torchvision"] = "pillow"


@dataclass(kw_only=True, slots=True)
class ResNetConfig:
    """ResNet and ResNeXt backbones (He et al. 2015, Xie et al. 2016)."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = True  # MSRA's original; False is torchvision's "v1.5" and ResNeXt
    norm: Norm = "frozen_bn"
    norm_epsilon: NotNegative = 1e-5  # of batch normalisations
    frozen_stages: Annotated[int, Between(0, 5)] = 2  # 0: none, 1: the stem, 2: the stem and res2, ... 5: all
    last_stage: Literal["res4", "res5"] = "res5"  # res4: C4, whose res5 is the head of every RoI
    res5_dilation: Annotated[int, Between(1, 16)] = (
        1  # 2: DC5, whose res5 has stride 1 and dilated 3x3 convolutions
    )
    deformable_stages: tuple[
        int, ...
    ] = ()  # e.g. (3, 4, 5): deformable 3x3 convolutions there (Dai et al. 2017)
    width: float = 1.0  # scales every channel count; below 1 only for the tiny variants of tests


@dataclass(kw_only=True, slots=True)
class MobileNetV2Config:
    """MobileNetV2 (Sandler et al. 2018), with torchvision's parameter names."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: float = 1.0
    norm: Norm = "frozen_bn"
    frozen_stages: Annotated[int, Between(0, 5)] = (
        0  # 0: none, 1: the stride-2 features, 2: those and the stride-4 ones, ... 5: all
    )


@dataclass(kw_only=True, slots=True)
class InternImageConfig:
    """InternImage (Wang et al. 2022, arXiv 2211.05778), with the original's parameter names."""

    kind: Literal["internimage"] = "internimage"
    channels: int = 64
    depths: tuple[int, int, int, int] = (4, 4, 18, 4)
    groups: tuple[int, int, int, int] = (4, 8, 16, 32)
    post_norm: bool = False
    mlp_ratio: float = 4.0
    offset_scale: float = 1.0
    drop_path: Share = 0.2  # the last block's rate; it rises linearly from 0
    checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """ViT-Adapter around a plain ViT (Chen et al. 2022, arXiv 2205.08534)."""

    conv_channels: int = 64  # of the spatial prior's stem
    num_heads: int = 6  # of deformable attention
    num_points: int = 4
    deform_ratio: float = 1.0
    ffn_ratio: float = 0.25
    interactions: tuple[tuple[int, int], ...] = (
        (0, 2),
        (3, 5),
        (6, 8),
        (9, 11),
    )  # first and last block of each


@dataclass(kw_only=True, slots=True)
class ViTConfig:
    """Plain ViT with window and global attention, with the original's parameter names."""

    kind: Literal["vit"] = "vit"
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    patch_size: int = 16
    window_size: Count = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    pretrain_size: int = 224  # side of the images that the position embedding was made for
    uni_perceiver: bool = False  # its names, embeddings and order of normalisation
    drop_path: Share = 0.1
    adapter: AdapterConfig | None = None
    checkpointing: bool = False


@dataclass(kw_only=True, slots=True)
class FPNConfig:
    """Feature pyramid P2..P5 and P6, a stride-2 subsample of P5 (Lin et al. 2016)."""

    out_channels: int = 256
    norm: Norm = "none"
    top_down: bool = True  # False: one 1x1 convolution and ReLU a level; P6 is P5 max-pooled by 2
    level_epsilon: NotNegative = 1e-8  # in the rule that gives a RoI its level, see `models.pooling`
    roi_aligned: bool = True  # RoIAlign with pixel centres at .5; False: half a pixel off, as at first
    roi_sampling_ratio: Annotated[int, Between(0, 32)] = (
        0  # RoIAlign's samples along a bin; 0: as many as it has pixels
    )


@dataclass(kw_only=True, slots=True)
class RPNConfig:
    """Region proposal network (Ren et al. 2015)."""

    anchor_sizes: tuple[tuple[Positive, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height / width
    anchors: Literal["exact", "torchvision"] = "exact"  # see `RPN.anchors`
    num_convs: int = 1  # 3x3 convolutions before the predictions
    iou_negative: Share = 0.3  # below: background
    iou_positive: Share = 0.7  # from here: object; between the two: ignored
    iou_best: Share = 0.0  # an object whose best anchor overlaps less than this gets none
    best_reassigns: bool = False  # an object's best anchor learns it even where it overlaps another one more
    limit_shrinking: bool = False  # decoded sizes may shrink only as far as they may grow, 1000 / 16
    num_samples: Count = 256  # anchors per image in the loss
    positive_fraction: Share = 0.5
    pre_nms_topk_train: Count = 2000  # per level
    pre_nms_topk_test: Count = 1000
    post_nms_topk_train: Count = 1000  # per image
    post_nms_topk_test: Count = 1000
    min_box_side: NotNegative = 0.0  # pixels; thinner proposals are dropped, and empty ones always
    nms_threshold: Share = 0.7
    smooth_l1_beta: NotNegative = 0.0  # 0: plain L1
    normalize_by: Literal["num_samples", "sampled"] = "num_samples"  # sampled: those that there were
    ignore_padding: bool = False  # anchors beyond an image's own padded size are not in the loss
    loss_weight: NotNegative = 1.0


@dataclass(kw_only=True, slots=True)
class CascadeConfig:
    """Cascade R-CNN (Cai and Vasconcelos 2017): one box head a stage, each on the boxes of the one before."""

    iou_positive: tuple[Share, ...] = (0.5, 0.6, 0.7)
    box_weights: tuple[tuple[Positive, Positive, Positive, Positive], ...] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    )


@dataclass(kw_only=True, slots=True)
class BoxHeadConfig:
    """Second stage: classification and class-specific box regression of the proposals."""

    pool_size: Cells = 7
    num_convs: int = 0
    conv_channels: int = 256
    num_fcs: int = 2  # 0: the mean over the pooled cells (C4)
    fc_channels: int = 1024
    norm: Norm = "none"
    class_agnostic: bool = False  # one box for all classes
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    num_samples: Count = 512  # RoIs per image in the loss
    positive_fraction: Share = 0.25
    iou_positive: Share = 0.5
    best_reassigns: bool = False  # as for anchors
    limit_shrinking: bool = False  # as for anchors
    smooth_l1_beta: NotNegative = 0.0
    score_threshold: Share = 0.05
    min_box_side: NotNegative = 0.0  # pixels; thinner detections are dropped before they suppress others
    nms_threshold: Share = 0.5
    class_agnostic_nms: bool = False  # boxes of different classes suppress each other too
    nms_in_original: bool = False  # boxes are compared in the picture's own pixels, not in the network's
    detections_per_image: Count = 100
    cascade: CascadeConfig | None = None
    loss_weight: NotNegative = 1.0


@dataclass(kw_only=True, slots=True)
class MaskHeadConfig:
    """Fully convolutional mask branch (He et al. 2017, section 3)."""

    pool_size: Cells = 14  # the mask has twice this many cells a side
    num_convs: int = 4
    conv_channels: int = 256
    norm: Norm = "none"
    class_agnostic: bool = False
    threshold: Share = 0.5  # probability from which a pixel belongs to the mask
    paste: Literal["exact", "torchvision"] = "exact"  # torchvision: at whole pixels
    targets: Literal["polygons", "bitmaps"] = "polygons"  # bitmaps: of polygons too, read by RoIAlign
    loss_weight: NotNegative = 1.0


@dataclass(kw_only=True, slots=True)
class KeypointHeadConfig:
    """Key-point branch (He et al. 2017, section 5): a heat map a point over each RoI."""

    num_keypoints: int = 17
    names: tuple[str, ...] = ()  # of the points
    flip_pairs: tuple[tuple[int, int], ...] = ()  # points that change places in a mirrored image
    skeleton: tuple[tuple[int, int], ...] = ()  # points to join in pictures
    pool_size: Cells = 14  # the heat map has four times as many cells a side
    num_convs: int = 8
    conv_channels: int = 512
    loss_weight: NotNegative = 1.0


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Settings of the network: all that rebuilds it from a checkpoint."""

    name: str
    num_classes: int = 80
    class_names: tuple[str, ...] = ()  # empty, or one a class
    category_ids: tuple[int, ...] = ()  # the data set's id of each class; empty: the class index
    input: InputConfig = field(default_factory=InputConfig)
    backbone: ResNetConfig | MobileNetV2Config | InternImageConfig | ViTConfig = field(
        default_factory=ResNetConfig
    )
    fpn: FPNConfig | None = field(default_factory=FPNConfig)  # None: the backbone's last map alone (C4, DC5)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig | None = field(default_factory=MaskHeadConfig)
    keypoint_head: KeypointHeadConfig | None = None


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
    batch_size: int = 16  # images per optimiser step, over all processes and accumulation steps
    num_workers: int = 2  # per process; 0: load in the training process
    aspect_grouping: bool = True
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
    accumulation_steps: int = 1


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Training run: its length, its precision, and what is kept of it."""

    iterations: int = 90_000  # optimiser steps
    max_minutes: float | None = None  # stop training by the clock; the schedule then follows the clock too
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"  # auto: the faster of bf16 and fp32 here
    loss_scale: float = 65536.0  # in fp16, to begin with: it adapts
    tf32: bool = False  # on CUDA: matrix products of factors rounded to 10 bits, several times as fast
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    ema_decay: float | None = None  # keep an exponential average of the weights, and evaluate and save that
    log_every: int = 20
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2  # older ones are removed; the best is always kept
    evaluate_every: int = 5000  # 0: only at the end
    evaluate_max_detections: int = 100
    precise_norm_batches: int = (
        0  # before an evaluation, batch norms' statistics are renewed over so many batches
    )
    early_stopping: int = 0  # evaluations without a better AP before stopping; 0: never
    weights: str = ""  # initial weights: a file, or empty for random
    tensorboard: bool = False


@dataclass(kw_only=True, slots=True)
class Config:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every leaf field of a config."""
    names = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            names += field_names(value, f"{prefix}{f.name}.")
        else:
            names.append(prefix + f.name)
    return names


def override(config: Any, name: str, value: Any) -> None:
    """Set the field of the dotted `name` in place. `value` may be text, as from a command line.

    Raises:
        UserError: no such field (with the nearest names), or a value that its type does not take.
    """
    *parents, leaf = name.split(".")
    target = config
    for parent in parents:
        target = getattr(target, parent, None) if dataclasses.is_dataclass(target) else None
    hints = (
        typing.get_type_hints(type(target), include_extras=True) if dataclasses.is_dataclass(target) else {}
    )
    if leaf not in hints or dataclasses.is_dataclass(getattr(target, leaf)):
        known = field_names(config)
        near = did_you_mean(name, known) or "See `maskrcnn train --help` for the fields."
        raise UserError(f"--{name}: no such setting. {near}")
    parsed = _parse(value)
    if isinstance(getattr(target, leaf), tuple) and isinstance(parsed, int | float):
        parsed = (parsed,)
    form = f" Write it like {getattr(target, leaf)!r}." if isinstance(getattr(target, leaf), tuple) else ""
    setattr(target, leaf, _validate(hints[leaf], parsed, f"--{name}", f" {value!r}", form))


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=1)


def from_dict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a config of class `kind` from `to_dict`'s form; `where` names the source in errors.

    Raises:
        UserError: a field is unknown (with the nearest names) or has a value that its type does not take.
    """
    _refuse_unknown(kind, values, where)
    return _validate(kind, values, where)


def from_file(path: str | Path) -> Config:
    """Read a whole config saved by `to_json`."""
    try:
        values = json.loads(Path(path).read_text())
    except OSError as e:
        raise UserError(f"{path}: cannot read the config: {e.strerror}.") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON: {e}.") from None
    return from_dict(Config, values, str(path))


def _parse(value: Any) -> Any:
    """Parse command-line text as JSON or as a Python literal, which `--help` shows; text that is neither stays text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if "," in text and text[:1] not in '[{("':
        text = f"[{text}]"
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def _validate(kind: Any, value: Any, where: str, given: str = "", advice: str = "") -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        valid = TypeAdapter(kind).validate_python(value)
    except ValidationError as e:
        first = e.errors()[0]
        place = shown(".".join(str(p) for p in first["loc"] if not str(p).endswith("Config")))
        said = shown(first["msg"].removeprefix("Value error, "), 120)
        raise UserError(f"{where}{': ' + place if place else given}: {said}.{advice}") from None
    for place, number in _floats(valid):
        if not math.isfinite(number):
            at = f": {place}" if place else given
            raise UserError(f"{where}{at}: expected a finite number, got {number}.")
    return valid


def _floats(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Each float in a setting or a config, with its dotted place."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(item, place)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _floats(getattr(value, f.name), f"{place}.{f.name}".removeprefix("."))


def _refuse_unknown(kind: Any, values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected an object with fields, got {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UserError(
                f"{where}: no such setting {shown(repr(name))}. {did_you_mean(name, hints)}".rstrip()
            )
        options = [o for o in (typing.get_args(hints[name]) or (hints[name],)) if dataclasses.is_dataclass(o)]
        if isinstance(value, Mapping) and options:
            same_kind = [
                o for o in options if getattr(o, "kind", None) is None or _kind_of(o) == value.get("kind")
            ]
            _refuse_unknown((same_kind or options)[0], value, f"{where}: {name}")


def _kind_of(config_class: Any) -> Any:
    return next((f.default for f in dataclasses.fields(config_class) if f.name == "kind"), None)
