"""sentence-transformers folders: where the encoder lies, and how its vectors become one for a text.

`modules.json` lists the steps by the names of Python classes. The names are compared with the few known here, and
nothing of that library is imported or run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmr_core.checkpoint.mapping import CheckpointError

MODULES = "modules.json"
POOLING = {  # the switches in the pooling's config.json
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceConfig:
    """What a sentence-transformers folder does with a text."""

    transformer: Path  # the folder of config.json and the weights
    pooling: tuple[str, ...]  # values of POOLING; the vectors of more than one are put in a row
    normalize: bool  # to length 1 at the end
    max_tokens: int | None  # where longer texts are cut; None: at the model's limit


def read_sentence_config(folder: Path) -> SentenceConfig:
    """Reads modules.json and the small files it names. Raises CheckpointError for a step that is not known here."""
    pooling: tuple[str, ...] = ()
    normalize = False
    transformer: Path | None = None
    for module in _json(folder / MODULES, list):
        if not isinstance(module, dict) or not all(isinstance(module.get(name), str) for name in ("type", "path")):
            raise CheckpointError(f"{folder / MODULES} lists something else than modules with a type and a path")
        place = _inside(folder, module["path"])
        match module["type"].rpartition(".")[2]:
            case "Transformer" if transformer is None:
                transformer = place
            case "Pooling" if transformer is not None and not pooling:
                switches = _json(place / "config.json", dict)
                pooling = tuple(name for switch, name in POOLING.items() if switches.get(switch) is True)
            case "Normalize" if pooling:
                normalize = True
            case _:
                raise CheckpointError(
                    f"{folder / MODULES} has the step {module['type']!r} where it is not known here: "
                    "a Transformer, then a Pooling, then perhaps a Normalize are"
                )
    if transformer is None or not pooling:
        raise CheckpointError(f"{folder / MODULES} does not say which transformer and which pooling to use")
    limit = transformer / "sentence_bert_config.json"
    max_tokens = _json(limit, dict).get("max_seq_length") if limit.is_file() else None
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise CheckpointError(f"{limit} has max_seq_length {max_tokens!r}, which is no number of tokens")
    return SentenceConfig(transformer, pooling, normalize, max_tokens)


def transformer_folder(path: Path) -> Path:
    """The folder that holds the model: `path`, or the one its modules.json names if `path` has no config.json."""
    if (path / MODULES).is_file() and not (path / "config.json").is_file():
        return read_sentence_config(path).transformer
    return path


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path} does not hold a JSON {'list' if kind is list else 'object'}")
    return content


def _inside(folder: Path, name: str) -> Path:
    """The folder of that name in `folder`. Raises CheckpointError for a name that leads elsewhere."""
    place = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not place.is_dir():
        raise CheckpointError(f"{folder / MODULES} says that a module lies in {name!r}, which is no folder in it")
    return place
