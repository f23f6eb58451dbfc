"""Parameter groups and rates against the published recipe, and the schedules by hand."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import torch
from torch import nn

from maskrcnn import presets
from maskrcnn.config import OptimConfig
from maskrcnn.errors import UserError
from maskrcnn.training.layer_decay import layers_above
from maskrcnn.training.optim import (
    Schedule,
    WeightAverage,
    build_optimizer,
    parameter_groups,
    scaled_lr,
    set_learning_rate,
)
from tests.models.test_reference_mmdetection import FILES


@pytest.fixture(scope="module")
def published(shared):
    return json.loads((shared / "reference" / "detectron2" / "solver.json").read_text())


def schedule(config: OptimConfig, iterations: int, minutes: float | None = None) -> Schedule:
    budget = None if minutes is None else minutes * 60
    return Schedule(config=config, lr=config.lr, iterations=iterations, budget_seconds=budget)


SOLVERS = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "Misc/mask_rcnn_R_50_FPN_3x_gn",
]


@pytest.mark.parametrize("solver", SOLVERS)
def test_rates_are_the_published_ones(published, solver):
    config = presets.get(solver.split("/")[1])
    rate = schedule(config.optim, config.train.iterations)
    for iteration, lr in published[solver]["lr"].items():
        assert rate(int(iteration)) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_groups_are_the_published_ones(published, solver):
    from maskrcnn.models.build import build_model

    config = presets.get(solver.split("/")[1])
    with torch.device("meta"):
        optimizer = build_optimizer(build_model(config.model), config.optim)
    expected = published[solver]["groups"]
    assert len(optimizer.param_groups) == len(expected)
    for group, theirs in zip(optimizer.param_groups, expected, strict=True):
        assert len(group["params"]) == theirs["n_tensors"]
        assert sum(p.numel() for p in group["params"]) == theirs["n_elems"]
        for ours in ("weight_decay", "momentum", "nesterov"):
            assert group[ours] == theirs[ours]
        assert group["lr"] == theirs["base_lr"]


def test_norm_parameters_have_their_own_decay_and_frozen_ones_are_in_no_group():
    shared_layer = nn.Linear(2, 2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), shared_layer, shared_layer
    )
    model[0].bias.requires_grad_(False)
    plain, norm = parameter_groups(model, OptimConfig(weight_decay=0.1, weight_decay_norm=0.2))
    assert [p.shape for p in plain["params"]] == [(4, 3, 1, 1), (2, 2), (2,)]
    assert len(norm["params"]) == 4
    assert (plain["weight_decay"], norm["weight_decay"]) == (0.1, 0.2)


def test_the_rate_scales_with_the_batch_and_says_so():
    assert scaled_lr(OptimConfig(lr=0.02), 2) == (0.0025, "learning rate 0.0025 = 0.02 x 2/16")
    lr, note = scaled_lr(OptimConfig(lr=0.02, scale_lr=False), 2)
    assert lr == 0.02
    assert "not scaled" in note


def test_cosine_goes_from_the_rate_to_its_final_fraction():
    config = OptimConfig(lr=1.0, schedule="cosine", final_lr_fraction=0.1, warmup_iterations=0)
    rate = schedule(config, 100)
    assert [rate(0), rate(50), rate(100)] == pytest.approx([1.0, 0.55, 0.1])


def test_with_a_time_budget_the_schedule_follows_the_clock():
    config = OptimConfig(lr=1.0, milestones=(60, 80), warmup_iterations=10, warmup_factor=0.1)
    rate = schedule(config, 100, minutes=1)
    assert rate(0, 0) == pytest.approx(0.1)
    assert rate(5, 3) == pytest.approx(0.55)  # warm-up counts iterations
    assert rate(12, 35.9) == 1.0
    assert rate(12, 36) == pytest.approx(0.1)  # 60 % of the time
    assert rate(60, 1) == pytest.approx(0.1)  # or of the iterations
    assert rate(12, 70) == pytest.approx(0.01)
    cosine = schedule(OptimConfig(lr=1.0, schedule="cosine", warmup_iterations=0), 100, minutes=1)
    assert cosine(7, 20) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert cosine(7, 90) == pytest.approx(0.0)


def test_a_schedule_that_never_decays_is_remarked_on():
    assert "--optim.milestones" in schedule(OptimConfig(milestones=(60_000,)), 2000).remark()
    assert schedule(OptimConfig(milestones=(1500,)), 2000).remark() == ""


def test_the_average_follows_the_weights_with_a_rising_decay():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.5)
    expected = 0.0
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.state_dict()["weight"].item() == pytest.approx(expected)


MMDETECTION = (
    "mask_rcnn_dinov2_adapter_small_fpn_3x_coco",
    "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco",
    "cascade_mask_rcnn_convnext_tiny_1k_3x",
    "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco",
    "cascade_internimage_l_fpn_1x_coco",
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco",
    "mask_rcnn_convnext_tiny_1k_3x",
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_3x_coco",
    "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco",
)


@pytest.mark.parametrize("name", MMDETECTION)
def test_every_parameter_has_the_original_s_rate_and_decay(shared, name):
    from maskrcnn.models.build import build_model
    from maskrcnn.weights.names.mmdetection import to_mmdetection

    path = shared / "reference" / "mmdetection" / f"optim_{FILES.get(name, name)}.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    config = presets.get(name)
    with torch.device("meta"):
        model = build_model(config.model)
    uni_perceiver = getattr(config.model.backbone, "uni_perceiver", False)
    names = {p: to_mmdetection(n, uni_perceiver=uni_perceiver) for n, p in model.named_parameters()}
    groups = parameter_groups(model, config.optim)
    ours = {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert ours.keys() == published["lr_wd"].keys()
    for parameter, (lr, decay) in published["lr_wd"].items():
        assert ours[parameter] == pytest.approx((lr, decay), rel=1e-12), parameter
    recipe = published["lr_config"]
    assert config.optim.warmup_iterations == recipe["warmup_iters"]
    assert config.optim.warmup_factor == recipe["warmup_ratio"]
    epochs = published["max_epochs"]
    assert [m * epochs / config.train.iterations for m in config.optim.milestones] == recipe["step"]


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ",
        "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ",
        "mask_rcnn_vitdet_b_100ep",
        "cascade_mask_rcnn_vitdet_b_100ep",
    ],
)
def test_every_parameter_has_the_rate_and_decay_of_detectron2(shared, name):
    from maskrcnn.models.build import build_model
    from maskrcnn.weights.names.detectron2 import to_detectron2

    path = shared / "reference" / "detectron2" / f"optim_{name}.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    config = presets.get(name)
    with torch.device("meta"):
        model = build_model(config.model)
    names = {p: to_detectron2(n) for n, p in model.named_parameters()}
    groups = parameter_groups(model, config.optim)
    ours = {names[p]: [g["lr"], g["weight_decay"]] for g in groups for p in g["params"]}
    if "vitdet" in name:  # whose rate is a power of a rate: ours and theirs multiply in another order
        assert ours == {n: pytest.approx(both, rel=1e-15) for n, both in published["lr_wd"].items()}
    else:
        assert ours == published["lr_wd"]
    assert config.train.iterations == published["max_iter"]


def test_the_upgraded_model_s_rates_and_decay():
    """Of ViT-Adapter's upgraded Mask R-CNN, by its settings: what is named norm or bias there does not decay, and the
    norms of pyramid and heads are named bn."""
    from maskrcnn.models.build import build_model

    config = presets.get("mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco")
    with torch.device("meta"):
        model = build_model(config.model)
    names = {p: n for n, p in model.named_parameters()}
    groups = parameter_groups(model, config.optim)
    decay = {names[p]: g["weight_decay"] for g in groups for p in g["params"]}
    body = "backbone.body."
    for name in (
        *(f"{body}{n}" for n in ("pos_embed", "level_embed", "blocks.0.norm1.weight", "norm4.weight")),
        *(f"{body}interactions.3.{n}.weight" for n in ("injector.feat_norm", "extractor.ffn_norm")),
        *("backbone.fpn.output.0.norm.bias", "box_head.fcs.0.bias", "rpn.head.conv.1.bias"),
    ):
        assert decay[name] == 0, name
    for name in (
        *(
            f"{body}{n}"
            for n in ("blocks.0.mlp.fc1.weight", "spm.stem.1.weight", "interactions.0.injector.gamma")
        ),
        *(
            "backbone.fpn.lateral.3.norm.weight",
            "box_head.convs.0.norm.weight",
            "mask_head.convs.3.norm.weight",
        ),
    ):
        assert decay[name] == 0.05, name
    rate = schedule(config.optim, config.train.iterations)
    assert config.train.iterations == 25 * 7330
    assert rate(0) == pytest.approx(1e-7)
    assert rate(1000) == pytest.approx(1e-4 * 0.5005, rel=1e-3)  # half-way through the warm-up
    assert rate(25 * 7330 // 2) == pytest.approx(1e-4 * (1 + 0.01) / 2)
    assert rate(25 * 7330) == pytest.approx(1e-6)


def test_layers_of_internimage_and_of_a_vit():
    internimage = presets.get("mask_rcnn_internimage_t_fpn_1x_coco").model.backbone
    vit = presets.get("mask_rcnn_augreg_large_fpn_3x_coco").model.backbone
    by_hand = {
        "patch_embed.conv1.weight": 31,
        "levels.0.blocks.0.gamma1": 30,
        "levels.0.blocks.3.gamma1": 27,
        "levels.0.downsample.conv.weight": 26,
        "levels.0.norm.0.weight": 26,
        "levels.1.blocks.0.gamma1": 26,
        "levels.3.norm.0.weight": 4,
        "levels.3.blocks.3.gamma1": 1,
    }
    for name, layers in by_hand.items():
        assert layers_above(f"backbone.body.{name}", internimage) == layers, name
    for name, layers in {"pos_embed": 25, "blocks.0.norm1.weight": 24, "blocks.23.norm1.weight": 1}.items():
        assert layers_above(f"backbone.body.{name}", vit) == layers, name
    assert layers_above("backbone.body.norm1.weight", vit) == 0
    assert layers_above("backbone.fpn.output.0.weight", vit) == 0
    assert layers_above("rpn.head.conv.weight", vit) == 0


def test_a_rate_by_layer_needs_layers():
    from maskrcnn.models.build import build_model

    model = build_model(presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model)
    with pytest.raises(
        UserError,
        match=r"optim.layer_decay: expected a ViT, InternImage or ConvNeXt, got resnet. Set it to 1.",
    ):
        parameter_groups(model, OptimConfig(layer_decay=0.8))


def test_every_group_keeps_its_share_of_the_rate():
    from maskrcnn.models.build import build_model

    config = presets.get("mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco", tiny=True)
    optimizer = build_optimizer(build_model(config.model), config.optim)
    before = [g["lr"] / config.optim.lr for g in optimizer.param_groups]
    assert len(set(before)) > 3
    set_learning_rate(optimizer, 0.5)
    assert [g["lr"] / 0.5 for g in optimizer.param_groups] == pytest.approx(before)
