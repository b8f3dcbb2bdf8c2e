"""The faults of the catalogue, made in transformers' models in terms of transformers' own modules.

Written without a look at xlmr_core.parity.faults, so that diagnosis is tried on somebody else's version of each.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.parity.adapters import Place, transformers_places

Patched = pytest.MonkeyPatch
Change = Callable[[Any, Patched], None]  # changes the model for good; what is not the model's own is put back

# Who moves a norm has no such boundaries any more.
AROUND_NORMS = ("attention.residual", "mid", "feed_forward.residual")


def places(model: Any, fault: str = "") -> dict[str, Place]:
    """Where the taps are in the model, without those that the fault has done away with."""
    modules = {name for name, _ in model.named_modules()} | {""}
    layers = len(base(model).encoder.layer)
    found = {tap: place for tap, place in transformers_places(model).items() if place.module in modules}
    found = {tap: place for tap, place in found.items() if not (place.module == "" and place.index >= layers)}
    if fault == "norm_placement_exchanged":
        found = {tap: place for tap, place in found.items() if not tap.endswith(AROUND_NORMS)}
    return found


def base(model: Any) -> Any:
    return model.roberta if hasattr(model, "roberta") else model


def layers(model: Any) -> Any:
    return base(model).encoder.layer


def is_xl(model: Any) -> bool:
    return hasattr(base(model).encoder, "LayerNorm")


def first_norm(layer: Any) -> Any:
    return layer.attention.self_attn_layer_norm if hasattr(layer, "LayerNorm") else layer.attention.output.LayerNorm


def second_norm(layer: Any) -> Any:
    return layer.LayerNorm if hasattr(layer, "LayerNorm") else layer.output.LayerNorm


class Function(nn.Module):
    """A function where a module is wanted."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


# ---- embeddings ------------------------------------------------------------------------------------------------------


def shifted_ids(model: Any, _: Patched) -> None:
    table = base(model).embeddings.word_embeddings
    table.register_forward_pre_hook(lambda _module, args: (args[0] - (args[0] > 3).long(),))


def scaled_words(model: Any, _: Patched) -> None:
    root = math.sqrt(model.config.hidden_size)
    base(model).embeddings.word_embeddings.register_forward_hook(lambda _module, _args, out: out * root)


def through_float16(model: Any, _: Patched) -> None:
    model.half().float()


def token_types_times(factor: float) -> Change:
    def fault(model: Any, _: Patched) -> None:
        base(model).embeddings.token_type_embeddings.weight.data *= factor

    return fault


def positions(rule: Callable[[Tensor, int], Tensor]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        limit = model.config.max_position_embeddings - 1
        base(model).embeddings.create_position_ids_from_input_ids = lambda ids, pad, *_args: rule(ids, pad).clamp(
            max=limit
        )

    return fault


def numbered(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])[None].repeat(len(ids), 1)


def running(ids: Tensor, pad: int) -> Tensor:
    return torch.cumsum(ids.ne(pad), 1) * ids.ne(pad)


def through_batch(ids: Tensor, pad: int) -> Tensor:
    counts = ids.ne(pad).sum(1)
    offsets = torch.cumsum(counts, 0) - counts
    return torch.where(ids.ne(pad), running(ids, pad) + offsets[:, None], 0) + pad


def rows_shifted(model: Any, _: Patched) -> None:
    table = base(model).embeddings.position_embeddings.weight.data
    table[2:] = table[:-2].clone()


def embedding_norm_missing(model: Any, _: Patched) -> None:
    base(model).embeddings.LayerNorm = nn.Identity()


# ---- norms -----------------------------------------------------------------------------------------------------------


