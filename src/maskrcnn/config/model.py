"""Settings of the network: what rebuilds it from a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from maskrcnn.config.bounds import Between, Cells, Count, Norm, NotNegative, Positive, Share
from maskrcnn.errors import UserError


@dataclass(kw_only=True, slots=True)
class InputConfig:
    """Image format that the network expects, and the test-time size."""

    # Bands of a file, in its own depth (`images.bands`); 0: colour pictures of 8 bits. What follows is for each band,
    # in the file's order; of colours in channel_order.
    channels: Annotated[int, Between(0, 1024)] = 0
    pixel_mean: tuple[float, ...] = (103.530, 116.280, 123.675)  # of bands when they are stretched
    pixel_std: tuple[Positive, ...] = (1.0, 1.0, 1.0)
    channel_order: Literal["BGR", "RGB"] = "BGR"
    # Values that become 0 and 255 in each band. Empty: training measures them, at these percentiles.
    stretch: tuple[tuple[float, float], ...] = ()
    stretch_percentiles: tuple[float, float] = (0.1, 99.9)
    # Type of all bands, others are refused. Empty: training takes the first picture's.
    depth: Literal["", "uint8", "uint16", "float32"] = ""
    # Names of the files of one image, as ("*_red.tif", "*_nir.tif"); labels and commands have the first.
    band_files: tuple[str, ...] = ()
    shown_bands: tuple[int, ...] = ()  # in drawings, from 0: one for grey, three for RGB; empty: the first
    min_size: Annotated[int, Between(1, 2**14)] = 800  # shortest side at test time
    max_size: Annotated[int, Between(1, 2**20)] = 1333  # longest side at test time
    size_divisor: Annotated[int, Between(1, 1024)] = 32  # padded height and width are multiples of this
    # Whose bilinear resize, and whose rule for the size.
    resize: Literal["pillow", "opencv", "torchvision"] = "pillow"

    @property
    def num_channels(self) -> int:
        """Channels of the network's input."""
        return self.channels or 3


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

    def tiny(self) -> ResNetConfig:
        """Copy with the same structure and few channels, for tests."""
        depth = 50 if self.depth >= 50 else 18
        return dataclasses.replace(self, depth=depth, width=0.125, groups=min(self.groups, 4))


@dataclass(kw_only=True, slots=True)
class MobileNetV2Config:
    """MobileNetV2 (Sandler et al. 2018), with torchvision's parameter names."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: float = 1.0
    norm: Norm = "frozen_bn"
    frozen_stages: Annotated[int, Between(0, 5)] = (
        0  # 0: none, 1: the stride-2 features, 2: those and the stride-4 ones, ... 5: all
    )

    def tiny(self) -> MobileNetV2Config:
        """Copy with the same structure and few channels, for tests."""
        return dataclasses.replace(self, width=0.125)


@dataclass(kw_only=True, slots=True)
class RegNetConfig:
    """RegNetX and RegNetY (Radosavovic et al. 2020), with detectron2's widths for 4 GF; the defaults are X's."""

    kind: Literal["regnet"] = "regnet"
    stem_channels: Count = 32
    widths: tuple[Count, Count, Count, Count] = (80, 240, 560, 1360)
    depths: tuple[Count, Count, Count, Count] = (2, 5, 14, 2)
    group_width: Count = 40
    squeeze: Share = (
        0.0  # share of a block's incoming channels between squeeze and excitation; 0: RegNetX, without
    )
    norm: Norm = "sync_bn"

    def tiny(self) -> RegNetConfig:
        """Copy with the same structure and few channels, for tests: no fewer, for behind a stem of 8 channels oneDNN
        writes where it must not in the backward pass (PyTorch 2.14, AVX-512).
        """
        return dataclasses.replace(
            self, stem_channels=16, widths=(16, 24, 32, 48), depths=(1, 1, 2, 1), group_width=8
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

    def tiny(self) -> InternImageConfig:
        """Copy with the same structure and few channels, for tests."""
        return dataclasses.replace(self, channels=16, groups=(2, 4, 8, 16), depths=(1, 1, 2, 1))


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
    extra_extractors: Annotated[int, Between(0)] = 2  # after the last interaction's


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
    image_size: Count = 1024  # ViTDet: side of the images that global blocks' relative positions are made for
    relative_positions: bool = False  # ViTDet: attention knows distances, and the last map alone goes out
    layer_scale: bool = True  # of what a block adds, per channel
    uni_perceiver: bool = False  # its names, embeddings and order of normalisation
    drop_path: Share = 0.1
    adapter: AdapterConfig | None = None
    checkpointing: bool = False

    def tiny(self) -> ViTConfig:
        """Copy with two blocks a quarter, of windows and global, the windows smaller than a picture of tests."""
        adapter = self.adapter and dataclasses.replace(
            self.adapter, conv_channels=8, num_heads=4, interactions=((0, 1), (2, 3), (4, 5), (6, 7))
        )
        return dataclasses.replace(
            self,
            dim=32,
            depth=8,
            num_heads=2,
            window_size=4,
            pretrain_size=64,
            image_size=64,
            global_blocks=(1, 3, 5, 7),
            adapter=adapter,
        )


@dataclass(kw_only=True, slots=True)
class SwinConfig:
    """Swin Transformer (Liu et al. 2021, arXiv 2103.14030), with the original's parameter names."""

    kind: Literal["swin"] = "swin"
    channels: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window_size: Count = 7
    drop_path: Share = 0.2  # the last block's rate; it rises linearly from 0

    def tiny(self) -> SwinConfig:
        """Copy with the same structure and few channels, for tests."""
        return dataclasses.replace(
            self, channels=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4
        )


