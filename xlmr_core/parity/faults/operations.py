"""How an operation of the encoder is exchanged for another, in the order in which the model computes.

The operation is exchanged inside the model, not computed anew from taps as the grammar does (grammar/carry.py): so it
reads what hooks have put at the taps before it, in any attention kernel and batch, and gradients and dropout stay.
"""

# pyright: reportUnknownLambdaType=false
# A rule has the arguments of the module or method that it changes.
from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AnyBatch
from xlmr_core.model import Embeddings, EncoderLayer, FeedForward, SelfAttention
from xlmr_core.parity.faults.patching import (
    Patch,
    change_output,
    each,
    exchange_values,
    input_changed,
    method_replaced,
    module_replaced,
    override_method,
    parts_of,
    replace_values,
    set_attribute,
)
from xlmr_core.parity.grammar.activations import ACTIVATIONS
from xlmr_core.parity.grammar.functions import MERGES, NORMS, SPLITS
from xlmr_core.parity.grammar.indices import IDS, POSITIONS
from xlmr_core.pretrained import PretrainedModel

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # an attention kernel: q, k, v, mask -> context
KERNELS = ("_eager_context", "_fused_context")  # the methods of SelfAttention; see also `without_varlen`

# ---- variants, by the names that the grammar gives them --------------------------------------------------------------


def ids(kind: str) -> Patch:
    """The word table is read at another variant of the ids."""
    return input_changed(Embeddings, "word_embeddings", lambda config, ids: (IDS[kind](ids, config.pad_token_id),))


def positions(kind: str) -> Patch:
    """Another variant of the positions, the last row of the table for those beyond it."""

    def changed(config: XLMRobertaConfig, ids: Tensor, token_types: Tensor, _usual: Tensor) -> tuple[Tensor, ...]:
        positions = POSITIONS[kind](ids, config.pad_token_id)
        return ids, token_types, positions.clamp(max=config.max_position_embeddings - 1)

    return input_changed(Embeddings, "", changed)


