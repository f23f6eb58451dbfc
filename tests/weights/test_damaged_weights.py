"""Weight files that are damaged or made to do harm are read or refused in one line, in little time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskrcnn import zoo
from maskrcnn.config import ModelConfig, to_dict
from maskrcnn.errors import UserError
from maskrcnn.memory import forget_peak, peak_mib
from maskrcnn.weights import unpickle
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.write import write_weights
from tests.weights import mutate_weights


def refusal(path: Path, action: Any = read_weights) -> str:
    with pytest.raises(UserError) as caught:
        action(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message.replace(str(path), "")) <= 300
    return message


def written(folder: Path, content: bytes, name: str = "weights.pkl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", mutate_weights.KINDS)
def test_the_whole_files_are_used(tmp_path: Path, kind: str) -> None:
    mutate_weights.use(written(tmp_path, mutate_weights.originals()[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", mutate_weights.KINDS)
def test_200_damaged_files_are_used_or_refused(tmp_path: Path, kind: str) -> None:
    said = Counter(mutate_weights.outcome(kind, seed, tmp_path) for seed in range(200))
    assert set(said) <= {"read", "refused"}, said
    assert said["refused"] > 50, "the changes do little"


# --- pickles that would use up memory or time


def doubled(times: int = 40) -> bytes:
    """Pickle of a tuple of two tuples of two tuples ..., `times` deep: 2**times parts in some hundred bytes."""
    steps = [b"N\x85q\x00"]
    steps += [b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(times)]
    return b"".join(steps)


DEEP = b")" + b"\x85" * 100_000
HARMFUL = {
    "nested key": b"}" + DEEP + b"K\x01s.",
    "nested key of several": b"}(" + DEEP + b"K\x01u.",
    "nested key of old dictionaries": b"(" + DEEP + b"K\x01d.",
    "nested part of a set": b"\x8f(" + DEEP + b"\x90.",
    "nested part of a frozen set": b"(" + DEEP + b"\x91.",
    "nested part of an old set": b"cbuiltins\nset\n(]" + DEEP + b"atR.",
    "nested key of an ordered dictionary": b"ccollections\nOrderedDict\n(]]" + DEEP + b"aK\x01aatR.",
    "nested value": b"}U\x01a" + DEEP + b"s.",
    "nested dtype": b"cnumpy\ndtype\n" + DEEP + b"\x85R.",
    "doubled key": b"}" + doubled() + b"K\x01s.",
    "doubled value": b"}U\x01a" + doubled() + b"s.",
    "doubled dtype": b"cnumpy\ndtype\n" + doubled() + b"\x85R.",
    "doubled state of a dtype": b"cnumpy\ndtype\nU\x02f4\x85R(K\x03" + doubled() + b"NNNtb.",
    "doubled codec": b"c_codecs\nencode\n(U\x01a" + doubled() + b"tR.",
    "doubled shape": (
        b"}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(K\x01"
        + doubled()
        + b"cnumpy\ndtype\nU\x02f4\x85RI00\nU\x04aaaatbs."
    ),
    "a key of many digits": b"}\x8b\x00\x00\x01\x00" + b"\x7f" * 65_536 + b"K\x01s.",
    "a long name": b"c" + b"a" * 100_000 + b"\nb\n.",
    "a name that clears the screen": b"cos\x1b[2J\nsystem\n.",
    "many objects": b"(" + b"}" * (unpickle.MAX_STEPS + 10) + b"l.",
    "one text encoded often": (
        b"U\x02xxq\x00c_codecs\nencode\nq\x010(X\x00\x00\x10\x00"
        + b"a" * 2**20
        + b"q\x02"
        + b"h\x01h\x02U\x06latin1\x86R" * 1000
        + b"l."
    ),
    "a list copied often": (
        b"cbuiltins\nset\nq\x000](" + b"N" * 10_000 + b"eq\x01(" + b"h\x00h\x01\x85R" * 5000 + b"l."
    ),
    "an array of arrays of one text": b"\x80\x02}(" + b"".join(
        b"X\x05\x00\x00\x00" + b"%05d" % i
        + b"cnumpy._core.numeric\n_frombuffer\n("
        + (b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x01" if i == 0 else b"h\x01")
        + b"cnumpy\ndtype\nU\x02u1\x85RJ\x00\x00\x10\x00\x85U\x01CtR"
        for i in range(200)
    ) + b"u.",
    "a byte array of more than there is": b"\x96" + (2**36).to_bytes(8, "little") + b"abc.",
    "bytes of more than there is": b"\x8e" + (2**36).to_bytes(8, "little") + b"abc.",
    "a dictionary of one dictionary often": (
        b"}(" + b"".join(b"M" + i.to_bytes(2, "little") + b"N" for i in range(1000)) + b"uq\x00"
        + b"0}(" + b"".join(b"M" + i.to_bytes(2, "little") + b"h\x00" for i in range(1000)) + b"uq\x01"
        + b"0}(" + b"".join(b"M" + i.to_bytes(2, "little") + b"h\x01" for i in range(1000)) + b"u."
    ),
    "attributes of a tensor": b"\x80\x02cnumpy\ndtype\nU\x02f4\x85RN}U\x05orderU\x01>s\x86b.",
    "attributes of a name": b"\x80\x02cnumpy\ndtype\nN}U\x08functionNs\x86b.",
}  # fmt: skip
IN_A_PROCESS = """
import resource, sys
from maskrcnn.memory import peak_mib
from maskrcnn.weights.load import read_weights
from maskrcnn.errors import UserError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = peak_mib()
for path in sys.argv[1:]:
    print(path, end=" ", flush=True)
    try:
        read_weights(path)
    except UserError as e:
        assert str(e).isprintable() and len(str(e)) <= len(path) + 300, str(e)
        print("refused", round(peak_mib() - before))
