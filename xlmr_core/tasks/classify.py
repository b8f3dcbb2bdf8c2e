"""Classification: texts or pairs of texts in, labels with scores out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xlmr_core.heads import XLMRobertaForSequenceClassification
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import OneOrMany, Pair, Task, check_finite

Activation = Literal["softmax", "sigmoid", "none"]
ACTIVATION_OF: Mapping[str | None, Activation] = {  # by `config.problem_type`; others go by the number of labels
    "regression": "none",
    "multi_label_classification": "sigmoid",
}


@dataclass(frozen=True)
class LabelScore:
    """A label and its score, with the field names of transformers' text-classification pipeline."""

    label: str
    score: float


@dataclass(frozen=True)
class ZeroShot:
    """Candidate labels with their scores, the best first; fields of transformers' zero-shot-classification pipeline."""

    sequence: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]


class SequenceTask(Task[XLMRobertaForSequenceClassification]):
    """What classification and reranking share: one vector of logits for each row."""

    model_class = XLMRobertaForSequenceClassification

    def _encode(self, text: str | Pair | tuple[str, str], truncation: bool) -> list[Row]:
        if isinstance(text, str):
            return [self._row(text, truncation=truncation)]
        if not isinstance(text, tuple) or len(text) != 2:
            raise ValueError(f"expected a text, or a tuple of two texts, got {type(text).__name__}")
        return [self._pair_row(Pair(*text), truncation=truncation)]

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Row]) -> list[Tensor]:
        logits = self.model(**packed(rows, self.device)).logits.float().cpu()  # (B, C)
        check_finite(logits)
        return list(logits)


class Classify(SequenceTask, OneOrMany[str | tuple[str, str], list[LabelScore]]):
    """Texts to labels: sentiment, topics, language, entailment; regression with one label."""

    def stream(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        top_k: int | None = None,
        activation: Activation | None = None,
        truncation: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[list[LabelScore]]:
        """The labels of each text with their scores, the best first, in the order of the texts, lazily.

        Args:
            texts: Any iterable of texts, or of tuples of two texts.
            top_k: Labels for each text; None for all.
            activation: From logits to scores. By default as the config's `problem_type` says: none for regression,
                sigmoid for several labels at once; without one, sigmoid of a single label, softmax of more.
            truncation: Whether a text that is too long is cut. Otherwise it is an error.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: A text is too long, or the model's numbers are not finite.
        """
        results = run_in_order(
            texts,
            lambda text: self._encode(text, truncation),
            self._logits,
            batch_tokens=batch_tokens,
            on_error=on_error,
        )
        for _, [logits] in results:
            scores = activate(logits, activation or ACTIVATION_OF.get(self.model.config.problem_type)).tolist()
            ranked = sorted(map(LabelScore, self.model.config.labels, scores), key=lambda x: x.score, reverse=True)
            yield ranked[:top_k]

    def zero_shot(self, text: str, labels: Sequence[str], **options: Any) -> ZeroShot:
        """Which of your own labels fit a text; options as for `zero_shot_stream`."""
        [result] = self.zero_shot_stream([text], labels, **options)
        return result

    def zero_shot_stream(
        self,
        texts: Iterable[str],
        labels: Sequence[str],
        *,
        template: str = "This example is {}.",
        multi_label: bool = False,
        truncation: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[ZeroShot]:
        """Which of your own labels fit each text, the best first, in the order of the texts, lazily.

        It needs a checkpoint that was trained on natural language inference (Yin et al. 2019).
        Each label, put into the template, is a hypothesis about the text; its score is how far the text entails it.

        Args:
            texts: The premises, any iterable.
            labels: The candidates.
            template: Contains {} where the label goes.
            multi_label: Whether each label is judged on its own, against contradiction. Otherwise the scores add up
                to 1.
            truncation: Whether a pair that is too long is cut. Otherwise it is an error.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Raises:
            ValueError: No labels, a template without {}, or a checkpoint without a label that begins with "entail".
        """
        entailment = self._check_zero_shot(labels, template)
        one_by_one = multi_label or len(labels) == 1

        def encode(text: str) -> list[Row]:
            return [self._pair_row(Pair(text, template.format(label)), truncation=truncation) for label in labels]

        results = run_in_order(texts, encode, self._logits, batch_tokens=batch_tokens, on_error=on_error)
        for encoded, rows in results:
            logits = torch.stack(list(rows))  # (labels, C)
            if one_by_one:
                contradiction = -1 if entailment == 0 else 0  # as transformers has it
                scores = logits[:, [contradiction, entailment]].softmax(dim=1)[:, 1]
            else:
                scores = logits[:, entailment].softmax(dim=0)
            order = scores.argsort(descending=True, stable=True).tolist()
            yield ZeroShot(encoded.input, tuple(str(labels[i]) for i in order), tuple(scores[order].tolist()))

    def _check_zero_shot(self, labels: Sequence[str], template: str) -> int:
        """The index of the label for entailment."""
        if not labels:
            raise ValueError("there are no candidate labels: name at least one")
        if template.format("x") == template:
            raise ValueError(f"the template {template!r} has no {{}} where the label goes")
        names = [name.lower() for name in self.model.config.labels]
        entailment = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
        if entailment is None:
            raise ValueError(
                f"the model's labels are {', '.join(self.model.config.labels)}: zero-shot classification needs a "
                "checkpoint trained on natural language inference, with a label that begins with 'entail'"
            )
        return entailment


def activate(logits: Tensor, activation: Activation | None) -> Tensor:  # (C) -> (C)
    """Logits of one text as scores; None: sigmoid of a single logit, softmax of several."""
    chosen = activation or ("sigmoid" if len(logits) == 1 else "softmax")
    if chosen not in get_args(Activation):
        raise ValueError(f"activation {chosen!r} is not one of {', '.join(get_args(Activation))}")
    if chosen == "softmax":
        return logits.softmax(dim=-1)
    return logits.sigmoid() if chosen == "sigmoid" else logits
