"""Writes weights files one tensor at a time, so that a model larger than memory can be cast or fused.

The same tensors give the same bytes. Little-endian machines only, as both formats are little-endian.

torch.save does neither. Converting an 880 MB file with fused projections, it needs 240 MB of memory beside the mapped
file, or 516 MB with a cast to float16; `write_torch` needs 25 MB and 47 MB. torch.save under
torch.serialization.skip_data, with the numbers written in afterwards, needs 24 MB, but its zip has the checksums of
zeros, so that unzip and zipfile reject it. And the bytes of torch.save depend on the name of the file.
"""

import json
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from xlmr_core.checkpoint.mapping import Shape
from xlmr_core.errors import CheckpointError
from xlmr_core.formatting import dtype_name
from xlmr_core.progress import Tick, no_tick

PART = 2**22  # elements cast and written in one go
ALIGNMENT = 64  # bytes; where the numbers of a tensor begin in a zip, as torch has it
LOCAL_HEADER = 30  # bytes of a member's header in a zip before its name (APPNOTE.TXT, section 4.3.7)
ZIP64_EXTRA = 20  # bytes that zipfile adds to the header of a large member
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the time of every file in a zip: the same weights must give the same bytes
# The formats' names, in the order in which safetensors sorts dtypes.
SAFETENSORS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
STORAGES: dict[torch.dtype, type] = {
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
}


@dataclass(frozen=True)
class Entry:
    """One tensor to write. It is read when its turn comes."""

    key: str
    dtype: torch.dtype
    shape: Shape
    read: Callable[[], Tensor]
    origin: Hashable = None  # entries of one origin are one tensor; None: of its own

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def entries_of(tensors: Mapping[str, Tensor]) -> list[Entry]:
    """The tensors as they are."""
    return [
        Entry(key, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor) for key, tensor in tensors.items()
    ]


def write_safetensors(tensors: Mapping[str, Tensor] | Sequence[Entry], path: Path, tick: Tick = no_tick) -> None:
    """Writes the bytes that safetensors' own save_file would write, one tensor at a time in memory."""
    with path.open("wb") as file:
        write_safetensors_to(file, tensors, {"format": "pt"}, tick)


def write_safetensors_to(
    file: BinaryIO, tensors: Mapping[str, Tensor] | Sequence[Entry], metadata: Mapping[str, str], tick: Tick = no_tick
) -> None:
    """The same to an open file, with this metadata in the header."""
    entries = entries_of(tensors) if isinstance(tensors, Mapping) else tensors
    order = list(SAFETENSORS)
    entries = sorted(entries, key=lambda entry: (-order.index(entry.dtype), entry.key))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for entry in entries:
        header[entry.key] = {
            "dtype": SAFETENSORS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for entry in entries:
        write_tensor(entry, file, tick)


def write_tensor(entry: Entry, file: IO[bytes], tick: Tick = no_tick) -> None:
    """The tensor's numbers, cast to the entry's dtype.

    Rounding is what a narrower dtype is asked for. A finite number that would become infinite raises CheckpointError.
    """
    tensor = entry.read().detach()
    if tuple(tensor.shape) != entry.shape:
        raise CheckpointError(f"{entry.key} has shape {tuple(tensor.shape)}, not {entry.shape}")
    for part in tensor.contiguous().flatten().split(PART):
        cast = cast_to(entry.dtype, part, entry.key)
        if cast.nbytes:
            file.write(cast.view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
            tick(cast.nbytes)


def cast_to(dtype: torch.dtype, tensor: Tensor, key: str) -> Tensor:
    """The tensor on the CPU in another dtype.

    Raises:
        CheckpointError: a finite number would become infinite. The message names `key`.
    """
    cast = tensor.to("cpu", dtype)
    if cast.dtype != tensor.dtype and cast.isinf().any() and not torch.equal(cast.isinf(), tensor.cpu().isinf()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise CheckpointError(
            f"{key} holds {largest:g}, which is infinite in {dtype_name(dtype)} (its largest number is "
            f"{torch.finfo(dtype).max:g}): writing it would lose it. Keep {dtype_name(tensor.dtype)}, or use float32"
        )
    return cast


# ---- PyTorch's format -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of a tensor are in the zip: under data/`key`."""

    key: str
    dtype: torch.dtype
    numel: int


class _Stub:
    """Pickles as a tensor does, and has no numbers."""

    def __init__(self, storage: _Storage, shape: Shape) -> None:
        self.storage = storage
        self.shape = shape

    def __reduce__(self) -> Any:
        strides = tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, hooks)  # pyright: ignore


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        return "storage", STORAGES[obj.dtype], obj.key, "cpu", obj.numel


def write_torch(
    entries: Sequence[Entry], path: Path, settings: Mapping[str, Any] | None = None, tick: Tick = no_tick
) -> None:
    """Writes what torch.load reads: a mapping of names to tensors, or with `settings` what fairseq keeps it in."""
    state: dict[str, Any] = OrderedDict()
    storages = written_once(entries)
    numbers = {origin: str(number) for number, origin in enumerate(storages)}
    for entry in entries:
        storage = _Storage(numbers[entry.origin or entry.key], entry.dtype, prod(entry.shape))
        state[entry.key] = _Stub(storage, entry.shape)
    content: Any = state if settings is None else _fairseq_file(state, settings)
    with path.open("wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, size: int) -> IO[bytes]:
            return _member(archive, raw.tell(), name, size)

        with member("data.pkl", 0) as file:
            _Pickler(file, protocol=2).dump(content)
        for name, text in (("byteorder", b"little"), ("version", b"3\n")):
            with member(name, len(text)) as file:
                file.write(text)
        for origin, entry in storages.items():
            with member(f"data/{numbers[origin]}", entry.nbytes) as file:
                write_tensor(entry, file, tick)


def written_once(entries: Sequence[Entry]) -> dict[Hashable, Entry]:
    """By origin, the first of the entries that are one tensor: the numbers that `write_torch` writes."""
    storages: dict[Hashable, Entry] = {}
    for entry in entries:
        storages.setdefault(entry.origin or entry.key, entry)
    return storages


def _fairseq_file(state: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What fairseq's checkpoint_utils._upgrade_state_dict requires. The values are those of no training."""
    run = {"criterion_name": "masked_lm", "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}
    return {
        "args": Namespace(**settings),
        "model": state,
        "optimizer_history": [run],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _member(archive: zipfile.ZipFile, start: int, name: str, size: int) -> IO[bytes]:
    """A member to write to, at the byte `start`. A filler in its header aligns its content, as torch requires."""
    info = zipfile.ZipInfo(f"archive/{name}", LONG_AGO)
    info.file_size = size
    big = size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides
    content = start + LOCAL_HEADER + len(info.filename) + ZIP64_EXTRA * big + 4  # 4: the head of the filler itself
    filler = -content % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", filler) + b"Z" * filler
    return archive.open(info, "w", force_zip64=big)
