"""torchvision's Mask R-CNNs and Keypoint R-CNN, by its names: its weights give its outputs here.

Their labels are COCO's 90 category ids less one, ten of which are not used; torchvision counts them from 1.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import (
    AugmentConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    InputConfig,
    KeypointHeadConfig,
    ModelConfig,
    OptimConfig,
    ResNetConfig,
    RPNConfig,
    RulesConfig,
    TrainConfig,
)
from maskrcnn.presets.detectron2 import COCO_FLIP_PAIRS, COCO_KEYPOINTS, COCO_SKELETON
from maskrcnn.presets.mmdetection import IMAGENET_MEAN, IMAGENET_STD, ITERATIONS_PER_EPOCH

COCO_CATEGORIES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,N/A,N/A,handbag,
tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,
bottle,N/A,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,
chair,couch,potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,mouse,remote,keyboard,cell phone,microwave,
oven,toaster,sink,refrigerator,N/A,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace(
        "\n", ""
    ).split(",")
)


def maskrcnn_resnet50_fpn() -> Config:
    """torchvision's Mask R-CNN: 26 epochs of 16 images, SGD 0.02, divided by 10 at epochs 16 and 22.

    torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model maskrcnn_resnet50_fpn --out run
    Published: box AP 37.9, mask AP 34.6.
    """
    return Config(
        model=ModelConfig(
            name="maskrcnn_resnet50_fpn",
            num_classes=90,
            class_names=COCO_CATEGORIES,
            category_ids=tuple(range(1, 91)),
            input=InputConfig(
                pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD, channel_order="RGB", resize="torchvision"
            ),
            backbone=ResNetConfig(stride_in_1x1=False, norm_epsilon=0.0),
            rpn=RPNConfig(post_nms_topk_train=2000, smooth_l1_beta=1 / 9),
            box_head=BoxHeadConfig(smooth_l1_beta=1 / 9),
            rules=RulesConfig(
                anchors="torchvision",
                normalize_by="sampled",
                min_proposal_side=1e-3,
                min_detection_side=1e-2,
                # torchvision adds 1e-6 to the logarithm; on the borders between levels this is about the same.
                level_epsilon=7e-7,
                roi_aligned=False,
                roi_sampling_ratio=2,
                paste="torchvision",
                mask_targets="bitmaps",
            ),
        ),
        data=DataConfig(batch_size=16, augment=AugmentConfig(min_sizes=(800,), antialias=False)),
        optim=OptimConfig(
            lr=0.02, milestones=(16 * ITERATIONS_PER_EPOCH, 22 * ITERATIONS_PER_EPOCH), weight_decay_norm=1e-4
        ),
        train=TrainConfig(iterations=26 * ITERATIONS_PER_EPOCH),
    )


def maskrcnn_resnet50_fpn_v2() -> Config:
    """torchvision's second Mask R-CNN: batch normalisation everywhere, two convolutions in the RPN, four before the
    boxes.

    Published: box AP 47.4, mask AP 41.8, by a longer recipe than this one, which is the first version's.
    """
    config = maskrcnn_resnet50_fpn()
    model = config.model
    model.name = "maskrcnn_resnet50_fpn_v2"
    model.backbone = ResNetConfig(stride_in_1x1=False, norm="bn", frozen_stages=0)
    model.rpn.num_convs = 2
    model.box_head.num_convs, model.box_head.num_fcs = 4, 1
    assert model.fpn is not None
    assert model.mask_head is not None
    model.fpn.norm = model.box_head.norm = model.mask_head.norm = "bn"
    return config


def keypointrcnn_resnet50_fpn() -> Config:
    """torchvision's Keypoint R-CNN: 46 epochs, divided by 10 at epochs 36 and 43.

    Places of key points are torchvision's; the third number of each is its probability, not torchvision's logit.
    Published: box AP 54.6, key-point AP 65.0, on people.
    """
    config = maskrcnn_resnet50_fpn()
    model = config.model
    model.name = "keypointrcnn_resnet50_fpn"
    model.num_classes, model.class_names, model.category_ids = 1, ("person",), (1,)
    model.mask_head = None
    model.keypoint_head = KeypointHeadConfig(
        names=COCO_KEYPOINTS, flip_pairs=COCO_FLIP_PAIRS, skeleton=COCO_SKELETON
    )
    config.optim.milestones = (36 * ITERATIONS_PER_EPOCH, 43 * ITERATIONS_PER_EPOCH)
    config.train.iterations = 46 * ITERATIONS_PER_EPOCH
    return config


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f for f in (maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, keypointrcnn_resnet50_fpn)
}