"""


def in_a_process(paths: list[Path]) -> list[tuple[str, str, int]]:
    """Read the files in a process of its own: name, "refused", and MiB of memory; harm would end or hold it."""
    command = [sys.executable, "-c", IN_A_PROCESS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-500:])
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return [(Path(path).name, what, int(memory)) for path, what, memory in lines]


def long_word(path: Path) -> Path:
    """Weight file with a device's name that is joined of two such names, and so on: 2**40 letters."""
    steps = b"\x80\x02ctorch\ndevice\nq\x00U\x08abcdefghq\x01"
    steps += b"".join(
        b"0h\x00h" + bytes([i]) + b"h" + bytes([i]) + b"\x86Rq" + bytes([i + 1]) for i in range(1, 40)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", steps + b".")
    return path


@pytest.mark.slow
def test_small_files_that_mean_much_are_refused(tmp_path: Path) -> None:
    paths = [long_word(tmp_path / "doubled text.pth")]
    for name, content in HARMFUL.items():
        paths.append(written(tmp_path, content if content[:1] == b"\x80" else b"\x80\x02" + content, name))
    cases = Path(
        os.environ.get("MASKRCNN_SHARED", Path(__file__).resolve().parents[3] / "shared"), "cases/weights"
    )
    paths += sorted(cases.glob("*.p*"))  # those of them that are there: others like them are above
    found = in_a_process(paths)
    assert [name for name, *_ in found] == [path.name for path in paths]
    assert {what for _, what, _ in found} == {"refused"}
    # The largest of the files is 2 MB, and of an object that costs a byte there, Python makes one of 64.
    assert max(memory for *_, memory in found) < 400


def test_one_storage_is_not_many(tmp_path: Path) -> None:
    """Views cost nothing until they are copied, which is what loading does."""
    path, one = tmp_path / "a.pth", torch.zeros(1)
    torch.save({"model": {"w": one.expand(2**40)}}, path)
    assert "more data than the file is large" in refusal(path)
    torch.save({"model": {"w": one.expand(1000)}}, path)
    assert "got 1 with names like w." in refusal(path)


def test_arrays_that_names_share_are_one(tmp_path: Path) -> None:
    array = np.zeros(2**20, np.float32)
    path = written(tmp_path, pickle.dumps({f"backbone.body.{i}": array for i in range(100)}, 4))
    state = read_weights(path).state
    assert len({value.data_ptr() for value in state.values()}) == 1


# --- .npz


def npz(folder: Path, header: str, data: bytes, **settings: Any) -> Path:
    path = folder / "a.npz"
    text = header.encode() + b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}", "damaged"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", "4000000000000 bytes in 8"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", "other things than numbers"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "other things than numbers"),
        ("{'descr': '|V2', 'fortran_order': False, 'shape': (4,)}", "other things than numbers"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "other things than numbers"),
        ("{'descr': 'f4,f4', 'fortran_order': False, 'shape': (1,)}", "damaged"),
        ("(" * 100, "damaged"),
    ],
)
def test_sizes_of_an_npz_are_compared_before_arrays_are_made(tmp_path: Path, header: str, told: str) -> None:
    assert told in refusal(npz(tmp_path, header, bytes(8)))


def test_an_npz_is_not_unpacked_to_many_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.zeros(2**25, np.float32))
    assert "more data than a file of its size holds" in refusal(path)


def test_what_numpy_writes_is_read_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "backbone.body.a": rng.standard_normal((2, 3)).astype(">f4"),
        "backbone.body.b": np.asfortranarray(rng.standard_normal((3, 4))),
        "backbone.body.c": np.array(3, np.int64),
        "backbone.body.d": np.zeros((0, 4), np.float16),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        state = read_weights(tmp_path / "a.npz").state
        assert list(state) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(state[name].numpy(), array)


# --- safetensors, and the config in them


def model() -> Any:
    torch.manual_seed(0)
    return zoo.build("mask_rcnn_mobilenet_v2_FPN", 3, tiny=True)


