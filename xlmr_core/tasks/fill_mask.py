"""Fill-mask: text with <mask> in, the likeliest pieces for each mask out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import OneOrMany, Task
from xlmr_core.tokenizer import MASK

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 134 masks with the published vocabulary

Answers = list[tuple[float, int]]  # scores and ids of the likeliest tokens, the likeliest first


@dataclass(frozen=True)
class Filling:
    """One piece for one mask, with the field names of transformers' fill-mask pipeline."""

    score: float  # probability among the whole vocabulary
    token: int  # id of the piece
    token_str: str  # its text
    sequence: str  # the whole text with the piece in this mask's place


@dataclass(frozen=True)
class RowOfMasks(Row):
    """A text with masks."""

    places: Sequence[int]  # of the masks in the row


class FillMask(Task[XLMRobertaForMaskedLM], OneOrMany[str, list[list[Filling]]]):
    """Answers "what could stand here?" with a tokenizer and a masked language model."""

    model_class = XLMRobertaForMaskedLM

    def stream(
        self,
        texts: Iterable[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        joint: bool = False,
        truncation: bool = False,
        specials_in_text: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[list[list[Filling]]]:
        """The fillings of each text, in order, lazily: a list for each mask, in reading order, the likeliest first.

        Args:
            texts: Any iterable of texts with at least one `<mask>` each.
            top_k: Fillings for each mask; fewer where there are fewer targets.
            targets: Rank only these words. Each must be one piece of the vocabulary.
            joint: Whether the masks of a text are filled together: the one with the most probable piece first, then
                the others in the text with that piece (the confidence-based order of Jiang et al. 2020, "X-FACTR").
                The other masks then have their first filling in `sequence`. Otherwise each mask is filled on its own.
            truncation: Whether a text that is too long is cut at its end. Otherwise it is an error, and so is a cut
                that loses a `<mask>`.
            specials_in_text: Whether `<s>`, `</s>` and `<unk>` in a text are tokens. False takes them, and `<pad>`, as
                plain text. `<mask>` is a token in either case.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: A text has no `<mask>`, has `<pad>` as a token, or is too long; `top_k` is beyond the
                vocabulary; a target is not one piece; the model's logits are not finite.
        """
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise ValueError(f"top_k must lie between 1 and the vocabulary's {self.tokenizer.vocab_size}, not {top_k}")
        among = None if targets is None else self._ids_of(targets)

        def encode(text: str) -> list[RowOfMasks]:
            ids = self._row(text, truncation=truncation, specials_in_text=specials_in_text or (MASK,)).ids
            places = [place for place, number in enumerate(ids) if number == self.tokenizer.mask_token_id]
            if len(places) < text.count(MASK):
                raise ValueError(
                    f"a <mask> of {_shorten(text)!r} was cut off: truncation keeps {self.max_tokens} "
                    "tokens, <s> and </s> included. Split the text instead"
                )
            if not places:
                raise ValueError(f"no <mask> in {_shorten(text)!r}: write <mask> where a word is wanted")
            if self.tokenizer.pad_token_id in ids:
                raise ValueError(
                    f"{_shorten(text)!r} contains <pad>, which stands for no text. To take it as plain text, pass "
                    "specials_in_text=False (--plain on the command line)"
                )
            return [RowOfMasks(ids, places)]

        def run(rows: Sequence[RowOfMasks]) -> list[list[Answers]]:
            return self._jointly(rows, top_k, among) if joint else self._independently(rows, top_k, among)

        for encoded, [answers] in run_in_order(texts, encode, run, batch_tokens=batch_tokens, on_error=on_error):
            [row] = encoded.rows
            ids = list(row.ids)
            if joint:
                for place, answer in zip(row.places, answers, strict=True):
                    ids[place] = answer[0][1]
            yield [
                [self._filling(ids, place, score, token) for score, token in answer]
                for place, answer in zip(row.places, answers, strict=True)
            ]

    def _independently(self, rows: Sequence[RowOfMasks], top_k: int, among: Tensor | None) -> list[list[Answers]]:
        """For each row the answers of each mask, while all other masks stay."""
        answers = iter(
            answer
            for logits in logits_at(self.model, rows, [row.places for row in rows])
            for answer in self._best(logits, top_k, among)
        )
        return [[next(answers) for _ in row.places] for row in rows]

    def _jointly(self, rows: Sequence[RowOfMasks], top_k: int, among: Tensor | None) -> list[list[Answers]]:
        """For each row the answers of each mask, after the masks with more probable answers were filled."""
        found: list[dict[int, Answers]] = [{} for _ in rows]
        now = [list(row.ids) for row in rows]
        while unfinished := [i for i, row in enumerate(rows) if len(found[i]) < len(row.places)]:
            open_rows = [RowOfMasks(now[i], [p for p in rows[i].places if p not in found[i]]) for i in unfinished]
            for i, row, answers in zip(
                unfinished, open_rows, self._independently(open_rows, top_k, among), strict=True
            ):
                answer, place = max(zip(answers, row.places, strict=True), key=lambda pair: pair[0][0][0])
                found[i][place] = answer
                now[i][place] = answer[0][1]
        return [[found[i][place] for place in row.places] for i, row in enumerate(rows)]

    def _best(self, logits: Tensor, top_k: int, among: Tensor | None) -> list[Answers]:  # (K, V)
        """For each of K masks the scores and ids of the `top_k` likeliest tokens."""
        if not logits.isfinite().all():
            source = self.model.load_report.source if self.model.load_report else "SOURCE"
            raise ValueError(f"the model's logits are not finite: `xlmr inspect --values {source}` shows where")
        scores = logits.softmax(dim=-1)
        if among is None:
            best = scores[:, : self.tokenizer.vocab_size].topk(top_k)  # a spare row of the table is no token
            tokens = best.indices
        else:
            best = scores[:, among].topk(min(top_k, len(among)))
            tokens = among[best.indices]
        return [list(zip(*answer, strict=True)) for answer in zip(best.values.tolist(), tokens.tolist(), strict=True)]

    def _ids_of(self, targets: Sequence[str]) -> Tensor:
        """The id of each target."""
        if isinstance(targets, str) or not targets:
            raise ValueError(f"targets must be a list of at least one word, not {targets!r}")
        ids: list[int] = []
        for target in targets:
            tokens = self.tokenizer.tokenize(target, specials_in_text=False)
            if len(tokens) != 1 or tokens[0].id == self.tokenizer.unk_token_id:
                pieces = " ".join(token.piece for token in tokens) or "none"
                raise ValueError(
                    f"the target {target!r} is not one piece of the vocabulary; its pieces are {pieces}: "
                    "choose another word, or write as many masks as it has pieces"
                )
            ids.append(tokens[0].id)
        return torch.tensor(list(dict.fromkeys(ids)), device=self.device)

    def _filling(self, ids: Sequence[int], place: int, score: float, token: int) -> Filling:
        around = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        kept = [token if i == place else id_ for i, id_ in enumerate(ids) if i == place or id_ not in around]
        return Filling(score, token, self.tokenizer.decode([token]), self.tokenizer.decode(kept))


def logits_at(model: XLMRobertaForMaskedLM, rows: Sequence[Row], places: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """The logits at some places of each row, in reading order, in float32 and in parts: (K, V) each.

    One text may have hundreds of masks, and the vocabulary 250,002 entries: all at once would fill the memory.
    """
    batch = packed(rows, model.lm_head.dense.weight.device)
    starts = accumulate((len(row) for row in rows), initial=0)
    wanted = [start + place for start, own in zip(starts, places, strict=False) for place in own]
    with torch.inference_mode():
        hidden = model.encoder(**batch).last_hidden_state[wanted]  # (K, H), K places in all rows
    for part in hidden.split(max(1, LOGITS_AT_ONCE // model.config.vocab_size)):
        with torch.inference_mode():  # not around a yield: it would hold in the caller
            logits: Tensor = model.lm_head(part)
        yield logits.float()


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
