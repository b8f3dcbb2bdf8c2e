"""Fill-mask: text with <mask> in, the likeliest pieces for each mask out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor
from typing_extensions import Self, Unpack

from xlmr_core.devices import check_device
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.hub_options import HubOptions
from xlmr_core.kernels import AttentionKind
from xlmr_core.tokenizer import MASK, XLMRobertaTokenizer


@dataclass(frozen=True)
class Filling:
    """One piece for one mask, with the field names of the reference library's pipeline."""

    score: float  # probability among the whole vocabulary
    token: int  # id of the piece
    token_str: str  # its text
    sequence: str  # the whole text with the piece in this mask's place; other masks stay


LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 134 masks with the published vocabulary
SPARE_ROWS = 1024  # the 250,002 tokens of XL and XXL have a table of 250,880 rows, a multiple of this


class FillMask:
    """Answers "what could stand here?" with a tokenizer and a masked language model.

    Raises ValueError for a tokenizer and a model whose vocabularies do not fit each other.
    """

    def __init__(self, model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
        spare = model.config.vocab_size - tokenizer.vocab_size
        if not 0 <= spare < SPARE_ROWS:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has {model.config.vocab_size}: they "
                "do not belong together. Load both from one checkpoint"
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
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Model and tokenizer of one checkpoint; parameters and errors as `XLMRobertaForMaskedLM.from_pretrained`."""
        device = check_device(device)
        # At the same time: a vocabulary of 250,000 pieces takes SentencePiece half a second, and most of it no lock.
        with ThreadPoolExecutor(max_workers=1) as pool:
            tokenizer = pool.submit(XLMRobertaTokenizer.from_pretrained, source, **hub)
            model = XLMRobertaForMaskedLM.from_pretrained(
                source, attention=attention, dtype=dtype, device=device, **hub
            )
            return cls(model, tokenizer.result())

    def __call__(
        self, text: str, *, top_k: int = 5, truncation: bool = False, specials_in_text: bool = True
    ) -> list[list[Filling]]:
        """The likeliest fillings of each mask in a text. Several masks are filled independently of each other.

        Args:
            text: A text with at least one `<mask>`.
            top_k: The number of fillings for each mask.
            truncation: Whether a text that is too long is cut at its end.
            specials_in_text: Whether `<s>`, `</s>` and `<unk>` in the text are tokens. False takes them, and `<pad>`,
                as plain text. `<mask>` is a token in either case.

        Returns:
            A list for each mask, in reading order, of its `top_k` fillings, the likeliest first.

        Raises:
            ValueError: the text has no `<mask>`, has `<pad>` as a token, or is longer than the model takes; `top_k` is
                beyond the vocabulary; the model's logits are not finite.
        """
        return self.batch([text], top_k=top_k, truncation=truncation, specials_in_text=specials_in_text)[0]

    @torch.inference_mode()
    def batch(
        self, texts: Sequence[str], *, top_k: int = 5, truncation: bool = False, specials_in_text: bool = True
    ) -> list[list[list[Filling]]]:
        """For each text what calling returns, up to rounding, with one pass of the encoder for all texts.

        Arguments and errors are those of calling.
        """
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise ValueError(f"top_k must lie between 1 and the vocabulary's {self.tokenizer.vocab_size}, not {top_k}")
        if not texts:
            return []
        batch = self.tokenizer(texts, truncation=truncation, specials_in_text=specials_in_text or (MASK,))
        is_mask = batch.input_ids == self.tokenizer.mask_token_id
        has_pad = ((batch.input_ids == self.tokenizer.pad_token_id) & batch.attention_mask.bool()).any(dim=1)
        for text, count, pad in zip(texts, is_mask.sum(dim=1).tolist(), has_pad.tolist(), strict=True):
            if count == 0 and MASK in text:
                raise ValueError(
                    f"the <mask> of {_shorten(text)!r} was cut off: truncation keeps {self.tokenizer.max_tokens} "
                    "tokens, <s> and </s> included. Split the text instead"
                )
            if count == 0:
                raise ValueError(f"no <mask> in {_shorten(text)!r}: write <mask> where a word is wanted")
            if pad:
                raise ValueError(
                    f"{_shorten(text)!r} contains <pad>, which stands for no text. To take it as plain text, pass "
                    "specials_in_text=False (--plain on the command line)"
                )

        packed = batch.to(self.model.lm_head.dense.weight.device).packed()  # no time is spent on padding
        hidden = self.model.encoder(**packed).last_hidden_state  # (T, H)
        at_masks = hidden[packed["input_ids"] == self.tokenizer.mask_token_id]  # (K, H), K masks in all texts
        at_once = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)  # one text may have hundreds of masks
        answers = [answer for part in at_masks.split(at_once) for answer in self._answers(part, top_k)]

        fillings: list[list[list[Filling]]] = [[] for _ in texts]
        for (row, column), answer in zip(is_mask.nonzero().tolist(), answers, strict=True):
            ids = batch.input_ids[row]
            fillings[row].append([self._filling(ids, column, score, token) for score, token in answer])
        return fillings

    def _answers(self, at_masks: Tensor, top_k: int) -> list[list[tuple[float, int]]]:  # (K, H)
        """For each of K masks the scores and ids of the `top_k` likeliest tokens."""
        logits = self.model.lm_head(at_masks)  # (K, V)
        if not logits.isfinite().all():
            source = self.model.load_report.source if self.model.load_report else "SOURCE"
            raise ValueError(f"the model's logits are not finite: `xlmr inspect --values {source}` tells where")
        scores = logits.float().softmax(dim=-1)
        best = scores[:, : self.tokenizer.vocab_size].topk(top_k)  # a spare row of the table is no token
        return [
            list(zip(scores, tokens, strict=True))
            for scores, tokens in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _filling(self, ids: Tensor, column: int, score: float, token: int) -> Filling:
        filled = ids.tolist()
        filled[column] = token
        around = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        kept = [id_ for position, id_ in enumerate(filled) if position == column or id_ not in around]
        return Filling(score, token, self.tokenizer.decode([token]), self.tokenizer.decode(kept))


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
