"""The order of axes in a foreign tensor, in letters, and the tensor brought to our order.

"B N S D" has one axis for each letter. "S B (P N D)" has three: the last holds P parts of N heads of D features side by
side, as a map that gives queries, keys and values at once does; `part` says which of them is meant. H is short for
(N D), or for N D inside parentheses. L is an axis of layers: `first` is the index of layer 0. "_" is an axis of one
entry that means nothing. T stands for B S where the tokens of all texts follow one another without padding.
"""

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.tap_values import shape_of

# Our axes by their finest letters: H is all D of all N side by side; Q and K are both S, query and key.
AXES = {"(B, S, H)": "B S N D", "(B, N, S, S)": "B N Q K", "(B, H)": "B N D", "(*, H)": "B S N D"}
PART, LAYERS, NOTHING = "P", "L", "_"

Groups = list[list[str]]  # the letters of each axis


def our_letters(tap: str) -> list[str]:
    """The letters of a tap's axes, in our order. Raises TraceError for a name that is no tap."""
    shape = shape_of(tap)
    if shape is None:
        raise TraceError(f"{tap} is no tap: `model.taps()` lists them")
    return AXES.get(shape, shape.strip("()").replace(",", "").replace("*", "B S")).split()


def layer_of(tap: str) -> int:
    """The number of the layer that a tap lies in; 0 outside of the layers."""
    return int(tap.split(".")[1]) if tap.startswith("layers.") else 0


def arranged(
    tap: str,
    tensor: Tensor,
    entry: Mapping[str, object],
    config: XLMRobertaConfig,
    tokens: Sequence[int] | None = None,
) -> Tensor:
    """A foreign tensor with our axes, in our order.

    Args:
        tap: What it is.
        tensor: The tensor.
        entry: Of a map of names: `axes`, and `part` and `first` where the axes have P and L.
        config: Of the model.
        tokens: (B, S), which an axis that merges the two is split by.

    Returns:
        The tensor; of a packed one, (T, ...).

    Raises:
        TraceError: The axes do not fit the tensor.
    """
    axes, ours, stored = str(entry["axes"]), our_letters(tap), tuple(tensor.shape)
    problem = f"{tap}: axes {axes!r} do not fit a tensor of shape {stored}"
    groups = _groups(axes, "N" in ours)
    if groups is None:
        raise TraceError(f"{tap}: axes {axes!r} have parentheses without a partner")
    found = [letter for group in groups for letter in group]
    if "T" in found and ours[:2] == ["B", "S"]:
        ours = ["T", *ours[2:]]  # packed: `fitted` puts it in its places
    wanted = [letter for letter in ours if letter != "B" or "B" in found]
    if tensor.dim() != len(groups) or sorted({*found} - {PART, LAYERS}) != sorted(wanted):
        raise TraceError(f"{problem}; ours are {' '.join(ours)}")
    if len(set(found)) != len(found):
        raise TraceError(f"{problem}: a letter is there twice")
    sizes = {"N": config.num_attention_heads, "D": config.head_dim, "F": config.intermediate_size}
    if tokens is not None:
        sizes |= {letter: tokens["SQK".find(letter) >= 0] for letter in "BSQK" if _is_merged(letter, groups)}
    fine = [_sizes_in(group, length, sizes, problem) for group, length in zip(groups, stored, strict=True)]
    split = tensor.reshape([size for group in fine for size in group])
    for letter, key in ((PART, "part"), (LAYERS, "first")):
        if letter in found:
            number = entry.get(key, 0)
            assert isinstance(number, int)
            index = number + (layer_of(tap) if letter == LAYERS else 0)
            axis = found.index(letter)
            if not 0 <= index < split.shape[axis]:
                raise TraceError(f"{problem}: {key} = {number} asks for entry {index} of {split.shape[axis]}")
            split = split.select(axis, index)
            found.remove(letter)
    if "B" in ours and "B" not in found:
        split, found = split[None], ["B", *found]
    ordered = split.permute([found.index(letter) for letter in ours])
    return ordered.flatten(-2) if ours[-2:] == ["N", "D"] else ordered


def _groups(axes: str, heads: bool) -> Groups | None:
    """The letters of each axis; heads: whether H is N D."""
    groups: Groups = []
    for part in re.findall(r"\([^()]*\)|[^\s()]+|[()]", axes):
        if part in ("(", ")"):
            return None
        letters = part.strip("()").split()
        letters = [fine for letter in letters for fine in ("N D" if letter == "H" and heads else letter).split()]
        groups.append([letter for letter in letters if letter != NOTHING])
    return groups


def _is_merged(letter: str, groups: Groups) -> bool:
    return any(letter in group and len(group) > 1 for group in groups)


def _sizes_in(group: list[str], length: int, known: Mapping[str, int], problem: str) -> list[int]:
    """The size of each letter of an axis of `length` entries; one that is not known follows from the others."""
    if len(group) == 1 and known.get(group[0], length) != length:
        raise TraceError(f"{problem}: {group[0]} has {length} entries, the config says {known[group[0]]}")
    product = math.prod(known[letter] for letter in group if letter in known)
    unknown = [letter for letter in group if letter not in known]
    rest = length // product if product else 0
    if len(unknown) > 1 or product * (rest if unknown else 1) != length:
        raise TraceError(f"{problem}: {' '.join(group) or NOTHING} cannot be an axis of {length} entries")
    return [known.get(letter, rest) for letter in group]
