"""Converts a checkpoint from one key layout to another, tensor by tensor. No model is built, and nothing is lost."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from xlmr_core.atomic import folder_written_as
from xlmr_core.checkpoint.cache import check_link
from xlmr_core.checkpoint.fairseq import dictionary_of, notes_for, pieces_of, settings_for
from xlmr_core.checkpoint.files import (
    CONFIG,
    DICTIONARY,
    FAIRSEQ,
    TOKENIZER,
    WEIGHTS,
    Files,
    check_dictionary_beside,
    notes_on_config,
    open_beside,
    open_weights,
    read_config,
    read_config_object,
)
from xlmr_core.checkpoint.inspection import best_class
from xlmr_core.checkpoint.layouts import POSITIONS, TOKEN_TYPES, nest
from xlmr_core.checkpoint.loading import (
    build_on_meta,
    find_checkpoint,
    header_problems,
    notes_on,
    notes_on_files,
    raise_any,
    value_problems,
)
from xlmr_core.checkpoint.mapping import (
    Export,
    ExportPlan,
    KeyStatus,
    Plan,
    export_plan,
    lossy,
    make_plan,
)
from xlmr_core.checkpoint.sentence_transformers import Carried, carried_from
from xlmr_core.checkpoint.writing import STORAGES, Entry, write_safetensors, write_torch, written_once
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.errors import CheckpointError
from xlmr_core.formatting import dtype_name
from xlmr_core.hub_options import HubOptions
from xlmr_core.json_files import TOKENIZER_LIMIT, check_size, read_json_object
from xlmr_core.paths import StrPath
from xlmr_core.progress import Tick, no_tick
from xlmr_core.spec import files_beside, known_groups, spec_of

FOLDED = "note: the token type was added to every position row, as asked: the same model up to rounding"
TOKENIZER_FILES = (TOKENIZER, DICTIONARY, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key of the source, and what every key that was written is made of."""

    source: Path
    destination: Path
    layouts: tuple[str, str]  # read, written
    source_keys: Mapping[str, KeyStatus]
    written_keys: Mapping[str, tuple[str, ...]]  # in our names; empty for a constant of the format
    num_bytes: int  # of the tensors that were written; in a format that shares memory, a tied one counts once
    files: tuple[str, ...]  # in the destination
    notes: tuple[str, ...]

    def __str__(self) -> str:
        statuses = [entry.status for entry in self.source_keys.values()]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        return "\n".join(
            [
                f"{self.source} -> {self.destination}",
                f"layout   {self.layouts[0]} -> {self.layouts[1]}",
                f"read     {len(self.source_keys)} tensors: {counts}",
                f"written  {len(self.written_keys)} tensors, {self.num_bytes:,} bytes",
                f"files    {', '.join(self.files)}",
                *self.notes,
            ]
        )

    def details(self) -> str:
        """The report with a line for every key."""
        read = [f"  {key!r} {entry}" for key, entry in self.source_keys.items()]
        written = [f"  {key!r} <- {' + '.join(ours) or 'constant'}" for key, ours in self.written_keys.items()]
        return "\n".join([str(self), "read:", *read, "written:", *written])


