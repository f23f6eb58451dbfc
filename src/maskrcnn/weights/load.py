"""Weight files: read without running code, renamed to ours, loaded with every mismatch listed.

Which reader a file needs is seen from its first bytes, whose names it has from its keys; suffixes do not matter.

| written by | format |
|---|---|
| maskrcnn | safetensors with the model's config (`training.checkpoint` writes it); a run's or a checkpoint's folder |
| detectron2 | `.pkl` of numpy arrays (the published files), `.pth` of its trainer |
| MMDetection 2.x | `.pth` of its runner: InternImage's and ViT-Adapter's published files |
| torchvision | `.pth` of its R-CNNs with a pyramid; ResNet, MobileNetV2, Swin and ConvNeXt classifiers |
| InternImage, Swin, ConvNeXt, DeiT, DINOv2, AugReg, Uni-Perceiver | their pretrained backbones, `.pth` and `.npz` |
| timm | ViT, Swin and ConvNeXt classifiers, safetensors or `.pth` |
| caffe2, detectron2 | `.pkl` of an ImageNet ResNet (`R-50.pkl`, `X-101-32x8d.pkl`): the backbone alone |
"""

from __future__ import annotations

import json
import re
import reprlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.config import InputConfig, ModelConfig, from_dict
from maskrcnn.data.classes import places
from maskrcnn.errors import UserError, shown
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.checksums import DamagedError, check_file
from maskrcnn.weights.names import FORMATS, Kind
from maskrcnn.weights.names.ours import current
from maskrcnn.weights.names.pretrained import fit, may_be_missing
from maskrcnn.weights.npz import read_npz
from maskrcnn.weights.torch_file import read_torch
from maskrcnn.weights.unpickle import read_pickle, reason

IN_A_FOLDER = ("model.safetensors", "best.safetensors")  # the end of a run, or the best of one still going
MAX_STAGES = 8  # of a cascade
MAX_CONFIG_LENGTH = 1 << 20  # some 10,000 classes
_BOX_HEADS = ("box_head.", *(f"box_head.stages.{k}." for k in range(MAX_STAGES)))
HEADS_PER_CLASS = (
    *(f"{head}{predictor}." for head in _BOX_HEADS for predictor in ("class_predictor", "box_predictor")),
    "mask_head.predictor.",
    *(f"mask_head.stages.{k}.predictor." for k in range(MAX_STAGES)),
    "mask_head.coarse_head.predictor.",
    "mask_head.point_head.",  # all its layers see the coarse logits of every class
)
POINT_HEAD = "mask_head.point_head."
HEAD_PER_KEYPOINT = "keypoint_head.deconv."
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, as its first pickle


