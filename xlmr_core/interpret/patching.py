"""Activation patching, and attribution patching, its linear estimate.

Both take two batches of texts that differ in what is asked about, such as "He ..." and "She ...", and give the change
of a score when a part of the clean run is put into the corrupted run. With the two batches exchanged they ask what the
answer needs, rather than what is enough for it.

A part is a boolean mask over one row of the tensor at a tap. K parts run as K copies of the batch, in one run for each
tap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.interpret.runs import AnyBatch, Score, check_pair, check_parts, put, repeated, scores
from xlmr_core.pretrained import PretrainedModel


def head_parts(config: XLMRobertaConfig) -> Tensor:
    """A part for each attention head, at `attention.context`, `.q`, `.k` and `.v`, where heads lie side by side.

    Args:
        config: of the model.

    Returns:
        Boolean, (N, 1, H): the features of each head, at every token.
    """
    head_of_feature = torch.arange(config.hidden_size) // config.head_dim
    return (head_of_feature == torch.arange(config.num_attention_heads)[:, None])[:, None, :]


def position_parts(length: int) -> Tensor:
    """A part for each token, at taps of the shape (B, S, ...).

    Args:
        length: S, the number of tokens in a row.

    Returns:
        Boolean, (S, S, 1): all features of one token.
    """
    return torch.eye(length, dtype=torch.bool)[:, :, None]


@torch.no_grad()
def activation_patching(
    model: PretrainedModel, clean: AnyBatch, corrupted: AnyBatch, score: Score, pattern: str, parts: Tensor
) -> Tensor:
    """The exact change of the score when each part of the clean run is put into the corrupted run.

    Vig et al. 2020, "Causal Mediation Analysis"; Meng et al. 2022, "Locating and Editing Factual Associations in GPT".

    Args:
        model: in eval mode.
        clean: a padded batch, whose values are put.
        corrupted: a padded batch of the same shape, with padding in the same places.
        score: a function of the model's output for B rows that returns one number for each, (B,).
        pattern: the taps, as in `capture`. There is one run for each.
        parts: boolean, (K, ...): masks over one row of the tensor at each of these taps.

    Returns:
        The score of the patched run less that of the corrupted one, (taps, K, B), taps in the order of the run.

    Raises:
        ValueError: the model is in train mode, the batches do not fit one another, no tap matches, or the parts or the
            scores have another shape.
    """
    check_pair(model, clean, corrupted)
    with model.capture(pattern) as source:
        model(**clean)
    for name, values in source.items():
        check_parts(parts, name, values)
    before = scores(score, model(**corrupted))
    copies = repeated(corrupted, len(parts))
    effects: list[Tensor] = []
    for name, values in source.items():
        with model.intervene({name: put(parts, values)}):
            effects.append(scores(score, model(**copies), len(parts)) - before)
    return torch.stack(effects)


def attribution_patching(
    model: PretrainedModel, clean: AnyBatch, corrupted: AnyBatch, score: Score, pattern: str, parts: Tensor
) -> Tensor:
    """The first-order estimate of `activation_patching`, for all parts of all taps by two runs and one gradient.

    It is the difference of the two runs times the gradient of the score in the corrupted run: exact for small
    differences, and wherever the score is a linear function of the tap. Nanda 2023, "Attribution Patching"; Syed et al.
    2023, "Attribution Patching Outperforms Automated Circuit Discovery".

    Args:
        model: in eval mode.
        clean: as in `activation_patching`.
        corrupted: as in `activation_patching`.
        score: as in `activation_patching`; differentiable.
        pattern: the taps, as in `capture`.
        parts: as in `activation_patching`.

    Returns:
        The estimated change of the score, (taps, K, B), taps in the order of the run.

    Raises:
        ValueError: as in `activation_patching`.
    """
    check_pair(model, clean, corrupted)
    with torch.no_grad(), model.capture(pattern) as source:
        model(**clean)
    # requires_grad_: for a model whose parameters are frozen, the graph begins at the taps.
    needs_gradient = model.intervene({pattern: Tensor.requires_grad_})
    with torch.enable_grad(), needs_gradient, model.capture(pattern) as target:
        total = scores(score, model(**corrupted)).sum()  # the score of a row depends on no other row
        tensors = [target[name] for name in source]
        gradients = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    effects: list[Tensor] = []
    for (name, values), tensor, gradient in zip(source.items(), tensors, gradients, strict=True):
        check_parts(parts, name, values)
        terms = (values - tensor.detach()) * gradient  # (B, ...)
        effects.append((parts[:, None].to(terms.device) * terms).flatten(2).sum(dim=-1))
    return torch.stack(effects)
