"""Fill-mask: text with <mask> in, the likeliest pieces for each mask out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.inputs import check_device
from xlmr_core.model import AttentionKind
from xlmr_core.tokenizer import MASK, XLMRobertaTokenizer


@dataclass(frozen=True)
class Filling:
    """One piece for one mask, with the field names of the reference library's pipeline."""

    score: float  # probability among the whole vocabulary
    token: int  # id of the piece
    token_str: str  # its text
    sequence: str  # the whole text with the piece in this mask's place; other masks stay


class FillMask:
    """Answers "what could stand here?" with a tokenizer and a masked language model."""

    def __init__(self, model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
        if model.config.vocab_size <= tokenizer.mask_token_id:
            raise ValueError(
                f"the tokenizer's <mask> is {tokenizer.mask_token_id}, but the model has only "
                f"{model.config.vocab_size} tokens: they do not belong together"
            )
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str] = "xlmr-tiny",
        *,
        attention: AttentionKind = "sdpa",
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Model and tokenizer of one checkpoint; parameters and errors as `XLMRobertaForMaskedLM.from_pretrained`."""
        device = check_device(device)
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        # At the same time: a vocabulary of 250,000 pieces takes SentencePiece half a second, and most of it no lock.
        with ThreadPoolExecutor(max_workers=1) as pool:
            tokenizer = pool.submit(XLMRobertaTokenizer.from_pretrained, source, **where)
            model = XLMRobertaForMaskedLM.from_pretrained(
                source, attention=attention, dtype=dtype, device=device, **where
            )
            return cls(model, tokenizer.result())

    def __call__(self, text: str, *, top_k: int = 5, truncation: bool = False) -> list[list[Filling]]:
        """The `top_k` likeliest fillings of each mask in `text`: a list for every mask, in reading order, best first.

        Several masks are filled independently of each other. Raises ValueError for a text with no <mask>, a text
        longer than the model takes (unless `truncation`), a `top_k` beyond the vocabulary, and a model whose logits
        are not finite.
        """
        return self.batch([text], top_k=top_k, truncation=truncation)[0]

    @torch.inference_mode()
    def batch(self, texts: Sequence[str], *, top_k: int = 5, truncation: bool = False) -> list[list[list[Filling]]]:
        """As calling, for several texts in one pass of the model."""
        if not 1 <= top_k <= self.model.config.vocab_size:
            raise ValueError(
                f"top_k must lie between 1 and the vocabulary's {self.model.config.vocab_size}, not {top_k}"
            )
        if not texts:
            return []
        batch = self.tokenizer(texts, truncation=truncation)
        is_mask = batch.input_ids == self.tokenizer.mask_token_id
        for text, count in zip(texts, is_mask.sum(dim=1).tolist(), strict=True):
            if count == 0 and MASK in text:
                raise ValueError(
                    f"the <mask> of {_shorten(text)!r} was cut off: truncation keeps {self.tokenizer.max_tokens} "
                    "tokens, <s> and </s> included. Split the text instead"
                )
            if count == 0:
                raise ValueError(f"no <mask> in {_shorten(text)!r}: write <mask> where a word is wanted")

        packed = batch.to(self.model.lm_head.dense.weight.device).packed()  # no time is spent on padding
        logits = self.model(**packed, positions=packed["input_ids"] == self.tokenizer.mask_token_id).logits
        if not logits.isfinite().all():
            source = self.model.load_report.source if self.model.load_report else "SOURCE"
            raise ValueError(f"the model's logits are not finite: `xlmr inspect --values {source}` tells where")
        best = logits.float().softmax(dim=-1).topk(top_k)  # (K, top_k) for the K masks of all texts

        fillings: list[list[list[Filling]]] = [[] for _ in texts]
        for (row, column), scores, tokens in zip(
            is_mask.nonzero().tolist(), best.values.tolist(), best.indices.tolist(), strict=True
        ):
            ids = batch.input_ids[row]
            fillings[row].append([self._filling(ids, column, *pair) for pair in zip(scores, tokens, strict=True)])
        return fillings

    def _filling(self, ids: Tensor, column: int, score: float, token: int) -> Filling:
        filled = ids.tolist()
        filled[column] = token
        around = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        kept = [id_ for position, id_ in enumerate(filled) if position == column or id_ not in around]
        return Filling(score, token, self.tokenizer.decode([token]), self.tokenizer.decode(kept))


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