@dataclass(kw_only=True, slots=True)
class ConvNeXtConfig:
    """ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with the original's parameter names."""

    kind: Literal["convnext"] = "convnext"
    channels: int = 96
    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    drop_path: Share = 0.4  # the last block's rate; it rises linearly from 0

    def tiny(self) -> ConvNeXtConfig:
        """Copy with the same structure and few channels, for tests."""
        return dataclasses.replace(self, channels=16, depths=(1, 1, 2, 1))


BackboneConfig = (
    ResNetConfig
    | RegNetConfig
    | MobileNetV2Config
    | InternImageConfig
    | ViTConfig
    | SwinConfig
    | ConvNeXtConfig
)


@dataclass(kw_only=True, slots=True)
class RulesConfig:
    """Rules in which the originals differ. The defaults are detectron2's."""

    anchors: Literal["exact", "torchvision"] = "exact"  # see `RPN.anchors`
    iou_best: Share = 0.0  # an object whose best anchor overlaps less than this gets none
    best_reassigns: bool = False  # an object's best box learns it even where it overlaps another one more
    limit_shrinking: bool = False  # decoded sizes may shrink only as far as they may grow, 1000 / 16
    normalize_by: Literal["num_samples", "sampled"] = (
        "num_samples"  # the RPN's losses; sampled: those there were
    )
    ignore_crossing: bool = False  # anchors that cross an image's border are not in the loss
    ignore_padding: bool = False  # anchors beyond an image's own padded size are not in the loss
    min_proposal_side: NotNegative = 0.0  # pixels; thinner proposals are dropped, and empty ones always
    min_detection_side: NotNegative = 0.0  # pixels; thinner detections go before they suppress others
    nms_in_original: bool = False  # detections are compared in the picture's own pixels, not in the network's
    level_epsilon: NotNegative = 1e-8  # in the rule that gives a RoI its level, see `models.pooling`
    roi_aligned: bool = True  # RoIAlign with pixel centres at .5; False: half a pixel off, as at first
    roi_sampling_ratio: Annotated[int, Between(0, 32)] = 0  # samples along a bin; 0: as many as it has pixels
    paste: Literal["exact", "torchvision"] = "exact"  # of masks; torchvision: at whole pixels
    mask_targets: Literal["polygons", "bitmaps"] = "polygons"  # bitmaps: of polygons too, read by RoIAlign


@dataclass(kw_only=True, slots=True)
class FPNConfig:
    """Feature pyramid P2..P5 and P6, a stride-2 subsample of P5 (Lin et al. 2016)."""

    out_channels: int = 256
    norm: Norm = "none"
    top_down: bool = True  # False: one 1x1 convolution and ReLU a level; P6 is P5 max-pooled by 2
    simple: bool = False  # ViTDet's: of one map of stride 16


@dataclass(kw_only=True, slots=True)
class RPNConfig:
    """Region proposal network (Ren et al. 2015)."""

    # auto: training takes those that fit the data set, and the run's config has them
    anchor_sizes: Literal["auto"] | tuple[tuple[Positive, ...], ...] = (
        (32.0,),
        (64.0,),
        (128.0,),
        (256.0,),
        (512.0,),
    )
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height / width
    num_convs: int = 1  # 3x3 convolutions before the predictions
    iou_negative: Share = 0.3  # below: background
    iou_positive: Share = 0.7  # from here: object; between the two: ignored
    num_samples: Count = 256  # anchors per image in the loss
    positive_fraction: Share = 0.5
    pre_nms_topk_train: Count = 2000  # per level
    pre_nms_topk_test: Count = 1000
    post_nms_topk_train: Count = 1000  # per image
    post_nms_topk_test: Count = 1000
    nms_threshold: Share = 0.7
    smooth_l1_beta: NotNegative = 0.0  # 0: plain L1
    loss_weight: NotNegative = 1.0

    @property
    def sizes(self) -> tuple[tuple[float, ...], ...]:
        """Anchor sizes of each level, in pixels of the network.

        Raises:
            UserError: they are `auto`, which only training can tell.
        """
        if isinstance(self.anchor_sizes, str):
            raise UserError(
                "model.rpn.anchor_sizes: expected sizes, got auto, which training alone knows. Give a trained run."
            )
        return self.anchor_sizes


