"""Named internals: what can be seen and changed on the way from ids to logits, and how.

Every tensor with a name is the input or the output of a module, so torch's own hooks do the work, and a model that
nobody looks into pays nothing. The taps of a head are in the `spec` of its class.

    with model.capture("layers.*.attention.probs", "layers.-1.output") as acts:
        model(**batch)
    acts["layers.3.attention.probs"]  # (B, N, S, S)

    with model.intervene({"layers.3.attention.probs": lambda probs: probs.roll(1, dims=1)}):
        ablated = model(**batch)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from xlmr_core.spec import Tap, spec_of

if TYPE_CHECKING:
    from xlmr_core.pretrained import PretrainedModel

Change = Callable[[Tensor], Tensor]


EMBEDDINGS = (
    Tap("embeddings.word", "(B, S, H)", "rows of the word table", "embeddings.word_embeddings"),
    Tap("embeddings.token_type", "(B, S, H)", "rows of the token-type table", "embeddings.token_type_embeddings"),
    Tap("embeddings.position", "(B, S, H)", "rows of the position table", "embeddings.position_embeddings"),
    Tap("embeddings.sum", "(B, S, H)", "word + token type + position", "embeddings.norm", "input"),
    Tap("embeddings.output", "(B, S, H)", "what the first layer reads", "embeddings"),
)
ATTENTION = (
    Tap("attention.q", "(B, S, H)", "queries of all heads, side by side", "attention.q_proj"),
    Tap("attention.k", "(B, S, H)", "keys of all heads", "attention.k_proj"),
    Tap("attention.v", "(B, S, H)", "values of all heads", "attention.v_proj"),
    Tap("attention.scores", "(B, N, S, S)", "q k / sqrt(D), masked; query, then key", "attention.softmax", "input"),
    Tap("attention.probs", "(B, N, S, S)", "softmax of the scores over keys", "attention.softmax"),
    Tap("attention.context", "(B, S, H)", "probs times v, heads side by side", "attention.out_proj", "input"),
    Tap("attention.output", "(B, S, H)", "context through out_proj", "attention.out_proj"),
)
FEED_FORWARD = (
    Tap("feed_forward.pre", "(B, S, F)", "before the non-linearity", "feed_forward.up_proj"),
    Tap("feed_forward.post", "(B, S, F)", "after it", "feed_forward.activation"),
    Tap("feed_forward.output", "(B, S, H)", "back at the model's width", "feed_forward.down_proj"),
)
POST_NORM_LAYER = (
    *ATTENTION,
    Tap("attention.residual", "(B, S, H)", "the layer's input + attention.output", "attention_norm", "input"),
    Tap("mid", "(B, S, H)", "attention.residual, normalised", "attention_norm"),
    *FEED_FORWARD,
    Tap("feed_forward.residual", "(B, S, H)", "mid + feed_forward.output", "feed_forward_norm", "input"),
    Tap("output", "(B, S, H)", "feed_forward.residual, normalised", ""),
)
PRE_NORM_LAYER = (
    *ATTENTION,
    Tap("attention.residual", "(B, S, H)", "the layer's input + attention.output", "mid", "input"),
    Tap("mid", "(B, S, H)", "the same: nothing normalises it here", "mid"),
    *FEED_FORWARD,
    Tap("feed_forward.residual", "(B, S, H)", "mid + feed_forward.output", ""),
    Tap("output", "(B, S, H)", "the same", ""),
)
FINAL_NORM = Tap("final_norm", "(B, S, H)", "the last layer's output, normalised", "final_norm")
POOLER = (
    Tap("pooler.dense", "(B, H)", "the first token through the pooler's map", "pooler.dense"),
    Tap("pooler.output", "(B, H)", "tanh of it", "pooler"),
)


def taps_of(model: PretrainedModel) -> list[Tap]:
    """Every tap of this model in reading order, its module's full name filled in."""
    spec = spec_of(type(model))
    encoder: nn.Module = model if spec.is_encoder else model.get_submodule("encoder")
    prefix = "" if spec.is_encoder else "encoder."
    layer = PRE_NORM_LAYER if model.config.norm_first else POST_NORM_LAYER
    taps = [_at(tap, "", prefix) for tap in EMBEDDINGS]
    for i in range(model.config.num_hidden_layers):
        taps += [_at(tap, f"layers.{i}.", f"{prefix}layers.{i}.") for tap in layer]
    if model.config.norm_first:
        taps.append(_at(FINAL_NORM, "", prefix))
    if getattr(encoder, "pooler", None) is not None:
        taps += [_at(tap, "", prefix) for tap in POOLER]
    return [*taps, *spec.taps]


def _at(tap: Tap, name: str, module: str) -> Tap:
    return Tap(name + tap.name, tap.shape, tap.meaning, (module + tap.module).rstrip("."), tap.side)


class Captured(dict[str, Tensor]):
    """Tap name -> tensor; a layer may be counted from the end, as in `acts["layers.-1.output"]`.

    Attributes:
        skipped: With `partial`, the matching taps whose module the model lacks.
    """

    def __init__(self, num_layers: int, skipped: Iterable[str] = ()) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.skipped = tuple(skipped)

    def __missing__(self, name: str) -> Tensor:
        found = [key for key in self if matches(key, name, self.num_layers)]
        if len(found) != 1:
            near = ", ".join(get_close_matches(name, self, n=3)) or "nothing near"
            raise KeyError(f"{name!r} was not captured; captured were {near}")
        return self[found[0]]


