"""Dynamic masking: a new choice of tokens to predict each time a sequence is seen (Liu et al. 2019, section 4.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.tokenizer import XLMRobertaTokenizer


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some tokens hidden, and what stood there."""

    input_ids: Tensor  # (B, S), with <mask> and random tokens in
    positions: Tensor  # (B, S), boolean: True where a token must be predicted
    labels: Tensor  # (K,), the original ids at those positions, in reading order


def mask_tokens(
    input_ids: Tensor,
    tokenizer: XLMRobertaTokenizer,
    generator: torch.Generator,
    *,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> MaskedBatch:
    """Chooses `probability` of the ordinary tokens of a (B, S) batch to be predicted (Devlin et al. 2019, section 3.1).

    Of those chosen, `mask_share` become <mask>, `random_share` a random ordinary token, and the rest stay as they
    are: so the model must have something to say about every token, not only about masks.
    """
    special = torch.tensor([0, 1, 2, 3, tokenizer.mask_token_id])
    ordinary = ~torch.isin(input_ids, special)
    positions = (torch.rand(input_ids.shape, generator=generator) < probability) & ordinary
    if not positions.any() and ordinary.any():
        positions.view(-1)[ordinary.view(-1).nonzero()[0]] = True  # a batch without a question teaches nothing

    fate = torch.rand(input_ids.shape, generator=generator)
    random_ids = torch.randint(4, tokenizer.mask_token_id, input_ids.shape, generator=generator)
    hidden = torch.where(positions & (fate < mask_share), tokenizer.mask_token_id, input_ids)
    is_random = positions & (fate >= mask_share) & (fate < mask_share + random_share)
    hidden = torch.where(is_random, random_ids, hidden)
    return MaskedBatch(hidden, positions, input_ids[positions])
