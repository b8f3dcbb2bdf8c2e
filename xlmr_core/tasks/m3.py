"""BGE-M3: one text as a dense vector, as weights of its words, and as a vector for each token (Chen et al. 2024)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.heads import XLMRobertaForM3
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import OneOrMany, Task


@dataclass(frozen=True)
class M3Vectors:
    """A text in three ways."""

    dense: Tensor  # (H,), of length 1
    sparse: dict[int, float]  # weight of each token id in the text; of equal tokens the largest
    colbert: Tensor  # (S - 1, H): a vector of length 1 for each token but <s>


@dataclass(frozen=True)
class M3Scores:
    """How similar two texts are, in three ways and all together."""

    dense: float
    sparse: float
    colbert: float
    combined: float  # weighted mean of the three


class M3(Task[XLMRobertaForM3], OneOrMany[str, M3Vectors]):
    """Texts to the three representations of BGE-M3."""

    model_class = XLMRobertaForM3

    def stream(
        self,
        texts: Iterable[str],
        *,
        truncation: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[M3Vectors]:
        """The representations of each text, in order, lazily.

        Args:
            texts: Any iterable.
            truncation: Whether a text that is too long is cut. Otherwise it is an error.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: A text is too long.
        """
        results = run_in_order(
            texts,
            lambda text: [self._row(text, truncation=truncation)],
            self._vectors,
            batch_tokens=batch_tokens,
            on_error=on_error,
        )
        for _, [vectors] in results:
            yield vectors

    @torch.inference_mode()
    def _vectors(self, rows: Sequence[Row]) -> list[M3Vectors]:
        output = self.model(**packed(rows, self.device))
        lengths = [len(row) for row in rows]
        sparse = output.sparse.float().cpu().split(lengths)
        colbert = output.colbert.float().cpu().split(lengths)
        dense = output.dense.float().cpu()
        return [
            M3Vectors(dense[i], _largest(row.ids, sparse[i].tolist()), colbert[i][1:]) for i, row in enumerate(rows)
        ]


def _largest(ids: Sequence[int], weights: Sequence[float]) -> dict[int, float]:
    """The largest weight of each id, of those above 0."""
    found: dict[int, float] = {}
    for number, weight in zip(ids, weights, strict=True):
        if weight > found.get(number, 0.0):
            found[number] = weight
    return found


def m3_scores(
    query: M3Vectors, passage: M3Vectors, *, weights: tuple[float, float, float] = (1.0, 0.3, 1.0)
) -> M3Scores:
    """The similarity of a query and a passage (Chen et al. 2024, section 3.2).

    Args:
        query: Of the query.
        passage: Of the passage.
        weights: Of dense, sparse and colbert in the combined score.
    """
    dense = float(query.dense @ passage.dense)
    sparse = sum(weight * passage.sparse.get(token, 0.0) for token, weight in query.sparse.items())
    colbert = float((query.colbert @ passage.colbert.T).amax(dim=1).mean())  # of each query token, its best match
    parts = (dense, sparse, colbert)
    combined = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
    return M3Scores(dense, sparse, colbert, combined)
