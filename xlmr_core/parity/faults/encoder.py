"""Faults of the encoder, in the order in which the model computes: ids, embeddings, norms, attention, layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AnyBatch
from xlmr_core.model import Embeddings, EncoderLayer, FeedForward, SelfAttention, XLMRobertaModel
from xlmr_core.parity.faults.patching import (
    Fault,
    Patch,
    change_input,
    change_output,
    exchange_values,
    gelu_tanh,
    identity,
    missing_bias,
    module_replaced,
    modules_exchanged,
    override_method,
    parts_of,
    replace_values,
    set_attribute,
)
from xlmr_core.pretrained import PretrainedModel

Context = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # an attention kernel: q, k, v, mask -> context
KERNELS = ("_eager_context", "_fused_context")  # the methods of SelfAttention


def _positions(rule: Callable[[Tensor, int], Tensor]) -> Patch:
    """Position ids by another rule of (input_ids, pad)."""

    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        last = config.max_position_embeddings - 1

        def change(ids: Tensor, token_types: Tensor, _positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return ids, token_types, rule(ids, config.pad_token_id).clamp(max=last)

        for embeddings in parts_of(model, Embeddings):
            change_input(undo, embeddings, change)

    return patch


def _queries_scaled(factor: Callable[[XLMRobertaConfig], float]) -> Patch:
    """Queries, and so scores, multiplied by `factor(config)`, in every attention kernel."""

    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        def scaled(kernel: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return kernel(q * factor(config), k, v, mask)

        _wrap_context(model, undo, scaled)

    return patch


def _mask_changed(rule: Callable[[Tensor, Tensor | None], Tensor | None]) -> Patch:
    """Another mask, `rule(q, mask)`, in every attention kernel."""

    def changed(kernel: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return kernel(q, k, v, rule(q, mask))

    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        _wrap_context(model, undo, changed)

    return patch


def _wrap_context(model: nn.Module, undo: ExitStack, wrapper: Callable[..., Tensor]) -> None:
    for attention in parts_of(model, SelfAttention):
        for kernel in KERNELS:
            override_method(undo, attention, kernel, partial(wrapper, getattr(attention, kernel)))


def _scores(rule: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]) -> Patch:
    """Scores by another rule of (q, k, mask, scale), in place of every attention kernel."""

    def context(attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = rule(q, k, mask, attention.head_dim**-0.5)
        return torch.matmul(attention.dropout(attention.softmax(scores)), v)

    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        for attention in parts_of(model, SelfAttention):
            for kernel in KERNELS:
                override_method(undo, attention, kernel, partial(context, attention))

    return patch


def _layer_forward(rule: Callable[[EncoderLayer, Tensor, AnyBatch], Tensor]) -> Patch:
    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        for layer in parts_of(model, EncoderLayer):
            override_method(undo, layer, "forward", partial(rule, layer))

    return patch


def _norm_by(rule: Callable[[nn.LayerNorm, Tensor], Tensor]) -> Patch:
    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        for norm in parts_of(model, nn.LayerNorm):
            override_method(undo, norm, "forward", partial(rule, norm))

    return patch


def _ids_without_offset(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for embeddings in parts_of(model, Embeddings):
        change_input(undo, embeddings.word_embeddings, _without_offset)


def _without_offset(ids: Tensor) -> tuple[Tensor]:
    return (torch.where(ids > 3, ids - 1, ids),)


def _embeddings_scaled(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for embeddings in parts_of(model, Embeddings):
        change_output(undo, embeddings.word_embeddings, lambda word: word * config.hidden_size**0.5)


def _token_type_missing(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for embeddings in parts_of(model, Embeddings):
        replace_values(undo, embeddings.token_type_embeddings.weight, torch.zeros(()))


def _token_type_twice(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for embeddings in parts_of(model, Embeddings):
        change_output(undo, embeddings.token_type_embeddings, lambda token_type: token_type * 2)


def _counted(ids: Tensor, start: int) -> Tensor:
    return torch.arange(start, start + ids.shape[-1], device=ids.device).expand_as(ids)


def _positions_from_one(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.cumsum(dim=-1) * real


def _positions_through_batch(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flatten().cumsum(dim=0).view_as(real) * real + pad


def _position_rows_shifted(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    unused = config.pad_token_id + 1
    for embeddings in parts_of(model, Embeddings):
        table = embeddings.position_embeddings.weight
        replace_values(undo, table, torch.cat([table[:unused], table[:-unused]]))


def _eps_of_bert(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for norm in parts_of(model, nn.LayerNorm):
        set_attribute(undo, norm, "eps", 1e-12)


def _norm_unbiased(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    variance = x.var(dim=-1, keepdim=True, correction=1)
    return (x - x.mean(dim=-1, keepdim=True)) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def _norm_over_tokens(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    variance = x.var(dim=-2, keepdim=True, correction=0)
    return (x - x.mean(dim=-2, keepdim=True)) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def _transposed_weights(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for attention in parts_of(model, SelfAttention):
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            replace_values(undo, linear.weight, linear.weight.T)


def _reshaped(method: str, reshape: Callable[[XLMRobertaConfig, Tensor], Tensor]) -> Patch:
    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        for attention in parts_of(model, SelfAttention):
            override_method(undo, attention, method, partial(reshape, config))

    return patch


def _heads_interleaved(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return x.unflatten(-1, (config.head_dim, config.num_attention_heads)).permute(0, 3, 1, 2)


def _split_without_transpose(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return x.reshape(x.shape[0], config.num_attention_heads, x.shape[1], config.head_dim)


def _merge_without_transpose(config: XLMRobertaConfig, x: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
    return x.reshape(x.shape[0], x.shape[2], config.hidden_size)


def _softmax_over_queries(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for attention in parts_of(model, SelfAttention):
        set_attribute(undo, attention, "fused", False)
        set_attribute(undo, attention.softmax, "dim", -2)


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


def _norm_placement_exchanged(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    placement = not config.norm_first
    if isinstance(model, PretrainedModel):  # the taps of a model follow from its config
        set_attribute(undo, model, "config", replace(config, norm_first=placement))
    for layer in parts_of(model, EncoderLayer):
        set_attribute(undo, layer, "norm_first", placement)
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


def _layers_off_by_one(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    layers = parts_of(model, EncoderLayer)
    if len(layers) < 2:
        raise ValueError("one layer cannot be taken for the next: this fault needs at least two")
    for layer, following in pairwise(layers):
        exchange_values(undo, layer, following)


def _last_layer_skipped(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    override_method(undo, parts_of(model, EncoderLayer)[-1], "forward", _first_argument)


def _first_argument(hidden: Tensor, _batch: AnyBatch) -> Tensor:
    return hidden


def _gelu_quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _weights_float16(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
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


def _dropout_left_on(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
    for module in (*parts_of(model, nn.Dropout), *parts_of(model, SelfAttention)):
        set_attribute(undo, module, "training", True)


IDS_WITHOUT_OFFSET = Fault(
    "ids_without_offset",
    cause="SentencePiece's own ids are used: the model's ids are one higher from 4 up, because of <pad>",
    symptom="every piece of text is one id too low; <s>, </s> and all shapes are right",
    tap="embeddings.word",
    patch=_ids_without_offset,
)

ENCODER_FAULTS: tuple[Fault, ...] = (
    IDS_WITHOUT_OFFSET,
    Fault(
        "embeddings_scaled",
        cause="word vectors are multiplied by sqrt(hidden_size), as in the original Transformer and in Marian",
        symptom="word vectors are larger by one constant factor",
        tap="embeddings.word",
        patch=_embeddings_scaled,
    ),
    Fault(
        "weights_float16",
        cause="the weights were converted to float16 on their way, and are compared as if they were float32",
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
        symptom="every token has the position vector of the token two before it; left-padded rows are off by more",
        tap="embeddings.position",
        patch=_positions(lambda ids, pad: _counted(ids, 0)),
    ),
    Fault(
        "positions_from_one",
        cause="positions are counted from 1: pad_token_id is not added to the running count",
        symptom="every token has the position vector of the token before it; the first one has padding's",
        tap="embeddings.position",
        patch=_positions(_positions_from_one),
    ),
    Fault(
        "positions_count_padding",
        cause="positions are counted from pad + 1 over the whole row, padding included",
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
        symptom="every token has the position vector of the token two before it, in left-padded rows too",
        tap="embeddings.position",
        patch=_position_rows_shifted,
    ),
    Fault(
        "embedding_norm_missing",
        cause="the norm after the sum of embeddings is left out",
        symptom="the sum is right, and goes into the first layer unnormalised",
        tap="embeddings.output",
        patch=module_replaced(Embeddings, "norm", identity),
        norm="post",
    ),
    missing_bias(
        "embedding_norm_bias_missing",
        Embeddings,
        "norm",
        "embeddings.output",
        of="the embedding norm",
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
        cause="layer norm normalises over the tokens of a sentence, not over the features of a token",
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
        symptom="scores are transposed: the score of query i and key j is at query j and key i",
        tap="layers.0.attention.q",
        patch=modules_exchanged(SelfAttention, "q_proj", "k_proj"),
    ),
    Fault(
        "k_v_swapped",
        cause="a fused q, k, v matrix is cut in the wrong order: keys and values are exchanged",
        symptom="queries are right, keys and values each hold the other",
        tap="layers.0.attention.k",
        patch=modules_exchanged(SelfAttention, "k_proj", "v_proj"),
    ),
    Fault(
        "weights_transposed",
        cause="square weights of the attention are stored (in, out) and read as (out, in)",
        symptom="the shapes fit, the first projection is unrelated to what it should be; feed-forward would not fit",
        tap="layers.0.attention.q",
        patch=_transposed_weights,
    ),
    missing_bias("q_bias_missing", SelfAttention, "q_proj", "layers.0.attention.q", of="the query projection"),
    missing_bias(
        "k_bias_missing",
        SelfAttention,
        "k_proj",
        "layers.0.attention.k",
        of="the key projection",
        symptom="scores move by one constant for each query, which softmax takes out: nothing after it changes",
    ),
    missing_bias(
        "v_bias_missing",
        SelfAttention,
        "v_proj",
        "layers.0.attention.v",
        of="the value projection",
        symptom="probs are right, the same vector is missing from every context",
    ),
    Fault(
        "heads_interleaved",
        cause="features are assigned to the heads in turn (feature i to head i mod N), not in blocks",
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
        symptom="tokens attend only to padding; rows without padding attend evenly or give NaN",
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
        cause="attention sees only earlier tokens, as in a decoder",
        symptom="the last token of a row is right in the first layer, the others miss what follows them",
        tap="layers.0.attention.scores",
        patch=_mask_changed(_mask_causal),
    ),
    Fault(
        "softmax_over_queries",
        cause="softmax is taken over the queries, not over the keys",
        symptom="scores are right, the columns of probs sum to 1 and the rows do not",
        tap="layers.0.attention.probs",
        patch=_softmax_over_queries,
    ),
    missing_bias(
        "out_bias_missing",
        SelfAttention,
        "out_proj",
        "layers.0.attention.output",
        of="the attention's output projection",
    ),
    Fault(
        "norm_placement_exchanged",
        cause="norms are before each sublayer in a post-norm model (base, large), or after it in XL and XXL",
        symptom="the embeddings are right, the first projection is not",
        tap="layers.0.attention.q",
        patch=_norm_placement_exchanged,
    ),
    Fault(
        "norm_before_residual",
        cause="the norm is applied to the sublayer's output only, and the residual is added after it",
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
    missing_bias(
        "attention_norm_bias_missing", EncoderLayer, "attention_norm", "layers.0.mid", of="the norm after the attention"
    ),
    Fault(
        "norms_exchanged",
        cause="the two norms of a layer are exchanged: fairseq calls the second one final_layer_norm",
        symptom="sums are right, both norms' outputs have another scale and bias for each feature",
        tap="layers.0.mid",
        patch=modules_exchanged(EncoderLayer, "attention_norm", "feed_forward_norm"),
    ),
    missing_bias(
        "up_bias_missing", FeedForward, "up_proj", "layers.0.feed_forward.pre", of="the first feed-forward map"
    ),
    Fault(
        "gelu_tanh",
        cause="GELU is the tanh approximation; XLM-R's is exact, by erf",
        symptom="errors of up to 5e-4 after the activation, none far from 0",
        tap="layers.0.feed_forward.post",
        patch=module_replaced(FeedForward, "activation", gelu_tanh),
    ),
    Fault(
        "gelu_quick",
        cause="GELU is x * sigmoid(1.702 x); XLM-R's is exact, by erf",
        symptom="errors of up to 0.02 after the activation, none far from 0",
        tap="layers.0.feed_forward.post",
        patch=module_replaced(FeedForward, "activation", _gelu_quick),
    ),
    Fault(
        "relu_for_gelu",
        cause="the activation is ReLU",
        symptom="after the activation, what should be slightly negative is exactly 0",
        tap="layers.0.feed_forward.post",
        patch=module_replaced(FeedForward, "activation", F.relu),
    ),
    missing_bias(
        "down_bias_missing", FeedForward, "down_proj", "layers.0.feed_forward.output", of="the second feed-forward map"
    ),
    Fault(
        "residual_from_layer_input",
        cause="the second residual adds the layer's input, not what came out of the attention's norm",
        symptom="the feed-forward output is right, the sum after it is not",
        tap="layers.0.feed_forward.residual",
        patch=_layer_forward(_residual_from_layer_input),
        norm="post",
    ),
    missing_bias(
        "feed_forward_norm_bias_missing",
        EncoderLayer,
        "feed_forward_norm",
        "layers.0.output",
        of="the norm after the feed-forward",
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
        patch=module_replaced(XLMRobertaModel, "final_norm", identity),
        norm="pre",
    ),
)
