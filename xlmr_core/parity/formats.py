"""What a file must be before anything else reads it: types, ranges, sizes and shapes of traces, dumps and floors.

The JSON of a file is checked against dataclasses by pydantic. Keys that the dataclass lacks are refused: a newer format
has another version, and a misspelt key must not be ignored. What the types cannot express is checked beside them.
"""

import re
import reprlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from xlmr_core.checkpoint.files import HEADER_LIMIT
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.formatting import dtype_name
from xlmr_core.json_files import read_text
from xlmr_core.parity.gradients import GRADIENT, LOSSES
from xlmr_core.parity.tap_values import FLOATS, TOP_IDS, shape_of

STRICT = ConfigDict(strict=True, extra="forbid")  # no text for a number, no unknown key
INPUTS = ("input_ids", "attention_mask")
JSON_LIMIT = 16 * 2**20  # bytes of a metadata text, a map or a table of floors; those of XXL have less than 10 MB
MOST_NAMES = 10_000  # entries of one list or table; a trace of XXL with gradients has 1,500 taps
MOST_LAYERS = 1_000
MOST_STEPS = 1_000  # of training: each is run again for a comparison
MOST_FACTOR = 10.0  # right runs were seen up to 2.5 floors from each other
LAYER = re.compile("0|[1-9][0-9]{0,3}")
NEAR, NEAR_LENGTH = 1_000, 100  # names that a message looks for a near one among, and their length

Name = Annotated[str, Field(min_length=1, max_length=300)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FloatName = Annotated[str, Field(pattern=f"^({'|'.join(map(dtype_name, FLOATS))})$")]
Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1, le=MOST_FACTOR)]

Content = TypeVar("Content")
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 80, 80


class TraceError(ValueError):
    """A trace, dump, name map or table of floors that cannot be read, or that does not belong to the rest."""


def shortened(value: object) -> str:
    """A value as an error message shows it: with an ellipsis where it is long."""
    return _short.repr(value)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """The names most like `name`. Long names and long lists are cut: the comparison takes quadratic time."""
    candidates = [other for other in list(known)[:NEAR] if len(other) <= NEAR_LENGTH]
    return get_close_matches(name[:NEAR_LENGTH], candidates, n=3)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_limited(path: Path) -> str:
    """The text of a file. Raises TraceError, naming the file, if it is no regular file or above JSON_LIMIT."""
    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    try:
        return read_text(path, JSON_LIMIT)
    except (ValueError, OSError) as error:
        raise TraceError(str(error)) from error


def parsed(path: Path, kind: str, adapter: TypeAdapter[Content], text: str) -> Content:
    """The JSON `text` of the file `path` as the type of `adapter`.

    Args:
        path: The file, for the message.
        kind: What the file should be, for the message: "a trace".
        adapter: The type, with its limits.
        text: JSON.

    Returns:
        The content, of the right types and within the limits.

    Raises:
        TraceError: The text is not JSON, is nested too deep, or a field is not what it must be.
    """
    if len(text) > JSON_LIMIT:
        raise TraceError(f"{path} is not {kind}: its JSON has more than {JSON_LIMIT:,} characters")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise TraceError(f"{path} is not {kind}: {reason_of(error)}") from error


def reason_of(error: ValidationError) -> str:
    """The first thing that is wrong: the field, what is expected, what was found."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = shortened(".".join(map(str, first["loc"])))[1:-1]
    found = "" if first["type"].startswith("missing") else f", found {shortened(first['input'])}"
    return (f"{field}: " if field else "") + first["msg"][:300] + found


# ---- tensors ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_safetensors(path: Path) -> Generator[Any, None, None]:
    """The file, whose tensors are read when asked for.

    Raises TraceError, naming the file, if it is not a safetensors file, and if what is read turns out damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > HEADER_LIMIT:
            raise TraceError(f"{path} is not a safetensors file: its header claims {length:,} bytes")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise TraceError(f"{path} is not a safetensors file, or it is damaged ({error})") from error


def tap_shape(tap: str, config: XLMRobertaConfig, inputs: tuple[int, ...], top: int) -> tuple[int, ...] | None:
    """The shape of a tap.

    Args:
        tap: Its name.
        config: Of the model.
        inputs: (B, S).
        top: K, how many logits of a token are kept.

    Returns:
        The shape, or None if the model has no such tap.
    """
    letters = shape_of(tap)
    layer = tap.split(".")[1] if tap.startswith("layers.") else "0"
    if letters is None or not LAYER.fullmatch(layer) or int(layer) >= max(config.num_hidden_layers, 1):
        return None
    sizes = {
        "B": inputs[:1],
        "S": inputs[1:],
        "*": inputs,
        "H": (config.hidden_size,),
        "N": (config.num_attention_heads,),
        "F": (config.intermediate_size,),
        "V": (config.vocab_size,),
        "C": (config.num_labels,),
        "K": (top,),
    }
    return tuple(size for letter in letters.strip("()").split(", ") for size in sizes.get(letter) or (int(letter),))


def checked_inputs(path: Path, inputs: Mapping[str, Tensor], config: XLMRobertaConfig) -> dict[str, Tensor]:
    """Ids and masks as int64.

    Args:
        path: The file that they are from, for the message.
        inputs: Those of INPUTS that it has.
        config: Of the model.

    Returns:
        The same numbers, in the same shapes.

    Raises:
        TraceError: An id beyond the vocabulary, a mask that is not of 0 and 1, or one that hides every token.
    """
    checked: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            raise TraceError(f"{path}: {name} holds {dtype_name(tensor.dtype)}; expected whole numbers")
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise TraceError(f"{path}: {name} has shape {tuple(tensor.shape)}; expected (batch, sequence)")
        numbers = tensor.long()
        low, high = int(numbers.min()), int(numbers.max())
        most = config.vocab_size - 1 if name == "input_ids" else 1
        if low < 0 or high > most:
            raise TraceError(f"{path}: {name} holds numbers from {low} to {high}; expected 0 to {most}")
        if name == "attention_mask" and high == 0:
            raise TraceError(f"{path}: attention_mask is 0 everywhere, so no value would be compared; expected a 1")
        checked[name] = numbers
    return checked


def check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], config: XLMRobertaConfig, steps: int) -> None:
    """Raises TraceError if the tensors of a trace do not have the shapes that its config and ids give them.

    Args:
        path: The trace.
        shapes: Of every tensor, the inputs among them.
        config: Of the checkpoint.
        steps: Of training, whose losses were recorded.

    Raises:
        TraceError: A tensor of another shape, or one that no model of this config has.
    """
    ids, top = shapes["input_ids"], shapes.get(TOP_IDS) or (1,)
    if len(ids) != 2:
        raise TraceError(f"{path}: input_ids has shape {ids}; expected (batch, sequence)")
    fixed = {"attention_mask": ids, TOP_IDS: (*ids, top[-1]), LOSSES: (steps + 1, *ids)}
    for name, shape in shapes.items():
        if 0 in shape:
            raise TraceError(f"{path}: {shortened(name)} has shape {shape}; expected at least one value")
        if name.startswith(GRADIENT):
            if len(shape) not in (1, 2):
                raise TraceError(f"{path}: {shortened(name)} has shape {shape}; a parameter has one axis or two")
        elif name != "input_ids":
            expected = fixed.get(name) or tap_shape(name, config, ids, top[-1])
            if expected is None:
                raise TraceError(f"{path}: {shortened(name)} is not a tap of its model")
            if shape != expected:
                raise TraceError(f"{path}: {shortened(name)} has shape {shape}; expected {expected}")
