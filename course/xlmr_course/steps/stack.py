"""The whole encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_course.material import Material, Sample, material
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import normalised


def stack_cases(material: Material) -> list[Case]:
    """The ids of each sample, and what the last layer gives."""
    last = material.config.num_hidden_layers - 1
    parameters = {name: tensor for name, tensor in material.parameters.items() if not name.startswith("lm_head.")}

    def case(sample: Sample) -> Case:
        arguments = {
            "input_ids": sample.input_ids,
            "mask": sample.mask,
            "parameters": parameters,
            "heads": material.config.num_attention_heads,
            "eps": material.config.layer_norm_eps,
        }
        return Case(arguments, sample.taps[f"layers.{last}.output"], sample.about, counts=sample.mask)

    return material.cases(case)


def _with_layers(choose: Callable[[list[nn.Module]], list[nn.Module]]) -> Callable[..., Tensor]:
    """The model with other layers, or in another order."""

    def wrong(input_ids: Tensor, mask: Tensor, **_rest: Any) -> Tensor:
        encoder = deepcopy(material().model.encoder)
        encoder.layers = nn.ModuleList(choose(list(encoder.layers)))
        with torch.no_grad():
            return encoder(input_ids, mask).last_hidden_state

    return wrong


def _queries_for_keys(layer: Any) -> nn.Module:
    attention = layer.attention
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    return layer


def _keys_for_values(layer: Any) -> nn.Module:
    attention = layer.attention
    attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    return layer


def _norms_exchanged(layer: Any) -> nn.Module:
    layer.attention_norm, layer.feed_forward_norm = layer.feed_forward_norm, layer.attention_norm
    return layer


def _with_eps(eps: float) -> Callable[..., Tensor]:
    def wrong(input_ids: Tensor, mask: Tensor, **_rest: Any) -> Tensor:
        encoder = deepcopy(material().model.encoder)
        for norm in (module for module in encoder.modules() if isinstance(module, nn.LayerNorm)):
            norm.eps = eps
        with torch.no_grad():
            return encoder(input_ids, mask).last_hidden_state

    return wrong


def _scaled_by_width(layer: Any) -> nn.Module:
    heads = material().config.num_attention_heads
    for parameter in layer.attention.q_proj.parameters():  # a smaller query is a smaller score
        parameter.data /= heads**0.5
    return layer


def _last_norm(parameters: Mapping[str, Tensor], **given: Any) -> Tensor:
    right = _with_layers(lambda layers: layers)(**given)
    prefix = f"layers.{material().config.num_hidden_layers - 1}.feed_forward_norm."
    return normalised(right, parameters[prefix + "weight"], parameters[prefix + "bias"], given["eps"])


def _called(**other: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The model with other arguments, each a function of input_ids."""

    def wrong(input_ids: Tensor, mask: Tensor, **_rest: Any) -> Tensor:
        arguments = {"attention_mask": mask} | {name: rule(input_ids) for name, rule in other.items()}
        with torch.no_grad():
            return material().model.encoder(input_ids, **arguments).last_hidden_state

    return wrong


STACK_FAULTS = (
    Fault(
        "last layer left out", "The last layer is not run: check the end of your range.", _with_layers(lambda x: x[:-1])
    ),
    Fault("first layer left out", "Layer 0 is not run: layers count from 0.", _with_layers(lambda x: x[1:])),
    Fault(
        "one layer for all",
        "Every layer uses the weights of layer 0. Each has its own.",
        _with_layers(lambda x: [x[0]] * len(x)),
    ),
    Fault(
        "last weights for all",
        "Every layer uses the weights of the last: a closure that sees the loop's variable after the loop does that.",
        _with_layers(lambda x: [x[-1]] * len(x)),
    ),
    Fault("backwards", "The layers run from the last to the first.", _with_layers(lambda x: x[::-1])),
    Fault(
        "each layer reads the embeddings",
        "A layer must read what the layer below it gave. Here only the last one counts, on the embeddings.",
        _with_layers(lambda x: x[-1:]),
    ),
    Fault("twice", "All layers run twice.", _with_layers(lambda x: x + x)),
    Fault(
        "mask not handed on",
        "Padding is not hidden: the mask does not reach the attention of each layer.",
        _called(attention_mask=lambda ids: torch.ones_like(ids)),
    ),
    Fault(
        "positions from zero",
        "Positions are counted from 0. Use your function of the step `positions`; the id of <pad> is 1.",
        _called(position_ids=lambda ids: torch.arange(ids.shape[1]).expand_as(ids)),
    ),
    Fault(
        "queries and keys exchanged",
        "k_proj makes the queries and q_proj the keys.",
        _with_layers(lambda layers: [_queries_for_keys(layer) for layer in layers]),
    ),
    Fault(
        "keys and values exchanged",
        "v_proj makes the keys and k_proj the values.",
        _with_layers(lambda layers: [_keys_for_values(layer) for layer in layers]),
    ),
    Fault(
        "norms exchanged",
        "attention_norm and feed_forward_norm are exchanged.",
        _with_layers(lambda layers: [_norms_exchanged(layer) for layer in layers]),
    ),
    Fault(
        "eps of another model",
        "The norms have an eps of their own, such as 1e-12. Hand the argument `eps` on.",
        _with_eps(1e-12),
    ),
    Fault(
        "scaled by the width of the model",
        "The scores are divided by sqrt(H). D is the width of one head, H / N.",
        _with_layers(lambda layers: [_scaled_by_width(layer) for layer in layers]),
    ),
    Fault(
        "a norm at the end",
        "The result of the last layer is normalised once more. Only XL has a norm at the end.",
        lambda parameters, **given: _last_norm(parameters, **given),
    ),
)
STACK = Step(
    "stack",
    "All layers",
    (Function("encode", ("text", "token", "feature"), stack_cases, STACK_FAULTS),),
)