def with_config(folder: Path, change: Any) -> Path:
    """Write a whole file of a tiny model with something else in its config."""
    whole, path = model(), folder / "a.safetensors"
    config = to_dict(whole.config)
    change(config)
    save_file(dict(whole.state_dict()), path, {"config": json.dumps(config)})
    return path


def change(*keys: str, to: Any) -> Any:
    def changed(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = to

    return changed


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (change("num_classes", to=10**8), "class_predictor.weight 4x32, not 100000001x32"),
        (change("num_classes", to=10**30), "its config"),
        (change("box_head", "num_fcs", to=10**7), "is of a larger model than its"),
        (change("mask_head", "num_convs", to=10**7), "is of a larger model than its"),
        (change("rpn", "num_convs", to=10**9), "is of a larger model than its"),
        (change("rpn", "aspect_ratios", to=[1.0] * 10_000), "is of a larger model than its"),
        (change("backbone", "width", to=1000.0), "of another shape"),
        (change("backbone", "width", to=1e300), "is of no model that can be built"),
        (change("box_head", "fc_channels", to=-1), "is of no model that can be built"),
        (change("mask_head", to=None), "unexpected (mask_head."),
        (
            change("mask_head", "pool_size", to=10**8),
            "config: mask_head.pool_size: expected a number from 1 to 256",
        ),
        (change("input", "min_size", to=10**8), "config: input.min_size: expected a number from 1 to"),
        (
            change("rpn", "post_nms_topk_test", to=0),
            "config: rpn.post_nms_topk_test: expected a number from 1",
        ),
        (change("input", "pixel_std", to=[1, 0, 1]), "config: input.pixel_std.1: expected a number from"),
        (change("x" * 10_000, to=1), "no such setting"),
    ],
)
def test_a_config_is_compared_with_its_weights(tmp_path: Path, changed: Any, told: str) -> None:
    path = with_config(tmp_path, changed)
    forget_peak()
    before = peak_mib() or 0
    assert told in refusal(path, zoo.restore)
    assert (peak_mib() or 0) - before < 100


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 10_000, "{", "[1]", '{"name": "x", "a\\u001b[2J\\n": 1}']
)
def test_a_config_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    save_file(dict(model().state_dict()), tmp_path / "a.safetensors", {"config": text})
    refusal(tmp_path / "a.safetensors")


def test_names_of_a_file_do_not_fill_the_message(tmp_path: Path) -> None:
    whole, path = model(), tmp_path / "a.safetensors"
    state = dict(whole.state_dict())
    state |= {f"{'x' * 1000}\x1b[2J\n{i}": torch.zeros(1) for i in range(5)}
    write_weights(path, state, whole.config)
    assert "5 unexpected (xxx" in refusal(path, zoo.restore)
    save_file({k: v for k, v in state.items() if k[0] == "x"}, path)
    assert "with names like xxx" in refusal(path)


def test_names_in_a_config_do_not_fill_the_message(tmp_path: Path) -> None:
    path = with_config(tmp_path, change("name", to="x\x1b[2J\n" * 1000))
    assert "got those of x" in refusal(path, lambda path: zoo.restore("mask_rcnn_R_50_FPN_3x", path))


def test_a_pointer_to_the_last_checkpoint_that_is_none(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\0\0", b"x" * 10_000, b"../" * 3000, b""):
        (tmp_path / "last").write_bytes(content)
        assert "got a folder without" in refusal(tmp_path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    whole, path = model(), tmp_path / "a.safetensors"
    state = {k: v.view(torch.int32) if v.is_floating_point() else v for k, v in whole.state_dict().items()}
    write_weights(path, state, whole.config)
    assert "of another type (" in refusal(path, zoo.restore)


def test_weights_of_a_known_model_with_shapes_that_are_not(tmp_path: Path) -> None:
    names = {"Transformer/encoderblock_0/LayerNorm_0/scale": np.zeros(3, np.float32)}
    np.savez(tmp_path / "a.npz", **names)  # pyright: ignore[reportArgumentType]
    assert "expected weights of a known model, got damaged ones" in refusal(tmp_path / "a.npz")
    model = zoo.build(mutate_weights.BACKBONE, 3, tiny=True)
    state = {k: v.numpy() for k, v in model.backbone.get_submodule("body").state_dict().items()}
    path = written(tmp_path, pickle.dumps({**state, "pos_embed": np.zeros((0,), np.float32)}))
    with pytest.raises(UserError, match=r"of another shape|got damaged ones"):
        load_weights(model, path)


def test_configs_of_whole_files_are_accepted(tmp_path: Path) -> None:
    path = with_config(tmp_path, lambda config: None)
    assert isinstance(zoo.restore(path).config, ModelConfig)


def test_an_encrypted_or_foreign_zip_is_told(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    content = bytearray(out.getvalue())
    for at in (content.find(b"PK\x03\x04") + 6, content.find(b"PK\x01\x02") + 8):
        content[at] |= 1  # the flag of an encrypted entry
    assert "got a damaged one" in refusal(written(tmp_path, bytes(content), "a.pth"))