@dataclass(slots=True)
class WeightFile:
    """Weights under our names, the config where the file holds it, and the project that wrote them."""

    path: Path
    state: dict[str, Tensor]
    config: ModelConfig | None
    kind: Kind
    dropped: tuple[str, ...] = ()  # names in the file that are no part of a detector
    made_for: str = ""  # of a backbone: what it expects that not every model of its shape gives it

    @property
    def num_classes(self) -> int | None:
        """Number of the classifier's classes, or None for a backbone."""
        biases = (self.state.get(f"{head}class_predictor.bias") for head in _BOX_HEADS)
        return next((len(bias) - 1 for bias in biases if bias is not None), None)


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any known format, or the run folder that holds one.

    Raises:
        UserError: it is missing, damaged, of another format, or asks for code to be run.
    """
    path = _model_file(Path(path))
    head = _first_bytes(path)
    if head.startswith(b"PK\x03\x04") and _is_npz(path):
        return _named(path, _tensors(path, read_npz(path)))
    if head.startswith(b"PK\x03\x04") or _LEGACY_TORCH in head[:32]:
        return _named(path, _tensors(path, _unwrapped(read_torch(path))))
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"\x80" or re.match(rb"[(}c]", head):  # protocol 2 on; 0 and 1
        return _named(path, _tensors(path, _unwrapped(read_pickle(path))))
    raise UserError(f"{path}: expected a weight file, got {_what_is(head)}. Download or copy it again.")


def load_weights(model: nn.Module, file: WeightFile | str | Path, *, new_head: bool = False) -> list[str]:
    """Copy a file's weights into a model of ours; everything has to fit, by name and by shape.

    A backbone's file fills the backbone alone. Weights for colours fill a model of bands too (`_widen`).
    With `new_head` the heads' last layers are left as they are (random) where their shape differs because the file has
    another number of classes or of key points; so is a head of masks or of key points that the file lacks, and one that
    the model lacks is not used.

    Returns:
        What was not loaded and why, as sentences for the user; empty when all of the model was.

    Raises:
        UserError: lists the missing, the unexpected and the misshapen names.
    """
    if not isinstance(file, WeightFile):
        file = read_weights(file)
    wanted, state, notes = without_counters(model.state_dict()), without_counters(file.state), []
    if isinstance(model, MaskRCNN) and model.config.input.channels:
        notes += _widen(state, wanted, file, model.config.input)
    if file.kind == "backbone":
        if "res5.0.conv1.weight" in wanted:  # C4: the last stage belongs to the heads
            state = {k.replace("backbone.body.res5.", "res5."): v for k, v in state.items()}
        wanted = {k: v for k, v in wanted.items() if k.startswith(("backbone.body.", "res5."))}
        # A deformable convolution begins as the plain one that it was.
        wanted = {k: v for k, v in wanted.items() if ".conv2_offset." not in k or k in state}
        notes.append(f"{file.path}: a backbone's weights; pyramid, proposals and heads start at random.")
        with _damage_told(file.path):
            notes += [f"{file.path}: {said}." for said in fit(state, wanted)]
        if absent := [k for k in wanted if k not in state and may_be_missing(k)]:
            wanted = {k: v for k, v in wanted.items() if k in state or not may_be_missing(k)}
            notes.append(f"{file.path}: {len(wanted)} weights; {len(absent)} not in it ({_listed(absent)}).")
    if (
        file.made_for
        and isinstance(model, MaskRCNN)
        and getattr(model.config.backbone, "stride_in_1x1", False)
    ):
        notes.append(
            f"{file.path}: made for {file.made_for}: maskrcnn_resnet50_fpn has them, this model has not."
        )
    if file.dropped:
        notes.append(f"{file.path}: {_listed(file.dropped)} not used.")
    if new_head and file.num_classes is not None:
        said = _leave_out_heads(state, wanted, file.num_classes) or _kept_heads(file, model, state)
        notes += [f"{file.path}: {sentence}" for sentence in said]
    _refuse_mismatch(file, state, wanted)
    model.load_state_dict(state, strict=False)
    return notes


def _widen(
    state: dict[str, Tensor], wanted: Mapping[str, Tensor], file: WeightFile, input: InputConfig
) -> list[str]:
    """Fit the first convolutions of a model of colours to a model of C bands; a sentence on it.

    One band gets the sum of the three kernels, so that it is seen as a grey picture was. Otherwise band i gets the
    kernel of red, green or blue by i modulo 3, all times 3 / C, so that signals stay as strong (as timm does).
    """
    theirs = input if file.config is None else file.config.input
    if file.config is not None and theirs.channels:
        return []
    widened = [
        k
        for k in wanted
        if k.startswith("backbone.body.") and _takes_pixels(k, state, wanted, input.channels)
    ]
    for name in widened:
        kernels = state[name] if theirs.channel_order == "RGB" else state[name].flip(1)
        if input.channels == 1:
            state[name] = kernels.sum(1, keepdim=True)
        else:
            bands = torch.arange(input.channels) % 3
            state[name] = kernels[:, bands] * (3 / input.channels)
    bands = "1 band" if input.channels == 1 else f"{input.channels} bands"
    return [f"{file.path}: made for colours; its first convolution is fitted to {bands}."] if widened else []


def _takes_pixels(
    name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], channels: int
) -> bool:
    """Return True for a convolution of colours in the file that is one of so many bands in the model."""
    if name not in state or not state[name].ndim == wanted[name].ndim == 4:
        return False
    theirs, ours = state[name].shape, wanted[name].shape
    return theirs[0] == ours[0] and theirs[1] == 3 and ours[1] == channels


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out a number that frozen norms lack, and that no norm of ours uses."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Turn any failure in the block into an error of damage: names of a known model with shapes that are not make
    renaming and resizing fail in any of a dozen ways.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"{path}: expected weights of a known model, got damaged ones ({reason(e)}). Copy the file again."
        ) from None


def _leave_out_heads(state: dict[str, Tensor], wanted: dict[str, Tensor], num_classes: int) -> list[str]:
    """Take out of both `state` and `wanted` the heads that new heads do not share with the file's; sentences on it."""
    said = []
    for head, name in (("mask_head.", "masks"), ("keypoint_head.", "key points")):
        in_file, in_model = (_has(names, head) for names in (state, wanted))
        if in_file != in_model:
            what = "its head is not used" if in_file else "their head starts at random"
            said.append(f"{'finds' if in_file else 'does not find'} {name}; {what}.")
            _drop((state, wanted), [k for k in (*state, *wanted) if k.startswith(head)])
    if _has(state, "mask_head.") and _has(state, POINT_HEAD) != _has(wanted, POINT_HEAD):
        said.append("has another kind of mask head; the model's starts at random.")
        _drop((state, wanted), [k for k in (*state, *wanted) if k.startswith("mask_head.")])
    if points := _misshapen(state, wanted, (HEAD_PER_KEYPOINT,)):
        number = state[f"{HEAD_PER_KEYPOINT}bias"].shape[0]
        said.append(f"has {number} key points; their head's last layer starts at random.")
        _drop((state, wanted), points)
    if other := _misshapen(state, wanted, HEADS_PER_CLASS):
        point_head = [k for k in wanted if k.startswith(POINT_HEAD)]
        layers = "the last layers of the heads" + (" and the point head" if point_head else "")
        said.append(f"has {num_classes} classes; {layers} start at random.")
        _drop((state, wanted), {*other, *point_head})
    return said


