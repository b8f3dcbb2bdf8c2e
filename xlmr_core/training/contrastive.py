"""The objective of embedding: texts with the same meaning get vectors that are near to each other."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.model import XLMRobertaModel
from xlmr_core.tasks.embed import POOLINGS
from xlmr_core.training.batches import Batch
from xlmr_core.training.examples import Example
from xlmr_core.training.metrics import Scores, ranks, retrieval
from xlmr_core.training.objective import HeldOut, Objective, Result, columns, full
from xlmr_core.training.records import Record


class Embedding(Objective):
    """A text is nearer to its positive than to the other texts of its batch (van den Oord et al. 2018, InfoNCE)."""

    model_class = XLMRobertaModel
    score_names = ("mrr", "accuracy_at_1")

    def examples(self, record: Record) -> Iterable[Example]:
        return [self.encoder.embed(record)]

    def outputs(self, model: Any, batch: Batch) -> Tensor:  # -> (B, H)
        hidden = full(model(**batch.inputs).last_hidden_state)
        pool = POOLINGS[self.choices.pooling]
        return F.normalize(torch.stack([pool(own) for own in hidden.split(batch.lengths.tolist())]), dim=-1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        texts = [own.split([1, 1, len(own) - 2]) for own in outputs.split(batch.sequences)]
        anchors, positives, negatives = (torch.cat(part) for part in zip(*texts, strict=True))
        scores = anchors @ torch.cat([positives, negatives]).T / self.choices.temperature
        scores = scores.masked_fill(_not_negatives(batch).to(scores.device), -torch.inf)
        return F.cross_entropy(scores, torch.arange(len(anchors), device=scores.device), reduction="sum")

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        return [own[:2].cpu() for own in outputs.split(batch.sequences)]

    def results(self, predictions: Sequence[Any], held_out: HeldOut) -> list[Result]:
        """The rank of each positive among all different positives."""
        numbers: dict[str, int] = {}
        right = [numbers.setdefault(record.text("positive"), len(numbers)) for record in held_out.records]
        passages = {number: vectors[1] for number, vectors in zip(right, predictions, strict=True)}
        found = ranks(
            torch.stack([vectors[0] for vectors in predictions]),
            torch.stack([passages[number] for number in range(len(numbers))]),
            right,
        )
        return [Result(held_out.language(row), 1, rank) for row, rank in enumerate(found)]

    def scores(self, results: Sequence[Result]) -> Scores:
        return retrieval(columns(results)[1])


def _not_negatives(batch: Batch) -> Tensor:  # -> (anchors, passages), boolean
    """The passages of other rows of a batch that are positives of the same anchor: they mean the same, too."""
    texts = iter([tuple(ids.tolist()) for ids in batch.input_ids.cpu().split(batch.lengths.tolist())])
    rows = [list(islice(texts, count)) for count in batch.sequences]
    positives_of: dict[Any, set[Any]] = {}
    for anchor, positive, *_ in rows:
        positives_of.setdefault(anchor, set()).add(positive)
    places: dict[Any, list[int]] = {}
    for place, text in enumerate([row[1] for row in rows] + [text for row in rows for text in row[2:]]):
        places.setdefault(text, []).append(place)
    hidden = torch.zeros(len(rows), sum(map(len, places.values())), dtype=torch.bool)
    for number, row in enumerate(rows):
        for positive in positives_of[row[0]]:
            hidden[number, places[positive]] = True
    return hidden.fill_diagonal_(False)  # a row's own positive is at its own number
