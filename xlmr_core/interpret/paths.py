"""Path patching: how much of the effect of one part goes directly to some later taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlmr_core.interpret.runs import AnyBatch, Score, check_pair, check_parts, put, repeated, scores
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.taps import Change

HEADS = ("layers.*.attention.context",)


@torch.no_grad()
def path_patching(
    model: PretrainedModel,
    clean: AnyBatch,
    corrupted: AnyBatch,
    score: Score,
    *,
    sender: str,
    parts: Tensor,
    receivers: Sequence[str],
    receiver_part: Tensor | None = None,
    frozen: Sequence[str] = HEADS,
) -> Tensor:
    """The change of the score when a part of the clean run reaches the corrupted run only by the direct paths.

    A path from the sender to a receiver is direct if it goes through no frozen tap. With the default these are the
    residual connection, the norms and the feed-forward layers, as in Wang et al. 2022, "Interpretability in the Wild",
    appendix B; add "layers.*.feed_forward.output" for the paths through the residual connection and the norms only
    (Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching").

    Three steps: the clean run gives the sender's values. The corrupted run with these, and with the frozen taps as they
    were, gives the receivers' values. The corrupted run with the receivers' new values gives the score.

    Args:
        model: in eval mode.
        clean: as in `activation_patching`.
        corrupted: as in `activation_patching`.
        score: as in `activation_patching`.
        sender: the tap that sends.
        parts: boolean, (K, ...): parts of the sender, as in `activation_patching`.
        receivers: patterns of later taps; `["layers.-1.output"]` for the direct effect on the last layer's output.
        receiver_part: boolean, (1, ...): the part of the receivers that receives, such as `head_parts(config)[2:3]` at
            `layers.3.attention.q`. By default all of it.
        frozen: patterns of the taps that keep the values of the corrupted run, except for the sender's part.

    Returns:
        The score less that of the corrupted run, (K, B).

    Raises:
        TypeError: `receivers` or `frozen` is a string.
        ValueError: as in `activation_patching`; the sender matches several taps; or a receiver is frozen, or does not
            come after the sender.
    """
    if isinstance(receivers, str) or isinstance(frozen, str):
        raise TypeError("receivers and frozen must be lists of patterns, such as ['layers.-1.output'], not a string")
    check_pair(model, clean, corrupted)
    with model.capture(sender) as source:
        model(**clean)
    if len(source) != 1:
        raise ValueError(f"the sender must be one tap, and {sender!r} matches {len(source)}: {', '.join(source)}")
    sending, values = next(iter(source.items()))
    check_parts(parts, sending, values)
    with model.capture(*frozen) as held, model.capture(*receivers) as heard:
        before = scores(score, model(**corrupted))
    _check_receivers(model, sending, list(heard), list(held))
    for name, tensor in heard.items():
        if receiver_part is not None:
            check_parts(receiver_part, name, tensor)

    copies = repeated(corrupted, len(parts))
    constants = {name: _always(tensor) for name, tensor in repeated(held, len(parts)).items() if name != sending}
    with model.intervene({**constants, sending: put(parts, values)}), model.capture(*receivers) as heard:
        model(**copies)
    changes = {
        name: _always(tensor) if receiver_part is None else put(receiver_part, tensor) for name, tensor in heard.items()
    }
    with model.intervene(changes):
        return scores(score, model(**copies), len(parts)) - before


def _always(value: Tensor) -> Change:
    return lambda _: value


def _check_receivers(model: PretrainedModel, sender: str, receivers: list[str], frozen: list[str]) -> None:
    order = [tap.name for tap in model.taps()]
    for receiver in receivers:
        if receiver in frozen:
            raise ValueError(f"the receiver {receiver} is frozen, so nothing can reach it: leave it out of `frozen`")
        if order.index(receiver) <= order.index(sender):
            raise ValueError(f"the receiver {receiver} does not come after the sender {sender}: exchange the two")
