"""What runs of exported models share: their limits, and the inputs of a trace as they take them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core.model import position_ids_from
from xlmr_core.parity.formats import TraceError, shortened

MOST_NODES = 100_000  # of a graph
TIME_LIMIT = 900.0  # seconds for a run: a loop in a file may have no end
DTYPES = {
    "int64": torch.int64, "i64": torch.int64, "int32": torch.int32, "i32": torch.int32, "bool": torch.bool,
    "boolean": torch.bool, "float": torch.float32, "f32": torch.float32, "float16": torch.float16, "f16": torch.float16,
}  # fmt: skip


def fed(
    path: Path, asked: Sequence[tuple[str, str, Sequence[Any]]], inputs: Mapping[str, Tensor], pad: int
) -> dict[str, Tensor]:
    """What a model is to be run on.

    Args:
        path: The model, for the message.
        asked: Name, type and shape of each of its inputs; a size that is not a number may be any.
        inputs: input_ids and attention_mask of the trace, (B, S).
        pad: The id of padding, which positions are counted from.

    Returns:
        A tensor for each input: ids, mask, token types of 0 and positions, by what the names say.

    Raises:
        TraceError: An input that is none of these, or of a fixed size that is not the trace's.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    kinds = {"mask": mask, "type": torch.zeros_like(ids), "segment": torch.zeros_like(ids)}
    kinds["position"] = position_ids_from(ids, pad)
    given: dict[str, Tensor] = {}
    for name, dtype, shape in asked:
        kind = next((kind for kind in kinds if kind in name.lower()), None)
        tensor = kinds[kind] if kind else ids
        if dtype not in DTYPES or (kind is None and "float" in dtype):
            raise TraceError(
                f"{path} takes {shortened(name)} of type {dtype}; expected ids, a mask, types or positions"
            )
        fixed = [size for size in shape if isinstance(size, int) and size > 0]
        fits = len(shape) == 2 and all(
            not isinstance(size, int) or size in (own, -1) for size, own in zip(shape, ids.shape, strict=True)
        )
        if not fits:
            advice = "export it with axes of any size, or record a trace of that size" if fixed else "expected two axes"
            ours = tuple(ids.shape)
            raise TraceError(
                f"{path} takes {shortened(name)} of shape {tuple(shape)}, and the trace has {ours}: {advice}"
            )
        given[name] = tensor.to(DTYPES[dtype])
    if sum(not any(kind in name.lower() for kind in kinds) for name, _, _ in asked) != 1:
        names = ", ".join(shortened(name) for name, _, _ in asked) or "nothing"
        raise TraceError(f"{path} takes {names}; expected one input of ids, and a mask, types or positions beside it")
    return given


def reason(error: Exception) -> str:
    """What another library says of a problem, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
