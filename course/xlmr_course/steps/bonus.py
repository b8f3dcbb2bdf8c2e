"""Two bonus steps: XL, and the whole encoder in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xlmr_core import XLMRobertaModel
from xlmr_core.kernels import batch_of
from xlmr_course.material import Material, material
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.stack import STACK_FAULTS, stack_cases


@cache
def _xl() -> XLMRobertaModel:
    torch.manual_seed(0)
    config = replace(material().config, norm_first=True, num_hidden_layers=2)
    model = XLMRobertaModel(config).double().eval()
    for parameter in model.parameters():  # a fresh norm has weight 1 and bias 0: a result without it would be the same
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def _checked(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that is given to the learner, with words of its own for what it cannot take."""

    def call(x: Tensor) -> Tensor:
        if x.ndim != 3 or x.dtype != torch.float64:
            dtype = str(x.dtype).removeprefix("torch.")
            raise ValueError(f"{name} takes (B, S, H) of float64, got the shape {tuple(x.shape)} of {dtype}")
        with torch.no_grad():
            return function(x)

    return call


def _xl_cases(given: Material) -> list[Case]:
    found: list[Case] = []
    model = _xl()
    layer: Any = model.layers[0]
    for sample in given.samples:
        batch = batch_of(sample.mask, None)
        with torch.no_grad(), model.capture("layers.0.output", "embeddings.output") as seen:
            model(sample.input_ids, sample.mask)

        def attention(x: Tensor, batch: Any = batch) -> Tensor:
            return layer.attention(x, batch)

        arguments = {
            "x": seen["embeddings.output"],
            "attention": _checked("attention", attention),
            "feed_forward": _checked("feed_forward", layer.feed_forward),
            "attention_norm": _checked("attention_norm", layer.attention_norm),
            "feed_forward_norm": _checked("feed_forward_norm", layer.feed_forward_norm),
        }
        found.append(Case(arguments, seen["layers.0.output"], sample.about, counts=sample.mask))
    return found


Map = Callable[[Tensor], Tensor]


def _xl_by(rule: Callable[[Tensor, Map, Map, Map, Map], Tensor]) -> Callable[..., Tensor]:
    def wrong(x: Tensor, attention: Map, feed_forward: Map, attention_norm: Map, feed_forward_norm: Map) -> Tensor:
        return rule(x, attention, feed_forward, attention_norm, feed_forward_norm)

    return wrong


def _second(mid: Tensor, f: Map, norm: Map) -> Tensor:
    return mid + f(norm(mid))


XL = Step(
    "xl",
    "What XL and XXL change",
    (
        Function(
            "pre_norm_layer",
            ("text", "token", "feature"),
            _xl_cases,
            (
                Fault(
                    "post-norm",
                    "The norms come after the sums, as in base and large. XL normalises what goes into each part.",
                    _xl_by(lambda x, a, f, n1, n2: n2(n1(x + a(x)) + f(n1(x + a(x))))),
                ),
                Fault(
                    "residual of the normalised vector",
                    "The normalised vector is added. The stream itself is not normalised: add what came in.",
                    _xl_by(lambda x, a, f, n1, n2: n2(n1(x) + a(n1(x))) + f(n2(n1(x) + a(n1(x))))),
                ),
                Fault(
                    "norms exchanged",
                    "The two norms are exchanged.",
                    _xl_by(lambda x, a, f, n1, n2: _second(x + a(n2(x)), f, n1)),
                ),
                Fault(
                    "one norm for both",
                    "`attention_norm` stands before both parts. The second has its own, `feed_forward_norm`.",
                    _xl_by(lambda x, a, f, n1, n2: _second(x + a(n1(x)), f, n1)),
                ),
                Fault(
                    "no second norm",
                    "The second part reads the stream without its norm.",
                    _xl_by(lambda x, a, f, n1, n2: _second(x + a(n1(x)), f, lambda y: y)),
                ),
                Fault(
                    "in parallel",
                    "Both parts read the layer's input. The second reads what the first has added to.",
                    _xl_by(lambda x, a, f, n1, n2: x + a(n1(x)) + f(n2(x))),
                ),
                Fault(
                    "no residual",
                    "Nothing is added to what the two parts give: the stream is x, then x + attention(...).",
                    _xl_by(lambda x, a, f, n1, n2: f(n2(a(n1(x))))),
                ),
                Fault(
                    "residual of the input",
                    "`x` is added to the second part. It is the sum of the first part that goes on.",
                    _xl_by(lambda x, a, f, n1, n2: x + f(n2(x + a(n1(x))))),
                ),
                Fault(
                    "norm after each part",
                    "The norm is of what a part gives. It is of what the part reads.",
                    _xl_by(lambda x, a, f, n1, n2: x + n1(a(x)) + n2(f(x + n1(a(x))))),
                ),
                Fault(
                    "sandwich",
                    "What each part gives is normalised, too.",
                    _xl_by(lambda x, a, f, n1, n2: _second(x + n1(a(n1(x))), f, n2)),
                ),
            ),
        ),
    ),
    bonus=True,
)

NUMPY = Step(
    "numpy-port",  # a file numpy.py would hide the library
    "Port it to NumPy",
    (Function("encode", ("text", "token", "feature"), stack_cases, STACK_FAULTS),),
    bonus=True,
    arrays="numpy",
)