def convert(
    source: StrPath,
    destination: StrPath,
    to: str,
    *,
    dtype: torch.dtype | None = None,
    drop: Collection[str] = (),
    fold_token_types: bool = False,
    progress: bool = False,
    **hub: Unpack[HubOptions],
) -> ConversionReport:
    """Writes a checkpoint to a new folder in another key layout.

    The folder appears complete or not at all, and the same source gives the same bytes. The configuration of a
    sentence-transformers folder is copied unchanged for "hf" and "native"; a note in the report lists what is not
    copied.

    Args:
        source: As for `load_pretrained`.
        destination: The folder to write. It must not exist.
        to: The key layout to write, one of FAMILIES ("hf", "native", "fairseq", ...).
        dtype: The dtype to write. A narrower one rounds. None keeps that of each tensor.
        drop: Groups of tensors to leave out ("pooler", "lm_head", ...). Any other tensor must have a name in `to`.
        fold_token_types: Add the one token-type vector, which fairseq and torchtext do not have, to every position
            row, and zero it. The model is the same up to rounding.
        progress: Show a progress bar on a terminal.
        **hub: How to reach the hub. See `HubOptions`.

    Returns:
        What became of every key, and the files that were written.

    Raises:
        CheckpointError: The source would not load, something would be lost, a finite number would become infinite in
            `dtype`, or `destination` exists.
    """
    destination = Path(destination)
    if os.path.lexists(destination):
        raise CheckpointError(f"{destination} exists. Nothing is overwritten: give a new folder, or remove this one")
    if dtype is not None and dtype not in STORAGES:
        raise CheckpointError(f"{dtype} cannot be written: one of {', '.join(map(str, STORAGES))}")
    files = find_checkpoint(
        source,
        TOKENIZER_FILES,
        **hub,
    )
    weights = open_weights(files.weights) | open_beside(files.weights)
    plan, dropped = _plan(read_config(files.config), weights, files, drop)
    kept = {key: tensor for key, tensor in weights.items() if key not in dropped}
    folded = _folded(plan, kept, dtype, files) if fold_token_types else {}
    kept |= folded
    exports = export_plan(plan, to)
    losses = lossy(exports, kept)
    if losses:
        raise CheckpointError("\n".join([f"{files.weights} cannot be converted to {to}:", *losses]))
    entries = _entries(exports, kept, dtype)
    is_fairseq = to.startswith("fairseq")
    settings = settings_for(plan.config, plan.groups, to) if is_fairseq else None
    tokenizer, no_tokenizer = _tokenizer_files(files.weights.parent, files.root)
    sentence = _sentence(files, to)

    destination.parent.mkdir(parents=True, exist_ok=True)
    is_safetensors = to in ("hf", "native")
    num_bytes = sum(entry.nbytes for entry in (entries if is_safetensors else written_once(entries).values()))
    with folder_written_as(destination) as whole, _ticking(num_bytes, progress) as tick:
        folder = whole / sentence.place
        folder.mkdir(parents=True, exist_ok=True)
        if is_safetensors:
            apart = _write_beside(plan, entries if to == "hf" else [], folder, tick)
            write_safetensors([entry for entry in entries if entry not in apart], folder / WEIGHTS[0], tick)
        else:
            write_torch(entries, folder / FAIRSEQ, settings, tick)
        (folder / CONFIG).write_text(_config(plan, files, entries), encoding="utf-8")
        for path in tokenizer:
            shutil.copyfile(path, folder / path.name)
        if settings is not None and (folder / TOKENIZER).is_file() and not (folder / DICTIONARY).is_file():
            (folder / DICTIONARY).write_text(dictionary_of(pieces_of(folder / TOKENIZER)), encoding="utf-8")
        sentence.write(whole)
        names = tuple(sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()))
    return ConversionReport(
        source=files.weights,
        destination=destination,
        layouts=(plan.layout.name, exports.layout.name),
        source_keys={key: dropped.get(key) or plan.statuses[key] for key in weights},
        written_keys={export.key: export.ours for export in exports.exports},
        num_bytes=num_bytes,
        files=names,
        notes=(
            *notes_on_config(files.config),
            *notes_on(plan, plan.config),
            *notes_on_files(files),
            *_rounding(kept, entries),
            *((FOLDED,) if folded else ()),
            *no_tokenizer,
            *(notes_for(plan.config, plan.groups, to) if is_fairseq else ()),
            *sentence.notes,
        ),
    )


def _plan(
    config: XLMRobertaConfig, weights: Mapping[str, Tensor], files: Files, drop: Collection[str]
) -> tuple[Plan, dict[str, KeyStatus]]:
    """What the file holds, for a class that has every group of it, and the fates of what is dropped on purpose."""
    unknown = sorted(set(drop) - known_groups().keys())
    if unknown:
        raise CheckpointError(f"there is no group {unknown[0]!r} to drop: expected one of {', '.join(known_groups())}")
    whole = _whole_plan(config, dict(weights), files)
    unwanted = {key for slot in whole.slots for key, group in slot.keys.items() if group in drop}
    dropped = {key: KeyStatus("dropped", "left out on purpose") for key in weights if key in unwanted}
    if dropped:
        whole = _whole_plan(config, {key: weights[key] for key in weights if key not in dropped}, files)
    return whole, dropped


def _whole_plan(config: XLMRobertaConfig, weights: dict[str, Tensor], files: Files) -> Plan:
    cls, plan = best_class(config, weights, files)
    problems = plan.problems + header_problems(plan, build_on_meta(cls, plan, "eager"), weights)
    spec = spec_of(cls)
    others = tuple(group for group in known_groups().values() if group not in spec.groups)
    whole = make_plan(config, weights.keys(), replace(spec, optional=others), cls.__name__)
    raise_any(list(dict.fromkeys(problems + whole.problems + value_problems(whole, weights))), files)
    return whole