def every_norm(change: Callable[[nn.LayerNorm], None]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                change(module)

    return fault


def eps_of_bert(norm: nn.LayerNorm) -> None:
    norm.eps = 1e-12


def sample_variance(norm: nn.LayerNorm) -> None:
    norm.forward = lambda x: (
        (x - x.mean(-1, True)) * (x.var(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight + norm.bias
    )


def over_tokens(norm: nn.LayerNorm) -> None:
    norm.forward = lambda x: (
        (x - x.mean(1, True)) * (x.var(1, unbiased=False, keepdim=True) + norm.eps).rsqrt() * norm.weight + norm.bias
    )


def train_mode(model: Any, _: Patched) -> None:
    torch.manual_seed(11)
    model.train()


def no_bias(find: Callable[[Any], Any]) -> Change:
    """Without the bias of the module that `find` gives for each layer."""

    def fault(model: Any, _: Patched) -> None:
        for layer in layers(model):
            find(layer).bias.data.zero_()

    return fault


def no_model_bias(find: Callable[[Any], Any]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        find(model).bias.data.zero_()

    return fault


# ---- attention -------------------------------------------------------------------------------------------------------


def projections_swapped(left: str, right: str) -> Change:
    def fault(model: Any, _: Patched) -> None:
        for layer in layers(model):
            attention = layer.attention.self
            a, b = getattr(attention, left), getattr(attention, right)
            setattr(attention, left, b)
            setattr(attention, right, a)

    return fault


def transposed(model: Any, _: Patched) -> None:
    for layer in layers(model):
        attention = layer.attention
        for linear in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
            linear.weight.data = linear.weight.data.T.contiguous()


def scaling(rule: Callable[[Any], float]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        for layer in layers(model):
            layer.attention.self.scaling = rule(layer.attention.self)

    return fault


def attention_by(
    split: Callable[[Tensor, int], Tensor] | None = None,
    scores: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    narrow: bool = False,
    softmax_dim: int = -1,
    merge: bool = True,
) -> Change:
    """transformers' eager attention with one thing changed. scores: of the scaled product and the additive mask."""

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        if split:
            heads = query.shape[1]
            query, key, value = (split(x.transpose(1, 2).flatten(2), heads) for x in (query, key, value))
        product = query @ key.transpose(2, 3)
        product = (product.half().float() if narrow else product) * options["scaling"]
        if scores:
            product = scores(product, attention_mask)
        elif attention_mask is not None:
            product = product + attention_mask
        probs = F.softmax(product, dim=softmax_dim)
        context = probs @ value
        right = context.transpose(1, 2).contiguous()
        return (right if merge else context.reshape(right.shape)), probs

    def fault(model: Any, patched: Patched) -> None:
        patched.setattr(sys.modules[type(model).__module__], "eager_attention_forward", forward)

    return fault


def dealt(flat: Tensor, heads: int) -> Tensor:
    return torch.stack([flat[..., head::heads] for head in range(heads)], dim=1)


def cut(flat: Tensor, heads: int) -> Tensor:
    return flat.reshape(len(flat), heads, flat.shape[1], -1)


def lowest(x: Tensor) -> float:
    return torch.finfo(x.dtype).min


def inverted(product: Tensor, mask: Tensor | None) -> Tensor:
    return product if mask is None else product.masked_fill(mask == 0, lowest(product))


def added(product: Tensor, mask: Tensor | None) -> Tensor:
    return product if mask is None else product + (mask == 0).float()


def weak(product: Tensor, mask: Tensor | None) -> Tensor:
    return product if mask is None else product - (mask != 0).float()


def causal(product: Tensor, mask: Tensor | None) -> Tensor:
    later = torch.ones(product.shape[-2:]).triu(1).bool()
    return (product if mask is None else product + mask).masked_fill(later, lowest(product))


# ---- layers ----------------------------------------------------------------------------------------------------------


def layer_by(rule: Callable[[Any, Tensor, Tensor | None], Tensor]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        for layer in layers(model):
            layer.forward = lambda hidden, mask=None, *_args, _layer=layer, **_options: rule(_layer, hidden, mask)

    return fault


def attended(layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    return layer.attention.output.dense(layer.attention.self(hidden, mask)[0])


def fed(layer: Any, hidden: Tensor) -> Tensor:
    return layer.output.dense(layer.intermediate(hidden))


def norms_moved(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    if hasattr(layer, "LayerNorm"):  # XL as if it were base
        x = first_norm(layer)(x + attended(layer, x, mask))
        return second_norm(layer)(x + fed(layer, x))
    x = x + attended(layer, first_norm(layer)(x), mask)
    return x + fed(layer, second_norm(layer)(x))


def norms_inside(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    x = x + first_norm(layer)(attended(layer, x, mask))
    return x + second_norm(layer)(fed(layer, x))


def no_attention_residual(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    x = first_norm(layer)(attended(layer, x, mask))
    return second_norm(layer)(fed(layer, x) + x)


def wrong_residual(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    middle = first_norm(layer)(attended(layer, x, mask) + x)
    return second_norm(layer)(fed(layer, middle) + x)


def norms_swapped(model: Any, _: Patched) -> None:
    for layer in layers(model):
        first, second = first_norm(layer), second_norm(layer)
        if is_xl(model):
            layer.attention.self_attn_layer_norm, layer.LayerNorm = second, first
        else:
            layer.attention.output.LayerNorm, layer.output.LayerNorm = second, first


def activation(module: Callable[[], nn.Module]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        for layer in layers(model):
            layer.intermediate.intermediate_act_fn = module()

    return fault


def next_layer(model: Any, _: Patched) -> None:
    first, *rest = layers(model)
    base(model).encoder.layer = nn.ModuleList([*rest, first])


def one_layer_less(model: Any, _: Patched) -> None:
    base(model).encoder.layer = layers(model)[:-1]


def final_norm_missing(model: Any, _: Patched) -> None:
    base(model).encoder.LayerNorm = nn.Identity()


# ---- heads -----------------------------------------------------------------------------------------------------------


def lm_head_by(function: Callable[[Tensor], Tensor]) -> Change:
    def fault(model: Any, _: Patched) -> None:
        head = model.lm_head
        head.forward = lambda x, **_options: head.decoder(head.layer_norm(function(head.dense(x))))

    return fault


def lm_head_norm_missing(model: Any, _: Patched) -> None:
    model.lm_head.layer_norm = nn.Identity()


def untied(model: Any, _: Patched) -> None:
    random = torch.Generator().manual_seed(12)
    shape = model.lm_head.decoder.weight.shape
    model.lm_head.decoder.weight = nn.Parameter(torch.randn(shape, generator=random) * 0.02)


def pool_last(model: Any, _: Patched) -> None:
    pooler = model.pooler
    pooler.forward = lambda hidden: pooler.activation(pooler.dense(hidden[:, -1]))


def pool_linear(model: Any, _: Patched) -> None:
    model.pooler.activation = nn.Identity()


def classifier_by(
    token: Callable[[Tensor], Tensor] = lambda hidden: hidden[:, 0], bend: Callable[[Tensor], Tensor] = torch.tanh
) -> Change:
    def fault(model: Any, _: Patched) -> None:
        head = model.classifier
        head.forward = lambda hidden, **_options: head.out_proj(bend(head.dense(token(hidden))))

    return fault


def ends_exchanged(model: Any, _: Patched) -> None:
    for parameter in model.qa_outputs.parameters():
        parameter.data = parameter.data.flip(0)


FAULTS: dict[str, Change] = {
    "ids_without_offset": shifted_ids,
    "embeddings_scaled": scaled_words,
    "weights_float16": through_float16,
    "token_type_missing": token_types_times(0),
    "token_type_twice": token_types_times(2),
    "positions_from_zero": positions(lambda ids, _: numbered(ids)),
    "positions_from_one": positions(running),
    "positions_count_padding": positions(lambda ids, pad: numbered(ids) + pad + 1),
    "positions_without_restart": positions(through_batch),
    "position_rows_shifted": rows_shifted,
    "embedding_norm_missing": embedding_norm_missing,
    "embedding_norm_bias_missing": no_model_bias(lambda model: base(model).embeddings.LayerNorm),
    "eps_of_bert": every_norm(eps_of_bert),
    "norm_unbiased": every_norm(sample_variance),
    "norm_over_tokens": every_norm(over_tokens),
    "dropout_left_on": train_mode,
    "q_k_swapped": projections_swapped("query", "key"),
    "k_v_swapped": projections_swapped("key", "value"),
    "weights_transposed": transposed,
    "q_bias_missing": no_bias(lambda layer: layer.attention.self.query),
    "k_bias_missing": no_bias(lambda layer: layer.attention.self.key),
    "v_bias_missing": no_bias(lambda layer: layer.attention.self.value),
    "heads_interleaved": attention_by(split=dealt),
    "heads_split_without_transpose": attention_by(split=cut),
    "heads_merged_without_transpose": attention_by(merge=False),
    "scores_unscaled": scaling(lambda attention: 1.0),
    "scores_scaled_by_head_dim": scaling(lambda attention: 1 / attention.attention_head_size),
    "scores_scaled_by_hidden_size": scaling(lambda attention: attention.all_head_size**-0.5),
    "scores_float16": attention_by(narrow=True),
    "mask_missing": attention_by(scores=lambda product, mask: product),
    "mask_inverted": attention_by(scores=inverted),
    "mask_added_as_it_is": attention_by(scores=added),
    "mask_too_weak": attention_by(scores=weak),
    "mask_causal": attention_by(scores=causal),
    "softmax_over_queries": attention_by(softmax_dim=-2),
    "out_bias_missing": no_bias(lambda layer: layer.attention.output.dense),
    "norm_placement_exchanged": layer_by(norms_moved),
    "norm_before_residual": layer_by(norms_inside),
    "attention_residual_missing": layer_by(no_attention_residual),
    "attention_norm_bias_missing": no_bias(first_norm),
    "norms_exchanged": norms_swapped,
    "up_bias_missing": no_bias(lambda layer: layer.intermediate.dense),
    "gelu_tanh": activation(lambda: nn.GELU(approximate="tanh")),
    "gelu_quick": activation(lambda: Function(lambda x: x * torch.sigmoid(1.702 * x))),
    "relu_for_gelu": activation(nn.ReLU),
    "down_bias_missing": no_bias(lambda layer: layer.output.dense),
    "residual_from_layer_input": layer_by(wrong_residual),
    "feed_forward_norm_bias_missing": no_bias(second_norm),
    "layers_off_by_one": next_layer,
    "last_layer_skipped": one_layer_less,
    "final_norm_missing": final_norm_missing,
    "lm_head_dense_bias_missing": no_model_bias(lambda model: model.lm_head.dense),
    "lm_head_activation_missing": lm_head_by(lambda x: x),
    "lm_head_gelu_tanh": lm_head_by(lambda x: F.gelu(x, approximate="tanh")),
    "lm_head_norm_missing": lm_head_norm_missing,
    "lm_head_norm_bias_missing": no_model_bias(lambda model: model.lm_head.layer_norm),
    "lm_head_untied": untied,
    "vocabulary_bias_missing": no_model_bias(lambda model: model.lm_head.decoder),
    "pooler_last_token": pool_last,
    "pooler_bias_missing": no_model_bias(lambda model: model.pooler.dense),
    "pooler_tanh_missing": pool_linear,
    "classifier_mean_pooled": classifier_by(token=lambda hidden: hidden.mean(dim=1)),
    "classifier_dense_bias_missing": no_model_bias(lambda model: model.classifier.dense),
    "classifier_tanh_missing": classifier_by(bend=lambda x: x),
    "classifier_out_bias_missing": no_model_bias(lambda model: model.classifier.out_proj),
    "tagger_bias_missing": no_model_bias(lambda model: model.classifier),
    "answer_bias_missing": no_model_bias(lambda model: model.qa_outputs),
    "answer_ends_exchanged": ends_exchanged,
}
