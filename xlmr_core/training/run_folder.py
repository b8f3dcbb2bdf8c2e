"""The folder of a run: which run it holds, and the small files that say so. Both training loops use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlmr_core.atomic import SUFFIX, written_as
from xlmr_core.checkpoint.writing import cast_to
from xlmr_core.json_files import read_json_object
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.lock import LOCK
from xlmr_core.training.state import check_finite

RECORD, STATE = "run.json", "training_state.pt"
WEIGHTS, EVALUATION = "model.safetensors", "evaluation.json"
# Files that exist only after a saved step.
CHECKPOINT = (STATE, WEIGHTS, "config.json", "tokenizer_config.json", EVALUATION)
OF_MODELS = (".json", ".safetensors", ".bin", ".pt", ".model", "dict.txt")  # endings of the names of a model's files
LISTED = 10  # most files named in one message


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run writes.

    Args:
        path: The folder; it need not exist.
        run: The record of the run: its `settings`, and the name and SHA-256 of each source of its `corpus`.
        before: Names of the files that the run writes before its first step.
        after: Names of the files that exist only after a saved step.
    """

    path: Path
    run: Mapping[str, Any]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = CHECKPOINT

    def check(self) -> None:
        """Checks that the folder can be written.

        Raises:
            ValueError: It holds files that no such run writes, or a saved step of another run.
        """
        names = [path.name for path in self.path.iterdir()] if self.path.exists() else []
        allowed = (RECORD, LOCK, *self.before, *self.after) if RECORD in names else (LOCK,)
        foreign = [name for name in names if name not in allowed and _is_of_a_model(name)]
        if foreign:
            listed = ", ".join(sorted(foreign)[:LISTED]) + ", ..." * (len(foreign) > LISTED)
            raise ValueError(
                f"{self.path} holds files that no run of this command writes there: {listed}. Nothing was changed. "
                "Choose an empty folder, or move the files away"
            )
        self.is_begun()

    def is_begun(self) -> bool:
        """Whether the folder holds this run, with all that it writes before its first step.

        Raises:
            ValueError: It holds a saved step of another run.
        """
        record = self.path / RECORD
        if not record.exists():
            return False
        earlier = _read_record(record)
        if earlier == self.run:
            return all((self.path / name).exists() for name in self.before)
        if any((self.path / name).exists() for name in self.after):
            settings = self.run["settings"]
            differing = [name for name in settings if settings[name] != earlier["settings"].get(name)]
            raise ValueError(
                f"{self.path} holds a run with other {', '.join(differing) or 'corpus files, by name or content'}: "
                "give the same settings and text to continue it, or choose an empty folder"
            )
        return False  # no step of the other run was saved: nothing is lost

    def begin(self) -> None:
        """Writes the record of the run."""
        write_json(self.path / RECORD, self.run)

    def write_checkpoint(self, model: PretrainedModel, tokenizer: XLMRobertaTokenizer, dtype: torch.dtype) -> None:
        """Writes the weights, the config and the tokenizer at the end of the run.

        Args:
            model: The model. Its parameters are cast.
            tokenizer: Its tokenizer.
            dtype: The dtype of the weights file.

        Raises:
            ValueError: A weight would be infinite in `dtype`. Nothing was written.
            FloatingPointError: A weight is NaN or infinite. Nothing was written.
        """
        for name, parameter in model.named_parameters():
            parameter.data = cast_to(dtype, parameter.data, name)
        check_finite(model.state_dict(), "at the end")
        (self.path / EVALUATION).unlink(missing_ok=True)  # it describes weights that are about to be replaced
        model.save_pretrained(self.path)
        tokenizer.save_pretrained(self.path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        path: The file.
        values: Its content.
    """
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file with one JSON object a line, whole or not at all.

    Args:
        path: The file.
        rows: The objects.
    """
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: The file.
        content: Its content.
    """
    with written_as(path) as temporary:
        temporary.write_bytes(content)


def _is_of_a_model(name: str) -> bool:
    return name.endswith(OF_MODELS) and not (name.startswith(".") and name.endswith(SUFFIX))


def _read_record(record: Path) -> dict[str, Any]:
    try:
        run = read_json_object(record)
    except ValueError as error:
        raise ValueError(f"{error}. It is not the record of a run: choose an empty folder") from error
    if not isinstance(run.get("settings"), dict) or not isinstance(run.get("corpus"), list):
        raise ValueError(f"{record} is not the record of a run: choose an empty folder")
    return run
