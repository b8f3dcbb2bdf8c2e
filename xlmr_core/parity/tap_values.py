"""What a dump has at a tap: the shape, the place in reading order, and the values that count.

A dump maps the name of a tap to its tensor, batch first, as `model.capture` fills it. Only real tokens count: padding
holds junk that differs between implementations that are both right.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from xlmr_core.heads import model_classes
from xlmr_core.spec import Tap
from xlmr_core.taps import EMBEDDINGS, FINAL_NORM, POOLER, POST_NORM_LAYER

Dump = Mapping[str, Tensor]
# exp of it is 0 in float32: a score that far below the row's largest gets no attention, however the mask is written.
UNDERFLOW = 104.0
# No product of queries and keys is so low: a score below it is a mask's, written as -inf, finfo.min, -1e9 or -1e4.
HIDDEN = -5e3
# The logits of 250,002 tokens are kept as their largest, and as one number that depends on all.
LOGITS, TOP_IDS, TOP, LOGSUMEXP = (f"lm_head.logits{part}" for part in ("", ".top_ids", ".top_values", ".logsumexp"))
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def elements(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """The values that count at a tap, float64 on the CPU: those of real tokens, tokens first.

    Per token (B, S, ...) -> (T, ...); maps (B, N, S, S) -> (T, N, S), by query; per sequence (B, ...) -> (rows whose
    first token is real, ...); anything else, such as a gradient, whole. A score of a key that must not be seen reads as
    how far it rises above getting no attention, so that -inf, finfo.min and -1e4 are all 0.
    """
    tensor, real = tensor.detach().cpu().double(), real.cpu()
    letters = shape_of(tap)
    if letters == "(B, N, S, S)":
        by_query = tensor.transpose(1, 2)[real]
        return _over_nothing(by_query, real) if tap.endswith("scores") else by_query
    if is_per_sequence(letters):
        return tensor[real[:, 0]]
    return tensor[real] if letters else tensor


def one_mask(tap: str, tensor: Tensor) -> Tensor:
    """Scores with the same number for every masked key, whatever number was written there."""
    return tensor.clamp(min=HIDDEN) if tap.endswith("attention.scores") else tensor


def _over_nothing(scores: Tensor, real: Tensor) -> Tensor:  # (T, N, S), (B, S) -> (T, N, S)
    hidden = ~real[real.nonzero()[:, 0]][:, None, :]  # (T, 1, S): the keys that each token must not see
    top = scores.masked_fill(hidden, -math.inf).amax(dim=-1, keepdim=True)
    return torch.where(hidden, (scores - top + UNDERFLOW).relu(), scores)


def unpacked(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """A tap of a packed batch in the shape that it has for the padded one, with zeros at padding.

    real: (B, S), which tokens of the padded batch the packed one has. Of scores and probs, whose rows have the real
    tokens of a sequence at their beginning, what belongs to padding is as the model has it: no attention.
    """
    letters = shape_of(tap)
    if letters == "(B, N, S, S)":
        nothing = torch.finfo(tensor.dtype).min if tap.endswith("scores") else 0.0
        rows = tensor.new_full((len(real), tensor.shape[1], *real.shape[1:] * 2), nothing)
        for row, its, own in zip(rows, tensor, real, strict=True):
            places = own.nonzero()[:, 0]
            row[:, places[:, None], places] = its[:, : len(places), : len(places)]
        return rows
    if letters is None or is_per_sequence(letters):
        return tensor
    rows = tensor.new_zeros(*real.shape, *tensor.shape[1:])
    rows[real] = tensor
    return rows


# ---- names ----------------------------------------------------------------------------------------------------------

LAYER_TAPS = {tap.name: tap.shape for tap in POST_NORM_LAYER}
OTHER_SHAPES = {TOP: "(B, S, K)", LOGSUMEXP: "(B, S)", "loss": "(B, S)"}


def is_per_sequence(letters: str | None) -> bool:
    """Whether a tap of this shape has one vector for all tokens of a text, such as "(B, H)"."""
    return letters is not None and letters.startswith("(B, ") and "S" not in letters


def taps_above() -> tuple[Tap, ...]:
    """The taps above the layers, of every model class."""
    return (FINAL_NORM, *POOLER, *(tap for cls in model_classes() for tap in cls.spec.taps))


def tap_shapes() -> dict[str, str]:
    """The letters of the shape of every tap; of a layer's, by its name in the layer."""
    return {tap.name: tap.shape for tap in (*EMBEDDINGS, *POST_NORM_LAYER, *taps_above())} | OTHER_SHAPES


