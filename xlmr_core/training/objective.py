"""What the loop of fine-tuning asks of a task: a model class, examples, a loss and scores. objectives.py has the tasks.

A loss is a sum over what is predicted, and `weight` says of how much: the loop divides the sum of all batches of a step
by their weight, so that a step of four batches is that of one batch four times as large.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlmr_core.pretrained import PretrainedModel
from xlmr_core.training.batches import Batch, Examples
from xlmr_core.training.examples import Encoder, Example
from xlmr_core.training.metrics import Scores
from xlmr_core.training.records import Record


@dataclass(frozen=True)
class Choices:
    """The settings that an objective depends on."""

    class_weights: Sequence[float] | None = None  # of each class, in the order of the logits
    temperature: float = 0.05  # of the contrastive loss
    pooling: str = "mean"


class Objective(ABC):
    """What the loop asks of a task.

    Args:
        encoder: Makes the examples.
        choices: The settings of the task.
    """

    model_class: ClassVar[type[PretrainedModel]]
    problem_type: ClassVar[str | None] = None  # of the config
    score_names: ClassVar[tuple[str, ...]]  # beside the loss; the first decides which weights are kept

    def __init__(self, encoder: Encoder, choices: Choices) -> None:
        self.encoder = encoder
        self.choices = choices

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return list(self.encoder.labels)

    @classmethod
    def class_counts(cls, records: Iterable[Record]) -> dict[str, int]:
        """How often each class occurs in the training rows; empty for a task without classes.

        Args:
            records: The training rows.

        Raises:
            ValueError: There is nothing to learn from the rows.
        """
        return {}

    @abstractmethod
    def examples(self, record: Record) -> Iterable[Example]:
        """The examples in a row: several for a long one."""

    @abstractmethod
    def outputs(self, model: Any, batch: Batch) -> Tensor:
        """What the model answers to a batch, with gradients."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, as a sum."""

    def weight(self, batch: Batch) -> float:
        """What the sum is a sum over: by default the examples."""
        return len(batch.sequences)

    @abstractmethod
    def predictions(self, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        """For each example of a batch, what is right and what the model predicts."""

    def results(self, predictions: Sequence[Any], held_out: "HeldOut") -> "list[Result]":
        """The predictions for all examples, put together to one result for each row."""
        return [Result(held_out.language(owner), *own) for owner, own in zip(held_out.owners, predictions, strict=True)]

    @abstractmethod
    def scores(self, results: "Sequence[Result]") -> Scores:
        """The scores of some results: all of them, or those of one language."""

    def class_scores(self, results: "Sequence[Result]") -> Mapping[str, Scores]:
        """The scores of each class; none where the task has no classes."""
        return {}

    @torch.no_grad()
    def evaluate(self, model: Any, held_out: "HeldOut") -> "tuple[list[Result], Scores]":
        """The results for all rows, and the loss.

        Args:
            model: The model, in eval mode.
            held_out: The rows.
        """
        device = next(model.parameters()).device
        predictions: dict[int, Any] = {}
        loss, weight = 0.0, 0.0
        for indices in held_out.batches:
            batch = held_out.examples.batch(indices).to(device)
            outputs = self.outputs(model, batch)
            loss += self.loss(outputs, batch).item()
            weight += self.weight(batch)
            predictions.update(zip(indices, self.predictions(outputs, batch), strict=True))
        ordered = [predictions[i] for i in range(len(held_out.examples))]
        return self.results(ordered, held_out), {"loss": loss / (weight or 1.0)}


@dataclass(frozen=True)
class Result:
    """What was right and what was predicted for a text, or for a query with all its passages."""

    language: str | None
    gold: Any
    predicted: Any


@dataclass(frozen=True)
class HeldOut:
    """The rows of an evaluation and their examples."""

    records: Sequence[Record]
    examples: Examples
    owners: Sequence[int]  # the number of the row that each example comes from
    batches: Sequence[Sequence[int]]  # of the numbers of examples

    def language(self, row: int) -> str | None:
        """The language of a row; None where it does not say."""
        record = self.records[row]
        return record.label("language") if record.has("language") else None


def columns(results: Sequence[Result]) -> tuple[list[Any], list[Any]]:
    return [result.gold for result in results], [result.predicted for result in results]


def full(numbers: Tensor) -> Tensor:
    """In float32 at least: a loss in bfloat16 is too coarse."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def class_weights(choices: Choices, like: Tensor) -> Tensor | None:
    return None if choices.class_weights is None else like.new_tensor(choices.class_weights)


def padded(logits: Tensor, lengths: list[int]) -> Tensor:  # (T,) -> (B, S)
    """A row for each sequence, filled up with what softmax makes 0."""
    return pad_sequence(list(logits.split(lengths)), batch_first=True, padding_value=-torch.inf)
