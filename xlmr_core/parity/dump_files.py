"""The tensors in the file of a dump, .npz or .safetensors: their names, their shapes, and those that are asked for."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from xlmr_core.parity.formats import MOST_NAMES, TraceError, open_safetensors, shortened

Shape = tuple[int, ...]
SUFFIXES = (".npz", ".safetensors")
# A tensor of a dump may have this many times the numbers of the trace's (it may be padded), and some more.
MOST_TIMES, ALWAYS = 8, 65_536
READABLE = ("F64", "F32", "BF16", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def names_in(path: Path) -> list[str]:
    """The names in an .npz or .safetensors file, in its order. Raises TraceError if it is neither, or damaged."""
    if path.suffix == ".npz":
        return list(dict.fromkeys(_members(path)))
    with open_safetensors(path) as file:
        return list(file.keys())


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # zip has errors of its own, and a corrupt file finds them all
        raise TraceError(f"{path} is not an .npz file, or it is damaged ({shortened(str(error))})") from error


def shapes_in(path: Path) -> dict[str, Shape]:
    """The name and the shape of every tensor of an .npz or .safetensors file.

    Raises:
        TraceError: The file is neither, it is damaged, or it has more than MOST_NAMES tensors.
    """
    if path.suffix == ".npz":
        shapes = _shapes_in_npz(path)
    else:
        with open_safetensors(path) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if len(shapes) > MOST_NAMES:
        raise TraceError(f"{path} has {len(shapes):,} tensors; expected at most {MOST_NAMES:,}")
    return shapes


def _shapes_in_npz(path: Path) -> dict[str, Shape]:
    from numpy.lib import format as npy

    shapes: dict[str, Shape] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist()[: MOST_NAMES + 1]:
                with archive.open(member) as file:
                    is_first = npy.read_magic(file) == (1, 0)
                    header = npy.read_array_header_1_0(file) if is_first else npy.read_array_header_2_0(file)
                shapes[member.removesuffix(".npy")] = header[0]
    except Exception as error:  # zip and numpy have errors of their own, and a corrupt file finds them all
        cause = shortened(str(error))
        raise TraceError(f"{path} is not an .npz file of plain arrays, or it is damaged ({cause})") from error
    return shapes


def tensors_in(path: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an .npz or .safetensors file, one after the other.

    Args:
        path: The file.
        wanted: The names to read, and how many numbers each is expected to have.

    Returns:
        Each name of `wanted` that the file has, with its tensor.

    Raises:
        TraceError: The file is neither, it is damaged, or a tensor is far too large (see MOST_TIMES) or does not hold
            numbers.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path, wanted)
    if path.suffix == ".npz":
        return _read_npz(path, wanted)
    raise TraceError(f"{path} is neither .npz nor .safetensors: these are the dumps that can be read")


def _check_header(path: Path, name: str, shape: tuple[int, ...], dtype: str, expected: int) -> None:
    """Raises TraceError for a tensor that does not hold numbers, or too many; expected: how many the trace has."""
    if dtype not in READABLE:
        raise TraceError(f"{path}: {shortened(name)} holds {dtype}; expected one of {', '.join(READABLE)}")
    most = MOST_TIMES * expected + ALWAYS
    if math.prod(shape) > most:
        raise TraceError(
            f"{path}: {shortened(name)} has shape {shortened(shape)}; expected at most {most:,} numbers, which is "
            f"{MOST_TIMES} times what the trace has there, and {ALWAYS:,}"
        )


def _read_safetensors(path: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    with open_safetensors(path) as file:
        for name in filter(wanted.__contains__, list(file.keys())):
            header = file.get_slice(name)
            _check_header(path, name, tuple(header.get_shape()), header.get_dtype(), wanted[name])
            yield name, file.get_tensor(name)


def _read_npz(path: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The same of an .npz. Of an array that is not wanted, not even the header is read."""
    import numpy as np  # here: only an .npz needs it

    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise TraceError(f"{path} has two arrays of one name")
            for name in filter(wanted.__contains__, members):
                # Only deflate gives no more bytes than are asked for. numpy uses nothing else.
                if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise TraceError(f"{path}: {shortened(name)} is compressed in a way that numpy does not use")
                with archive.open(members[name]) as file:
                    shape, is_fortran, dtype = _npy_header(file)
                    _check_header(path, name, shape, _dtype_name(dtype), wanted[name])
                    content = file.read(math.prod(shape) * dtype.itemsize)
                    if file.read(1):
                        raise TraceError(f"{path}: {shortened(name)} has more bytes than its header says")
                array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
                yield name, _as_tensor(array)
    except TraceError:
        raise
    except Exception as error:  # zip, zlib and numpy have errors of their own, and a corrupt file finds them all
        cause = shortened(str(error))
        raise TraceError(f"{path} is not an .npz file of plain arrays, or it is damaged ({cause})") from error


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype of an array. Raises ValueError for what `np.save` does not write."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of its header")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    return shape, is_fortran, dtype


def _dtype_name(dtype: Any) -> str:
    """The dtype as safetensors calls it, for those that both have; else as numpy calls it."""
    if dtype.kind == "b":
        return "BOOL"
    kind = {"f": "F", "i": "I", "u": "U"}.get(dtype.kind, "")
    return f"{kind}{8 * dtype.itemsize}" if kind else str(dtype)


def _as_tensor(array: Any) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="))  # torch has no foreign byte order; this copies, too
    return torch.from_numpy(native)