def norms(kind: str) -> Patch:
    """Every norm is another variant."""

    def forward(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return NORMS[kind](x, x.new_tensor(norm.eps), 1) * norm.weight + norm.bias

    return method_replaced(nn.LayerNorm, "forward", forward)


def heads_split(kind: str) -> Patch:
    """Features are assigned to the heads in another way."""
    split = method_replaced(SelfAttention, "_split_heads", lambda attention, x: SPLITS[kind](x, attention.num_heads))
    return without_varlen(split)


def heads_merged(kind: str) -> Patch:
    """Heads are put side by side in another way."""
    return without_varlen(method_replaced(SelfAttention, "_merge_heads", lambda _attention, x: MERGES[kind](x)))


def activation(kind: str) -> Patch:
    """Another activation in the feed-forward."""
    return module_replaced(FeedForward, "activation", ACTIVATIONS[kind])


# ---- attention -------------------------------------------------------------------------------------------------------


def without_varlen(patch: Patch) -> Patch:
    """The patch, and no varlen kernel: it calls none of the methods that are exchanged, and would change nothing."""

    def changed(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        method_replaced(SelfAttention, "_takes_varlen", lambda _attention, _q: False)(model, config, undo)
        patch(model, config, undo)

    return changed


def attention_reads(rule: Callable[[XLMRobertaConfig, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> Patch:
    """Every attention kernel reads other queries and another mask: `rule(config, q, mask)`."""

    def change(undo: ExitStack, attention: SelfAttention, config: XLMRobertaConfig) -> None:
        def changed(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            q, mask = rule(config, q, mask)
            return kernel(q, k, v, mask)

        for name in KERNELS:
            override_method(undo, attention, name, partial(changed, getattr(attention, name)))

    return without_varlen(each(SelfAttention, change))


def scores_replaced(rule: Callable[[Tensor, Tensor | None, float], Tensor]) -> Patch:
    """Scores are `rule(q k^T, mask, 1 / sqrt(head_dim))`, in place of every attention kernel."""

    def context(attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = rule(torch.matmul(q, k.transpose(2, 3)), mask, attention.head_dim**-0.5)
        return torch.matmul(attention.dropout(attention.softmax(scores)), v)

    def change(undo: ExitStack, attention: SelfAttention, _config: XLMRobertaConfig) -> None:
        for name in KERNELS:
            override_method(undo, attention, name, partial(context, attention))

    return without_varlen(each(SelfAttention, change))


def mask_causal(_config: XLMRobertaConfig, q: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys after the query are hidden, too: a rule of `attention_reads`."""
    earlier = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    return q, earlier if mask is None else mask & earlier


def mask_added(product: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The mask as it is, 1 for real tokens, is added: a rule of `scores_replaced`."""
    return product * scale if mask is None else product * scale + mask


def mask_weak(product: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Padding is lowered by 1: a rule of `scores_replaced`."""
    return product * scale if mask is None else product * scale - (~mask).to(product)


def scores_float16(product: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The product is kept in float16: a rule of `scores_replaced`."""
    scores = product.half().to(product) * scale
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


# ---- patches of one fault each: its row in encoder.py says what is wrong ---------------------------------------------


def weights_float16(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    modules = list(model.modules())
    # A copy of the word table needs gigabytes: rows are rounded when they are looked up, unless a decoder reads it all.
    decoders = [module.weight for module in modules if isinstance(module, nn.Linear)]
    tables = [module.word_embeddings for module in modules if isinstance(module, Embeddings)]
    tables = [table for table in tables if all(table.weight is not weight for weight in decoders)]
    for table in tables:
        change_output(undo, table, lambda rows: rows.half().to(rows))
    for parameter in model.parameters():
        if all(parameter is not table.weight for table in tables):
            replace_values(undo, parameter, parameter.half())


def position_rows_shifted(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    unused = config.pad_token_id + 1
    for embeddings in parts_of(model, Embeddings):
        table = embeddings.position_embeddings.weight
        replace_values(undo, table, torch.cat([table[:unused], table[:-unused]]))


def dropout_left_on(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for module in (*parts_of(model, nn.Dropout), *parts_of(model, SelfAttention)):
        set_attribute(undo, module, "training", True)


def norm_placement_exchanged(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    placement = not config.norm_first
    if isinstance(model, PretrainedModel):  # the taps of a model follow from its config
        set_attribute(undo, model, "config", replace(config, norm_first=placement))
    for layer in parts_of(model, EncoderLayer):
        set_attribute(undo, layer, "norm_first", placement)
        if not hasattr(layer, "mid"):
            layer.mid = nn.Identity()
            undo.callback(delattr, layer, "mid")


def norm_before_residual(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = hidden + layer.attention_norm(layer.attention_dropout(layer.attention(hidden, batch)))
    return mid + layer.feed_forward_norm(layer.feed_forward_dropout(layer.feed_forward(mid)))


def attention_residual_missing(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = layer.attention_norm(layer.attention_dropout(layer.attention(hidden, batch)))
    return layer.feed_forward_norm(mid + layer.feed_forward_dropout(layer.feed_forward(mid)))


def residual_from_layer_input(layer: EncoderLayer, hidden: Tensor, batch: AnyBatch) -> Tensor:
    mid = layer.attention_norm(hidden + layer.attention_dropout(layer.attention(hidden, batch)))
    return layer.feed_forward_norm(hidden + layer.feed_forward_dropout(layer.feed_forward(mid)))


def layers_off_by_one(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    layers = parts_of(model, EncoderLayer)
    if len(layers) < 2:
        raise ValueError("one layer cannot be taken for the next: this fault needs at least two")
    for layer, following in pairwise(layers):
        exchange_values(undo, layer, following)


def last_layer_skipped(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    override_method(undo, parts_of(model, EncoderLayer)[-1], "forward", lambda hidden, _batch: hidden)
