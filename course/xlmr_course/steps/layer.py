"""The second half of a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu

from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.attention import LAYER
from xlmr_course.steps.parts import normalised


def _gelu_cases(material: Material) -> list[Case]:
    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        return Case({"x": layer["feed_forward.pre"]}, layer["feed_forward.post"], sample.about, counts=sample.mask)

    return material.cases(case)


def _feed_forward_cases(material: Material) -> list[Case]:
    parameters, prefix = material.parameters, f"layers.{LAYER}."

    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments = {
            "mid": layer["mid"],
            "up_weight": parameters[prefix + "feed_forward.up_proj.weight"],
            "up_bias": parameters[prefix + "feed_forward.up_proj.bias"],
            "down_weight": parameters[prefix + "feed_forward.down_proj.weight"],
            "down_bias": parameters[prefix + "feed_forward.down_proj.bias"],
            "norm_weight": parameters[prefix + "feed_forward_norm.weight"],
            "norm_bias": parameters[prefix + "feed_forward_norm.bias"],
            "eps": material.config.layer_norm_eps,
        }
        return Case(arguments, layer["output"], f"layer {LAYER}, {sample.about}", counts=sample.mask)

    return material.cases(case)


Maps = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _by(rule: Callable[[Tensor, Maps], Tensor]) -> Callable[..., Tensor]:
    """A wrong function from a rule of (mid, (up, down, norm))."""

    def wrong(
        mid: Tensor,
        up_weight: Tensor,
        up_bias: Tensor,
        down_weight: Tensor,
        down_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
    ) -> Tensor:
        def up(x: Tensor) -> Tensor:
            return linear(x, up_weight, up_bias)

        def down(x: Tensor) -> Tensor:
            return linear(x, down_weight, down_bias)

        def norm(x: Tensor) -> Tensor:
            return normalised(x, norm_weight, norm_bias, eps)

        return rule(mid, (up, down, norm))

    return wrong


def _with(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return _by(lambda mid, maps: maps[2](mid + maps[1](activation(maps[0](mid)))))


def _no_bias(mid: Tensor, maps: Maps) -> Tensor:
    up, down, norm = maps
    return norm(mid + down(gelu(up(mid) - up(torch.zeros_like(mid)))))


def _no_second_bias(mid: Tensor, maps: Maps) -> Tensor:
    up, down, norm = maps
    inner = gelu(up(mid))
    return norm(mid + down(inner) - down(torch.zeros_like(inner)))


FEED_FORWARD = Step(
    "feed-forward",
    "Each token by itself",
    (
        Function(
            "activation",
            ("text", "token", "feature"),
            _gelu_cases,
            (
                Fault(
                    "tanh approximation",
                    "That is the tanh approximation of GELU, of GPT-2. XLM-R's is exact: x * Phi(x), by erf.",
                    lambda x: gelu(x, approximate="tanh"),
                ),
                Fault(
                    "sigmoid approximation",
                    "That is x * sigmoid(1.702 x), the quick GELU of CLIP. XLM-R's is exact, by erf.",
                    lambda x: x * torch.sigmoid(1.702 * x),
                ),
                Fault("relu", "That is ReLU. XLM-R uses GELU: x * Phi(x).", lambda x: relu(x)),
                Fault(
                    "silu",
                    "That is SiLU, x * sigmoid(x). GELU weighs by the normal distribution.",
                    lambda x: x * x.sigmoid(),
                ),
                Fault(
                    "erf without the root of 2",
                    "Phi(x) is (1 + erf(x / sqrt(2))) / 2; the division by sqrt(2) is missing.",
                    lambda x: x * 0.5 * (1 + torch.erf(x)),
                ),
                Fault("Phi without x", "Phi(x) is not multiplied by x.", lambda x: 0.5 * (1 + torch.erf(x / 2**0.5))),
            ),
        ),
        Function(
            "feed_forward",
            ("text", "token", "feature"),
            _feed_forward_cases,
            (
                Fault(
                    "no residual", "`mid` is not added before the norm.", _by(lambda m, f: f[2](f[1](gelu(f[0](m)))))
                ),
                Fault(
                    "residual after the norm",
                    "`mid` is added after the norm. The norm comes last, over the sum.",
                    _by(lambda m, f: m + f[2](f[1](gelu(f[0](m))))),
                ),
                Fault("no norm", "The sum is not normalised.", _by(lambda m, f: m + f[1](gelu(f[0](m))))),
                Fault(
                    "no activation",
                    "Nothing stands between the two linear maps, and two linear maps are one.",
                    _with(lambda x: x),
                ),
                Fault(
                    "tanh GELU",
                    "The activation is the tanh approximation of GELU.",
                    _with(lambda x: gelu(x, approximate="tanh")),
                ),
                Fault("relu", "The activation is ReLU.", _with(relu)),
                Fault("activation twice", "The activation is applied twice.", _with(lambda x: gelu(gelu(x)))),
                Fault(
                    "activation after the second map",
                    "The activation stands after the second linear map. It belongs between the two.",
                    _by(lambda m, f: f[2](m + gelu(f[1](f[0](m))))),
                ),
                Fault("no first bias", "The bias of the first map is not added.", _by(_no_bias)),
                Fault("no second bias", "The bias of the second map is not added.", _by(_no_second_bias)),
            ),
        ),
    ),
)
