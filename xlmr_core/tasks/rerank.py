"""Reranking: a query and passages in, the passages by relevance out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xlmr_core.tasks.classify import SequenceTask
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, run_in_order
from xlmr_core.tasks.task import Pair


@dataclass(frozen=True)
class Ranked:
    """One passage of a ranking."""

    index: int  # in the passages that were given
    score: float  # sigmoid of the logit, between 0 and 1
    logit: float  # what the model answers
    text: str


class Rerank(SequenceTask):
    """Orders passages by their relevance to a query, with a cross-encoder: a classifier with one label."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        if model.config.num_labels != 1:
            raise ValueError(
                f"a reranker has one label, but the model has {model.config.num_labels}: "
                f"{', '.join(model.config.labels[:5])}"
            )

    def __call__(self, query: str, passages: Sequence[str], **options: Any) -> list[Ranked]:
        """The passages in the order of their relevance to one query; options as for `stream`."""
        return next(self.stream([(query, passages)], **options))

    def batch(self, queries: Sequence[tuple[str, Sequence[str]]], **options: Any) -> list[list[Ranked]]:
        """A ranking for each query with its passages; options as for `stream`."""
        return list(self.stream(queries, **options))

    def stream(
        self,
        queries: Iterable[tuple[str, Sequence[str]]],
        *,
        top_k: int | None = None,
        truncation: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[list[Ranked]]:
        """A ranking for each query, the most relevant passage first, in the order of the queries, lazily.

        Args:
            queries: Any iterable of (query, passages).
            top_k: Passages of each ranking; None for all.
            truncation: Whether a pair that is too long is cut. Otherwise it is an error.
            batch_tokens: Tokens that run together.
            on_error: Called with a query that the model cannot take and with the error, in the order of the queries;
                the query then has no result. None raises the error.

        Raises:
            ValueError: A query has no passages, or a pair is too long.
        """

        def encode(query: tuple[str, Sequence[str]]) -> list[Any]:
            text, passages = query
            if isinstance(passages, str) or not passages:
                raise ValueError(f"expected a list of at least one passage for the query {text!r}, got {passages!r}")
            return [self._pair_row(Pair(text, passage), truncation=truncation) for passage in passages]

        for encoded, logits in run_in_order(
            queries, encode, self._logits, batch_tokens=batch_tokens, on_error=on_error
        ):
            values = torch.stack(list(logits))[:, 0]
            ranked = [
                Ranked(index, score, logit, encoded.input[1][index])
                for index, (score, logit) in enumerate(zip(values.sigmoid().tolist(), values.tolist(), strict=True))
            ]
            yield sorted(ranked, key=lambda passage: passage.logit, reverse=True)[:top_k]
