"""Any model as something that gives a dump: ours, transformers', or one described by where its tensors are.

comparison = compare_models(ours, theirs, batch)                       # theirs: a model of transformers
comparison = compare_models(ours, theirs, batch, places={
    "embeddings.output": Place("embed"),                               # the output of their module "embed"
    "layers.0.attention.context": Place("blocks.0.proj", "input"),     # what goes into that module
    "layers.0.attention.q": Place("blocks.0.q", reshape=lambda q: q.transpose(1, 2).flatten(2)),
})
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xlmr_core.checkpoint.layouts import LAYOUTS, expand, hf_names
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM, model_classes
from xlmr_core.model import SelfAttention
from xlmr_core.parity.compare import Comparison, Floors, compare
from xlmr_core.parity.tap_values import Dump, in_reading_order
from xlmr_core.pretrained import PretrainedModel

NEEDS_EAGER = ("attention.scores", "attention.probs")


class Batch(Protocol):
    """input_ids and attention_mask, both (B, S): a mapping, or what a tokenizer returns."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str, /) -> Tensor: ...


@dataclass(frozen=True)
class Place:
    """Where in a foreign module a tap's tensor is.

    side: the input or the output of `module`, or of the softmax of layer `index` (`module` is then ""): libraries that
    call a function there have no module to name. index: which one, of several inputs or outputs. reshape: makes the
    tap's shape of theirs.
    """

    module: str
    side: Literal["output", "input", "softmax output", "softmax input"] = "output"
    index: int = 0
    reshape: Callable[[Tensor], Tensor] | None = None


Places = Mapping[str, Place]
Runnable = nn.Module | Callable[[Batch], Dump]


def compare_models(
    ours: Runnable,
    theirs: Runnable,
    batch: Batch,
    *,
    places: Places | None = None,
    taps: Sequence[str] = ("**",),
    floors: Floors | None = None,
    partial: bool = False,
) -> Comparison:
    """Runs both on the batch and compares the taps that `theirs` is known to have.

    Args:
        ours: a model of this package, a model of transformers, or a function from the batch to a dump.
        theirs: the same, or any module with `places`.
        batch: input_ids and attention_mask, both (B, S): a mapping, or what a tokenizer returns.
        places: where the taps are in `theirs`.
        taps: patterns, as for `model.capture`, of taps of `ours` to compare.
        floors: from `measure_floors(ours, batch)`; without them only equal values pass.
        partial: whether taps are skipped whose module a model of this package lacks, because a class of somebody's
            own stands in place of ours. `Comparison.skipped` lists the taps of `ours` that `theirs` lacks.

    Returns:
        The comparison, in reading order.

    Raises:
        ValueError: a pattern matches nothing, a module is absent, or a foreign model has no `places`.
    """
    expected = dump_of(ours, batch, taps=taps, partial=partial)
    actual = dump_of(theirs, batch, places=places, partial=partial)
    known = expected if callable(theirs) and not isinstance(theirs, nn.Module) else actual
    skipped = tuple(tap for tap in expected if tap not in known) if partial else ()
    expected = {tap: tensor for tap, tensor in expected.items() if tap in known}
    actual = {tap: tensor for tap, tensor in actual.items() if tap in expected}
    comparison = compare(expected, actual, real=batch["attention_mask"].bool(), floors=floors)
    return replace(comparison, skipped=skipped)


def dump_of(
    model: Runnable,
    batch: Batch,
    *,
    taps: Sequence[str] = ("**",),
    places: Places | None = None,
    partial: bool = False,
) -> dict[str, Tensor]:
    """What `model` computes for the batch, under the names of the taps, in reading order.

    partial: whether taps are skipped whose module the model lacks. Raises ValueError for a pattern that matches
    nothing, an absent module without `partial`, or a foreign model without `places`.
    """
    if isinstance(model, PretrainedModel):
        return _ours(model, batch, taps, partial)
    if not isinstance(model, nn.Module):
        return dict(model(batch))
    if places is None and type(model).__module__.startswith("transformers."):
        places = transformers_places(model)
    if places is None:
        raise ValueError(f"{type(model).__name__} is not known: describe where its tensors are with places={{...}}")
    with torch.no_grad(), captured(model, places) as seen:
        model(**batch)
    return {tap: seen[tap] for tap in in_reading_order(seen)}


def _ours(model: PretrainedModel, batch: Batch, taps: Sequence[str], partial: bool) -> dict[str, Tensor]:
    if is_fused(model) and "**" in taps:  # everything there is
        taps = [tap.name for tap in model.taps() if not tap.name.endswith(NEEDS_EAGER)]
    with torch.no_grad(), model.capture(*taps, partial=partial) as acts:
        model(**batch)
    return {tap: acts[tap] for tap in in_reading_order(acts)}


def is_fused(model: nn.Module) -> bool:
    """Whether the attention of a model of ours is fused: it then has no scores and no probs."""
    return any(isinstance(module, SelfAttention) and module.fused for module in model.modules())


@contextmanager
def captured(model: nn.Module, places: Places) -> Generator[dict[str, Tensor], None, None]:
    """A dump that fills when the foreign `model` runs. Raises ValueError for a module that it does not have."""
    modules = dict(model.named_modules())
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for tap, place in places.items():
            if place.side.startswith("softmax"):
                continue
            if place.module not in modules:
                raise ValueError(f"{tap} is said to be at module {place.module!r}, which {type(model).__name__} lacks")
            stack.callback(_watch(modules[place.module], tap, place, seen).remove)
        stack.enter_context(_SoftmaxCalls(places, seen))
        yield seen


