"""Tagging: texts in, labelled stretches of text out: named entities, parts of speech."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xlmr_core.heads import XLMRobertaForTokenClassification
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import OneOrMany, Task, begins_word, check_finite
from xlmr_core.tokenizer import Token

Aggregation = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True)
class Entity:
    """A labelled stretch of a text."""

    label: str  # without B-, I- and the like; with them where nothing is aggregated
    score: float  # probability; of several tokens, the mean
    word: str  # text[start:end]
    start: int  # characters
    end: int
    index: int | None = None  # of the token in its text, counting <s> as 0; None for several tokens

    def as_dict(self) -> dict[str, Any]:
        """The field names of transformers' token-classification pipeline."""
        place = {"word": self.word, "start": self.start, "end": self.end}
        if self.index is None:
            return {"entity_group": self.label, "score": self.score, **place}
        return {"entity": self.label, "score": self.score, "index": self.index, **place}


@dataclass(frozen=True)
class WindowRow(Row):
    """Some consecutive tokens of a text."""

    window: range
    tokens: Sequence[Token]  # all of the text's


class Tag(Task[XLMRobertaForTokenClassification], OneOrMany[str, list[Entity]]):
    """Finds labelled stretches in texts of any length. Longer texts than the model takes are read in windows."""

    model_class = XLMRobertaForTokenClassification

    def stream(
        self,
        texts: Iterable[str],
        *,
        aggregation: Aggregation = "simple",
        ignore: Sequence[str] = ("O",),
        overlap: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[list[Entity]]:
        """The entities of each text, in order, lazily.

        Args:
            texts: Any iterable.
            aggregation: "none": one entity for each token. "simple": neighbouring tokens of one label become one
                entity. "first", "average", "max": first, the tokens of a word get one label: that of its first token,
                of their mean probabilities, or of the token with the highest probability.
            ignore: Labels that are left out.
            overlap: Tokens that two windows of a long text share; a quarter of the window by default. A token is
                labelled in the window in which it has the most context.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: An unknown aggregation, or an overlap that leaves no room.
        """
        if aggregation not in ("none", "simple", "first", "average", "max"):
            raise ValueError(f"aggregation {aggregation!r} is not one of none, simple, first, average, max")
        room = self.max_tokens - 2
        shared = room // 4 if overlap is None else overlap

        def encode(text: str) -> list[WindowRow]:
            tokens = self.tokenizer.tokenize(text, specials_in_text=False)
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            return [
                WindowRow([begin, *(tokens[i].id for i in window), end], window, tokens)
                for window in self._windows(tokens, room, shared)
            ]

        for encoded, windows in run_in_order(
            texts, encode, self._probabilities, batch_tokens=batch_tokens, on_error=on_error
        ):
            probabilities = _with_most_context([row.window for row in encoded.rows], windows)
            yield self._entities(encoded.input, encoded.rows[0].tokens, probabilities, aggregation, ignore)

    @torch.inference_mode()
    def _probabilities(self, rows: Sequence[WindowRow]) -> list[Tensor]:
        logits = self.model(**packed(rows, self.device)).logits.float().cpu()  # (T, C)
        check_finite(logits)
        return [own[1:-1] for own in logits.softmax(dim=-1).split([len(row) for row in rows])]  # without <s> and </s>

    def _entities(
        self, text: str, tokens: Sequence[Token], probabilities: Tensor, aggregation: Aggregation, ignore: Sequence[str]
    ) -> list[Entity]:
        labels = self.model.config.labels
        groups = [[i] for i in range(len(tokens))]
        if aggregation in ("first", "average", "max"):
            groups = self._words(text, tokens)
        pieces: list[Entity] = []
        for group in groups:
            score, label = _vote(probabilities[group], aggregation).max(dim=-1)
            start, end = tokens[group[0]].start, tokens[group[-1]].end
            pieces.append(Entity(labels[int(label)], float(score), text[start:end], start, end, group[0] + 1))
        if aggregation != "none":
            pieces = _grouped(pieces, text, iobes=any(name.startswith(("E-", "S-")) for name in labels))
        return [entity for entity in pieces if entity.label not in ignore]

    def _words(self, text: str, tokens: Sequence[Token]) -> list[list[int]]:
        """The tokens of each word: white space in the text parts words, and an unknown character begins one."""
        words: list[list[int]] = []
        for i, token in enumerate(tokens):
            if not words or begins_word(text, token) or token.id == self.tokenizer.unk_token_id:
                words.append([])
            words[-1].append(i)
        return words


def _with_most_context(windows: Sequence[range], probabilities: Sequence[Tensor]) -> Tensor:  # (S, C) each -> (S, C)
    """Of each token, its probabilities in the window whose ends are farthest from it."""
    if len(windows) == 1:
        return probabilities[0]
    chosen: list[Tensor] = []
    for i in range(windows[-1].stop):
        inside = [(min(i - w.start, w.stop - 1 - i), -number) for number, w in enumerate(windows) if i in w]
        window = -max(inside)[1]
        chosen.append(probabilities[window][i - windows[window].start])
    return torch.stack(chosen)


def _vote(probabilities: Tensor, aggregation: Aggregation) -> Tensor:  # (tokens, C) -> (C)
    if aggregation == "average":
        return probabilities.mean(dim=0)
    if aggregation == "max":
        return probabilities[int(probabilities.amax(dim=1).argmax())]
    return probabilities[0]


def _grouped(pieces: Sequence[Entity], text: str, *, iobes: bool) -> list[Entity]:
    """Neighbours of one label as one entity. B- begins one; in the scheme IOBES, S- does too, and E- and S- end one."""
    groups: list[list[Entity]] = []
    for piece in pieces:
        mark, name = split_label(piece.label, iobes)
        last = split_label(groups[-1][-1].label, iobes) if groups else None
        begins = last is None or name != last[1] or mark in ("B", "S") or last[0] in ("E", "S")
        if begins:
            groups.append([])
        groups[-1].append(piece)
    entities: list[Entity] = []
    for group in groups:
        start, end = group[0].start, group[-1].end
        score = sum(piece.score for piece in group) / len(group)
        entities.append(Entity(split_label(group[0].label, iobes)[1], score, text[start:end], start, end))
    return entities


def split_label(label: str, iobes: bool) -> tuple[str, str]:
    """("B", "PER") for B-PER; a label without a mark continues the one before it."""
    mark, dash, name = label.partition("-")
    return (mark, name) if dash and mark in ("BIES" if iobes else "BI") else ("I", label)
