"""The catalogue of faults: mistakes that ports of XLM-R have made, each ready to be made in our own model.

A fault says what was done wrong, what that looks like and where it shows first, and it can be made and lifted:

    with find_fault("q_k_swapped").applied(model):
        wrong = model(**batch)

It changes one model object (weights, hooks, methods of instances; never a class) and puts everything back, bit for
bit, also after an exception. So a fault can explain a foreign port's numbers, and it can show that a test would
have caught the mistake. The order is that of the model: ids, embeddings, attention, layer, head, then training.

What goes wrong before the model and after it has catalogues of its own at the end: `TOKENIZER_FAULTS` are rules that
turn the right ids of a text into wrong ones, `POOLING_FAULTS` make a wrong sentence vector of right token vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import (
    ClassificationHead,
    LMHead,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForTokenClassification,
)
from xlmr_core.kernels import AnyBatch
from xlmr_core.model import (
    Embeddings,
    EncoderLayer,
    FeedForward,
    Pooler,
    SelfAttention,
    XLMRobertaModel,
)
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tokenizer import XLMRobertaTokenizer

Patch = Callable[[PretrainedModel, ExitStack], None]  # makes the mistake, and notes in the stack how to take it back
Context = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # an attention path: q, k, v, mask -> context
Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class Fault:
    """One mistake.

    tap: the first tap that differs, in reading order; in a post-norm model unless `norm` says "pre". Layer -1 is
    the last. shows: whether outputs differ, or only outputs with dropout, or only gradients. norm: the one
    placement of norms the fault exists for, where there is only one.
    """

    name: str
    cause: str
    symptom: str
    tap: str
    patch: Patch
    shows: Literal["outputs", "training", "gradients"] = "outputs"
    norm: Literal["post", "pre"] | None = None

    @contextmanager
    def applied(self, model: PretrainedModel) -> Generator[None, None, None]:
        """The model with this mistake in it, while the context is open.

        Raises ValueError if the model has no such part (no LM head, no pooler, the other placement of norms).
        """
        placement = "pre" if model.config.norm_first else "post"
        if self.norm not in (None, placement):
            raise ValueError(f"fault {self.name} concerns {self.norm}-norm models, this one is {placement}-norm")
        with ExitStack() as undo:
            self.patch(model, undo)
            yield

    def in_layer(self, layer: int) -> Fault:
        """The same mistake made in one layer alone, counted from 0, for a fault whose tap lies in a layer."""

        def patch(model: PretrainedModel, undo: ExitStack) -> None:
            one = _OneLayer(_parts(model, EncoderLayer)[layer], model.config)
            self.patch(cast(PretrainedModel, one), undo)

        return replace(
            self,
            name=f"{self.name} in layer {layer} alone",
            tap=self.tap.replace("layers.0.", f"layers.{layer}."),
            patch=patch,
        )


class _OneLayer:
    """A layer with what a patch asks of a model: its modules and parameters are those of the layer."""

    def __init__(self, layer: EncoderLayer, config: XLMRobertaConfig) -> None:
        self.modules = layer.modules
        self.parameters = layer.parameters
        self.config = config


def find_fault(name: str) -> Fault:
    """The fault of that name. Raises KeyError with all the names if there is none."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise KeyError(f"no fault is called {name!r}; there are {', '.join(fault.name for fault in FAULTS)}")


# ---- how a mistake is made and taken back ---------------------------------------------------------------------------


def _parts(model: nn.Module, kind: type[Part]) -> list[Part]:
    parts = [module for module in model.modules() if isinstance(module, kind)]
    if not parts:
        raise ValueError(f"the model has no {kind.__name__} to make this fault in")
    return parts