def _watch(module: nn.Module, tap: str, place: Place, seen: dict[str, Tensor]) -> Any:
    def keep(values: Any) -> None:
        value = values[place.index] if isinstance(values, tuple | list) else values
        if isinstance(value, Tensor):
            seen[tap] = _reshaped(value, place)

    if place.side == "input":
        return module.register_forward_pre_hook(lambda _module, args: keep(args))
    return module.register_forward_hook(lambda _module, _args, output: keep(output))


class _SoftmaxCalls(TorchFunctionMode):
    """Sees each softmax over a tensor of four axes, in the order of the layers."""

    def __init__(self, places: Places, seen: dict[str, Tensor]) -> None:
        super().__init__()
        self.wanted = [(tap, place) for tap, place in places.items() if place.side.startswith("softmax")]
        self.seen = seen
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.softmax, torch.softmax, Tensor.softmax) and args and args[0].dim() == 4:
            for tap, place in self.wanted:
                if place.index == self.calls:
                    self.seen[tap] = _reshaped(args[0] if place.side == "softmax input" else result, place)
            self.calls += 1
        return result


def _reshaped(tensor: Tensor, place: Place) -> Tensor:
    return place.reshape(tensor) if place.reshape else tensor


# ---- transformers ----------------------------------------------------------------------------------------------------


def transformers_places(model: nn.Module) -> dict[str, Place]:
    """Where the taps are in transformers' XLMRoberta and XLMRobertaXL models, encoders and those with a head."""
    modules = {name for name, _ in model.named_modules()}
    prefix = "roberta." if "roberta" in modules else ""
    config: Any = model.config
    pre_norm = f"{prefix}embeddings.LayerNorm" not in modules
    embeddings = f"{prefix}embeddings"
    places = {
        "embeddings.word": Place(f"{embeddings}.word_embeddings"),
        "embeddings.token_type": Place(f"{embeddings}.token_type_embeddings"),
        "embeddings.position": Place(f"{embeddings}.position_embeddings"),
        "embeddings.sum": Place(f"{embeddings}.dropout" if pre_norm else f"{embeddings}.LayerNorm", "input"),
        "embeddings.output": Place(embeddings),
    }
    for i in range(config.num_hidden_layers):
        layer = _transformers_layer(f"{prefix}encoder.layer.{i}", pre_norm)
        places |= {f"layers.{i}.{tap}": place for tap, place in layer.items()}
        if config._attn_implementation == "eager":
            places[f"layers.{i}.attention.scores"] = Place("", "softmax input", i)
            places[f"layers.{i}.attention.probs"] = Place("", "softmax output", i)
    if f"{prefix}pooler" in modules:
        places |= {"pooler.dense": Place(f"{prefix}pooler.dense"), "pooler.output": Place(f"{prefix}pooler")}
    if pre_norm:
        places["final_norm"] = Place(f"{prefix}encoder.LayerNorm")
    kinds = {kind.__name__ for kind in type(model).__mro__}
    for cls in model_classes():
        names = hf_names(cls.spec)
        if kinds.intersection(cls.spec.architectures(pre_norm)) and not cls.spec.has_choices:
            present = [tap for tap in cls.spec.taps if names.get(tap.module) in modules]
            places |= {tap.name: Place(names[tap.module], tap.side) for tap in present}
    return places


def _transformers_layer(layer: str, pre_norm: bool) -> dict[str, Place]:
    places = {
        "attention.q": Place(f"{layer}.attention.self.query"),
        "attention.k": Place(f"{layer}.attention.self.key"),
        "attention.v": Place(f"{layer}.attention.self.value"),
        "attention.context": Place(f"{layer}.attention.output.dense", "input"),
        "attention.output": Place(f"{layer}.attention.output.dense"),
        "feed_forward.pre": Place(f"{layer}.intermediate.dense"),
        "feed_forward.post": Place(f"{layer}.intermediate"),
        "feed_forward.output": Place(f"{layer}.output.dense"),
        "output": Place(layer),
    }
    if pre_norm:  # the residual connection is inside the modules called output, and nothing is normalised after it
        return places | {
            "attention.residual": Place(f"{layer}.attention.output"),
            "mid": Place(f"{layer}.LayerNorm", "input"),
            "feed_forward.residual": Place(f"{layer}.output"),
        }
    return places | {
        "attention.residual": Place(f"{layer}.attention.output.LayerNorm", "input"),
        "mid": Place(f"{layer}.attention.output.LayerNorm"),
        "feed_forward.residual": Place(f"{layer}.output.LayerNorm", "input"),
    }


def transformers_parameters(model: nn.Module, config: XLMRobertaConfig) -> dict[str, str]:
    """Their name -> ours, of every parameter of a masked language model of transformers."""
    theirs = {name for name, _ in model.named_parameters()}
    for layout in LAYOUTS:
        names = {key: slot.ours[0] for slot in expand(layout, config, XLMRobertaForMaskedLM.spec) for key in slot.keys}
        if theirs <= names.keys():
            return names
    raise ValueError(f"{type(model).__name__} is not a masked language model of transformers: its parameters differ")


def transformers_model(folder: str, model: str, norm_first: bool, attention: str, dtype: torch.dtype) -> Any:
    """transformers' class for ours of the name `model`, from a folder or a hub id, in eval mode."""
    [architecture] = next(cls for cls in model_classes() if cls.__name__ == model).spec.architectures(norm_first)
    try:
        import transformers
    except ImportError as error:
        raise ValueError("transformers is not installed: pip install transformers") from error

    cls = getattr(transformers, architecture)
    return cls.from_pretrained(folder, attn_implementation=attention, dtype=dtype).eval()
