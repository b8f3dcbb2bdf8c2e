"""sentence-transformers folders: where the encoder lies, and how its vectors become one for a text.

`modules.json` lists the steps by the names of Python classes. The names are compared with the few known here, and
nothing of that library is imported or run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from xlmr_core.atomic import written_as
from xlmr_core.checkpoint.cache import check_link
from xlmr_core.errors import CheckpointError

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
SETTINGS = "config.json"  # of a step
# In the transformer's folder; the first one that is there holds. The last two are what old versions wrote.
LIMITS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
SIZE_LIMIT = 2**20  # bytes of one of these files; published ones have a few hundred
SWITCHES = {  # in the pooling's settings, in the order in which the vectors of more than one are put in a row
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
MODES = {  # newer versions name them instead, one or a list: `pooling_mode`
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceConfig:
    """What a sentence-transformers folder does with a text."""

    transformer: Path  # the folder of config.json and the weights
    pooling: tuple[str, ...]  # values of MODES; the vectors of more than one are put in a row
    normalize: bool  # to length 1 at the end
    max_tokens: int | None  # where longer texts are cut; None: at the model's limit

    def __str__(self) -> str:
        length = ", then length 1" if self.normalize else ""
        limit = "" if self.max_tokens is None else f", at most {self.max_tokens} tokens"
        return f"pooling {' + '.join(self.pooling)}{length}{limit}"


def write_sentence_config(folder: Path, pooling: str, *, normalize: bool, max_tokens: int, width: int) -> None:
    """Makes a checkpoint a sentence-transformers folder: that library and `Embed` read these files.

    Args:
        folder: The folder of the model.
        pooling: One of the values of MODES.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: Where longer texts are cut.
        width: The number of entries of a vector.
    """
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    switches = {switch: name == pooling for switch, name in SWITCHES.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    content: dict[str, Any] = {
        "1_Pooling/config.json": {"word_embedding_dimension": width, **switches},
        LIMITS[0]: {"max_seq_length": max_tokens, "do_lower_case": False},
        MODULES: modules,  # last: it names the others
    }
    for name, values in content.items():
        with written_as(folder / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_sentence_config(folder: Path) -> SentenceConfig:
    """Reads modules.json and the small files it names. Raises CheckpointError for a step that is not known here."""
    pooling: tuple[str, ...] = ()
    normalize = False
    transformer: Path | None = None
    for kind, path in _steps(folder):
        match kind.rpartition(".")[2]:
            case "Transformer" if transformer is None:
                transformer = _inside(folder, path)
            case "Pooling" if transformer is not None and not pooling:
                pooling = _pooling(_inside(folder, path) / SETTINGS)
            case "Normalize" if pooling:  # it has no settings, and its empty folder is not there in a git repository
                normalize = True
            case _:
                raise CheckpointError(
                    f"{folder / MODULES} has the step {kind!r} where it is not known here: "
                    "a Transformer, then a Pooling, then perhaps a Normalize are"
                )
    if transformer is None or not pooling:
        raise CheckpointError(f"{folder / MODULES} does not say which transformer and which pooling to use")
    limits = [transformer / name for name in LIMITS if (transformer / name).is_file()]
    max_tokens = _json(limits[0], dict).get("max_seq_length") if limits else None
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise CheckpointError(f"{limits[0]} has max_seq_length {max_tokens!r}, which is not a number of tokens")
    return SentenceConfig(transformer, pooling, normalize, max_tokens)


def read_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts of a sentence-transformers folder by name, and the name of the one that is used by default.

    Raises CheckpointError if the file is not what that library writes.
    """
    if not (folder / PROMPTS).is_file():
        return {}, None
    settings = _json(folder / PROMPTS, dict)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{folder / PROMPTS} has prompts that are not a table of texts")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{folder / PROMPTS} names the default prompt {default!r}, which is not one of its prompts"
        )
    return {str(name): text for name, text in prompts.items()}, default


def transformer_folder(path: Path) -> Path:
    """The folder that holds the model: `path`, or the one its modules.json names if `path` has no config.json."""
    if (path / MODULES).is_file() and not (path / "config.json").is_file():
        return _inside(path, transformer_path(path))
    return path


