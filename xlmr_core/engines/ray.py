"""A callable class for Ray Data's `map_batches`: batches in, batches with one column more out."""

from os import PathLike
from typing import Any

import pyarrow as pa
import torch

from xlmr_core.engines.texts import Errors, TaskClass, plain, results
from xlmr_core.tasks import Classify, Embed, Tag

LABEL = [("label", pa.string()), ("score", pa.float64())]
PLACE = [("word", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("index", pa.int64())]
TYPES = {  # of the new column: without them, a batch in which all lists are empty would have another type
    Embed: pa.list_(pa.float32()),
    Classify: pa.list_(pa.struct(LABEL)),
    Tag: pa.list_(pa.struct(LABEL + PLACE)),
}


class TaskBatches:
    """Runs a task over a column of texts. Ray makes one in each of its actors, which loads the model once.

    Call `map_batches` with `batch_format="pyarrow"`. Ray replaces an actor that was killed and repeats its batches.
    """

    def __init__(
        self,
        task: TaskClass,
        source: str | PathLike[str],
        *,
        key: str,
        column: str = "text",
        errors: Errors = "fail",
        device: str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        **options: Any,
    ) -> None:
        """Loads the model.

        Args:
            task: `Embed`, `Classify` or `Tag`.
            source: A checkpoint, as for `from_pretrained`.
            key: The name of the new column: lists of float32 for `Embed`, else lists of structs.
            column: The name of the column of texts.
            errors: "fail" raises at a text that the model cannot take. "skip" gives it a null and its error in a
                column "error", which is null for the others.
            device: Where to run.
            dtype: The precision to run in; None keeps that of the file.
            options: Of the task's `stream`: `truncation`, `prompt`, `top_k`.
        """
        self.task = task.from_pretrained(source, device=device, dtype=dtype)
        self.type = TYPES[task]
        self.key = key
        self.column = column
        self.errors: Errors = errors
        self.options = options

    def __call__(self, batch: Any) -> Any:  # pyarrow has no types
        """The batch with the results, in the same order.

        Args:
            batch: A `pyarrow.Table` with the column of texts.

        Raises:
            ValueError: There is no such column; or `errors` is "fail", and the model cannot take a text.
        """
        if self.column not in batch.column_names:
            raise ValueError(
                f"the batch has no column {self.column!r}; its columns are {', '.join(batch.column_names)}: name one "
                "by column="
            )
        texts = ((f"text {number}", text) for number, text in enumerate(batch[self.column].to_pylist(), start=1))
        found = list(results(self.task, texts, self.options, self.errors))
        values = [None if result is None else plain(result) for result, _ in found]
        batch = batch.append_column(self.key, pa.array(values, self.type))
        if self.errors == "skip":
            batch = batch.append_column("error", pa.array([error for _, error in found], pa.string()))
        return batch
