"""Pretrained backbones under their publishers' names fill ours, with what was used, unused and missing told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn import zoo
from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.pretrained import may_be_missing, resize_places
from maskrcnn.weights.names.protocol import BODY
from maskrcnn.weights.names.uni_perceiver import to_uni_perceiver

INTERN, INTERN_POST = "mask_rcnn_internimage_t_fpn_1x_coco", "mask_rcnn_internimage_s_fpn_1x_coco"
ADAPTER, PLAIN = "mask_rcnn_deit_adapter_tiny_fpn_3x_coco", "mask_rcnn_deit_tiny_fpn_3x_coco"
UNI = "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco"


def tiny(name: str, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    model = zoo.build(name, 3, tiny=True)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    return model


def trunk(model: MaskRCNN) -> dict[str, Tensor]:
    """Weights of a model that a pretrained backbone has, without the prefix of our names."""
    state = {k.removeprefix(BODY): v for k, v in model.state_dict().items() if k.startswith(BODY)}
    return {k: v for k, v in state.items() if not may_be_missing(BODY + k)}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def check(model: MaskRCNN, path: Path, *, same: dict[str, Tensor] | None = None) -> str:
    """Load the file into another model of this kind, and check that its trunk is then this one's and the rest
    unchanged. Returns the notes.
    """
    other = tiny(model.config.name, seed=1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    assert read_weights(path).kind == "backbone"
    notes = load_weights(other, path)
    same = same or trunk(model)
    for name, value in other.state_dict().items():
        bare = name.removeprefix(BODY)
        want = same[bare] if name.startswith(BODY) and bare in same else before[name]
        assert torch.equal(value, want), name
    return " ".join(notes)


def classifier() -> dict[str, Tensor]:
    return {"head.weight": torch.rand(5, 4), "head.bias": torch.rand(5)}


@pytest.mark.parametrize("name", [INTERN, INTERN_POST])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "backbone.module."])
def test_internimages_classifiers(tmp_path: Path, name: str, wrapper: str | None, prefix: str) -> None:
    model = tiny(name)
    state = {prefix + k: v for k, v in trunk(model).items()}
    state |= classifier() | {"conv_head.0.weight": torch.rand(2)}
    notes = check(model, saved(tmp_path / "a.pth", {wrapper: state} if wrapper else state))
    assert "conv_head.0.weight" in notes
    assert "head.weight" in notes
    assert "10 not in it (backbone.body.levels.0.blocks.0.gamma1," in notes  # trained without


@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco", "mask_rcnn_convnext_tiny_1k_3x"],
)
def test_swins_and_convnexts_classifiers(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    state = {k: v for k, v in trunk(model).items() if not re.match(r"norm\d", k)} | classifier()
    state |= {"norm.weight": torch.rand(4), "norm.bias": torch.rand(4)}
    if "swin" in name:
        state["layers.0.blocks.1.attn_mask"] = torch.rand(2, 3, 3)
    notes = check(model, saved(tmp_path / "a.pth", {"model": state}))
    assert "norm.weight" in notes
    assert "8 not in it (backbone.body.norm0." in notes  # made for the pyramid


def test_internimage_from_hugging_face(tmp_path: Path) -> None:
    model = tiny(INTERN_POST)
    state = {k.removeprefix(BODY): v for k, v in model.state_dict().items() if k.startswith(BODY)}
    named = {"model." + k.replace("gamma", "layer_scale"): v for k, v in state.items()}
    assert any("layer_scale2" in k for k in named)
    notes = check(model, saved(tmp_path / "pytorch_model.bin", named), same=state)
    assert "not in it" not in notes


@pytest.mark.parametrize("name", [ADAPTER, PLAIN])
def test_deit(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    state = trunk(model) | classifier() | {"cls_token": torch.rand(1, 1, 32), "norm.weight": torch.rand(32)}
    notes = check(model, saved(tmp_path / "deit_tiny_patch16_224-a1311bcf.pth", {"model": state}))
    assert all(name in notes for name in ("head.weight", "cls_token", "..."))
    assert "gamma1" in notes
    assert "resized" not in notes


def test_a_masked_autoencoder(tmp_path: Path) -> None:
    """Of ViT-Adapter's upgraded model, whose blocks have no scales: only the adapter is not in the file."""
    model = tiny("mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco")
    state = trunk(model) | {"cls_token": torch.rand(1, 1, 32), "norm.weight": torch.rand(32)}
    notes = check(model, saved(tmp_path / "mae_pretrain_vit_base.pth", {"model": state}))
    assert "cls_token, norm.weight not used" in notes
    kept = [k for k in model.state_dict() if k.startswith(BODY) and k.removeprefix(BODY) not in state]
    assert kept
    assert all(re.match(rf"{BODY}(spm|interactions|level_embed|up|norm[1-4])\b", k) for k in kept)


def test_an_embedding_of_other_images_is_resized(tmp_path: Path) -> None:
    """Bicubic, corners not aligned; the class token's place stays, a distillation token's goes."""
    model = tiny(PLAIN)
    state = trunk(model)
    places = torch.rand(1, 2 + 7 * 7, 32)
    state["pos_embed"] = places
    grid = F.interpolate(places[:, 2:].view(1, 7, 7, 32).permute(0, 3, 1, 2), (4, 4), mode="bicubic")
    want = torch.cat([places[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 16, 32)], dim=1)
    notes = check(model, saved(tmp_path / "a.pth", {"model": state}), same=trunk(model) | {"pos_embed": want})
    assert "resized from 7x7 places to 4x4" in notes


def test_resizing_keeps_what_has_the_size() -> None:
    table = torch.rand(1, 17, 8)
    torch.testing.assert_close(resize_places(table, table), table)
    assert resize_places(torch.full((49, 8), 3.0), torch.zeros(16, 8)).tolist() == [[3.0] * 8] * 16