def _set(undo: ExitStack, owner: nn.Module, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _override(undo: ExitStack, owner: nn.Module, method: str, replacement: Callable[..., Tensor]) -> None:
    if method in vars(owner):  # another fault has been here
        undo.callback(setattr, owner, method, vars(owner)[method])
    else:
        undo.callback(delattr, owner, method)
    setattr(owner, method, replacement)  # on the instance: it hides the method of the class


def _replace(undo: ExitStack, parameter: Tensor, value: Tensor) -> None:
    """Gives the parameter other values. The old ones are kept, not overwritten: other copies may share them."""
    undo.callback(setattr, parameter, "data", parameter.data)
    parameter.data = value.detach().to(parameter).expand_as(parameter).contiguous()


def _exchange(undo: ExitStack, left: nn.Module, right: nn.Module) -> None:
    for a, b in zip(list(left.parameters()), list(right.parameters()), strict=True):
        old = a.data
        _replace(undo, a, b)
        _replace(undo, b, old)


def _change_output(undo: ExitStack, module: nn.Module, rule: Callable[[Tensor], Tensor]) -> None:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return rule(output)

    undo.enter_context(module.register_forward_hook(hook, prepend=True))  # first, so that other hooks see the fault


def _change_input(undo: ExitStack, module: nn.Module, rule: Callable[..., tuple[Any, ...]]) -> None:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return rule(*args)

    undo.enter_context(module.register_forward_pre_hook(hook, prepend=True))


def _identity(x: Tensor) -> Tensor:
    return x


# ---- kinds of mistakes, one for every row or two of the catalogue ----------------------------------------------------


def _bias_missing(kind: type[nn.Module], name: str) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for part in _parts(model, kind):
            module = part.get_submodule(name)
            if isinstance(module, nn.Identity):
                raise ValueError(f"the model has no {name} in its {kind.__name__} to make this fault in")
            _replace(undo, module.get_parameter("bias"), torch.zeros(()))

    return patch


def _module_replaced(kind: type[nn.Module], name: str, function: Callable[[Tensor], Tensor]) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for part in _parts(model, kind):
            _override(undo, part.get_submodule(name), "forward", function)

    return patch


def _projections_exchanged(left: str, right: str, kind: type[nn.Module] = SelfAttention) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for part in _parts(model, kind):
            _exchange(undo, part.get_submodule(left), part.get_submodule(right))

    return patch


def _positions(rule: Callable[[Tensor, int], Tensor]) -> Patch:
    """Position ids by another rule of (input_ids, pad)."""

    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        last = model.config.max_position_embeddings - 1

        def change(ids: Tensor, token_types: Tensor, _positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return ids, token_types, rule(ids, model.config.pad_token_id).clamp(max=last)

        for embeddings in _parts(model, Embeddings):
            _change_input(undo, embeddings, change)

    return patch


def _queries_scaled(factor: Callable[[XLMRobertaConfig], float]) -> Patch:
    """Queries, and so scores, multiplied by `factor(config)`, in both attention paths."""

    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        def scaled(path: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return path(q * factor(model.config), k, v, mask)

        _wrap_context(model, undo, scaled)

    return patch


def _mask_changed(rule: Callable[[Tensor, Tensor | None], Tensor | None]) -> Patch:
    """Another mask, `rule(q, mask)`, in both attention paths."""

    def changed(path: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return path(q, k, v, rule(q, mask))

    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        _wrap_context(model, undo, changed)

    return patch


def _wrap_context(model: PretrainedModel, undo: ExitStack, wrapper: Callable[..., Tensor]) -> None:
    for attention in _parts(model, SelfAttention):
        for path in ("_eager_context", "_fused_context"):
            _override(undo, attention, path, partial(wrapper, getattr(attention, path)))


def _scores(rule: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]) -> Patch:
    """Scores by another rule of (q, k, mask, scale), in place of both attention paths."""

    def context(attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = rule(q, k, mask, attention.head_dim**-0.5)
        return torch.matmul(attention.dropout(attention.softmax(scores)), v)

    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for attention in _parts(model, SelfAttention):
            for path in ("_eager_context", "_fused_context"):
                _override(undo, attention, path, partial(context, attention))

    return patch


def _layer_forward(rule: Callable[[EncoderLayer, Tensor, AnyBatch], Tensor]) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for layer in _parts(model, EncoderLayer):
            _override(undo, layer, "forward", partial(rule, layer))

    return patch


def _norm_by(rule: Callable[[nn.LayerNorm, Tensor], Tensor]) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for norm in _parts(model, nn.LayerNorm):
            _override(undo, norm, "forward", partial(rule, norm))

    return patch


def _dropout_missing(kind: type[nn.Module], name: str) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for part in _parts(model, kind):
            _set(undo, part.get_submodule(name), "p", 0.0)

    return patch


def _dropout_moved(kind: type[nn.Module], dropout_name: str, norm_name: str) -> Patch:
    """Dropout on what goes into the norm, instead of where it belongs."""

    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for part in _parts(model, kind):
            dropout = part.get_submodule(dropout_name)
            assert isinstance(dropout, nn.Dropout)
            norm = part.get_submodule(norm_name)
            _override(undo, dropout, "forward", _identity)
            _override(undo, norm, "forward", partial(_dropped_out_first, dropout, norm.forward))

    return patch


def _dropped_out_first(dropout: nn.Dropout, norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return norm(F.dropout(x, dropout.p, dropout.training))


# ---- ids and embeddings ----------------------------------------------------------------------------------------------


def _ids_without_offset(model: PretrainedModel, undo: ExitStack) -> None:
    for embeddings in _parts(model, Embeddings):
        _change_input(undo, embeddings.word_embeddings, _without_offset)


def _without_offset(ids: Tensor) -> tuple[Tensor]:
    return (torch.where(ids > 3, ids - 1, ids),)


def _embeddings_scaled(model: PretrainedModel, undo: ExitStack) -> None:
    for embeddings in _parts(model, Embeddings):
        _change_output(undo, embeddings.word_embeddings, lambda word: word * model.config.hidden_size**0.5)


def _token_type_missing(model: PretrainedModel, undo: ExitStack) -> None:
    for embeddings in _parts(model, Embeddings):
        _replace(undo, embeddings.token_type_embeddings.weight, torch.zeros(()))


def _token_type_twice(model: PretrainedModel, undo: ExitStack) -> None:
    for embeddings in _parts(model, Embeddings):
        _change_output(undo, embeddings.token_type_embeddings, lambda token_type: token_type * 2)


def _counted(ids: Tensor, start: int) -> Tensor:
    return torch.arange(start, start + ids.shape[-1], device=ids.device).expand_as(ids)


def _positions_from_one(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.cumsum(dim=-1) * real


def _positions_through_batch(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flatten().cumsum(dim=0).view_as(real) * real + pad


def _position_rows_shifted(model: PretrainedModel, undo: ExitStack) -> None:
    unused = model.config.pad_token_id + 1
    for embeddings in _parts(model, Embeddings):
        table = embeddings.position_embeddings.weight
        _replace(undo, table, torch.cat([table[:unused], table[:-unused]]))


# ---- norms -----------------------------------------------------------------------------------------------------------


def _eps_of_bert(model: PretrainedModel, undo: ExitStack) -> None:
    for norm in _parts(model, nn.LayerNorm):
        _set(undo, norm, "eps", 1e-12)


def _norm_unbiased(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    variance = x.var(dim=-1, keepdim=True, correction=1)
    return (x - x.mean(dim=-1, keepdim=True)) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def _norm_over_tokens(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    variance = x.var(dim=-2, keepdim=True, correction=0)
    return (x - x.mean(dim=-2, keepdim=True)) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


# ---- attention -------------------------------------------------------------------------------------------------------


def _transposed_weights(model: PretrainedModel, undo: ExitStack) -> None:
    for attention in _parts(model, SelfAttention):
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            _replace(undo, linear.weight, linear.weight.T)


def _reshaped(method: str, reshape: Callable[[XLMRobertaConfig, Tensor], Tensor]) -> Patch:
    def patch(model: PretrainedModel, undo: ExitStack) -> None:
        for attention in _parts(model, SelfAttention):
            _override(undo, attention, method, partial(reshape, model.config))

    return patch


def _heads_interleaved(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return x.unflatten(-1, (config.head_dim, config.num_attention_heads)).permute(0, 3, 1, 2)


def _split_without_transpose(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return x.reshape(x.shape[0], config.num_attention_heads, x.shape[1], config.head_dim)


def _merge_without_transpose(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
    return x.reshape(x.shape[0], x.shape[2], config.hidden_size)


def _softmax_over_queries(model: PretrainedModel, undo: ExitStack) -> None:
    for attention in _parts(model, SelfAttention):
        _set(undo, attention, "fused", False)
        _set(undo, attention.softmax, "dim", -2)


def _mask_inverted(_q: Tensor, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ~mask


def _mask_causal(q: Tensor, mask: Tensor | None) -> Tensor:
    earlier = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    return earlier if mask is None else mask & earlier


def _scores_mask_added(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    return scores if mask is None else scores + mask


def _scores_mask_weak(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    return scores if mask is None else scores - (~mask).to(scores)


def _scores_float16(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)).half().to(q.dtype) * scale
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


# ---- layers ----------------------------------------------------------------------------------------------------------


def _norm_placement_exchanged(model: PretrainedModel, undo: ExitStack) -> None:
    placement = not model.config.norm_first
    _set(undo, model, "config", replace(model.config, norm_first=placement))  # so that taps follow
    for layer in _parts(model, EncoderLayer):
        _set(undo, layer, "norm_first", placement)
        if not hasattr(layer, "mid"):
            layer.mid = nn.Identity()
            undo.callback(delattr, layer, "mid")


def _norm_before_residual(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = hidden + layer.attention_norm(layer.attention_dropout(layer.attention(hidden, batch)))
    return mid + layer.feed_forward_norm(layer.feed_forward_dropout(layer.feed_forward(mid)))


def _attention_residual_missing(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = layer.attention_norm(layer.attention_dropout(layer.attention(hidden, batch)))
    return layer.feed_forward_norm(mid + layer.feed_forward_dropout(layer.feed_forward(mid)))


def _residual_from_layer_input(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = layer.attention_norm(hidden + layer.attention_dropout(layer.attention(hidden, batch)))
    return layer.feed_forward_norm(hidden + layer.feed_forward_dropout(layer.feed_forward(mid)))


def _layers_off_by_one(model: PretrainedModel, undo: ExitStack) -> None:
    layers = _parts(model, EncoderLayer)
    if len(layers) < 2:
        raise ValueError("one layer cannot be taken for the next: this fault needs at least two")
    for layer, following in pairwise(layers):
        _exchange(undo, layer, following)


def _last_layer_skipped(model: PretrainedModel, undo: ExitStack) -> None:
    _override(undo, _parts(model, EncoderLayer)[-1], "forward", _first_argument)


def _first_argument(hidden: Tensor, _batch: AnyBatch) -> Tensor:
    return hidden


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# ---- heads -----------------------------------------------------------------------------------------------------------


def _lm_head_untied(model: PretrainedModel, undo: ExitStack) -> None:
    random = torch.Generator().manual_seed(0)
    for head in _parts(model, LMHead):
        tied = head.decoder.weight
        fresh = torch.randn(tied.shape, generator=random) * model.config.initializer_range
        _set(undo, head.decoder, "weight", nn.Parameter(fresh.to(tied)))


def _lm_head_copied(model: PretrainedModel, undo: ExitStack) -> None:
    for head in _parts(model, LMHead):
        _set(undo, head.decoder, "weight", nn.Parameter(head.decoder.weight.detach().clone()))


def _pooler_last_token(model: PretrainedModel, undo: ExitStack) -> None:
    for pooler in _parts(model, Pooler):
        _change_input(undo, pooler, _reversed_tokens)


def _reversed_tokens(hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (hidden.flip(1), None) if lengths is None else (hidden.flip(0), lengths.flip(0))


def _classifier_mean_pooled(model: PretrainedModel, undo: ExitStack) -> None:
    for head in _parts(model, ClassificationHead):
        _change_input(undo, head, _mean_everywhere)


def _mean_everywhere(hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if lengths is None:
        return hidden.mean(dim=1, keepdim=True).expand_as(hidden), None
    means = torch.stack([tokens.mean(dim=0) for tokens in hidden.split(lengths.tolist())])
    return means.repeat_interleave(lengths, dim=0), lengths


def _answer_ends_exchanged(model: PretrainedModel, undo: ExitStack) -> None:
    for answerer in _parts(model, XLMRobertaForQuestionAnswering):
        for parameter in answerer.qa_outputs.parameters():
            _replace(undo, parameter, parameter.flip(0))


# ---- precision and training ------------------------------------------------------------------------------------------


def _weights_float16(model: PretrainedModel, undo: ExitStack) -> None:
    for parameter in model.parameters():
        _replace(undo, parameter, parameter.half())


def _dropout_left_on(model: PretrainedModel, undo: ExitStack) -> None:
    for module in (*_parts(model, nn.Dropout), *_parts(model, SelfAttention)):
        _set(undo, module, "training", True)


def _dropout_after_activation(model: PretrainedModel, undo: ExitStack) -> None:
    for feed_forward in _parts(model, FeedForward):
        _change_output(undo, feed_forward.activation, partial(_dropped_out, feed_forward, model.config))


def _dropped_out(module: nn.Module, config: XLMRobertaConfig, x: Tensor) -> Tensor:
    return F.dropout(x, config.hidden_dropout_prob, module.training)


def _padding_idx_lost(model: PretrainedModel, undo: ExitStack) -> None:
    for embeddings in _parts(model, Embeddings):
        _set(undo, embeddings.word_embeddings, "padding_idx", None)
        _set(undo, embeddings.position_embeddings, "padding_idx", None)


# ---- the catalogue ---------------------------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ids_without_offset",
        cause="SentencePiece's own ids are used: fairseq's, which the model was trained on, are one higher from 4 up",
        symptom="every token is its neighbour in the vocabulary; specials are right, and so is the shape of everything",
        tap="embeddings.word",
        patch=_ids_without_offset,
    ),
    Fault(
        "embeddings_scaled",
        cause="word vectors are multiplied by sqrt(hidden_size), as in the original Transformer and in Marian",
        symptom="word vectors are larger by one constant factor",
        tap="embeddings.word",
        patch=_embeddings_scaled,
    ),
    Fault(
        "weights_float16",
        cause="the weights passed through float16 on their way, and are compared as if they were float32",
        symptom="relative errors of about 5e-4 in every weight, from the first tap on, without a pattern",
        tap="embeddings.word",
        patch=_weights_float16,
    ),
    Fault(
        "token_type_missing",
        cause="the token-type vector is not added, because there is only one type",
        symptom="the same vector is missing at every token",
        tap="embeddings.token_type",
        patch=_token_type_missing,
    ),
    Fault(
        "token_type_twice",
        cause="the token-type vector is folded into the word table and then added again",
        symptom="the same vector is added once too often at every token",
        tap="embeddings.token_type",
        patch=_token_type_twice,
    ),
    Fault(
        "positions_from_zero",
        cause="positions are counted from 0 as in BERT, padding included",
        symptom="every token has the position vector of two places earlier; left-padded rows are off by more",
        tap="embeddings.position",
        patch=_positions(lambda ids, pad: _counted(ids, 0)),
    ),
    Fault(
        "positions_from_one",
        cause="positions are counted from 1: pad_token_id is not added to the running count",
        symptom="every token has the position vector of the place before; the first one has padding's",
        tap="embeddings.position",
        patch=_positions(_positions_from_one),
    ),
    Fault(
        "positions_count_padding",
        cause="positions are counted from pad + 1 over all places, padding included",
        symptom="right-padded rows are right, left-padded rows and pads inside a row are not",
        tap="embeddings.position",
        patch=_positions(lambda ids, pad: _counted(ids, pad + 1)),
    ),
    Fault(
        "positions_without_restart",
        cause="a packed or flattened batch is numbered through: positions do not restart with each sequence",
        symptom="the first row is right, each later row starts where the one before it ended",
        tap="embeddings.position",
        patch=_positions(_positions_through_batch),
    ),
    Fault(
        "position_rows_shifted",
        cause="the table was cut to 512 rows as [:512], not as [2:]: the right shape, the wrong rows",
        symptom="every token has the position vector of two places earlier, in left-padded rows too",
        tap="embeddings.position",
        patch=_position_rows_shifted,
    ),
    Fault(
        "embedding_norm_missing",
        cause="the norm after the sum of embeddings is left out",
        symptom="the sum is right, and goes into the first layer unnormalised",
        tap="embeddings.output",
        patch=_module_replaced(Embeddings, "norm", _identity),
        norm="post",
    ),
    Fault(
        "embedding_norm_bias_missing",
        cause="the bias of the embedding norm is not loaded",
        symptom="the same vector is missing at every token",
        tap="embeddings.output",
        patch=_bias_missing(Embeddings, "norm"),
        norm="post",
    ),
    Fault(
        "eps_of_bert",
        cause="layer norm has BERT's eps, 1e-12, where XLM-R has 1e-5",
        symptom="every norm's output is slightly too large, most where the input varies least",
        tap="embeddings.output",
        patch=_eps_of_bert,
    ),
    Fault(
        "norm_unbiased",
        cause="layer norm divides the sum of squares by n - 1, as standard deviations in statistics do",
        symptom="every norm's output is too small by about 1 / (2 n)",
        tap="embeddings.output",
        patch=_norm_by(_norm_unbiased),
    ),
    Fault(
        "norm_over_tokens",
        cause="layer norm goes over the tokens of a sentence, not over the features of a token",
        symptom="a token's vector depends on the other tokens, and on padding, before any attention",
        tap="embeddings.output",
        patch=_norm_by(_norm_over_tokens),
    ),
    Fault(
        "dropout_left_on",
        cause="the model is not in eval mode",
        symptom="two runs on the same input differ; some entries are exactly 0",
        tap="embeddings.output",
        patch=_dropout_left_on,
    ),
    Fault(
        "q_k_swapped",
        cause="query and key projections are exchanged",
        symptom="scores are transposed: what i thinks of j is what j thinks of i",
        tap="layers.0.attention.q",
        patch=_projections_exchanged("q_proj", "k_proj"),
    ),
    Fault(
        "k_v_swapped",
        cause="a fused q, k, v matrix is cut in the wrong order: keys and values are exchanged",
        symptom="queries are right, keys and values each hold the other",
        tap="layers.0.attention.k",
        patch=_projections_exchanged("k_proj", "v_proj"),
    ),
    Fault(
        "weights_transposed",
        cause="square weights of the attention are stored (in, out) and read as (out, in)",
        symptom="the shapes fit, the first projection is unrelated to what it should be; feed-forward would not fit",
        tap="layers.0.attention.q",
        patch=_transposed_weights,
    ),
    Fault(
        "q_bias_missing",
        cause="the bias of the query projection is not loaded",
        symptom="the same vector is missing from every query",
        tap="layers.0.attention.q",
        patch=_bias_missing(SelfAttention, "q_proj"),
    ),
    Fault(
        "k_bias_missing",
        cause="the bias of the key projection is not loaded",
        symptom="scores move by one constant for each query, which softmax takes out: nothing after it changes",
        tap="layers.0.attention.k",
        patch=_bias_missing(SelfAttention, "k_proj"),
    ),
    Fault(
        "v_bias_missing",
        cause="the bias of the value projection is not loaded",
        symptom="probs are right, the same vector is missing from every context",
        tap="layers.0.attention.v",
        patch=_bias_missing(SelfAttention, "v_proj"),
    ),
    Fault(
        "heads_interleaved",
        cause="features are dealt to the heads like cards (feature i to head i mod N), not in blocks",
        symptom="q, k and v are right, the scores of every head are unrelated to what they should be",
        tap="layers.0.attention.scores",
        patch=_reshaped("_split_heads", _heads_interleaved),
    ),
    Fault(
        "heads_split_without_transpose",
        cause="(B, S, H) is reshaped straight to (B, N, S, D), without the transpose between",
        symptom="q, k and v are right; each head sees slices of several tokens as if they were one",
        tap="layers.0.attention.scores",
        patch=_reshaped("_split_heads", _split_without_transpose),
    ),
    Fault(
        "heads_merged_without_transpose",
        cause="(B, N, S, D) is reshaped straight to (B, S, H), without the transpose between",
        symptom="probs are right, context holds the right numbers in the wrong places",
        tap="layers.0.attention.context",
        patch=_reshaped("_merge_heads", _merge_without_transpose),
    ),
    Fault(
        "scores_unscaled",
        cause="scores are not divided by sqrt(head_dim)",
        symptom="scores are too large by sqrt(head_dim), probs too sharp",
        tap="layers.0.attention.scores",
        patch=_queries_scaled(lambda config: config.head_dim**0.5),
    ),
    Fault(
        "scores_scaled_by_head_dim",
        cause="scores are divided by head_dim, not by sqrt(head_dim), in one step or by scaling twice",
        symptom="scores are too small by sqrt(head_dim), probs too flat",
        tap="layers.0.attention.scores",
        patch=_queries_scaled(lambda config: config.head_dim**-0.5),
    ),
    Fault(
        "scores_scaled_by_hidden_size",
        cause="scores are divided by sqrt(hidden_size), not by sqrt(head_dim)",
        symptom="scores are too small by sqrt(num_attention_heads), probs too flat",
        tap="layers.0.attention.scores",
        patch=_queries_scaled(lambda config: config.num_attention_heads**-0.5),
    ),
    Fault(
        "scores_float16",
        cause="the product of queries and keys is kept in float16 before it is scaled",
        symptom="relative errors of about 5e-4 in scores; above 65504 they are infinite and probs are NaN",
        tap="layers.0.attention.scores",
        patch=_scores(_scores_float16),
    ),
    Fault(
        "mask_missing",
        cause="the attention mask is not used",
        symptom="rows without padding are right, padded rows attend to their padding",
        tap="layers.0.attention.scores",
        patch=_mask_changed(lambda q, mask: None),
    ),
    Fault(
        "mask_inverted",
        cause="the mask is read with 1 for padding",
        symptom="tokens attend to padding alone; rows without padding attend evenly or give NaN",
        tap="layers.0.attention.scores",
        patch=_mask_changed(_mask_inverted),
    ),
    Fault(
        "mask_added_as_it_is",
        cause="the 0/1 mask is added to the scores without being turned into 0 and the lowest number",
        symptom="real tokens gain 1 over padding, which still gets a share; rows without padding are right",
        tap="layers.0.attention.scores",
        patch=_scores(_scores_mask_added),
    ),
    Fault(
        "mask_too_weak",
        cause="padding gets a score lower by 1, not by the size of the lowest number",
        symptom="padding still gets a share of the attention; rows without padding are right",
        tap="layers.0.attention.scores",
        patch=_scores(_scores_mask_weak),
    ),
    Fault(
        "mask_causal",
        cause="attention looks back only, as in a decoder",
        symptom="the last token of a row is right in the first layer, the others miss what follows them",
        tap="layers.0.attention.scores",
        patch=_mask_changed(_mask_causal),
    ),
    Fault(
        "softmax_over_queries",
        cause="softmax goes over the queries, not over the keys",
        symptom="scores are right, the columns of probs sum to 1 and the rows do not",
        tap="layers.0.attention.probs",
        patch=_softmax_over_queries,
    ),
    Fault(
        "out_bias_missing",
        cause="the bias of the attention's output projection is not loaded",
        symptom="context is right, the same vector is missing from every attention output",
        tap="layers.0.attention.output",
        patch=_bias_missing(SelfAttention, "out_proj"),
    ),
    Fault(
        "norm_placement_exchanged",
        cause="norms stand before each sublayer in a post-norm model (base, large), or after it in XL and XXL",
        symptom="the embeddings are right, the first projection is not",
        tap="layers.0.attention.q",
        patch=_norm_placement_exchanged,
    ),
    Fault(
        "norm_before_residual",
        cause="the norm is taken of the sublayer's output alone, and the residual is added after it",
        symptom="attention is right, the hidden state grows from layer to layer",
        tap="layers.0.attention.residual",
        patch=_layer_forward(_norm_before_residual),
        norm="post",
    ),
    Fault(
        "attention_residual_missing",
        cause="the layer's input is not added to the attention's output",
        symptom="attention is right, what goes into its norm lacks the input",
        tap="layers.0.attention.residual",
        patch=_layer_forward(_attention_residual_missing),
        norm="post",
    ),
    Fault(
        "attention_norm_bias_missing",
        cause="the bias of the norm at the attention is not loaded",
        symptom="the same vector is missing from every output of that norm",
        tap="layers.0.mid",
        patch=_bias_missing(EncoderLayer, "attention_norm"),
    ),
    Fault(
        "norms_exchanged",
        cause="the two norms of a layer are exchanged: fairseq calls the second one final_layer_norm",
        symptom="sums are right, both norms' outputs have another scale and bias for each feature",
        tap="layers.0.mid",
        patch=_projections_exchanged("attention_norm", "feed_forward_norm", EncoderLayer),
    ),
    Fault(
        "up_bias_missing",
        cause="the bias of the first feed-forward map is not loaded",
        symptom="the same vector is missing before every activation",
        tap="layers.0.feed_forward.pre",
        patch=_bias_missing(FeedForward, "up_proj"),
    ),
    Fault(
        "gelu_tanh",
        cause="GELU is the tanh approximation; XLM-R's is exact, by erf",
        symptom="errors of up to 5e-4 after the activation, none far from 0",
        tap="layers.0.feed_forward.post",
        patch=_module_replaced(FeedForward, "activation", _gelu_tanh),
    ),
    Fault(
        "gelu_quick",
        cause="GELU is x * sigmoid(1.702 x); XLM-R's is exact, by erf",
        symptom="errors of up to 0.02 after the activation, none far from 0",
        tap="layers.0.feed_forward.post",
        patch=_module_replaced(FeedForward, "activation", _gelu_quick),
    ),
    Fault(
        "relu_for_gelu",
        cause="the activation is ReLU",
        symptom="after the activation, what should be slightly negative is exactly 0",
        tap="layers.0.feed_forward.post",
        patch=_module_replaced(FeedForward, "activation", F.relu),
    ),
    Fault(
        "down_bias_missing",
        cause="the bias of the second feed-forward map is not loaded",
        symptom="the same vector is missing from every feed-forward output",
        tap="layers.0.feed_forward.output",
        patch=_bias_missing(FeedForward, "down_proj"),
    ),
    Fault(
        "residual_from_layer_input",
        cause="the second residual adds the layer's input, not what came out of the attention's norm",
        symptom="the feed-forward output is right, the sum after it is not",
        tap="layers.0.feed_forward.residual",
        patch=_layer_forward(_residual_from_layer_input),
        norm="post",
    ),
    Fault(
        "feed_forward_norm_bias_missing",
        cause="the bias of the norm at the feed-forward is not loaded",
        symptom="the same vector is missing from every output of that norm",
        tap="layers.0.output",
        patch=_bias_missing(EncoderLayer, "feed_forward_norm"),
    ),
    Fault(
        "layers_off_by_one",
        cause="layers are counted from 1: each has the weights of the next",
        symptom="the embeddings are right, the first projection of the first layer is that of the second",
        tap="layers.0.attention.q",
        patch=_layers_off_by_one,
    ),
    Fault(
        "last_layer_skipped",
        cause="the loop ends one layer early, or the second to last hidden state is taken",
        symptom="everything is right up to the last layer, which is missing",
        tap="layers.-1.attention.q",
        patch=_last_layer_skipped,
    ),
    Fault(
        "final_norm_missing",
        cause="the norm after the last layer of a pre-norm model (XL, XXL) is left out",
        symptom="every layer is right, the last hidden state is unnormalised",
        tap="final_norm",
        patch=_module_replaced(XLMRobertaModel, "final_norm", _identity),
        norm="pre",
    ),
    Fault(
        "lm_head_dense_bias_missing",
        cause="the bias of the LM head's dense map is not loaded",
        symptom="the same vector is missing from every output of that map",
        tap="lm_head.dense",
        patch=_bias_missing(LMHead, "dense"),
    ),
    Fault(
        "lm_head_activation_missing",
        cause="the LM head has no GELU between dense map and norm",
        symptom="the dense map is right, the norm's output is not",
        tap="lm_head.norm",
        patch=_module_replaced(LMHead, "activation", _identity),
    ),
    Fault(
        "lm_head_gelu_tanh",
        cause="the LM head's GELU is the tanh approximation",
        symptom="the dense map is right, the norm's output has errors of about 5e-4",
        tap="lm_head.norm",
        patch=_module_replaced(LMHead, "activation", _gelu_tanh),
    ),
    Fault(
        "lm_head_norm_missing",
        cause="the LM head has no norm",
        symptom="the dense map is right, the decoder gets it unnormalised",
        tap="lm_head.norm",
        patch=_module_replaced(LMHead, "norm", _identity),
    ),
    Fault(
        "lm_head_norm_bias_missing",
        cause="the bias of the LM head's norm is not loaded",
        symptom="the same vector is missing from every output of that norm",
        tap="lm_head.norm",
        patch=_bias_missing(LMHead, "norm"),
    ),
    Fault(
        "lm_head_untied",
        cause="the decoder is not tied to the word table and stayed as it was initialised",
        symptom="everything is right but the logits, which are noise",
        tap="lm_head.logits",
        patch=_lm_head_untied,
    ),
    Fault(
        "vocabulary_bias_missing",
        cause="the LM head's bias of one number for each vocabulary entry is not loaded: it has two names",
        symptom="the same number is missing from a token's logit everywhere; frequent tokens lose most",
        tap="lm_head.logits",
        patch=_bias_missing(LMHead, "decoder"),
    ),
    Fault(
        "pooler_last_token",
        cause="the pooler takes the last token, as decoders do",
        symptom="hidden states are right, the pooler's input is another token",
        tap="pooler.dense",
        patch=_pooler_last_token,
    ),
    Fault(
        "pooler_bias_missing",
        cause="the bias of the pooler is not loaded",
        symptom="the same vector is missing before every tanh",
        tap="pooler.dense",
        patch=_bias_missing(Pooler, "dense"),
    ),
    Fault(
        "pooler_tanh_missing",
        cause="the pooler has no tanh",
        symptom="the dense map is right; outputs lie outside -1 to 1",
        tap="pooler.output",
        patch=_module_replaced(Pooler, "activation", _identity),
    ),
    Fault(
        "classifier_mean_pooled",
        cause="the classifier takes the mean of all places of a row, where it was trained on <s>",
        symptom="hidden states are right, the classifier's input is another vector",
        tap="classifier.dense",
        patch=_classifier_mean_pooled,
    ),
    Fault(
        "classifier_dense_bias_missing",
        cause="the bias of the classifier's first map is not loaded",
        symptom="the same vector is missing before every tanh",
        tap="classifier.dense",
        patch=_bias_missing(ClassificationHead, "dense"),
    ),
    Fault(
        "classifier_tanh_missing",
        cause="the classifier has no tanh between its two maps",
        symptom="the first map is right, the logits are not",
        tap="classifier.logits",
        patch=_module_replaced(ClassificationHead, "activation", _identity),
    ),
    Fault(
        "classifier_out_bias_missing",
        cause="the bias of the classifier's last map is not loaded",
        symptom="the same number is missing from a label's logit in every text",
        tap="classifier.logits",
        patch=_bias_missing(ClassificationHead, "out_proj"),
    ),
    Fault(
        "tagger_bias_missing",
        cause="the bias of the tagger is not loaded",
        symptom="the same number is missing from a label's logit at every token",
        tap="tagger.logits",
        patch=_bias_missing(XLMRobertaForTokenClassification, "classifier"),
    ),
    Fault(
        "answer_bias_missing",
        cause="the bias of the question answerer is not loaded",
        symptom="one number is missing from all start logits, another from all end logits: no answer changes",
        tap="answer.logits",
        patch=_bias_missing(XLMRobertaForQuestionAnswering, "qa_outputs"),
    ),
    Fault(
        "answer_ends_exchanged",
        cause="the question answerer's two outputs are exchanged: the first is the start",
        symptom="start logits stand where end logits should",
        tap="answer.logits",
        patch=_answer_ends_exchanged,
    ),
    Fault(
        "embedding_dropout_missing",
        cause="there is no dropout after the embeddings",
        symptom="right in eval mode; in train mode no entry of the embeddings is exactly 0",
        tap="embeddings.output",
        patch=_dropout_missing(Embeddings, "dropout"),
        shows="training",
    ),
    Fault(
        "embedding_dropout_before_norm",
        cause="embeddings are dropped out before their norm, not after it",
        symptom="right in eval mode; in train mode no entry of the embeddings is exactly 0",
        tap="embeddings.output",
        patch=_dropout_moved(Embeddings, "dropout", "norm"),
        shows="training",
        norm="post",
    ),
    Fault(
        "probs_dropout_missing",
        cause="attention probabilities are not dropped out",
        symptom="right in eval mode; in train mode context is less noisy than it should be",
        tap="layers.0.attention.context",
        patch=_dropout_missing(SelfAttention, "dropout"),
        shows="training",
    ),
    Fault(
        "attention_output_dropout_missing",
        cause="the attention's output is not dropped out before the residual",
        symptom="right in eval mode; in train mode the residual sum never equals the layer's input",
        tap="layers.0.attention.residual",
        patch=_dropout_missing(EncoderLayer, "attention_dropout"),
        shows="training",
    ),
    Fault(
        "dropout_after_residual",
        cause="the sum of residual and attention is dropped out, not the attention's output alone",
        symptom="right in eval mode; in train mode entries of what goes into the norm are exactly 0",
        tap="layers.0.attention.residual",
        patch=_dropout_moved(EncoderLayer, "attention_dropout", "attention_norm"),
        shows="training",
        norm="post",
    ),
    Fault(
        "dropout_after_activation",
        cause="there is a dropout after the activation, where fairseq has activation_dropout, 0 in XLM-R",
        symptom="right in eval mode; in train mode entries after the activation are exactly 0",
        tap="layers.0.feed_forward.post",
        patch=_dropout_after_activation,
        shows="training",
    ),
    Fault(
        "feed_forward_output_dropout_missing",
        cause="the feed-forward output is not dropped out before the residual; transformers' XL is so",
        symptom="right in eval mode; in train mode the residual sum never equals what went into the feed-forward",
        tap="layers.0.feed_forward.residual",
        patch=_dropout_missing(EncoderLayer, "feed_forward_dropout"),
        shows="training",
    ),
    Fault(
        "lm_head_tied_by_copy",
        cause="the decoder is a copy of the word table, not the same tensor",
        symptom="right until the first optimiser step; the word table lacks the decoder's share of the gradient",
        tap="embeddings.word",
        patch=_lm_head_copied,
        shows="gradients",
    ),
    Fault(
        "padding_idx_lost",
        cause="the tables no longer know their padding row, as after resizing the vocabulary",
        symptom="outputs are right; the padding row gets a gradient wherever a pad is attended to",
        tap="embeddings.word",
        patch=_padding_idx_lost,
        shows="gradients",
    ),
)


# ---- before the model: the ids of a text -----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerFault:
    """One mistake on the way from text to ids, as a rule that turns a row of right ids into wrong ones."""

    name: str
    cause: str
    symptom: str
    rule: Callable[[list[int], XLMRobertaTokenizer], list[int]]
    tap: str = "input_ids"


def _ids_of_sentencepiece(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    ordinary = range(4, tokenizer.mask_token_id)
    return [id - 1 if id in ordinary else id for id in ids]


def _mask_id_without_offset(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return [id - 1 if id == tokenizer.mask_token_id else id for id in ids]


def _unk_of_sentencepiece(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return [0 if id == tokenizer.unk_token_id else id for id in ids]


def _single_separator(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    """One </s> for every two that stand together."""
    end = tokenizer.eos_token_id
    return [id for i, id in enumerate(ids) if not (i > 0 and id == end and ids[i - 1] == end)]


def _no_frame(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    frame = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [id for id in ids if id not in frame]


def _no_end(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


TOKENIZER_FAULTS: tuple[TokenizerFault, ...] = (
    TokenizerFault(
        "tokenizer_ids_off_by_one",
        cause="the numbers of SentencePiece are taken as ids: the model's are one higher from 4 up, because of <pad>",
        symptom="<s>, </s> and <mask> are right, every piece of text is one too low",
        rule=_ids_of_sentencepiece,
    ),
    TokenizerFault(
        "tokenizer_mask_id_wrong",
        cause="<mask> has the number of pieces plus 0: it is the last id, one more because of <pad>",
        symptom="only <mask> differs: the model sees the last ordinary piece in its place",
        rule=_mask_id_without_offset,
    ),
    TokenizerFault(
        "tokenizer_unk_is_zero",
        cause="an unknown character keeps SentencePiece's 0, which is <s> to the model; <unk> is 3",
        symptom="only unknown characters differ: <s> stands in their place",
        rule=_unk_of_sentencepiece,
    ),
    TokenizerFault(
        "tokenizer_single_separator",
        cause="one </s> stands between the two texts of a pair, as [SEP] in BERT; XLM-R has two",
        symptom="a pair is one token short, and everything in the second text stands one place too early",
        rule=_single_separator,
    ),
    TokenizerFault(
        "tokenizer_end_missing",
        cause="</s> is not put at the end",
        symptom="a row is one token short at its end",
        rule=_no_end,
    ),
    TokenizerFault(
        "tokenizer_frame_missing",
        cause="<s> and </s> are not put around the text",
        symptom="a row is two tokens short, and every token stands one place too early",
        rule=_no_frame,
    ),
)


# ---- after the model: one vector for a sentence ----------------------------------------------------------------------


@dataclass(frozen=True)
class PoolingFault:
    """One mistake in making a sentence vector (B, H) of token vectors (B, S, H) and their mask (B, S).

    The right one, `mean_pooled`, is at the tap "sentence.mean" of a dump.
    """

    name: str
    cause: str
    symptom: str
    pool: Callable[[Tensor, Tensor], Tensor]
    tap: str = "sentence.mean"


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:  # (B, S, H), (B, S) -> (B, H)
    """The mean vector of the real tokens of each row, <s> and </s> among them."""
    weights = mask.to(hidden)[:, :, None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _mean_over_padding(hidden: Tensor, _mask: Tensor) -> Tensor:
    return hidden.mean(dim=1)


def _mean_of_masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask.to(hidden)[:, :, None]).mean(dim=1)


def _first_token(hidden: Tensor, _mask: Tensor) -> Tensor:
    return hidden[:, 0]


POOLING_FAULTS: tuple[PoolingFault, ...] = (
    PoolingFault(
        "pooled_over_padding",
        cause="the mean of a sentence goes over its padding, too",
        symptom="token vectors are right; a sentence's vector depends on how long the others in its batch are",
        pool=_mean_over_padding,
    ),
    PoolingFault(
        "pooled_by_batch_length",
        cause="the sum over real tokens is divided by the length of the batch, not by that of the sentence",
        symptom="token vectors are right; a padded sentence's vector has the right direction and is too short",
        pool=_mean_of_masked_sum,
    ),
    PoolingFault(
        "pooled_first_token",
        cause="the vector of <s> is taken where the mean was trained",
        symptom="token vectors are right; a sentence's vector is that of its first token",
        pool=_first_token,
    ),
)
