"""Files of torch.save are read as torch.load reads them; those that ask for more are refused, and nothing is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._utils import _rebuild_tensor_v2

from maskrcnn.errors import UserError
from maskrcnn.memory import forget_peak, peak_mib
from maskrcnn.weights.load import read_weights
from maskrcnn.weights.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL, read_torch

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.arange(24.0)
    return {
        "plain": torch.rand(4, 3, 2, 2),
        "parameter": nn.Parameter(torch.rand(3)),
        "half": torch.rand(5).half(),
        "bfloat16": torch.rand(5).bfloat16(),
        "double": torch.rand(2, 2).double(),
        "long": torch.tensor(7),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "transposed": torch.rand(2, 3).t(),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "view": whole[5:17:3],
        "same_storage": whole[2:4],
        "empty": torch.zeros(0, 4),
    }


def saved(path: Path, content: Any, *, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: expected")
    return str(caught.value)


@FORMATS
@pytest.mark.parametrize("protocol", range(2, 6))
def test_tensors_come_back_equal(tmp_path: Path, zipped: bool, protocol: int) -> None:
    content = {
        "model": tensors(),
        "iteration": 7,
        "name": "é",
        "lr": np.float64(0.5),
        "size": torch.Size([1, 2]),
    }
    read = read_torch(saved(tmp_path / "a.pth", content, zipped=zipped, protocol=protocol))
    assert read["iteration"] == 7
    assert read["name"] == "é"
    assert read["lr"] == 0.5
    assert read["size"] == (1, 2)
    for name, tensor in tensors().items():
        assert read["model"][name].dtype == tensor.dtype
        assert torch.equal(read["model"][name], tensor), name
        read["model"][name].zero_()  # private: the file stays as it is
    assert torch.equal(read_torch(tmp_path / "a.pth")["model"]["plain"], tensors()["plain"])


@FORMATS
def test_what_trainers_keep_beside_the_weights(tmp_path: Path, zipped: bool) -> None:
    parameter = nn.Parameter(torch.rand(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    content = {
        "model": {"a": torch.ones(2)},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "counts": collections.Counter("abc"),
        "history": collections.deque([np.float32(1), np.arange(3)]),
        "classes": {"cat", "dog"},
        "by_name": collections.defaultdict(list, a=[1]),
    }
    read = read_torch(saved(tmp_path / "a.pth", content, zipped=zipped))
    assert torch.equal(read["model"]["a"], torch.ones(2))
    assert read["classes"] == {"cat", "dog"}


@pytest.fixture
def mmdetection_classes() -> Iterator[dict[str, type]]:
    """Define the classes that MMDetection's and InternImage's files hold objects of; gone when the file is read."""
    places = {
        "mmengine.logging.history_buffer": "HistoryBuffer",
        "mmcv.utils.config": "ConfigDict",
        "yacs.config": "CfgNode",
    }
    made = {}
    for module, name in places.items():
        kind = type(name, (object,) if name == "HistoryBuffer" else (dict,), {"__module__": module})
        made[name] = kind
        steps = module.split(".")
        for n in range(1, len(steps) + 1):
            sys.modules.setdefault(".".join(steps[:n]), types.ModuleType(steps[n - 1]))
        setattr(sys.modules[module], name, kind)
    yield made
    forget_modules()


def forget_modules() -> None:
    for module in [m for m in sys.modules if m.split(".")[0] in ("mmengine", "mmcv", "yacs")]:
        del sys.modules[module]


@FORMATS
@pytest.mark.parametrize("protocol", range(2, 6))
def test_mmdetections_files(
    tmp_path: Path, mmdetection_classes: dict[str, type], zipped: bool, protocol: int
) -> None:
    buffer = mmdetection_classes["HistoryBuffer"]()
    buffer.__dict__.update(_max_length=100, _log_history=np.arange(4.0), _count_history=np.ones(4))
    config = mmdetection_classes["CfgNode"](MODEL={"TYPE": "intern_image"})
    config.frozen = True
    state = {"backbone.x": torch.ones(2), "neck.lateral_convs.0.conv.weight": torch.zeros(3)}
    content = {
        "meta": {
            "epoch": 12,
            "config": "model = dict(\n    type='MaskRCNN')",
            "CLASSES": ("person", "bicycle"),
            "hook_msgs": {"best_score": np.float64(0.425), "last_ckpt": None},
            "message_hub": {"train/loss": buffer},
            "cfg": config,
            "settings": mmdetection_classes["ConfigDict"](a=1),
        },
        "state_dict": collections.OrderedDict((f"module.{k}", v) for k, v in state.items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float64(1e-4)}]},
    }
    content["state_dict"]._metadata = {"": {"version": 1}}
    path = saved(tmp_path / "a.pth.tar", content, zipped=zipped, protocol=protocol)
    forget_modules()
    file = read_weights(path)
    assert file.kind == "mmdetection"
    assert file.state["backbone.body.x"].tolist() == [1, 1]
    assert "backbone.fpn.lateral.0.weight" in file.state
    assert not {"mmengine", "mmcv", "yacs"} & set(sys.modules)


def test_storages_are_mapped_not_read(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.pth", {"model": {"a": torch.zeros(2)}, "optimizer": {"state": torch.zeros(64 << 20)}}
    )
    forget_peak()
    before = peak_mib() or 0
    assert read_torch(path)["model"]["a"].tolist() == [0, 0]
    assert (peak_mib() or 0) - before < 100  # of the file's 256


def test_big_endian_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.arange(5, dtype=torch.int32), "b": torch.arange(3).half()})
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "b.pth", "w") as big:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                kind = "i4" if len(content) == 20 else "f2"
                content = np.frombuffer(content, f"<{kind}").astype(f">{kind}").tobytes()
            big.writestr(name, content)
    read = read_torch(tmp_path / "b.pth")
    assert read["a"].tolist() == [0, 1, 2, 3, 4]
    assert read["b"].tolist() == [0, 1, 2]


# --- files that want to run code


class Calls:
    """Object that pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


