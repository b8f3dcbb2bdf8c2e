"""What follows attention in a layer: output, and the feed-forward part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu

from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import LAYER, in_layer, norm_faults, normalised

# ---- output ----------------------------------------------------------------------------------------------------------

NORM = ("norm_weight", "norm_bias", "eps")


def _output_cases(material: Material) -> list[Case]:
    prefix = f"layers.{LAYER}."
    parameters = material.parameters

    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments = {
            "context": layer["attention.context"],
            "x": layer["input"],
            "weight": parameters[prefix + "attention.out_proj.weight"],
            "bias": parameters[prefix + "attention.out_proj.bias"],
            "norm_weight": parameters[prefix + "attention_norm.weight"],
            "norm_bias": parameters[prefix + "attention_norm.bias"],
            "eps": material.config.layer_norm_eps,
        }
        return in_layer(sample, arguments, layer["mid"], sample.mask)

    return material.cases(case)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


def _output_by(rule: Rule) -> Callable[..., Tensor]:
    def wrong(
        context: Tensor, x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
    ) -> Tensor:
        return rule(context, x, weight, bias, lambda y: normalised(y, norm_weight, norm_bias, eps))

    return wrong


def _right_output(context: Tensor, x: Tensor, weight: Tensor, bias: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    return norm(x + linear(context, weight, bias))


OUTPUT = Step(
    "output",
    "Back into the stream: output, residual, norm",
    (
        Function(
            "attention_output",
            ("text", "token", "feature"),
            _output_cases,
            (
                Fault(
                    "no residual",
                    "What the layer read, `x`, is not added. Without it a deep model forgets its input, and does not train.",
                    _output_by(lambda c, x, w, b, norm: norm(linear(c, w, b))),
                ),
                Fault(
                    "residual after the norm",
                    "`x` is added after the norm. In XLM-R base and large the norm comes last, over the sum.",
                    _output_by(lambda c, x, w, b, norm: x + norm(linear(c, w, b))),
                ),
                Fault(
                    "residual twice",
                    "`x` is added before the norm and again after it. Only the sum before the norm has it.",
                    _output_by(lambda c, x, w, b, norm: x + norm(x + linear(c, w, b))),
                ),
                Fault(
                    "norm before",
                    "`x` is normalised, not the sum: that is half of the pre-norm order of XL.",
                    _output_by(lambda c, x, w, b, norm: norm(x) + linear(c, w, b)),
                ),
                Fault(
                    "no norm", "The sum is not normalised.", _output_by(lambda c, x, w, b, norm: x + linear(c, w, b))
                ),
                Fault(
                    "weight transposed",
                    "The weight is (out, in): x @ weight.T. It is square, so no error stops you.",
                    _output_by(lambda c, x, w, b, norm: norm(x + c @ w + b)),
                ),
                Fault("no bias", "The bias is not added.", _output_by(lambda c, x, w, b, norm: norm(x + c @ w.T))),
                *norm_faults(_output_by(_right_output)),
                Fault(
                    "x and context exchanged",
                    "`x` goes through the linear map, and `context` is added.",
                    _output_by(lambda c, x, w, b, norm: norm(c + linear(x, w, b))),
                ),
                Fault(
                    "no projection",
                    "`context` is added as it is: the output projection, which mixes the heads, is left out.",
                    _output_by(lambda c, x, w, b, norm: norm(x + c)),
                ),
                Fault(
                    "context for the residual",
                    "`context` is added to its own projection. The residual is `x`, what the layer read.",
                    _output_by(lambda c, x, w, b, norm: norm(c + linear(c, w, b))),
                ),
            ),
        ),
    ),
)

# ---- feed-forward ----------------------------------------------------------------------------------------------------


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


def _with_polynomial(x: Tensor) -> Tensor:
    """GELU with the approximation 7.1.26 of Abramowitz and Stegun in place of erf."""
    size = x.abs() / 2**0.5
    t = 1 / (1 + 0.3275911 * size)
    terms = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return x * (1 + x.sign() * (1 - terms * torch.exp(-(size**2)))) / 2


def _bias_after(mid: Tensor, maps: Maps) -> Tensor:
    up, down, norm = maps
    bias = up(torch.zeros_like(mid))
    return norm(mid + down(gelu(up(mid) - bias) + bias))


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
                Fault(
                    "no half",
                    "The division by 2 is missing: Phi(x) is (1 + erf(x / sqrt(2))) / 2.",
                    lambda x: 2 * gelu(x),
                ),
                Fault(
                    "2 for its root",
                    "erf is taken of x / 2. It is x / sqrt(2).",
                    lambda x: x * 0.5 * (1 + torch.erf(x / 2)),
                ),
                Fault(
                    "erf by a polynomial",
                    "erf is approximated by a polynomial, which is right to seven digits. `math.erf` is exact.",
                    _with_polynomial,
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
                Fault(
                    "first bias after the activation",
                    "The bias of the first map is added after the activation. It belongs to the map.",
                    _by(_bias_after),
                ),
                Fault(
                    "weights exchanged",
                    "`down_weight` goes up and `up_weight` goes down: the shapes fit without their transposes.",
                    lambda up_weight, down_weight, **given: _with(gelu)(
                        up_weight=down_weight.T, down_weight=up_weight.T, **given
                    ),
                ),
                *norm_faults(_with(gelu)),
                Fault("no second bias", "The bias of the second map is not added.", _by(_no_second_bias)),
            ),
        ),
    ),
)
