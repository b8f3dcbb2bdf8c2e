"""An evaluation during and after fine-tuning: the scores of all rows, of each language and of each class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlmr_core.json_files import read_text
from xlmr_core.training.distributed import rank
from xlmr_core.training.metrics import LOWER_IS_BETTER, Scores
from xlmr_core.training.objective import HeldOut, Objective, Result
from xlmr_core.training.run_folder import write_json_lines


@dataclass(frozen=True)
class Evaluation:
    """The scores of held-out rows."""

    rows: int
    scores: Scores
    languages: Mapping[str, Scores] = field(default_factory=dict[str, Scores])
    classes: Mapping[str, Scores] = field(default_factory=dict[str, Scores])

    def __str__(self) -> str:
        """A Markdown table for all rows and the languages, and one for the classes."""
        tables = [_table("rows", {"all": self.scores, **self.languages})]
        if self.classes:
            tables.append(_table("class", self.classes))
        return "\n\n".join(tables)


def evaluate(objective: Objective, model: Any, held_out: HeldOut) -> Evaluation:
    """Evaluates a model. It is put into eval mode and back.

    Args:
        objective: The task.
        model: The model.
        held_out: The rows.

    Returns:
        The scores.
    """
    was_training = model.training
    model.eval()
    results, loss = objective.evaluate(model, held_out)
    model.train(was_training)
    by_language: dict[str, list[Result]] = {}
    for result in results:
        if result.language is not None:
            by_language.setdefault(result.language, []).append(result)
    return Evaluation(
        rows=len(held_out.records),
        scores={**loss, **objective.scores(results)},
        languages={name: objective.scores(by_language[name]) for name in sorted(by_language)},
        classes=objective.class_scores(results),
    )


class History:
    """The evaluations of a run, one a line in a file.

    An evaluation is written before the state of its step is saved. So a resumed run drops those after its step, and
    makes them again.

    Args:
        path: The file; it need not exist.
        metric: The score that decides.
        steps: The number of steps that the run has taken.

    Raises:
        ValueError: The file is damaged.
    """

    def __init__(self, path: Path, metric: str, steps: int) -> None:
        self.path = path
        self.metric = metric
        self.rows = [row for row in _read_rows(path) if row["step"] <= steps] if path.exists() else []

    def add(self, step: int, scores: Scores) -> bool:
        """Keeps an evaluation; the first process of torchrun writes it, too.

        Args:
            step: The number of steps that were taken.
            scores: The scores.

        Returns:
            Whether it is the best one so far.

        Raises:
            ValueError: The scores do not have the metric.
        """
        if self.metric not in scores:
            raise ValueError(f"the held-out rows are too few for the score {self.metric!r}: give more, or use the loss")
        self.rows.append({"step": step, "scores": scores})
        if rank() == 0:
            write_json_lines(self.path, self.rows)
        return self._best() == len(self.rows) - 1

    def is_over(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations brought nothing better; never if it is None."""
        return patience is not None and bool(self.rows) and len(self.rows) - 1 - self._best() >= patience

    def _best(self) -> int:
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        values = [sign * row["scores"][self.metric] for row in self.rows]
        return values.index(max(values))


def _table(first: str, rows: Mapping[str, Scores]) -> str:
    columns = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, scores in rows.items():
        cells = [_cell(scores[column]) if column in scores else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        if not all(type(row["step"]) is int and isinstance(row["scores"], dict) for row in rows):
            raise ValueError("a line does not hold a step and its scores")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not the history of a run ({error}): begin again in an empty folder") from error
    return rows