@contextmanager
def capture(model: PretrainedModel, *patterns: str, partial: bool = False) -> Generator[Captured, None, None]:
    """A mapping that fills with the tensors at the matching taps, each time the model runs while the context is open.

    Tensors are those of the run itself, in its graph: gradients flow, and a second run replaces them. Only runs of this
    model in the thread that opened the context are captured: other threads, and copies of the model, run as if it were
    closed.

    Args:
        model: the model to look into.
        patterns: names of taps. `*` stands for any one part or piece of a part, `**` for any number of parts, and a
            layer may be counted from the end (`layers.-1`); so "**" is every tap.
        partial: whether taps whose module the model lacks are skipped and listed in `skipped`. A model lacks one if
            some of its modules were replaced by other classes.

    Yields:
        The tensors by the names of their taps.

    Raises:
        ValueError: a pattern matches nothing, a tap's module is missing without `partial`, or scores or probs are asked
            of a model whose attention is fused.
    """
    taps = list(_matching(model, *patterns))
    absent = [tap for tap in taps if partial and _module_of(model, tap) is None]
    seen = Captured(model.config.num_hidden_layers, (tap.name for tap in absent))

    def keep(name: str) -> Change:
        def change(tensor: Tensor) -> Tensor:
            seen[name] = tensor
            return tensor

        return change

    with ExitStack() as hooks:
        for tap in taps:
            if tap not in absent:
                hooks.enter_context(hooked(model, tap, keep(tap.name), first=False))
        yield seen


@contextmanager
def intervene(model: PretrainedModel, changes: Mapping[str, Change]) -> Generator[None, None, None]:
    """While the context is open, each tensor at a matching tap is replaced by what its function makes of it.

    Patterns, threads and copies are as in `capture`, which sees the new tensor.

    Args:
        model: the model to change.
        changes: {pattern: function of the tensor at the tap that returns the new tensor}.

    Raises:
        ValueError: a pattern matches nothing, or a function returns a tensor of another shape, dtype or device.
        TypeError: a change is not a function.
    """
    for pattern, change in changes.items():
        if not callable(change):
            raise TypeError(
                f"the change at {pattern!r} must be a function of the tensor there, not a {type(change).__name__}: "
                "lambda old: new"
            )

    def checked(name: str, change: Change) -> Change:
        def replaced(tensor: Tensor) -> Tensor:
            new = change(tensor)
            before, after = _description(tensor), _description(new)
            if before != after:
                raise ValueError(f"the intervention at {name} must give a tensor of {before}, not {after}")
            return new

        return replaced

    with ExitStack() as hooks:
        for pattern, change in changes.items():
            for tap in _matching(model, pattern):
                hooks.enter_context(hooked(model, tap, checked(tap.name, change), first=True))
        yield


def _description(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"type {type(value).__name__}"
    return f"shape {tuple(value.shape)}, {value.dtype}, on {value.device}"


def _matching(model: PretrainedModel, *patterns: str) -> Iterator[Tap]:
    taps = taps_of(model)
    chosen: dict[str, Tap] = {}
    for pattern in patterns:
        found = {tap.name: tap for tap in taps if matches(tap.name, pattern, model.config.num_hidden_layers)}
        if not found:
            near = get_close_matches(pattern, [tap.name for tap in taps], n=3) or [taps[0].name, "...", taps[-1].name]
            raise ValueError(f"no tap matches {pattern!r}; model.taps() lists them: {', '.join(near)}")
        chosen |= found
    fused = any(getattr(module, "fused", False) for module in model.modules())
    hidden = [name for name in chosen if name.endswith(("attention.scores", "attention.probs"))]
    if fused and hidden:
        raise ValueError(f"{hidden[0]} does not exist in fused attention: load the model with attention='eager'")
    return iter(chosen.values())


def matches(name: str, pattern: str, num_layers: int) -> bool:
    """Whether a tap's name fits a pattern, as in `capture`."""
    wanted = pattern.split(".")
    if wanted[0] == "layers" and len(wanted) > 1 and wanted[1].startswith("-") and wanted[1][1:].isdigit():
        wanted[1] = str(num_layers + int(wanted[1]))  # counted from the end
    return _parts_match(name.split("."), wanted)


def _parts_match(parts: list[str], wanted: list[str]) -> bool:
    if not wanted or not parts:
        return parts == [] and all(part == "**" for part in wanted)
    if wanted[0] == "**":  # stands for no part, or for the first and maybe more
        return _parts_match(parts, wanted[1:]) or _parts_match(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _parts_match(parts[1:], wanted[1:])


def _module_of(model: PretrainedModel, tap: Tap) -> nn.Module | None:
    try:
        return model.get_submodule(tap.module)
    except AttributeError:
        return None


@contextmanager
def hooked(model: PretrainedModel, tap: Tap, change: Change, *, first: bool) -> Generator[None, None, None]:
    """While the context is open, the tensor at `tap` goes through `change`; `first`: before the hooks already there."""
    module = _module_of(model, tap)
    if module is None:
        raise ValueError(
            f"{tap.name} is the {tap.side} of the module {tap.module}, which this model lacks. "
            "capture(..., partial=True) skips such taps"
        )
    thread = threading.get_ident()

    def is_ours(called: nn.Module) -> bool:
        """Whether this call is one to act on: a deepcopy of the model keeps the hook, and other threads meet it."""
        return called is module and threading.get_ident() == thread

    def on_input(called: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:]) if is_ours(called) else args

    def on_output(called: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return change(output) if is_ours(called) else output

    if tap.side == "input":
        handle = module.register_forward_pre_hook(on_input, prepend=first)
    else:
        handle = module.register_forward_hook(on_output, prepend=first)
    try:
        yield
    finally:
        handle.remove()
