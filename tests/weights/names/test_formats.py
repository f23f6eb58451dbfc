"""Whose names a file has does not depend on the order in which that is asked."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from maskrcnn import presets, zoo
from maskrcnn.weights.names import FORMATS
from tests.models.tiny import distinct_structures, tiny


def names_of() -> dict[str, list[str]]:
    """Parameter names of a file of every kind, by the kind and what is in it."""
    with torch.device("meta"):
        resnet = torchvision.models.resnet50().state_dict()
        mobilenet = torchvision.models.mobilenet_v2().state_dict()
        classifiers = {
            "torchvision's Swin": torchvision.models.swin_t(),
            "torchvision's ConvNeXt": torchvision.models.convnext_tiny(),
            "timm's Swin": timm.create_model("swin_tiny_patch4_window7_224"),
            "timm's ConvNeXt": timm.create_model("convnext_tiny"),
        }
    found = {
        "torchvision's ResNet": list(resnet),
        "torchvision's MobileNetV2": list(mobilenet),
        "caffe2's ResNet": ["conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res2_0_branch2a_bn_s", "fc1000_w"],
        "detectron2's ResNet": ["stem.conv1.weight", "res2.0.conv1.weight", "stem.fc.weight"],
        "a pretrained backbone / InternImage": ["module.levels.0.blocks.0.dcn.offset.weight", "head.weight"],
        "a pretrained backbone / DeiT": ["cls_token", "blocks.0.attn.qkv.weight", "head.weight"],
        "a pretrained backbone / AugReg": ["Transformer/encoderblock_0/LayerNorm_0/scale"],
        "a pretrained backbone / Uni-Perceiver": [
            "fused_encoder.layers.0.self_attn.in_proj_weight", "video_embed.embeddings.weight",
        ],
    }  # fmt: skip
    found |= {f"a pretrained backbone / {k}": list(v.state_dict()) for k, v in classifiers.items()}
    for preset in distinct_structures():
        model = tiny(preset)
        state = model.state_dict()
        found[f"maskrcnn / {preset}"] = list(state)
        project = presets.project_of(preset)
        for names in FORMATS:
            if names.name == project and names.to_theirs is not None:
                found[f"{project} / {preset}"] = list(names.to_theirs(state, model.config))
    return found


@pytest.fixture(scope="module")
def samples() -> dict[str, list[str]]:
    return names_of()


def test_a_file_is_of_one_kind(samples: dict[str, list[str]]) -> None:
    for what, names in samples.items():
        assert [f.name for f in FORMATS if f.matches(names)] == [what.split(" / ")[0]], what


def test_every_kind_is_among_the_samples(samples: dict[str, list[str]]) -> None:
    assert {what.split(" / ")[0] for what in samples} == {f.name for f in FORMATS}


@pytest.mark.parametrize("preset", distinct_structures())
def test_there_and_back(preset: str) -> None:
    model = tiny(preset)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for names in FORMATS:
        if names.to_theirs is not None and names.name == presets.project_of(preset):
            back = names.to_ours(names.to_theirs(state, model.config)).state
            back = {k: v for k, v in back.items() if not k.endswith("num_batches_tracked")}
            assert set(back) == set(state)
            for name, value in state.items():
                torch.testing.assert_close(back[name], value, rtol=0, atol=1e-6)


def test_checkpoints_with_uni_perceivers_own_names_still_load() -> None:
    name = "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco"
    model = zoo.build(name, 3, tiny=True)
    old = {
        k.replace("body.blocks.", "body.layers.").replace("attn.qkv", "self_attn.in_proj")
        .replace("attn.proj", "self_attn.out_proj").replace("mlp.fc", "linear").replace("gamma1", "gamma_1")
        .replace("gamma2", "gamma_2") if "body.blocks." in k else k: v
        for k, v in model.state_dict().items()
    }  # fmt: skip
    (ours,) = (f for f in FORMATS if f.matches(old))
    assert ours.kind == "maskrcnn"
    assert set(ours.to_ours(old).state) == set(model.state_dict())