@dataclass(kw_only=True, slots=True)
class CascadeConfig:
    """Cascade R-CNN (Cai and Vasconcelos 2017): one box head a stage, each on the boxes of the one before."""

    iou_positive: tuple[Share, ...] = (0.5, 0.6, 0.7)
    box_weights: tuple[tuple[Positive, Positive, Positive, Positive], ...] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    )
    # detectron2's stages share the gradient to the maps, keep their RoIs, and have one mask head. MMDetection's weigh
    # their losses, draw RoIs anew from the moved boxes, average logits, and have a mask head each.
    rules: Literal["detectron2", "mmdetection"] = "detectron2"
    loss_weights: tuple[NotNegative, ...] = (1.0, 1.0, 1.0)


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
    scores: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: of each class by itself, without background
    # Classes that the loss of an image's sigmoid scores is of (federated loss, Zhou et al. 2021): those of its RoIs,
    # background as one of them, and others drawn by the square root of class_image_counts. 0: all.
    federated_classes: Annotated[int, Between(0)] = 0
    class_image_counts: tuple[
        Annotated[int, Between(0)], ...
    ] = ()  # training images that have each class: training counts them
    smooth_l1_beta: NotNegative = 0.0
    box_loss: Literal["smooth_l1", "giou"] = (
        "smooth_l1"  # of deltas; giou: of decoded boxes (Rezatofighi et al. 2019)
    )
    box_loss_weight: NotNegative = 1.0
    train_on_pred_boxes: bool = False  # masks and key points learn on predicted boxes, not on the RoIs
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    temperature: Positive = 1.0  # divides the scores' log-odds: what `maskrcnn evaluate --calibrate` found
    class_agnostic_nms: bool = False  # boxes of different classes suppress each other too
    detections_per_image: Count = 100
    cascade: CascadeConfig | None = None
    loss_weight: NotNegative = 1.0


@dataclass(kw_only=True, slots=True)
class PointRendConfig:
    """Masks rendered point by point (Kirillov et al. 2020, arXiv 1912.08193)."""

    coarse_size: Cells = 7  # cells of the coarse mask a side, of twice as many points that are read
    num_fcs: Count = 2  # of the coarse head
    fc_channels: Count = 1024
    num_point_fcs: Count = 3  # of the point head
    start_size: Cells = 28  # points a side that a mask begins with
    num_subdivisions: Annotated[int, Between(0, 6)] = 3  # each doubles the mask's cells a side
    num_points: Count = 784  # computed in a subdivision
    num_samples: Count = 196  # points of a RoI in the loss
    oversampling: Annotated[float, Between(1, 100)] = (
        3.0  # so many times as many are tried for the least certain
    )
    uncertain_share: Share = 0.75  # of the points in the loss; the others are random


@dataclass(kw_only=True, slots=True)
class MaskHeadConfig:
    """Fully convolutional mask branch (He et al. 2017, section 3), or PointRend's."""

    # PointRend, `{}` with its defaults. Its layers have conv_channels; pool_size, num_convs, num_deconvs and norm are
    # not its own.
    point_rend: PointRendConfig | None = None
    pool_size: Cells = 14  # the mask has twice this many cells a side
    num_deconvs: Annotated[int, Between(1, 3)] = 1  # each more doubles the mask's cells a side
    num_convs: int = 4
    conv_channels: int = 256
    norm: Norm = "none"
    class_agnostic: bool = False
    threshold: Share = 0.5  # probability from which a pixel belongs to the mask
    loss_weight: NotNegative = 1.0

    @property
    def mask_size(self) -> int:
        """Cells of a mask a side."""
        if self.point_rend is not None:
            return self.point_rend.start_size * 2**self.point_rend.num_subdivisions
        return self.pool_size * 2**self.num_deconvs


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
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    fpn: FPNConfig | None = field(default_factory=FPNConfig)  # None: the backbone's last map alone (C4, DC5)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig | None = field(default_factory=MaskHeadConfig)
    keypoint_head: KeypointHeadConfig | None = None
    rules: RulesConfig = field(default_factory=RulesConfig)
