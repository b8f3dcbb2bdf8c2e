"""Pickles of a few bytes that would take any amount of memory or time: refused before torch carries them out."""

import contextlib
import pickle
import pickletools
import struct
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.files import open_weights, read_config
from xlmr_core.checkpoint.opcodes import (
    INTEGER_KEYS_LIMIT,
    OPCODES_LIMIT,
    PICKLE_LIMIT,
    RefusedPickleError,
    check_pickles,
)
from xlmr_core.checkpoint.pickles import HARMLESS

START, STOP = b"\x80\x02", b"."
SECONDS = 5  # to refuse any of these files; the slowest has OPCODES_LIMIT opcodes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def long(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def encoded(inner: bytes, codec: str, times: int) -> bytes:
    """encode(encode(...inner..., codec), codec): with "hex" each is twice as long."""
    return b"c_codecs\nencode\n" * times + inner + (text(codec) + b"\x86R") * times


def colliding(count: int, factor: int = 2**61 - 1) -> bytes:
    """A dict whose integer keys have one hash value."""
    return b"}(" + b"".join(long(number * factor) + b"N" for number in range(count)) + b"u"


def doubled(times: int) -> bytes:
    """A list that holds another twice, and so on: printed, it has 2 ** times entries."""
    lists = b"]q\x00"
    for number in range(times):
        lists += b"](" + (b"h" + bytes([number])) * 2 + b"eq" + bytes([number + 1])
    return lists


def zipped(path: Path, data: bytes) -> Path:
    """A file as torch writes it, with these bytes for the pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(64))):
            archive.writestr(f"archive/{name}", content)
    return path


def old(path: Path, data: bytes) -> Path:
    """A file from before torch 1.6, with these bytes for the pickle of its content."""
    first = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*first, data, pickle.dumps([], protocol=2)]))
    return path


HOOK = b"cargparse\nNamespace\n)\x81}"  # an object, and the beginning of its state
BOMBS = {
    "hex": (encoded(text("a"), "hex", 60), "_codecs.encode"),
    "punycode": (encoded(text("ä" * 200_000), "punycode", 1), "_codecs.encode"),
    "encode through another call": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nN" + text("ä") + text("punycode") + b"\x86NtR",
        "_rebuild_from_type_v2",
    ),
    "integer keys of one hash": (colliding(100_000), "integer key"),
    "negative integer keys": (colliding(100_000, 1 - 2**61), "integer key"),
    "many integer keys": (colliding(INTEGER_KEYS_LIMIT + 1, 1), "integer key"),
    "tuples as keys": (b"}K\x01K\x02\x86Ns", "neither strings nor integers"),
    "floats as keys": (b"}G" + struct.pack(">d", 0.5) + b"Ns", "neither strings nor integers"),
    "keys in an OrderedDict's arguments": (b"ccollections\nOrderedDict\n]\x85R", r"collections\.OrderedDict"),
    "keys in a set": (b"cbuiltins\nset\n]\x85R", r"builtins\.set"),
    "gigabytes of zeros": (b"cbuiltins\nbytearray\n" + long(2**40) + b"\x85R", r"builtins\.bytearray"),
    "gigabytes of a tensor": (b"ctorch\nTensor\n" + long(2**40) + b"\x85\x81", r"torch\.Tensor"),
    "a list that doubles, called": (doubled(40) + b")R", "not a function"),
    "a list that doubles, as a layout": (
        doubled(40) + b"ctorch._utils\n_rebuild_sparse_tensor\nh\x28N\x86R",
        "_rebuild_sparse_tensor with arguments",
    ),
    "a long tuple, as a layout": (
        b"ctorch._utils\n_rebuild_sparse_tensor\n(" + b"K\x01" * 200 + b"tN\x86R",
        "_rebuild_sparse_tensor with arguments",
    ),
    "a state that is a list of keys": (b"ccollections\nOrderedDict\n)R]b", "not a dict"),
    "a storage's key that is a tuple": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n)" + text("cpu") + b"K\x01tQ",
        "not a storage",
    ),
    "a memo in any order": (b"Nr" + struct.pack("<I", 2**31), "out of order"),
    "opcodes without end": (b"N" * (OPCODES_LIMIT + 1), f"more than {OPCODES_LIMIT} opcodes"),
    "an opcode that torch does not write": (b"N0", "Unsupported opcode POP"),
}


@pytest.mark.parametrize("container", [zipped, old])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(bomb: str, container: Any, tmp_path: Path) -> None:
    body, message = BOMBS[bomb]
    path = container(tmp_path / "pytorch_model.bin", START + body + STOP)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as raised:
        open_weights(path)
    assert time.perf_counter() - start < SECONDS
    assert str(path) in str(raised.value)


def test_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    """Also in an old file, whose numbers may follow: there the pickle seems to end early."""
    body = START + text("a" * PICKLE_LIMIT) + STOP
    with pytest.raises(CheckpointError, match=f"its pickle has {len(body)} bytes; at most {PICKLE_LIMIT} are read"):
        open_weights(zipped(tmp_path / "zipped.bin", body))
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_weights(old(tmp_path / "old.bin", body))


def test_a_setting_that_would_take_for_ever_to_print(tmp_path: Path) -> None:
    """fairseq's settings are shown in errors; what is no number or text is not taken from them."""
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    path = tmp_path / "model.pt"
    torch.save({"args": Namespace(encoder_layers=nested, max_positions=8), "model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="no encoder_layers"):
        read_config(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_a_checkpoint_contains_is_read(is_zip: bool, tmp_path: Path) -> None:
    """Bytes, shared tensors, attributes of the mapping, and an optimizer's state with integer keys."""
    shared = torch.arange(6.0)
    state = OrderedDict(a=shared[:3], b=shared[3:].half(), c=torch.nn.Parameter(torch.ones(2)))
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    optimizer = {"state": {number: {"step": 3, "exp_avg": torch.zeros(2)} for number in (0, 140_234_234_234_112)}}
    content = {"args": Namespace(name=b"\xe9"), "model": state, "last_optimizer_state": optimizer, "limit": 2**63 - 1}
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    tensors = open_weights(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_a_corrupt_pickle_is_no_crash() -> None:
    """Every cut and every changed byte is read or gives one of two errors."""
    whole = pickle.dumps({"a": [1, (2, 3)], "b": Namespace(c=b"\xe9")}, protocol=2)
    check_pickles(whole, 1, HARMLESS)
    assert any(opcode.name == "BUILD" for opcode, _, _ in pickletools.genops(whole))
    for place in range(len(whole)):
        for data in (whole[:place], *(whole[:place] + bytes([byte]) + whole[place + 1 :] for byte in range(0, 256, 7))):
            with contextlib.suppress(RefusedPickleError, ValueError):
                check_pickles(data, 1, HARMLESS)
