"""Faults before the model and after it: wrong ids of a text, and wrong sentence vectors of right token vectors."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from xlmr_core.parity.faults.encoder import IDS_WITHOUT_OFFSET
from xlmr_core.tokenizer import XLMRobertaTokenizer


@dataclass(frozen=True)
class TokenizerFault:
    """A fault of a tokenizer: a rule that turns a row of right ids into the wrong ones."""

    name: str
    cause: str
    symptom: str
    rule: Callable[[list[int], XLMRobertaTokenizer], list[int]]
    tap: str = "input_ids"


def _ids_of_sentencepiece(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    ordinary = range(4, tokenizer.mask_token_id)
    return [id - 1 if id in ordinary else id for id in ids]


def _mask_id_without_offset(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return [id - 1 if id == tokenizer.mask_token_id else id for id in ids]


def _unk_of_sentencepiece(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return [0 if id == tokenizer.unk_token_id else id for id in ids]


def _single_separator(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    """One </s> in place of each two."""
    end = tokenizer.eos_token_id
    return [id for i, id in enumerate(ids) if not (i > 0 and id == end and ids[i - 1] == end)]


def _no_frame(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    frame = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [id for id in ids if id not in frame]


def _no_end(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


TOKENIZER_FAULTS: tuple[TokenizerFault, ...] = (
    TokenizerFault(
        IDS_WITHOUT_OFFSET.name,  # made in the ids that go into the model
        cause=IDS_WITHOUT_OFFSET.cause,
        symptom="<s>, </s> and <mask> are right, every piece of text is one too low",
        rule=_ids_of_sentencepiece,
    ),
    TokenizerFault(
        "tokenizer_mask_id_wrong",
        cause="<mask> has the number of pieces as its id; it is the last id, one more because of <pad>",
        symptom="only <mask> differs: the model sees the last ordinary piece instead",
        rule=_mask_id_without_offset,
    ),
    TokenizerFault(
        "tokenizer_unk_is_zero",
        cause="an unknown character keeps SentencePiece's 0, which is <s> to the model; <unk> is 3",
        symptom="only unknown characters differ: they have the id of <s>",
        rule=_unk_of_sentencepiece,
    ),
    TokenizerFault(
        "tokenizer_single_separator",
        cause="the two texts of a pair have one </s> between them, like [SEP] in BERT; XLM-R has two",
        symptom="a pair is one token short, and everything in the second text is one position too early",
        rule=_single_separator,
    ),
    TokenizerFault(
        "tokenizer_end_missing",
        cause="</s> is not put at the end",
        symptom="a row is one token short at its end",
        rule=_no_end,
    ),
    TokenizerFault(
        "tokenizer_frame_missing",
        cause="<s> and </s> are not put around the text",
        symptom="a row is two tokens short, and every token is one position too early",
        rule=_no_frame,
    ),
)


# ---- after the model: one vector for a sentence ----------------------------------------------------------------------


Pool = Callable[[Tensor, Tensor], Tensor]  # from token vectors (B, S, H) and their mask (B, S) to (B, D)


@dataclass(frozen=True)
class PoolingFault:
    """A fault of pooling: another sentence vector (B, H) of token vectors (B, S, H) and their mask (B, S).

    The right one is `mean_pooled`, the entry "sentence.mean" of a dump.
    """

    name: str
    cause: str
    symptom: str
    pool: Pool
    tap: str = "sentence.mean"


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the token vectors of each text.

    Args:
        hidden: (B, S, H).
        mask: (B, S), 1 for real tokens, <s> and </s> among them.

    Returns:
        (B, H).
    """
    weights = mask.to(hidden)[:, :, None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _mean_over_padding(hidden: Tensor, _mask: Tensor) -> Tensor:
    return hidden.mean(dim=1)


def _mean_of_masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask.to(hidden)[:, :, None]).mean(dim=1)


def _first_token(hidden: Tensor, _mask: Tensor) -> Tensor:
    return hidden[:, 0]


POOLING_FAULTS: tuple[PoolingFault, ...] = (
    PoolingFault(
        "pooled_over_padding",
        cause="the mean of a sentence includes its padding",
        symptom="token vectors are right; a sentence's vector depends on how long the others in its batch are",
        pool=_mean_over_padding,
    ),
    PoolingFault(
        "pooled_by_batch_length",
        cause="the sum over real tokens is divided by the length of the batch, not by that of the sentence",
        symptom="token vectors are right; a padded sentence's vector has the right direction and is too short",
        pool=_mean_of_masked_sum,
    ),
    PoolingFault(
        "pooled_first_token",
        cause="the vector of <s> is taken, but the model was trained with the mean",
        symptom="token vectors are right; a sentence's vector is that of its first token",
        pool=_first_token,
    ),
)
