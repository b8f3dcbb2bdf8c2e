"""Dynamic masking: how many tokens, which ones, and what becomes of them."""

import torch

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.masking import mask_tokens


def _batch(tokenizer: XLMRobertaTokenizer, rows: int = 400) -> torch.Tensor:
    ids = torch.randint(4, tokenizer.mask_token_id, (rows, 20))
    ids[:, 0] = tokenizer.bos_token_id
    ids[:, 15] = tokenizer.eos_token_id
    ids[:, 16:] = tokenizer.pad_token_id
    ids[::7, 3] = tokenizer.unk_token_id
    return ids


def test_shares_are_15_percent_and_80_10_10(tokenizer: XLMRobertaTokenizer) -> None:
    ids = _batch(tokenizer, rows=4000)
    batch = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(0))
    ordinary = (ids > 3).sum()
    chosen = batch.positions.sum()
    # 56,000 ordinary tokens: a standard deviation of the share is 0.0015; of the shares among 8,400, 0.004
    assert abs(chosen / ordinary - 0.15) < 0.006
    hidden = batch.input_ids[batch.positions]
    assert abs((hidden == tokenizer.mask_token_id).float().mean() - 0.8) < 0.02
    kept = (hidden == batch.labels).float().mean()
    assert abs(kept - 0.1 - 0.1 / (tokenizer.vocab_size - 5)) < 0.02  # a random token may be the same by chance


def test_only_chosen_ordinary_tokens_change_and_labels_are_the_originals(tokenizer: XLMRobertaTokenizer) -> None:
    ids = _batch(tokenizer)
    batch = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(0))
    assert torch.equal(batch.input_ids[~batch.positions], ids[~batch.positions])
    assert torch.equal(batch.labels, ids[batch.positions])
    assert (batch.labels > 3).all()  # never <s>, <pad>, </s> or <unk>
    assert (batch.input_ids[batch.positions] > 3).all()


def test_the_choice_is_new_each_time_and_the_same_for_the_same_seed(tokenizer: XLMRobertaTokenizer) -> None:
    ids = _batch(tokenizer)
    first = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(0))
    again = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(0))
    other = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(1))
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.positions, other.positions)


def test_a_batch_has_at_least_one_token_to_predict(tokenizer: XLMRobertaTokenizer) -> None:
    ids = torch.tensor([[0, 5, 2]])
    for seed in range(20):
        batch = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(seed))
        assert batch.positions.tolist() == [[False, True, False]]


def test_a_batch_of_special_tokens_has_no_token_to_predict(tokenizer: XLMRobertaTokenizer) -> None:
    batch = mask_tokens(torch.tensor([[0, 2, 1]]), tokenizer, torch.Generator().manual_seed(0))
    assert batch.labels.numel() == 0
    assert batch.input_ids.tolist() == [[0, 2, 1]]