def _has(state: Mapping[str, Tensor], beginning: str) -> bool:
    return any(name.startswith(beginning) for name in state)


def _kept_heads(file: WeightFile, model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """A sentence on heads that fit by their number of classes, unless these are known to be the same ones.

    The same classes in another order are put in the model's order.
    """
    names = model.config.class_names if isinstance(model, MaskRCNN) else ()
    own = () if file.config is None else file.config.class_names
    if not names or own == names:
        return []
    if sorted(own) == sorted(names):
        _reorder(state, places(names, own))
        return [
            "has the same classes in another order; the last layers of its heads are put in the data set's."
        ]
    its, ours = (_listed(n) for n in (own, names))
    return [
        f"has {len(names)} class{'es' * (len(names) > 1)} too{f' ({its})' if own else ''}: the heads are kept, and its "
        f"classes are taken for the data set's in their order ({ours})."
    ]


def _reorder(state: dict[str, Tensor], order: list[int]) -> None:
    """Put the classes of the heads' last layers in another order; background stays the last class."""
    rendered = state.get(f"{POINT_HEAD}predictor.bias")
    one_mask = rendered is not None and len(rendered) < len(order)  # for all classes
    for name in [k for k in state if k.startswith(HEADS_PER_CLASS)]:
        if not (one_mask and name.startswith("mask_head.")):
            state[name] = _reordered(name, state[name], order)


def _reordered(name: str, value: Tensor, order: list[int]) -> Tensor:
    """Put the classes of one weight or bias in another order; what is there for all classes stays."""
    count = len(order)
    if name.startswith(POINT_HEAD) and value.dim() > 1:  # the classes' coarse logits are its last inputs
        others = value.shape[1] - count
        value = value[:, [*range(others), *(others + k for k in order)]]
    if name.startswith(f"{POINT_HEAD}fcs.") or len(value) < count:
        return value
    if "box_predictor" in name:  # four values a class, or four for all classes
        return value if len(value) != 4 * count else value.unflatten(0, (count, 4))[order].flatten(0, 1)
    if "coarse_head" in name:  # the cells of a class, one class after another
        return value.unflatten(0, (count, -1))[order].flatten(0, 1)
    return value[[*order, *range(count, len(value))]]


def _drop(states: tuple[dict[str, Tensor], ...], names: Iterable[str]) -> None:
    for name in list(names):
        for state in states:
            state.pop(name, None)


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    places = [path / name for name in IN_A_FOLDER]
    if (path / "last").is_file():
        places.append(path / (path / "last").read_text(errors="replace").strip()[:200] / IN_A_FOLDER[0])
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{path}: expected a run folder with {IN_A_FOLDER[0]} in it, got a folder without.")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weight file.") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read: {(e.strerror or str(e)).lower()}.") from None
    return head