PAYLOADS = {
    "system": lambda marker: Calls(os.system, f"touch {marker}"),
    "eval": lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "mkdir": lambda marker: Calls(os.mkdir, str(marker)),
    "torch.load": lambda marker: Calls(torch.load, str(marker)),
    "torch.save": lambda marker: Calls(torch.save, 1, str(marker)),
    "torch.hub": lambda marker: Calls(torch.hub.download_url_to_file, "http://127.0.0.1:9", str(marker)),
    "numpy": lambda marker: Calls(np.save, str(marker), 1),
    "import": lambda marker: Calls(__import__, "os"),
    "getattr": lambda marker: Calls(getattr, io.BytesIO, "read"),
}
PLACES = {
    "alone": lambda harm: harm,
    "as weights": lambda harm: {"model": harm},
    "as a weight": lambda harm: {"model": {"a": torch.zeros(2), "b": harm}},
    "beside the weights": lambda harm: {"model": {"a": torch.zeros(2)}, "optimizer": {"state": [harm]}},
    "in a numpy array": lambda harm: {"model": {"a": np.array([harm, None], dtype=object)}},
    "in settings": lambda harm: {"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(x=harm)},
    "as a key": lambda harm: {"model": {"a": torch.zeros(2)}, "extra": (1, [{"k": harm}])},
}


def in_zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def in_legacy(content: bytes) -> bytes:
    head = [pickle.dumps(x, 2) for x in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})]
    return b"".join([*head, content, pickle.dumps([], 2)])


def in_legacy_head(content: bytes) -> bytes:
    """Legacy file with a pickle in the place of the machine's description, before the weights."""
    head = [pickle.dumps(x, 2) for x in (LEGACY_MAGIC, LEGACY_PROTOCOL)]
    return b"".join([*head, content, pickle.dumps({}, 2), pickle.dumps([], 2)])


def in_legacy_keys(content: bytes) -> bytes:
    head = [pickle.dumps(x, 2) for x in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}, {})]
    return b"".join([*head, content])