def test_dinov2(tmp_path: Path) -> None:
    model = tiny(ADAPTER)
    named = {k.removeprefix(BODY): v for k, v in model.state_dict().items() if k.startswith(BODY)}
    kept = {k: v for k, v in named.items() if k.startswith(("patch_embed", "pos_embed", "blocks"))}
    state = {k.replace("gamma1", "ls1.gamma").replace("gamma2", "ls2.gamma"): v for k, v in kept.items()}
    state["patch_embed.proj.weight"] = torch.rand(32, 3, 14, 14)
    state |= {
        "mask_token": torch.rand(1, 32),
        "register_tokens": torch.rand(1, 4, 32),
        "norm.bias": torch.rand(32),
    }
    patches = F.interpolate(state["patch_embed.proj.weight"], (16, 16), mode="bicubic")
    path = saved(tmp_path / "dinov2.pth", state)
    notes = check(model, path, same=kept | {"patch_embed.proj.weight": patches})
    assert "from 14 pixels to 16" in notes
    assert "mask_token" in notes


def as_jax(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """Convert a ViT's trunk to the JAX release's names and shapes."""
    made: dict[str, Tensor] = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": torch.rand(3),
        "cls": torch.rand(1, 1, 32),
        "head/kernel": torch.rand(3, 3),
    }
    for i in range(sum(k.endswith("qkv.weight") for k in state)):
        ours, block = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{block}MultiHeadDotProductAttention_1/"
        weights, biases = (state[f"{ours}attn.qkv.{part}"].chunk(3) for part in ("weight", "bias"))
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            made[f"{attention}{part}/kernel"] = weight.t().unflatten(1, (heads, -1))
            made[f"{attention}{part}/bias"] = bias.unflatten(0, (heads, -1))
        made[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].t().unflatten(0, (heads, -1))
        made[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for k, norm in ((1, "LayerNorm_0"), (2, "LayerNorm_2")):
            made[f"{block}{norm}/scale"] = state[f"{ours}norm{k}.weight"]
            made[f"{block}{norm}/bias"] = state[f"{ours}norm{k}.bias"]
            made[f"{block}MlpBlock_3/Dense_{k - 1}/kernel"] = state[f"{ours}mlp.fc{k}.weight"].t()
            made[f"{block}MlpBlock_3/Dense_{k - 1}/bias"] = state[f"{ours}mlp.fc{k}.bias"]
    return {k: v.numpy() for k, v in made.items()}


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_augreg(tmp_path: Path, prefix: str) -> None:
    model = tiny(PLAIN)
    arrays = {prefix + k: v for k, v in as_jax(trunk(model), heads=2).items()}
    save_arrays(tmp_path / "L_16.npz", arrays)
    notes = check(model, tmp_path / "L_16.npz")
    assert "head/kernel" in notes
    assert "encoder_norm/scale" in notes
    assert "encoderblock" not in notes


def test_augregs_attention_by_its_formula(tmp_path: Path) -> None:
    """JAX's attention from the arrays as they lie in the file: kernels (C, heads, C / heads) and their inverse."""
    model = tiny(PLAIN)
    arrays = {k: torch.from_numpy(v) for k, v in as_jax(trunk(model), heads=2).items()}
    save_arrays(tmp_path / "a.npz", {k: v.numpy() for k, v in arrays.items()})
    other = tiny(PLAIN, seed=1)
    load_weights(other, tmp_path / "a.npz")
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/"
    x = torch.randn(1, 16, 32)
    q, k, v = (
        torch.einsum("bnc,chd->bhnd", x, arrays[f"{block}{p}/kernel"]) + arrays[f"{block}{p}/bias"][:, None]
        for p in ("query", "key", "value")
    )
    mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
    want = torch.einsum("bhnd,hdc->bnc", mixed, arrays[f"{block}out/kernel"]) + arrays[f"{block}out/bias"]
    attention = other.backbone.get_submodule("body.blocks.1.attn")
    torch.testing.assert_close(attention(x, (4, 4)), want, rtol=1e-4, atol=1e-4)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz: expected a whole \.npz file of numbers"):
        read_weights(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match="expected a whole"):
        read_weights(tmp_path / "b.npz")


def test_uni_perceiver(tmp_path: Path) -> None:
    model = tiny(UNI)
    old = {
        "in_proj.": "in_proj_",
        "visual_embed.patch_embed.proj.": "visual_embed.embeddings.",
        "visual_embed.patch_embed.": "visual_embed.embeddings_st_pos.",
        "visual_embed.": "video_embed.",
    }
    state = {}
    for name, value in trunk(model).items():
        name = to_uni_perceiver(name)
        for ours, theirs in old.items():
            name = name.replace(ours, theirs)
        state[f"fused_encoder.{name}"] = value
    assert "fused_encoder.video_embed.embeddings_st_pos.spatial_pos_embed.weight" in state
    state |= {"fused_encoder.token_embed.weight": torch.rand(3), "loss_prepare.x": torch.rand(3)}
    notes = check(model, saved(tmp_path / "uni.pth", {"model": state}))
    assert "token_embed" in notes
    assert "loss_prepare" in notes
    assert "gamma1" in notes


def test_a_backbone_of_another_size_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": {k: v[..., :16] for k, v in trunk(tiny(PLAIN)).items()}})
    with pytest.raises(UserError, match="of another shape"):
        load_weights(tiny(PLAIN), path)
    state = {k: v for k, v in trunk(tiny(PLAIN)).items() if not k.startswith("blocks.3.")}
    with pytest.raises(UserError, match=r"12 missing \(backbone\.body\.blocks\.3\."):
        load_weights(tiny(PLAIN), saved(tmp_path / "b.pth", state))
