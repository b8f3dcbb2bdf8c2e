"""Scoring: how likely a masked language model finds a text (Salazar et al. 2020, "Masked Language Model Scoring")."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.tasks.fill_mask import logits_at
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, run_in_order
from xlmr_core.tasks.task import OneOrMany, Task


@dataclass(frozen=True)
class TextScore:
    """How likely a text is, token by token."""

    text: str
    tokens: tuple[str, ...]
    log_probabilities: tuple[float, ...]  # of each token where it is masked and all others are seen; natural logarithm

    @property
    def pseudo_log_likelihood(self) -> float:
        """The sum over all tokens."""
        return math.fsum(self.log_probabilities)

    @property
    def pseudo_perplexity(self) -> float:
        """exp of the mean negative log probability; NaN for an empty text."""
        return math.exp(-self.pseudo_log_likelihood / len(self.tokens)) if self.tokens else math.nan


@dataclass(frozen=True)
class MaskedRow(Row):
    """A text of which one token is to be masked. Its rows share their ids: a copy for each would fill the memory."""

    place: int  # of the token


class Score(Task[XLMRobertaForMaskedLM], OneOrMany[str, TextScore]):
    """Pseudo-log-likelihoods: each token is masked once, and the model says how likely it is in its place."""

    model_class = XLMRobertaForMaskedLM

    def stream(
        self,
        texts: Iterable[str],
        *,
        truncation: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[TextScore]:
        """The score of each text, in order, lazily. A text of n tokens takes n runs of n tokens.

        Args:
            texts: Any iterable.
            truncation: Whether a text that is too long is cut. Otherwise it is an error.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: A text is too long.
        """

        def encode(text: str) -> list[MaskedRow]:
            ids = self._row(text, truncation=truncation).ids
            return [MaskedRow(ids, place) for place in range(1, len(ids) - 1)]

        for encoded, values in run_in_order(
            texts, encode, self._log_probabilities, batch_tokens=batch_tokens, on_error=on_error
        ):
            tokens = tuple(self.tokenizer.id_to_token(row.ids[row.place]) for row in encoded.rows)
            yield TextScore(encoded.input, tokens, tuple(values))

    def _log_probabilities(self, rows: Sequence[MaskedRow]) -> list[float]:
        """Of the token of each row that is masked."""
        mask = self.tokenizer.mask_token_id
        masked = [Row([*row.ids[: row.place], mask, *row.ids[row.place + 1 :]]) for row in rows]
        ids = torch.tensor([[row.ids[row.place]] for row in rows], device=self.device)
        found: list[float] = []
        for logits in logits_at(self.model, masked, [[row.place] for row in rows]):  # (K, V)
            own = logits.gather(1, ids[len(found) : len(found) + len(logits)])
            found += (own[:, 0] - logits.logsumexp(dim=1)).tolist()
        return found
