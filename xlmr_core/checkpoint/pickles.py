"""PyTorch's own files, which are pickles: read with torch's restricted unpickler, so that nothing in them is run.

A published fairseq file also holds `args` or `cfg`, objects of classes that are not installed here. A class that is
known to be harmless is replaced by a stand-in that does nothing but keep what it was given. Any other name is refused.
"""

import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals, skip_data
from typing_extensions import Self

from xlmr_core.checkpoint.archive import check_zip
from xlmr_core.checkpoint.opcodes import PICKLE_LIMIT, RefusedPickleError, check_pickles
from xlmr_core.errors import CheckpointError

ZIP = b"PK\x03\x04"
PICKLES = 5  # in a file that is not a zip: a magic number, a version, the machine, the content, the storages' keys
REFUSED = (
    "{path} is refused: it is a pickle that asks for more than tensors, and such a file can run any code or take any "
    "amount of memory. Nothing was run. {cause}"
)

# What fairseq's `args` (a Namespace), `cfg` (omegaconf's containers) and `extra_state` (its meters) are made of.
HARMLESS = (
    "argparse.Namespace",
    "collections.defaultdict",
    "typing.Any",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "fairseq.meters.AverageMeter",
    "fairseq.meters.StopwatchMeter",
    "fairseq.meters.TimeMeter",
    "fairseq.logging.meters.AverageMeter",
    "fairseq.logging.meters.StopwatchMeter",
    "fairseq.logging.meters.TimeMeter",
)
PLAIN_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
SCALARS = (str, int, float, bool)  # what a setting of the model can be; anything else could take for ever to print
_allow_list = threading.Lock()  # torch has one for the whole process


class Inert:
    """Stands in for a class of HARMLESS: takes any arguments, does nothing, and keeps the state it is given."""

    def __new__(cls, *arguments: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True)
class Pickled:
    """What a file of PyTorch's holds: tensors by name, and fairseq's settings of the model, if it has any."""

    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] | None


def read_pickle(path: Path, *, headers_only: bool = False) -> Pickled:
    """The tensors of the file and its settings. A zip is mapped into memory; an older file is read as a whole.

    headers_only: names, shapes and dtypes are right, the numbers are not; nothing is read but the pickle itself.
    Raises CheckpointError for what is refused, and whatever torch raises for a corrupt file.
    """
    content = load_restricted(path, headers_only=headers_only)
    is_fairseq = isinstance(content, dict) and isinstance(content.get("model"), dict) and content["model"]
    tensors: Any = content["model"] if is_fairseq else content
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise CheckpointError(f"{path} is not a plain mapping of names to tensors")
    check_tensors(path, tensors)
    return Pickled(dict(tensors), _settings(content) if is_fairseq else None)


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for a tensor, of whatever key, that is not plain numbers in memory, all in the file."""
    for key, tensor in tensors.items():
        if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta:
            kind = "nested" if tensor.is_nested else f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
        elif tensor.dtype not in PLAIN_DTYPES or type(tensor) not in (Tensor, torch.nn.Parameter):
            kind = f"{type(tensor).__name__} of {tensor.dtype}"
        elif tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is refused: {key!r} claims more numbers than the file has for it")
        else:
            continue
        raise CheckpointError(
            f"{path} is refused: {key!r} does not hold plain numbers ({kind}). Save it as a dense tensor"
        )


def load_restricted(path: Path, *, headers_only: bool = False) -> Any:
    """What torch.load reads from the file: tensors, numbers, strings, and stand-ins for the classes of HARMLESS.

    Raises:
        CheckpointError: the file asks for more, or would cost more than its size.
        Exception: whatever torch raises for a corrupt file.
    """
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    zipped = start == ZIP  # since torch 1.6. Only such a file can be mapped
    if zipped:
        check_zip(path)
    _check_cost(path, zipped)
    try:
        with _restricted(), skip_data() if headers_only and not zipped else nullcontext():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        cause = _cause(error)
        if "unsupported" in cause.lower():
            raise CheckpointError(REFUSED.format(path=path, cause=cause)) from error
        raise UnpicklingError(cause) from error


def _check_cost(path: Path, zipped: bool) -> None:
    """Raises CheckpointError for a pickle that is not cheap to read: see opcodes.py."""
    if zipped:
        data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # pyright: ignore  # what torch.load will read
        count = 1
    else:
        with path.open("rb") as file:
            data, count = file.read(PICKLE_LIMIT), PICKLES
    if zipped and len(data) > PICKLE_LIMIT:
        raise CheckpointError(f"{path} is refused: its pickle has {len(data)} bytes; at most {PICKLE_LIMIT} are read")
    try:
        check_pickles(data, count, HARMLESS)
    except RefusedPickleError as error:
        raise CheckpointError(REFUSED.format(path=path, cause=error)) from error


@contextmanager
def _restricted() -> Generator[None, None, None]:
    """torch's unpickler, with the stand-in for each of HARMLESS, and without its warning about a file to be refused."""
    with _allow_list, safe_globals([(Inert, name) for name in HARMLESS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        yield


def _cause(error: UnpicklingError) -> str:
    """What torch's unpickler says was wrong, without its advice to read the file by other means all the same."""
    last = str(error).partition("Check the documentation")[0].strip().rpartition("\n")[2]
    return last.rpartition("WeightsUnpickler error: ")[2].partition(". Please use")[0].strip()


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's settings of the model: `args` until 2020, `cfg.model` since. Empty if there are none to be read."""
    found = _entries(content.get("args")) or _entries(_entries(content.get("cfg")).get("model"))
    settings = {name: _entries(value).get("_val", value) for name, value in found.items()}
    return {name: value for name, value in settings.items() if value is None or isinstance(value, SCALARS)}


def _entries(value: Any) -> dict[str, Any]:
    """What a Namespace, one of omegaconf's containers or a dict holds; nothing for anything else."""
    if isinstance(value, Inert):
        value = value.state
        if isinstance(value, dict) and "_content" in value:
            value = value["_content"]
    return {name: entry for name, entry in value.items() if isinstance(name, str)} if isinstance(value, dict) else {}
