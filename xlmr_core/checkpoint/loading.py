"""Loads a model from files and saves it to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import Unpack

from xlmr_core.atomic import written_together
from xlmr_core.checkpoint.fairseq import SPECIALS, pieces_of
from xlmr_core.checkpoint.files import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Files,
    check_dictionary_beside,
    config_for,
    files_in,
    local_path,
    notes_on_fields,
    open_beside,
    open_weights,
    read_config,
    read_config_object,
    sibling,
)
from xlmr_core.checkpoint.layouts import expand, layout_for
from xlmr_core.checkpoint.mapping import (
    KeyStatus,
    LoadReport,
    Plan,
    Shape,
    Source,
    make_plan,
    plan_export,
    shape_problems,
)
from xlmr_core.checkpoint.sentence_transformers import transformer_folder
from xlmr_core.checkpoint.writing import write_safetensors
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.devices import check_device
from xlmr_core.errors import CheckpointError, shortened
from xlmr_core.formatting import dtype_name
from xlmr_core.hub_options import HubOptions, check_hub_options
from xlmr_core.paths import StrPath
from xlmr_core.spec import files_beside, spec_of

if TYPE_CHECKING:
    from xlmr_core.checkpoint.hub import Hub
    from xlmr_core.kernels import AttentionKind
    from xlmr_core.pretrained import PretrainedModel

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # to look at a float as its bits: by bytes
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size")
SIZE_LIMIT = 2**28  # the product of two such sizes is still a number of bytes that torch can count
LISTED = 12  # labels named in one message
OTHER_VOCABULARIES = ("roberta", "camembert")  # of config.json's model_type: the same model, another tokenizer
Model = TypeVar("Model", bound="PretrainedModel")


def load_pretrained(
    cls: type[Model],
    source: StrPath,
    *,
    attention: AttentionKind = "eager",
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    new_head: bool = False,
    labels: Sequence[str] | None = None,
    **hub: Unpack[HubOptions],
) -> Model:
    """Loads a model. Every key of the file and of the model is accounted for in its `load_report`.

    On the CPU and in the dtype of the file, the weights are mapped, not copied: do not change a file in place while it
    is in use (`save_pretrained` never does).

    Args:
        cls: The class of the model.
        source: A folder, a weights file, "xlmr-tiny", a hub id, or a name in the catalogue (`xlmr models`). What exists
            on disk is taken first.
        attention: The attention kernel: "eager" or one of the fused ones.
        dtype: The dtype of the weights in memory. None keeps that of the file.
        device: Where the weights are put.
        new_head: Initialise a head that the checkpoint does not have, instead of raising an error.
        labels: The names of the new head's classes, in the order of its logits. They become `config.labels`.
        **hub: How to reach the hub. See `HubOptions`.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, or a key is left over or missing.
        ValueError: The device does not exist, or there are labels without a new head.
    """
    if labels is not None:
        check_labels(cls, labels, new_head)
    device = check_device(device, computes=False)  # before anything is fetched
    spec = spec_of(cls)
    files = find_model(
        source,
        [group.file for group in spec.groups if group.file is not None],
        **hub,
    )
    config = read_config(files.config)
    new_config = config if labels is None else replace(config, labels=tuple(labels))
    weights = open_weights(files.weights) | open_beside(files.weights, spec.required_names)
    plan = plan_for(cls, new_config, weights, files, new_head=new_head)
    if labels is not None and not plan.absent:
        had = ", ".join(config.labels[:LISTED]) + ", ..." * (config.num_labels > LISTED)
        raise_any([f"it has the head of {cls.__name__} already, with the classes {had}: leave labels out"], files)
    model = build_on_meta(cls, plan, attention)
    raise_any(plan.problems + header_problems(plan, model, weights), files)
    raise_any(value_problems(plan, weights) + (dtype_problems(plan, weights) if dtype is None else []), files)

    state = {ours: source.read(weights).to(device=device, dtype=dtype) for ours, source in plan.sources.items()}
    like = next(iter(state.values()))  # the dtype where that of the file is kept
    shapes = {ours: tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    state |= {ours: like.new_zeros(shapes[ours]) for ours in plan.zeros}
    tied = tied_keys(model)
    fresh = {ours: why for ours, why in plan.fresh.items() if ours not in tied}
    state |= {ours: fresh_tensor(ours, shapes[ours], config, like) for ours in fresh}
    model.load_state_dict(state | {copy: state[first] for copy, first in tied.items()}, assign=True)
    for copy, first in tied.items():  # assigning gave each its own Parameter; the model has one
        module, _, name = copy.rpartition(".")
        setattr(model.get_submodule(module), name, model.get_parameter(first))
    model.load_report = LoadReport(
        model=cls.__name__,
        source=str(files.weights),
        layout=plan.layout.name,
        checkpoint_keys={key: plan.statuses[key] for key in weights},
        model_keys={ours: KeyStatus("loaded", str(source)) for ours, source in plan.sources.items()}
        | {ours: KeyStatus("filled", why) for ours, why in (plan.zeros | fresh).items()}
        | {copy: KeyStatus("tied", first) for copy, first in tied.items()},
        notes=(*notes_on(plan, config), *notes_on_fields(files.config)),
    )
    return model.eval()


def check_labels(cls: type[PretrainedModel], labels: Sequence[str], new_head: bool) -> None:
    """Raises ValueError for labels that no new head of `cls` can have."""
    if not spec_of(cls).has_labels:
        raise ValueError(f"{cls.__name__} has no classes to name with labels")
    if not new_head:
        raise ValueError("labels are the classes of a new head: pass new_head=True with them")
    if isinstance(labels, str) or not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be a sequence of different names, at least one, got {shortened(labels)}")


def save_pretrained(model: PretrainedModel, folder: StrPath) -> None:
    """Writes config.json and model.safetensors under the published names, for `load_pretrained` and transformers.

    Tensors that the config ties are written once. The same weights give the same bytes. All files are written under
    temporary names first. A process that is killed leaves the old files, the new ones, or a folder without config.json,
    which nothing loads: never the weights of one model with the config of another.

    Args:
        model: The model to write.
        folder: Where to write. It is made if it does not exist. Files of the same names are replaced.

    Raises:
        CheckpointError: The model has tensors that the key layout has no name for. Nothing was written.
    """
    folder = Path(folder)
    spec = spec_of(type(model))
    state, tied = model.state_dict(), tied_keys(model)
    layout = layout_for("hf", spec, model.config.norm_first)
    slots = expand(layout, model.config, spec) if layout is not None else []
    named = {ours for slot in slots for ours in slot.ours}  # one tensor may be shared where the config does not tie it
    sources = {ours: Source(ours) for ours in state if ours in named or ours not in tied}
    plan = plan_export("hf", model.config, spec, type(model).__name__, sources)
    tensors = {export.key: export.read(state) for export in plan.exports}
    apart = {
        group.file: {
            key.removeprefix(f"{group.name}."): tensors.pop(key).clone()
            for key in list(tensors)
            if key.startswith(f"{group.name}.")
        }
        for group in spec.groups
        if group.file is not None
    }
    dtypes = {dtype_name(tensor.dtype) for tensor in tensors.values()}
    config = {"architectures": spec.architectures(model.config.norm_first), **model.config.to_dict()}
    if len(dtypes) == 1:
        config["dtype"] = dtypes.pop()

    folder.mkdir(parents=True, exist_ok=True)
    with written_together(folder, WEIGHTS[0], *apart, CONFIG) as (weights, *beside, settings):
        write_safetensors(tensors, weights)
        for parts, path in zip(apart.values(), beside, strict=True):
            with path.open("wb") as file:  # given a path, torch would write the temporary name into the file
                torch.save(parts, file)
        settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_tokenizer(
    source: StrPath,
    **hub: Unpack[HubOptions],
) -> tuple[Path, int]:
    """Finds the SentencePiece model of a checkpoint.

    Args:
        source: As for `load_pretrained`.
        **hub: How to reach the hub. See `HubOptions`.

    Returns:
        The path of sentencepiece.bpe.model, and the length of the longest sequence in tokens (512 for most models).

    Raises:
        CheckpointError: There is no such file, or the checkpoint is a RoBERTa or CamemBERT, whose vocabularies are
            numbered otherwise.
    """
    check_hub_options(hub)
    path = local_path(source)
    if path is not None:
        path = transformer_folder(path)
        if not (path / TOKENIZER).is_file() and (path / CONFIG).is_file():
            check_vocabulary(path / CONFIG)
        tokenizer, config = sibling(path, TOKENIZER), config_for(path)
        check_dictionary_beside(tokenizer)
    else:
        tokenizer, config = _hub(source, **hub).tokenizer_files()
    check_vocabulary(config, tokenizer)
    return tokenizer, read_config(config).max_tokens


def check_vocabulary(config: Path, tokenizer: Path | None = None) -> None:
    """Raises CheckpointError where config.json implies a vocabulary other than XLM-R's.

    CamemBERT's file has the same name and begins with the same pieces, but it numbers them from 4 on instead of 1.
    """
    if config.name != CONFIG:  # fairseq's own file: XLM-R, not converted from anything
        return
    model_type = read_config_object(config).get("model_type")
    if model_type not in OTHER_VOCABULARIES:
        return
    if tokenizer is not None:
        size = len(pieces_of(tokenizer)) + SPECIALS + 1  # and <mask>
        if size == read_config(config).vocab_size:
            return
    raise CheckpointError(
        f"{config} is of the type {model_type}: the model loads here, but its vocabulary is not numbered as XLM-R's, "
        "and this tokenizer would give wrong ids. Use its own tokenizer and pass input_ids"
    )


def find_model(
    source: StrPath,
    beside: Sequence[str] = (),
    *,
    whole: bool = False,
    **hub: Unpack[HubOptions],
) -> Files:
    """The files of `source`, fetched from the hub if it is neither on disk nor bundled.

    `beside` and `whole` select more files to fetch from the hub: see `Hub.model_files`.
    """
    check_hub_options(hub)
    path = local_path(source)
    if path is not None:
        return replace(files_in(transformer_folder(path)), root=path if path.is_dir() else path.parent)
    return _hub(source, **hub).model_files(beside, whole=whole)


def find_checkpoint(source: StrPath, beside: Sequence[str] = (), **hub: Unpack[HubOptions]) -> Files:
    """As `find_model`, with all that belongs to the checkpoint: for those who must not lose any of it."""
    return find_model(source, [*files_beside().values(), *beside], whole=True, **hub)


def notes_on_files(files: Files) -> tuple[str, ...]:
    """What a report should say of files that could not be looked for."""
    if not files.unknown:
        return ()
    names = ", ".join(files.unknown)
    return (
        f"note: the network is off, and the cache does not show whether the repository has {names}: taken as absent",
    )


def _hub(source: StrPath, **options: Unpack[HubOptions]) -> Hub:
    from xlmr_core.checkpoint.catalogue import hub_id
    from xlmr_core.checkpoint.hub import Hub  # here: a local model needs no network library

    return Hub.of(hub_id(str(source)), **options)


def plan_for(
    cls: type[PretrainedModel],
    config: XLMRobertaConfig,
    weights: Mapping[str, Tensor],
    files: Files,
    *,
    new_head: bool = False,
) -> Plan:
    """What would become of every key of the file if `cls` were loaded from it."""
    raise_any(
        [
            f"config.json asks for {name} {value}; at most {SIZE_LIMIT} can be read"
            for name in SIZES
            if (value := getattr(config, name)) > SIZE_LIMIT
        ],
        files,
    )
    if config.num_hidden_layers > len(weights):  # before the names of a billion layers are written out
        raise_any([f"config.json asks for {config.num_hidden_layers} layers; the file has {len(weights)} keys"], files)
    return make_plan(config, weights.keys(), spec_of(cls), cls.__name__, new_head=new_head)


def build_on_meta(cls: type[Model], plan: Plan, attention: AttentionKind) -> Model:
    """The model with shapes and no memory: nothing is initialised that the file is about to give."""
    build: Callable[..., Model] = cls
    options = {"add_pooling_layer": "pooler" in plan.groups} if "pooler" in spec_of(cls).optional_names else {}
    with torch.device("meta"), _SkipInit():
        return build(plan.config, attention=attention, **options)


def fresh_tensor(name: str, shape: Shape, config: XLMRobertaConfig, like: Tensor) -> Tensor:
    """A tensor of a new head, as `PretrainedModel.initialize` would have it."""
    if len(shape) > 1:
        return like.new_empty(shape).normal_(std=config.initializer_range)
    return like.new_zeros(shape) if name.endswith("bias") else like.new_ones(shape)


class _SkipInit(TorchFunctionMode):
    """Passes over torch.nn.init. On meta tensors it would do nothing too, but import torch's compiler for it: 1 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def tied_keys(model: PretrainedModel) -> dict[str, str]:
    """The second and later names of each parameter, with the first."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied


def header_problems(plan: Plan, model: PretrainedModel, weights: Mapping[str, Tensor]) -> list[str]:
    """Shapes and dtypes that do not fit. Looks at no value."""
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    problems = shape_problems(plan, found, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    for key in keys_read(plan):
        tensor = weights[key]
        if not tensor.is_floating_point():
            problems.append(f"{key} does not hold plain floating-point numbers ({tensor.dtype})")
    return problems


def keys_read(plan: Plan) -> list[str]:
    """The keys of the file that become weights, each once."""
    return list(dict.fromkeys(source.key for source in plan.sources.values()))


def value_problems(plan: Plan, weights: Mapping[str, Tensor]) -> list[str]:
    """Tied tensors that differ, and counters that do not count."""
    problems: list[str] = []
    for first, second in plan.twins:
        if not same_bits(weights[first], weights[second]):
            problems.append(
                f"{second} differs from {first}, but the two are one tensor. If the decoder was trained apart, "
                "config.json should say tie_word_embeddings: false"
            )
    for key in plan.counters:
        if weights[key].flatten().tolist() != list(range(weights[key].numel())):
            problems.append(f"{key} does not count 0, 1, 2, ...: it would be wrong to drop it")
    for key, values in plan.constants.items():
        if weights[key].tolist() not in [[value] for value in values]:
            numbers = " or ".join(map(str, sorted(values)))
            problems.append(f"{key} is not the one number {numbers}: it would be wrong to drop it")
    return problems


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: NaN equals itself, and 0 is not -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one_memory = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    bits = BITS[a.element_size()]
    return one_memory or torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def dtype_problems(plan: Plan, weights: Mapping[str, Tensor]) -> list[str]:
    """More than one dtype where that of the file is to be kept."""
    dtypes = sorted({str(weights[key].dtype) for key in keys_read(plan)})
    return [f"the file mixes {' and '.join(dtypes)}: choose one with dtype="] if len(dtypes) > 1 else []


def notes_on(plan: Plan, config: XLMRobertaConfig) -> tuple[str, ...]:
    """What a reader of the report should know and the keys alone do not say."""
    if plan.config.norm_first == config.norm_first:
        return ()
    kinds = {True: "pre-norm", False: "post-norm"}
    return (f"note: the keys are {kinds[plan.config.norm_first]}; config.json suggests {kinds[config.norm_first]}",)


def raise_any(problems: list[str], files: Files) -> None:
    """Raises all the problems as one CheckpointError."""
    if problems:
        raise CheckpointError("\n".join([f"{files.weights} cannot be loaded:", *problems]))
