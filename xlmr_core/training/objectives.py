"""The objective of each task: its examples, its loss, its predictions and their scores."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.heads import (
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)
from xlmr_core.tasks.answer import Answer
from xlmr_core.training.batches import Batch
from xlmr_core.training.contrastive import Embedding
from xlmr_core.training.examples import IGNORED, Example, answers_of, count_classes, relevance
from xlmr_core.training.metrics import (
    OUTSIDE,
    Scores,
    answers,
    entity_lists,
    entity_scores,
    has_marks,
    multi_label,
    per_class,
    ranking,
    regression,
    single_label,
)
from xlmr_core.training.objective import HeldOut, Objective, Result, class_weights, columns, full, padded
from xlmr_core.training.records import Record

ANSWER_TOKENS = 30  # longest answer in an evaluation
ONE_LABEL = "LABEL_0"  # of a model with one logit, a score; transformers gives it this name

# ---- a text, or two, to a class or a number --------------------------------------------------------------------------


class SequenceObjective(Objective):
    """The logits of a text."""

    model_class = XLMRobertaForSequenceClassification

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        return {ONE_LABEL: 1}

    def outputs(self, model: Any, batch: Batch) -> Tensor:  # -> (B, C)
        return full(model(**batch.inputs).logits)


class Classification(SequenceObjective):
    """One class of several for each text."""

    problem_type = "single_label_classification"
    score_names = ("accuracy", "macro_f1")

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        return count_classes(records, "label", many=False)

    def examples(self, record: Record) -> Iterable[Example]:
        return [self.encoder.classify(record)]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        weights = class_weights(self.choices, outputs)
        return F.cross_entropy(outputs, batch.targets.long(), weights, reduction="sum")

    def weight(self, batch: Batch) -> float:
        weights = class_weights(self.choices, batch.targets)
        return len(batch.targets) if weights is None else weights[batch.targets.long()].sum().item()

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        best = outputs.argmax(dim=1).tolist()
        right = batch.targets.int().tolist()
        return [(self.labels[gold], self.labels[own]) for gold, own in zip(right, best, strict=True)]

    def scores(self, results: Sequence[Result]) -> Scores:
        return single_label(*columns(results))

    def class_scores(self, results: Sequence[Result]) -> Mapping[str, Scores]:
        return per_class(*columns(results), self.labels)


class MultiLabelClassification(SequenceObjective):
    """Any number of classes for each text."""

    problem_type = "multi_label_classification"
    score_names = ("micro_f1", "macro_f1", "exact")

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        return count_classes(records, "labels", many=True)

    def examples(self, record: Record) -> Iterable[Example]:
        return [self.encoder.classify_multi(record)]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        weights = class_weights(self.choices, outputs)  # of the texts that have the class
        targets = batch.targets.view_as(outputs).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weights, reduction="sum")

    def weight(self, batch: Batch) -> float:
        return len(batch.targets)

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        targets = batch.targets.view_as(outputs).int().tolist()
        return list(zip(targets, (outputs > 0).int().tolist(), strict=True))

    def scores(self, results: Sequence[Result]) -> Scores:
        return multi_label(*columns(results))

    def class_scores(self, results: Sequence[Result]) -> Mapping[str, Scores]:
        numbers = range(len(self.labels))
        by_number = per_class(*columns(results), list(numbers))
        return {label: by_number[i] for i, label in enumerate(self.labels)}


class Regression(SequenceObjective):
    """A number for each text."""

    problem_type = "regression"
    score_names = ("mean_absolute_error", "r2")

    def examples(self, record: Record) -> Iterable[Example]:
        return [self.encoder.regress(record)]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(outputs[:, 0], batch.targets.to(outputs.dtype), reduction="sum")

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        return list(zip(batch.targets.tolist(), outputs[:, 0].tolist(), strict=True))

    def scores(self, results: Sequence[Result]) -> Scores:
        return regression(*columns(results))


class Reranking(SequenceObjective):
    """The relevance of a passage to a query: on its own, or against the other passages of its group."""

    score_names = ("mrr", "ndcg_at_10")

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        kinds: set[float | None] = set()
        for record in records:
            kinds.add(relevance(record) if record.has("passage") else None)
        if None in kinds and len(kinds) > 1:
            raise ValueError("some training rows have a passage and some a group of passages: expected one of the two")
        if len(kinds) == 1 and None not in kinds:
            raise ValueError("the training rows have only one relevance in the field 'label': expected at least two")
        return {ONE_LABEL: 1}

    def examples(self, record: Record) -> Iterable[Example]:
        return self.encoder.rerank(record)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        logits = outputs[:, 0]
        if len(batch.targets):  # a relevance for each passage
            return F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype), reduction="sum")
        groups = padded(logits, batch.sequences)  # (E, passages); the first one is relevant
        return F.cross_entropy(groups, torch.zeros_like(groups[:, 0], dtype=torch.long), reduction="sum")

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        scores = [own.tolist() for own in outputs[:, 0].split(batch.sequences)]
        if len(batch.targets):
            return [([right], own) for right, own in zip(batch.targets.tolist(), scores, strict=True)]
        return [([1.0] + [0.0] * (len(own) - 1), own) for own in scores]

    def results(self, predictions: Sequence[Any], held_out: HeldOut) -> list[Result]:
        """Pairs of one query are one result, as is a group."""
        queries: dict[Any, Result] = {}
        for number, (owner, (gold, own)) in enumerate(zip(held_out.owners, predictions, strict=True)):
            query = held_out.records[owner].text("query") if len(own) == 1 else number
            result = queries.setdefault(query, Result(held_out.language(owner), [], []))
            result.gold.extend(gold)
            result.predicted.extend(own)
        return list(queries.values())

    def scores(self, results: Sequence[Result]) -> Scores:
        return ranking(*columns(results))


# ---- a class for each word -------------------------------------------------------------------------------------------


class Tagging(Objective):
    """A class for the first token of each word."""

    model_class = XLMRobertaForTokenClassification

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        return count_classes(records, "labels", many=True)

    @property
    def score_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] by its labels
        return ("f1", "precision", "recall", "accuracy") if has_marks(self.labels) else ("accuracy",)

    def examples(self, record: Record) -> Iterable[Example]:
        return self.encoder.tag(record)

    def outputs(self, model: Any, batch: Batch) -> Tensor:  # -> (T, C)
        return full(model(**batch.inputs).logits)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        weights = class_weights(self.choices, outputs)
        return F.cross_entropy(outputs, batch.targets.long(), weights, ignore_index=IGNORED, reduction="sum")

    def weight(self, batch: Batch) -> float:
        labelled = batch.targets[batch.targets != IGNORED].long()
        weights = class_weights(self.choices, batch.targets)
        return len(labelled) if weights is None else weights[labelled].sum().item()

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        lengths = batch.lengths.tolist()
        found: list[Any] = []
        for right, own in zip(batch.targets.split(lengths), outputs.argmax(dim=1).split(lengths), strict=True):
            labelled = right != IGNORED
            found.append([[self.labels[int(i)] for i in part[labelled].tolist()] for part in (right, own)])
        return found

    def results(self, predictions: Sequence[Any], held_out: HeldOut) -> list[Result]:
        """The windows of a row are one result."""
        rows = [Result(held_out.language(row), [], []) for row in range(len(held_out.records))]
        for owner, (gold, own) in zip(held_out.owners, predictions, strict=True):
            rows[owner].gold.extend(gold)
            rows[owner].predicted.extend(own)
        return rows

    def scores(self, results: Sequence[Result]) -> Scores:
        words = {"accuracy": single_label(*self._words(results))["accuracy"]}
        if not has_marks(self.labels):
            return words
        return {**entity_scores(*self._entities(results)), **words}

    def class_scores(self, results: Sequence[Result]) -> Mapping[str, Scores]:
        if not has_marks(self.labels):
            return per_class(*self._words(results), self.labels)
        gold, predicted = self._entities(results)
        return per_class(gold, predicted, sorted({*gold, *predicted} - {OUTSIDE}))

    def _words(self, results: Sequence[Result]) -> tuple[list[str], list[str]]:
        gold, predicted = columns(results)
        return list(chain.from_iterable(gold)), list(chain.from_iterable(predicted))

    def _entities(self, results: Sequence[Result]) -> tuple[list[str], list[str]]:
        iobes = any(label.startswith(("E-", "S-")) for label in self.labels)
        return entity_lists(*columns(results), iobes=iobes)


# ---- an answer in a context ------------------------------------------------------------------------------------------


class Answering(Objective):
    """The first and the last token of the answer, in each window of its context."""

    model_class = XLMRobertaForQuestionAnswering
    score_names = ("f1", "exact_match")

    def examples(self, record: Record) -> Iterable[Example]:
        return self.encoder.answer(record)

    def outputs(self, model: Any, batch: Batch) -> Tensor:  # -> (2, T)
        output = model(**batch.inputs)
        return full(torch.stack([output.start_logits, output.end_logits]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets.long().view(-1, 2)  # (B, 2)
        losses = [
            F.cross_entropy(padded(logits, batch.lengths.tolist()), right, reduction="sum")
            for logits, right in zip(outputs, targets.T, strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        return [None] * len(batch.sequences)  # a window on its own has no answer: see `results`

    def evaluate(self, model: Any, held_out: HeldOut) -> tuple[list[Result], Scores]:
        """Answers the questions as the task `Answer` does, and compares the texts."""
        _, loss = super().evaluate(model, held_out)
        questions = [(record.text("question"), record.text("context")) for record in held_out.records]
        gold = [answers_of(record) for record in held_out.records]
        task = Answer(model, self.encoder.tokenizer)
        spans = task.stream(
            questions,
            max_answer_tokens=ANSWER_TOKENS,
            max_tokens=self.encoder.max_tokens,
            overlap=self.encoder.overlap,
            no_answer=not all(gold),
        )
        results = [
            Result(held_out.language(row), right, best[0].answer if best else "")
            for row, (right, best) in enumerate(zip(gold, spans, strict=True))
        ]
        return results, loss

    def results(self, predictions: Sequence[Any], held_out: HeldOut) -> list[Result]:
        return []

    def scores(self, results: Sequence[Result]) -> Scores:
        return answers(*columns(results))


# ---- the table of tasks ----------------------------------------------------------------------------------------------


def objective_of(task: str, problem_type: str) -> type[Objective]:
    """The objective of a task.

    Args:
        task: "classify", "tag", "answer", "embed" or "rerank".
        problem_type: Of "classify": which kind of classification.

    Raises:
        ValueError: There is no such task or problem type.
    """
    classifying: list[type[Objective]] = [Classification, MultiLabelClassification, Regression]
    of_type = {kind.problem_type: kind for kind in classifying}
    if problem_type not in of_type:
        raise ValueError(f"problem_type {problem_type!r} is not one of {', '.join(map(str, of_type))}")
    of_task = {"classify": of_type[problem_type], "tag": Tagging, "answer": Answering}
    of_task |= {"embed": Embedding, "rerank": Reranking}
    if task not in of_task:
        raise ValueError(f"task {task!r} is not one of {', '.join(of_task)}")
    return of_task[task]
