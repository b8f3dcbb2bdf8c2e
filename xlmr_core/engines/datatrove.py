"""A step of a datatrove pipeline: documents in, documents with the result of a task out."""

from collections import deque
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import torch
from datatrove.pipeline.base import PipelineStep  # pyright: ignore[reportMissingImports] an extra

from xlmr_core.engines.texts import Errors, TaskClass, plain, results


class TaskStep(PipelineStep):  # pyright: ignore[reportUntypedBaseClass]
    """Runs a task over the texts of the documents and puts each result into the metadata.

    The documents keep their order. datatrove's executors skip the tasks that were completed, and begin the others anew.
    """

    name = "XLM-R"
    type = "TASK"

    def __init__(
        self,
        task: TaskClass,
        source: str | PathLike[str],
        *,
        key: str,
        errors: Errors = "fail",
        device: str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        **options: Any,
    ) -> None:
        """Describes the step. The model is loaded when the step begins, in the process that runs it.

        Args:
            task: `Embed`, `Classify` or `Tag`.
            source: A checkpoint, as for `from_pretrained`.
            key: The name of the result in `Document.metadata`: a list of numbers for `Embed`, else of dicts.
            errors: "fail" ends the task of the executor at a document that the model cannot take. "skip" gives the
                document the result None and its error as "error" in the metadata, which is None for the others.
            device: Where to run.
            dtype: The precision to run in; None keeps that of the file.
            options: Of the task's `stream`: `truncation`, `prompt`, `top_k`.
        """
        super().__init__()
        self.task = task
        self.source = source
        self.key = key
        self.errors: Errors = errors
        self.device = device
        self.dtype = dtype
        self.options = options

    def run(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The documents with their results, in order, lazily.

        Args:
            data: Documents.
            rank: The number of this task of the executor; not used, as in other steps that read no files.
            world_size: The number of tasks; not used.

        Raises:
            ValueError: `errors` is "fail", and the model cannot take a document.
        """
        task = self.task.from_pretrained(self.source, device=self.device, dtype=self.dtype)
        waiting: deque[Any] = deque()  # read, and without a result so far

        def texts() -> Iterator[tuple[str, Any]]:
            for document in data or ():
                waiting.append(document)
                yield f"document {document.id}", document.text

        for result, error in results(task, texts(), self.options, self.errors):
            document = waiting.popleft()
            document.metadata[self.key] = None if result is None else plain(result)
            if self.errors == "skip":
                document.metadata["error"] = error
            self.update_doc_stats(document)
            self.stat_update("errors", value=int(error is not None))
            yield document