def _what_is(head: bytes) -> str:
    """The kind of a file that holds no weights, for an error."""
    if not head:
        return "an empty file"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "a web page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if start.startswith((b"{", b"[")):
        return "a JSON file"
    if b"\0" not in head and all(c >= 32 or c in b"\t\r\n" for c in head):
        return "a text file"
    return "a file of an unknown format"


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except Exception:  # damaged in any of a dozen ways, which `read_torch` tells
        return False


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import safe_open

    try:
        check_file(path)  # a checkpoint's has one
    except DamagedError as e:
        raise UserError(
            f"{path}: expected the file that was written, got {e.reason}. Take the checkpoint before it."
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as e:  # its own error for most, torch's for numbers that it does not know
        said = reason(e).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: expected a whole safetensors file, got a damaged one ({said}).") from None
    if "config" not in header:
        return _named(path, state)
    if len(header["config"]) > MAX_CONFIG_LENGTH:
        raise UserError(
            f"{path}: its config is larger than {MAX_CONFIG_LENGTH} characters. Copy the file again."
        )
    try:
        values = json.loads(header["config"])
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: its config is not valid JSON ({reason(e)}).") from None
    config = from_dict(ModelConfig, values, f"{path}: config")
    return WeightFile(path, current(state), config, "maskrcnn")


def _unwrapped(content: Any) -> Any:
    """The dictionary of weights inside what trainers put around it."""
    for wrapper in ("model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            return content[wrapper]
    return content


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: expected weights by name, got {type(content).__name__}.")
    state = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: expected weights by name, got {reprlib.repr(name)}: {type(value).__name__}."
            )
        state[name] = value
    if all(name.startswith("module.") for name in state):  # as a parallel wrapper names them
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _named(path: Path, state: dict[str, Tensor]) -> WeightFile:
    """Recognise whose names these are, and rename the weights to ours."""
    with _damage_told(path):
        return _renamed(path, state)


def _renamed(path: Path, state: dict[str, Tensor]) -> WeightFile:
    names = next((one for one in FORMATS if one.matches(state)), None)
    if names is None:
        raise UserError(
            f"{path}: expected weights of a known model, got {len(state)} with names like {_listed(state)}."
        )
    ours = names.to_ours(state)
    return WeightFile(path, ours.state, None, names.kind, ours.dropped, ours.made_for)


def _misshapen(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], beginnings: tuple[str, ...] = ("",)
) -> list[str]:
    common = [k for k in wanted if k in state and k.startswith(beginnings)]
    return [k for k in common if state[k].shape != wanted[k].shape]


def _refuse_mismatch(file: WeightFile, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if problems := mismatches(state, wanted):
        raise UserError(
            f"{file.path}: expected the model's {len(wanted)} weights, got {problems}. "
            "Choose the model they were trained for."
        )


def mismatches(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """List the misfits, counted and with some names; empty where all fits."""
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in wanted]
    shapes = [f"{k} {_shape(state[k])}, not {_shape(wanted[k])}" for k in _misshapen(state, wanted)]
    both = [k for k in wanted if k in state]
    other = [k for k in both if state[k].is_floating_point() != wanted[k].is_floating_point()]
    types = [f"{k} {state[k].dtype}, not {wanted[k].dtype}".replace("torch.", "") for k in other]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another type": types,
    }
    problems = {what: names for what, names in found.items() if names}
    most = 2 if len(problems) == 1 else 1  # a message has 300 characters
    return ", ".join(f"{len(n)} {what} ({_listed(n, '; ', most)})" for what, n in problems.items())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: Iterable[str], separator: str = ", ", most: int = 3) -> str:
    names = list(names)
    return separator.join(shown(name, 60) for name in names[:most]) + (
        f"{separator}..." if len(names) > most else ""
    )