def shape_of(tap: str) -> str | None:
    """The letters of a tap's shape, as in the tap table; None for a name that is no tap."""
    parts = tap.split(".", 2)
    if parts[0] == "layers" and len(parts) == 3 and parts[1].isdecimal():
        return LAYER_TAPS.get(parts[2])
    return tap_shapes().get(tap) if tap not in LAYER_TAPS else None


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Taps from ids to logits, then all other names as they come."""
    return sorted(names, key=_place)


def _place(tap: str) -> tuple[int, int, int]:
    parts = tap.split(".", 2)
    if parts[0] == "layers" and shape_of(tap):
        return 1, int(parts[1]), _index(POST_NORM_LAYER, parts[2])
    for section, taps in ((0, EMBEDDINGS), (2, taps_above())):
        if any(known.name == tap for known in taps):
            return section, 0, _index(taps, tap)
    return 3 if tap in (TOP_IDS, TOP, LOGSUMEXP) else 4, 0, 0


def _index(taps: tuple[Tap, ...], name: str) -> int:
    return [tap.name for tap in taps].index(name)


# ---- logits by their top k -------------------------------------------------------------------------------------------


def with_reduced_logits(dump: Dump, ids: Tensor | None, values: Tensor | None = None) -> Dump:
    """The dump with the logits at `ids` (B, S, K) and their logsumexp in place of all logits.

    Whole logits (B, S, V) are looked up. Of logits that are themselves a top k, one that is not among them lies
    somewhere below the last: it counts as that one, or as the expected of `values` if that is lower still, so that no
    difference is reported larger than it is. `ids` None changes nothing.
    """
    if ids is None:
        return dump
    reduced = {name: tensor for name, tensor in dump.items() if name not in (LOGITS, TOP_IDS, TOP)}
    if LOGITS in dump and _fits(dump[LOGITS], ids):
        reduced[TOP] = dump[LOGITS].gather(-1, ids.to(dump[LOGITS].device))
        reduced[LOGSUMEXP] = logsumexp(dump[LOGITS])
    elif LOGITS in dump:
        reduced[TOP] = dump[LOGITS]  # of another shape: the row will say so
    elif TOP in dump:
        reduced[TOP] = dump[TOP]
        theirs = dump.get(TOP_IDS)
        if theirs is not None and values is not None and theirs.shape == ids.shape == dump[TOP].shape:
            reduced[TOP] = _looked_up(theirs, dump[TOP], ids, values)
    return reduced


def _fits(logits: Tensor, ids: Tensor) -> bool:
    return logits.shape[:-1] == ids.shape[:-1] and int(ids.max()) < logits.shape[-1]


def _looked_up(
    their_ids: Tensor, theirs: Tensor, ids: Tensor, values: Tensor
) -> Tensor:  # (B, S, K), (B, S, K), (B, S, K), (B, S, K) -> (B, S, K)
    same = ids[..., :, None] == their_ids[..., None, :]  # (B, S, K, K)
    found = theirs.gather(-1, same.long().argmax(dim=-1))
    at_most = torch.minimum(theirs.amin(dim=-1, keepdim=True), values.to(theirs.dtype))
    return torch.where(same.any(dim=-1), found, at_most)


def narrowest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest of the floating-point types of the tensors. float64 counts as float32."""
    kinds = (tensor.dtype for tensor in tensors if tensor.dtype in FLOATS)
    return max((torch.float32, *kinds), key=lambda kind: torch.finfo(kind).eps)


def logsumexp(logits: Tensor) -> Tensor:  # (B, S, V) -> (B, S)
    """One number a token that depends on every logit. Taken in float64, given in the dtype of the logits."""
    return logits.double().logsumexp(dim=-1).to(logits.dtype)
