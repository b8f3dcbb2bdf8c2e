"""Dynamic masking: the tokens to predict are drawn anew for each batch (Liu et al. 2019, section 4.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.tokenizer import XLMRobertaTokenizer


@dataclass(frozen=True)
class MaskedBatch:
    """A batch in which some tokens are hidden, and the hidden tokens."""

    input_ids: Tensor  # (B, S), after masking
    positions: Tensor  # (B, S), boolean: True where a token must be predicted
    labels: Tensor  # (K,), the original ids at the K positions, row by row


def mask_tokens(
    input_ids: Tensor,
    tokenizer: XLMRobertaTokenizer,
    generator: torch.Generator,
    *,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> MaskedBatch:
    """Chooses tokens of a batch to predict, and hides most of them (Devlin et al. 2019, section 3.1).

    The chosen tokens that become neither `<mask>` nor a random token stay as they are, so that the model has to
    predict from ordinary tokens too.

    Args:
        input_ids: The ids: shape (B, S).
        tokenizer: The tokenizer of the ids. Special tokens are never chosen.
        generator: Draws the tokens and what they become.
        probability: The share of the ordinary tokens that are chosen. At least one is, if there is one.
        mask_share: The share of the chosen tokens that become `<mask>`.
        random_share: The share of the chosen tokens that become a random ordinary token.

    Returns:
        The masked batch, with the K chosen positions and their ids.
    """
    special = torch.tensor([0, 1, 2, 3, tokenizer.mask_token_id])
    ordinary = ~torch.isin(input_ids, special)
    positions = (torch.rand(input_ids.shape, generator=generator) < probability) & ordinary
    if not positions.any() and ordinary.any():
        positions.view(-1)[ordinary.view(-1).nonzero()[0]] = True  # the mean loss over no token is NaN

    draw = torch.rand(input_ids.shape, generator=generator)
    random_ids = torch.randint(4, tokenizer.mask_token_id, input_ids.shape, generator=generator)
    hidden = torch.where(positions & (draw < mask_share), tokenizer.mask_token_id, input_ids)
    is_random = positions & (draw >= mask_share) & (draw < mask_share + random_share)
    hidden = torch.where(is_random, random_ids, hidden)
    return MaskedBatch(hidden, positions, input_ids[positions])