def _folded(plan: Plan, weights: Mapping[str, Tensor], dtype: torch.dtype | None, files: Files) -> dict[str, Tensor]:
    """The position table with the token type in every row, and zeros for the token types; nothing where they are 0."""
    positions, types = (plan.sources.get(nest(name, "encoder", plan.spec)) for name in (POSITIONS, TOKEN_TYPES))
    if positions is None or types is None or not types.read(weights).any():
        return {}
    rows = types.read(weights)
    if len(rows) != 1:
        raise_any([f"{types.key} has {len(rows)} rows: only a single token type can be folded"], files)
    table = positions.read(weights)
    total = table.double() + rows.double()  # rounded once, when it is cast
    return {positions.key: total.to(dtype or table.dtype), types.key: torch.zeros_like(rows)}


def _entries(exports: ExportPlan, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> list[Entry]:
    entries: list[Entry] = []
    for export in exports.exports:
        parts = [source.read(weights) for source in export.sources]  # views, but for small constants
        dtypes = {part.dtype for part in parts}
        if not dtypes <= STORAGES.keys() or (len(dtypes) > 1 and dtype is None):
            names = " and ".join(sorted(map(str, dtypes)))
            raise CheckpointError(f"{export.key!r} would be made of {names}: choose one dtype to write")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].dim() else ()
        entries.append(Entry(export.key, dtype or parts[0].dtype, shape, _reader(export, weights), export.sources))
    return entries


def _reader(export: Export, weights: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    return lambda: export.read(weights)


def _write_beside(plan: Plan, entries: list[Entry], folder: Path, tick: Tick) -> list[Entry]:
    """Writes the heads that published checkpoints have in files of their own. Returns the entries written."""
    apart: list[Entry] = []
    for group, file in files_beside().items():
        own = [entry for entry in entries if group in plan.groups and entry.key.startswith(f"{group}.")]
        if own:
            short = [replace(entry, key=entry.key.removeprefix(f"{group}.")) for entry in own]
            write_torch(short, folder / file, tick=tick)
        apart += own
    return apart


def _config(plan: Plan, files: Files, entries: list[Entry]) -> str:
    """config.json: the fields of the source's own, if it has one, with those of the model as they are now."""
    values: dict[str, Any] = read_config_object(files.config) if files.config.name == CONFIG else {}
    values.pop("torch_dtype", None)  # the older name of dtype
    values.pop("dtype", None)
    values |= {"architectures": plan.spec.architectures(plan.config.norm_first), **plan.config.to_dict()}
    dtypes = {dtype_name(entry.dtype) for entry in entries}
    if len(dtypes) == 1:
        values["dtype"] = dtypes.pop()
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _sentence(files: Files, to: str) -> Carried:
    """The sentence-transformers configuration to write, if the key layout `to` is one that its library can load."""
    sentence = carried_from(files.root, files.weights.parent)
    if to in ("hf", "native") or not sentence.files:
        return sentence
    return Carried(notes=(f"note: not carried over, as {to} has no place for them: {', '.join(sentence.files)}",))


def _tokenizer_files(folder: Path, root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The tokenizer's files to copy, and a note if there are none.

    Raises CheckpointError for a wrong dict.txt, for what is not JSON under a name of JSON, and for links out of the
    folder: the copy may be published.
    """
    found = {name: check_link(folder / name, root) for name in TOKENIZER_FILES if (folder / name).is_file()}
    for path in found.values():
        try:
            check_size(path, TOKENIZER_LIMIT)
            if path.suffix == ".json":
                read_json_object(path, TOKENIZER_LIMIT)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{error}: it is not copied. Remove or mend it") from error
    if TOKENIZER in found:
        check_dictionary_beside(found[TOKENIZER])
    return list(found.values()), () if found else (f"note: the source has no {TOKENIZER}, so the copy has none",)


def _rounding(weights: Mapping[str, Tensor], entries: list[Entry]) -> tuple[str, ...]:
    widths = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    wider = [dtype for dtype in widths if torch.promote_types(dtype, entries[0].dtype) != entries[0].dtype]
    return (f"note: numbers were rounded from {wider[0]} to {entries[0].dtype}, as asked",) if wider else ()


@contextmanager
def _ticking(total: int, progress: bool) -> Generator[Tick, None, None]:
    """Calls a progress bar with the bytes written, if one is wanted and there is a terminal.

    tqdm holds a lock that forked processes share, so it is imported only where a bar is wanted.
    """
    if not progress:
        yield no_tick
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None) as bar:
        yield bar.update