def transformer_path(folder: Path) -> str:
    """Where modules.json says that the transformer lies: a path in `folder`, "" for `folder` itself."""
    for kind, path in _steps(folder):
        if kind.rpartition(".")[2] == "Transformer":
            return path
    raise CheckpointError(f"{folder / MODULES} does not say which transformer to use")


# ---- copying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carried:
    """What of a sentence-transformers folder goes with its model into a new folder."""

    place: str = ""  # of the model in the new folder: a path in it, "" for the folder itself
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])  # by path in the folder, as they were
    notes: tuple[str, ...] = ()  # for a report

    def write(self, folder: Path) -> None:
        """Writes the files below `folder`, but not over one that is there."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)


def carried_from(folder: Path, model: Path) -> Carried:
    """What is to be carried from `folder`, whose model was read from the folder `model`.

    Nothing, if it is no sentence-transformers folder. Where its configuration is not understood, a note says why.
    """
    if not (folder / MODULES).is_file():
        return Carried()
    try:
        config = read_sentence_config(folder)
        if config.transformer.resolve() != model.resolve():
            raise CheckpointError(f"it names the model in {config.transformer}, and that in {model} was read")
        files: dict[str, bytes] = {}
        for name in file_names(folder):
            if (folder / name).is_file():
                _json(check_link(folder / name, folder), list if name == MODULES else dict)
                files[name] = (folder / name).read_bytes()
    except CheckpointError as error:
        return Carried(notes=(f"note: {MODULES} and what belongs to it are not carried over: {error}",))
    return Carried(transformer_path(folder), files)


def file_names(folder: Path) -> list[str]:
    """The files of the configuration by their paths in `folder`, whether or not they are there; modules.json first."""
    names = [MODULES, PROMPTS]
    for kind, path in _steps(folder):
        own = LIMITS if kind.rpartition(".")[2] == "Transformer" else (SETTINGS,)
        names += [str(PurePosixPath(path, name)) for name in own]
    return names


# ---- the small files ------------------------------------------------------------------------------------------------


def _steps(folder: Path) -> list[tuple[str, str]]:
    """The class of each step and its path in the folder. Raises CheckpointError for a path that leads elsewhere."""
    steps: list[tuple[str, str]] = []
    for module in _json(folder / MODULES, list):
        if not isinstance(module, dict) or not all(isinstance(module.get(name), str) for name in ("type", "path")):
            raise CheckpointError(f"{folder / MODULES} lists something else than modules with a type and a path")
        path = PurePosixPath(module["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in str(path) or not str(path).isprintable():
            raise _leads_elsewhere(folder, module["path"])
        steps.append((module["type"], "" if path == PurePosixPath() else str(path)))
    return steps


def _inside(folder: Path, path: str) -> Path:
    """The folder at that path in `folder`. Raises CheckpointError if there is none, or a link leads out of it."""
    place = folder / path
    if not place.is_dir() or not place.resolve().is_relative_to(folder.resolve()):
        raise _leads_elsewhere(folder, path)
    return place


def _leads_elsewhere(folder: Path, path: str) -> CheckpointError:
    return CheckpointError(f"{folder / MODULES} says that a module lies in {path!r}, which is not a folder in it")


def _pooling(path: Path) -> tuple[str, ...]:
    """The ways of pooling that the settings name or switch on."""
    settings = _json(path, dict)
    named = settings.get("pooling_mode")
    if named is None:
        return tuple(name for switch, name in SWITCHES.items() if settings.get(switch) is True)
    modes = named if isinstance(named, list) else [named]
    unknown = [mode for mode in modes if not isinstance(mode, str) or mode not in MODES]
    if unknown:
        raise CheckpointError(f"{path} has pooling_mode {unknown[0]!r}, which is not one of {', '.join(MODES)}")
    return tuple(MODES[mode] for mode in modes)


def _json(path: Path, kind: type) -> Any:
    try:
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise CheckpointError(f"{path} has {size} bytes; at most {SIZE_LIMIT} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path} does not hold a JSON {'list' if kind is list else 'object'}")
    return content