def in_tar(content: bytes) -> bytes:
    """File of PyTorch's format of before 2017."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


CONTAINERS = {
    "pkl": lambda content: content,
    "zip": in_zip,
    "legacy": in_legacy,
    "legacy head": in_legacy_head,
    "legacy keys": in_legacy_keys,
    "tar": in_tar,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", range(6))
def test_no_payload_runs_anywhere(tmp_path: Path, protocol: int, container: str) -> None:
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    before = set(os.environ), set(sys.modules)
    for payload in PAYLOADS.values():
        for place in PLACES.values():
            content = pickle.dumps(place(payload(marker)), protocol)
            path.write_bytes(CONTAINERS[container](content))
            with pytest.raises(UserError) as caught:
                read_weights(path)
            assert str(caught.value).startswith(f"{path}: expected")
            assert "\n" not in str(caught.value)
            assert not marker.exists()
    assert before[0] == set(os.environ)


@FORMATS
@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("place", PLACES)
def test_torchs_own_files_with_payloads(tmp_path: Path, place: str, protocol: int, zipped: bool) -> None:
    marker = tmp_path / "marker"
    content = PLACES[place](PAYLOADS["system"](marker))
    message = refusal(saved(tmp_path / "a.pth", content, zipped=zipped, protocol=protocol))
    if place != "in a numpy array":  # arrays of objects are refused for themselves
        assert "system. It may be made to do harm: it was not read." in message
    assert not marker.exists()


@FORMATS
def test_a_whole_module_is_refused(tmp_path: Path, zipped: bool) -> None:
    with contextlib.suppress(UserWarning):
        path = saved(tmp_path / "a.pth", nn.Linear(2, 2), zipped=zipped)
        assert "expected" in refusal(path)


# --- files that are damaged, or lie


def persistent(pid: Any) -> bytes:
    """Pickle that refers to a storage by `pid` and makes a tensor of two elements of it."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return pid if isinstance(obj, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return _rebuild_tensor_v2, (
                Storage(),
                0,
                (2,),
                (1,),
                False,
                collections.OrderedDict(),
            )

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    "pid",
    [
        ("storage", torch.FloatStorage, "../../../etc/passwd", "cpu", 2),
        ("storage", torch.FloatStorage, "0", "cpu", 2**40),
        ("storage", torch.FloatStorage, "0", "cpu", -1),
        ("storage", torch.FloatStorage, "0", "cpu", "2"),
        ("storage", "FloatStorage", "0", "cpu", 2),
        ("module", torch.FloatStorage, "0", "cpu", 2),
        ("storage", torch.FloatStorage),
        "storage",
        7,
    ],
)
@pytest.mark.parametrize("container", [in_zip, in_legacy])
def test_references_to_storages_that_are_none(tmp_path: Path, pid: Any, container: Any) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(container(persistent(pid)))
    assert "got a damaged one" in refusal(path)


@pytest.mark.parametrize(
    "args",
    [
        (0, (3,), (1,)),
        (1, (2,), (1,)),
        (0, (2, 2), (2, 1)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), (1, 1)),
    ],
)
def test_tensors_beyond_their_storage(tmp_path: Path, args: Any) -> None:
    class Lie:
        def __init__(self, storage: Any) -> None:
            self.storage = storage

        def __reduce__(self) -> Any:
            return _rebuild_tensor_v2, (self.storage, *args, False, collections.OrderedDict())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # typed storages are deprecated
        path = saved(tmp_path / "a.pth", {"a": Lie(torch.zeros(2).storage())})
    assert "got a damaged one" in refusal(path)


def test_zip_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "got a zip file of something else" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"")
    assert "got a TorchScript program" in refusal(path)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """torch.save never makes them; a small file could fill the memory."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    assert "compressed" in refusal(path)


@FORMATS
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_off_or_changed_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, zipped: bool, data: st.DataObject
) -> None:
    path = saved(tmp_path_factory.mktemp("cut") / "a.pth", {"model": tensors()}, zipped=zipped)
    content = bytearray(path.read_bytes())
    # Old files name storages by their address: their length changes from one to the next and must not be drawn from.
    places = st.integers(0, 2**20 - 1).map(lambda i: i * len(content) >> 20)
    if data.draw(st.booleans()):
        cut = data.draw(places)
        path.write_bytes(content[:cut])
        with pytest.raises(UserError):
            read_torch(path)
        return
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_torch(path)


def test_legacy_counts_that_lie(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.zeros(3)}, zipped=False)
    content = path.read_bytes()
    for count in (2**62, -1, 4, 0):
        path.write_bytes(content[:-20] + struct.pack("<q", count) + content[-12:])
        assert "damaged" in refusal(path)
