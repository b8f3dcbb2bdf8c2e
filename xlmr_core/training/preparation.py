"""What fine-tuning needs before its first step: the classes in the rows, a model with the head, encoded examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import Unpack

from xlmr_core.hub_options import HubOptions
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.training.batches import Examples
from xlmr_core.training.examples import Example, listed
from xlmr_core.training.objective import HeldOut, Objective
from xlmr_core.training.records import Record

ClassWeights = Mapping[str, float] | Literal["balanced"] | None


def load_model(
    objective: type[Objective],
    source: str | PathLike[str],
    labels: Sequence[str],
    *,
    dropout: float | None = None,
    **hub: Unpack[HubOptions],
) -> PretrainedModel:
    """Loads a checkpoint for a task. A head that it has is kept if its classes are the same, else it is made fresh.

    Args:
        objective: The task.
        source: A hub id, a folder, or "xlmr-tiny".
        labels: The names of the classes; empty for a head without classes.
        dropout: The dropout probability everywhere; None for that of the checkpoint.
        hub: As for `XLMRobertaModel.from_pretrained`.

    Returns:
        The model in train mode. A class that the checkpoint has already keeps its number.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    model: Any = objective.model_class.from_pretrained(source, attention="sdpa", new_head=True, **hub)
    config = replace(model.config, problem_type=objective.problem_type)
    if labels and (_has_new_head(model) or set(labels) != set(config.labels)):
        config = replace(config, labels=tuple(labels))
        _add_new_head(model, config)
    model.config = config
    if dropout is not None:
        set_dropout(model, dropout)
    return model.train()


def set_dropout(model: PretrainedModel, dropout: float) -> None:
    """Changes the dropout probability of a model everywhere, in its config, too.

    Args:
        model: The model.
        dropout: The probability.
    """
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "classifier_dropout": None}
    model.config = replace(model.config, **rates)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def freeze(model: PretrainedModel, layers: int | None) -> None:
    """Excludes parameters from training: those of no use for the loss, and on request the lower layers.

    Args:
        model: The model.
        layers: The embeddings and so many of the first layers are not trained; None: all are.

    Raises:
        ValueError: The model has fewer layers.
    """
    encoder: Any = getattr(model, "encoder", model)
    if encoder.pooler is not None:
        encoder.pooler.requires_grad_(False)  # no task here uses its output
    if layers is None:
        return
    if layers > len(encoder.layers):
        raise ValueError(f"freeze must be at most {len(encoder.layers)}, the number of layers, not {layers}")
    encoder.embeddings.requires_grad_(False)
    for layer in encoder.layers[:layers]:
        layer.requires_grad_(False)


def weights_of_classes(chosen: ClassWeights, counts: Mapping[str, int], labels: Sequence[str]) -> list[float] | None:
    """The weight of each class in the loss.

    Args:
        chosen: The weights by class, 1 where there is none; "balanced": each class counts as much as the others in all.
        counts: How often each class occurs.
        labels: The classes, in the order of the logits.

    Returns:
        The weights in the order of `labels`; None where all are 1.

    Raises:
        ValueError: A weight is given for an unknown class, or is not positive.
    """
    if chosen is None:
        return None
    if chosen == "balanced":
        total = sum(counts.values())
        return [total / (len(counts) * counts[label]) for label in labels]
    for label, weight in chosen.items():
        if label not in labels:
            raise ValueError(f"class_weights names {label!r}, which is not one of the classes {listed(labels)}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of the class {label!r} must be positive, not {weight}")
    return [chosen.get(label, 1.0) for label in labels]


def encoded(objective: Objective, records: Iterator[Record]) -> Examples:
    """The examples of all rows.

    Args:
        objective: The task.
        records: The rows.

    Raises:
        ValueError: A row does not have what the task needs. The message names the file, the row and the field.
    """
    return Examples(example for record in records for example in objective.examples(record))


def held_out_of(objective: Objective, records: Iterator[Record], batch_tokens: int) -> HeldOut:
    """The rows of an evaluation and their examples.

    Args:
        objective: The task.
        records: The rows.
        batch_tokens: Tokens that run together.

    Raises:
        ValueError: A row does not have what the task needs.
    """
    rows: list[Record] = []
    owners: list[int] = []

    def examples() -> Iterator[Example]:
        for record in records:
            for example in objective.examples(record):
                owners.append(len(rows))
                yield example
            rows.append(record)

    found = Examples(examples())
    return HeldOut(rows, found, owners, found.in_order_of_length(batch_tokens))


def _has_new_head(model: PretrainedModel) -> bool:
    assert model.load_report is not None
    return any(
        status.status == "filled" and not name.startswith("encoder.")
        for name, status in model.load_report.model_keys.items()
    )


@torch.no_grad()
def _add_new_head(model: Any, config: Any) -> None:
    """A head for other classes, with fresh weights as `PretrainedModel.initialize` makes them."""
    model.add_head(config)
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder."):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.initializer_range)
            else:
                nn.init.zeros_(parameter)
