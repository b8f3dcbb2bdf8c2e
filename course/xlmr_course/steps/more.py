"""Packed batches, one training step, and two bonus steps: XL, and the whole encoder in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from xlmr_core import XLMRobertaModel
from xlmr_core.kernels import batch_of, packed_position_ids
from xlmr_course.material import Material, Sample, material
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.attention import LAYER
from xlmr_course.steps.ends import STACK_FAULTS, stack_cases

# ---- packed batches --------------------------------------------------------------------------------------------------


def _pack_cases(material: Material) -> list[Case]:
    def case(sample: Sample) -> Case:
        expected = (sample.input_ids[sample.mask], sample.mask.sum(dim=1))
        return Case({"input_ids": sample.input_ids, "mask": sample.mask}, expected, sample.about)

    return material.cases(case)


def _packed_position_cases(material: Material) -> list[Case]:
    pad = material.config.pad_token_id

    def case(sample: Sample) -> Case:
        lengths = sample.mask.sum(dim=1)
        expected = packed_position_ids(lengths, int(lengths.sum()), pad)
        return Case({"lengths": lengths, "pad": pad}, expected, sample.about)

    return material.cases(case)


def _packed_context_cases(material: Material) -> list[Case]:
    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments: dict[str, Any] = {name: layer[f"attention.{name}"][sample.mask] for name in "qkv"}
        arguments |= {"lengths": sample.mask.sum(dim=1), "heads": material.config.num_attention_heads}
        return Case(arguments, layer["attention.context"][sample.mask], f"layer {LAYER}, {sample.about}")

    return material.cases(case)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """(T, H) each, all in one row -> (T, H)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _groups(lengths: Tensor) -> Tensor:  # (T): the number of each token's text
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def _each_alone(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, heads: int, scale: float = 1.0) -> Tensor:
    parts = zip(*(x.split(lengths.tolist()) for x in (q * scale, k, v)), strict=True)
    return torch.cat([_attention(*part, heads) for part in parts])


PACKING = Step(
    "packing",
    "Batches without padding",
    (
        Function(
            "pack",
            ("part",),
            _pack_cases,
            (
                Fault(
                    "padding kept",
                    "The rows are joined with their padding. Only real tokens go into a packed batch.",
                    lambda input_ids, mask: (input_ids.flatten(), mask.sum(1)),
                ),
                Fault(
                    "not packed",
                    "The ids are still (B, S). A packed batch has one axis: the real tokens of all texts.",
                    lambda input_ids, mask: (input_ids, mask.sum(1)),
                ),
                Fault(
                    "counted over the texts",
                    "The real tokens of each column are counted. A length is the sum over a row: axis 1.",
                    lambda input_ids, mask: (input_ids[mask], mask.sum(0)),
                ),
                Fault(
                    "widths for lengths",
                    "The lengths are those of the padded rows. Count the real tokens of each.",
                    lambda input_ids, mask: (input_ids[mask], torch.full((len(mask),), mask.shape[1])),
                ),
                Fault(
                    "token by token",
                    "The first tokens of all texts come first, then the second ones. A packed batch has text after text.",
                    lambda input_ids, mask: (input_ids.T[mask.T], mask.sum(1)),
                ),
                Fault(
                    "offsets for lengths",
                    "These are the ends of the texts. `lengths` are their numbers of tokens.",
                    lambda input_ids, mask: (input_ids[mask], mask.sum(1).cumsum(0)),
                ),
                Fault(
                    "special tokens dropped",
                    "<s> and </s> are gone. They are real tokens: the model reads them.",
                    lambda input_ids, mask: (
                        input_ids[mask & (input_ids != 0) & (input_ids != 2)],
                        (mask & (input_ids != 0) & (input_ids != 2)).sum(1),
                    ),
                ),
            ),
        ),
        Function(
            "packed_positions",
            ("token",),
            _packed_position_cases,
            (
                Fault(
                    "no restart",
                    "The count goes on from text to text. Each text begins at pad + 1 again.",
                    lambda lengths, pad: torch.arange(int(lengths.sum())) + pad + 1,
                ),
                Fault(
                    "from zero",
                    "Each text begins at 0. XLM-R counts from pad + 1, packed or not.",
                    lambda lengths, pad: torch.cat([torch.arange(n) for n in lengths.tolist()]),
                ),
                Fault(
                    "from one",
                    "Each text begins at 1. XLM-R counts from pad + 1 = 2.",
                    lambda lengths, pad: torch.cat([torch.arange(n) + 1 for n in lengths.tolist()]),
                ),
                Fault(
                    "one too few",
                    "Each text lacks its last position: a range ends before its end.",
                    lambda lengths, pad: torch.cat([torch.arange(pad + 1, pad + n) for n in lengths.tolist()]),
                ),
                Fault(
                    "from three",
                    "Each text begins at 3, one too late.",
                    lambda lengths, pad: torch.cat([torch.arange(n) + pad + 2 for n in lengths.tolist()]),
                ),
                Fault(
                    "numbers of texts",
                    "These are the numbers of the texts, not the positions of the tokens in them.",
                    lambda lengths, pad: _groups(lengths),
                ),
            ),
        ),
        Function(
            "packed_context",
            ("token", "feature"),
            _packed_context_cases,
            (
                Fault(
                    "across texts",
                    "Every token looks at all texts of the batch. It may only look at its own.",
                    lambda q, k, v, lengths, heads: _attention(q, k, v, heads),
                ),
                Fault(
                    "to texts before",
                    "A token looks at its own text and at those before it: the mask is a triangle of blocks.",
                    lambda q, k, v, lengths, heads: _attention(
                        q, k, v, heads, _groups(lengths)[:, None] >= _groups(lengths)[None]
                    ),
                ),
                Fault(
                    "to other texts only",
                    "The mask is inverted: each token looks at the other texts and at itself.",
                    lambda q, k, v, lengths, heads: _attention(
                        q,
                        k,
                        v,
                        heads,
                        (_groups(lengths)[:, None] != _groups(lengths)[None]) | torch.eye(len(q), dtype=torch.bool),
                    ),
                ),
                Fault(
                    "not scaled",
                    "The products are not divided by sqrt(D).",
                    lambda q, k, v, lengths, heads: _each_alone(q, k, v, lengths, heads, (q.shape[-1] // heads) ** 0.5),
                ),
                Fault(
                    "one head",
                    "The features are not split into heads.",
                    lambda q, k, v, lengths, heads: _each_alone(q, k, v, lengths, 1),
                ),
            ),
        ),
    ),
)

# ---- training --------------------------------------------------------------------------------------------------------

NO_LABEL = -100


def _training_inputs(material: Material) -> list[tuple[Tensor, Tensor, str]]:
    """Logits of the model, and labels at some tokens."""
    found: list[tuple[Tensor, Tensor, str]] = []
    for sample in material.samples:
        labels = torch.full_like(sample.input_ids, NO_LABEL)
        labels[:, 2] = sample.input_ids[:, 3]
        labels[0, 4] = sample.input_ids[0, 4]
        found.append((sample.taps["lm_head.logits"][..., :500], labels.clamp(max=499), sample.about))
    return found


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL)


def _loss_cases(material: Material) -> list[Case]:
    return [
        Case({"logits": logits, "labels": labels}, _loss(logits, labels), about)
        for logits, labels, about in _training_inputs(material)
    ]


def _gradient_cases(material: Material) -> list[Case]:
    found: list[Case] = []
    for given, labels, about in _training_inputs(material):
        logits = given.clone().requires_grad_()
        [gradient] = torch.autograd.grad(_loss(logits, labels), logits)
        found.append(Case({"logits": given, "labels": labels}, gradient, about))
    return found


def _adamw_cases(_material: Material) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    settings = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.1}
    found: list[Case] = []
    for done in (0, 3):
        weight = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
        betas = (settings["beta1"], settings["beta2"])
        optimizer = torch.optim.AdamW(
            [weight], lr=settings["lr"], betas=betas, eps=settings["eps"], weight_decay=settings["weight_decay"]
        )
        zeros = torch.zeros_like(weight).detach()
        before = (weight.detach().clone(), zeros, zeros)
        for _ in range(done + 1):
            state = optimizer.state.get(weight, {})
            before = (weight.detach().clone(), *(state.get(key, zeros).clone() for key in ("exp_avg", "exp_avg_sq")))
            weight.grad = torch.randn(5, 3, generator=generator, dtype=torch.float64)
            optimizer.step()
        state = optimizer.state[weight]
        expected = (weight.detach().clone(), state["exp_avg"], state["exp_avg_sq"])
        arguments = {
            "weight": before[0],
            "gradient": weight.grad,
            "mean": before[1],
            "square": before[2],
            "step": done + 1,
            **settings,
        }
        found.append(Case(arguments, expected, f"step {done + 1}"))
    return found


Three = tuple[Tensor, Tensor, Tensor]


def _adamw(
    correct: bool = True, decoupled: bool = True, decay: bool = True, eps_inside: bool = False, sign: float = -1.0
) -> Callable[..., Three]:
    def wrong(
        weight: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
    ) -> Three:
        if not decoupled:
            gradient = gradient + weight_decay * weight
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        m, v = (mean / (1 - beta1**step), square / (1 - beta2**step)) if correct else (mean, square)
        shrunk = weight * (1 - lr * weight_decay) if decoupled and decay else weight
        return shrunk + sign * lr * m / ((v + eps).sqrt() if eps_inside else v.sqrt() + eps), mean, square

    return wrong


def _corrected_returned(**given: Any) -> Three:
    weight, mean, square = _adamw()(**given)
    return weight, mean / (1 - given["beta1"] ** given["step"]), square / (1 - given["beta2"] ** given["step"])


def _decay_last(**given: Any) -> Three:
    weight, mean, square = _adamw(decay=False)(**given)
    return weight * (1 - given["lr"] * given["weight_decay"]), mean, square


def _softmax_minus_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(-1) - one_hot(labels.clamp(min=0), logits.shape[-1])


def _labelled(labels: Tensor) -> Tensor:
    return (labels != NO_LABEL)[..., None]


TRAINING = Step(
    "training",
    "Loss, gradient, one step",
    (
        Function(
            "loss",
            (),
            _loss_cases,
            (
                Fault(
                    "mean over all tokens",
                    "The sum is divided by the number of all tokens. Divide by the number of those that have a label.",
                    lambda logits, labels: _loss(logits, labels) * (labels != NO_LABEL).double().mean(),
                ),
                Fault(
                    "sum",
                    "The losses are added, not averaged: longer batches would count more.",
                    lambda logits, labels: _loss(logits, labels) * (labels != NO_LABEL).sum(),
                ),
                Fault(
                    "sum over the number of texts",
                    "The sum is divided by the number of texts. Divide by the number of labelled tokens.",
                    lambda logits, labels: _loss(logits, labels) * (labels != NO_LABEL).sum() / len(labels),
                ),
                Fault(
                    "mean of rows",
                    "The mean is taken in each text and then over the texts, so a token of a text with few labels "
                    "counts more.",
                    lambda logits, labels: torch.stack(
                        [_loss(a, b) for a, b in zip(logits, labels, strict=True)]
                    ).mean(),
                ),
                Fault(
                    "no softmax",
                    "The logit of the label is taken as it is: its log-probability needs the log-softmax.",
                    lambda logits, labels: (
                        -(logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0])[labels != NO_LABEL].mean()
                    ),
                ),
                Fault(
                    "no logarithm",
                    "Probabilities are averaged, without their logarithm.",
                    lambda logits, labels: (
                        -(logits.softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0])[
                            labels != NO_LABEL
                        ].mean()
                    ),
                ),
                Fault(
                    "sign",
                    "The sign is wrong: a loss is minus the log-probability.",
                    lambda logits, labels: -_loss(logits, labels),
                ),
                Fault(
                    "logarithm to the base 2",
                    "The logarithm is to the base 2. Losses of language models are in nats: the natural logarithm.",
                    lambda logits, labels: _loss(logits, labels) / torch.log(torch.tensor(2.0, dtype=torch.float64)),
                ),
            ),
        ),
        Function(
            "gradient",
            ("text", "token", "piece"),
            _gradient_cases,
            (
                Fault(
                    "not averaged",
                    "The loss is a mean over the labelled tokens, so its gradient is divided by their number.",
                    lambda logits, labels: _softmax_minus_label(logits, labels) * _labelled(labels),
                ),
                Fault(
                    "averaged over all tokens",
                    "It is divided by the number of all tokens, not of those with a label.",
                    lambda logits, labels: _softmax_minus_label(logits, labels) * _labelled(labels) / labels.numel(),
                ),
                Fault(
                    "only the label hidden",
                    "Tokens without a label keep their probabilities, and nothing is averaged: multiply the whole "
                    "difference by the mask, and divide by n.",
                    lambda logits, labels: (
                        logits.softmax(-1) - one_hot(labels.clamp(min=0), logits.shape[-1]) * _labelled(labels)
                    ),
                ),
                Fault(
                    "tokens without a label",
                    "Tokens without a label have a gradient. Nothing asks them for anything: theirs is 0.",
                    lambda logits, labels: _softmax_minus_label(logits, labels) / _labelled(labels).sum(),
                ),
                Fault(
                    "sign",
                    "The sign is wrong: it is probability minus label.",
                    lambda logits, labels: (
                        -_softmax_minus_label(logits, labels) * _labelled(labels) / _labelled(labels).sum()
                    ),
                ),
                Fault(
                    "label not taken away",
                    "Only the probabilities are there: 1 is to be taken away at the label.",
                    lambda logits, labels: logits.softmax(-1) * _labelled(labels) / _labelled(labels).sum(),
                ),
            ),
        ),
        Function(
            "adamw",
            ("part",),
            _adamw_cases,
            (
                Fault(
                    "no bias correction",
                    "Both means begin at 0 and are too small at first: divide by 1 - beta**step.",
                    _adamw(correct=False),
                ),
                Fault(
                    "decay in the gradient",
                    "Weight decay is added to the gradient: that is Adam with L2. AdamW shrinks the weight by itself.",
                    _adamw(decoupled=False),
                ),
                Fault("no decay", "The weight is not shrunk by lr * weight_decay.", _adamw(decay=False)),
                Fault(
                    "eps inside the root",
                    "eps stands inside the root. In Adam it is added to the root.",
                    _adamw(eps_inside=True),
                ),
                Fault("sign", "The weight goes up the gradient.", _adamw(sign=1.0)),
                Fault(
                    "corrected means returned",
                    "mean' and square' are returned. Only this step uses them: the next one needs mean and square.",
                    _corrected_returned,
                ),
                Fault(
                    "decay last",
                    "The weight is shrunk after the step, and the step with it. Shrink it first.",
                    _decay_last,
                ),
            ),
        ),
    ),
)

# ---- XL --------------------------------------------------------------------------------------------------------------


@cache
def _xl() -> XLMRobertaModel:
    torch.manual_seed(0)
    config = replace(material().config, norm_first=True, num_hidden_layers=2)
    model = XLMRobertaModel(config).double().eval()
    for parameter in model.parameters():  # a fresh norm has weight 1 and bias 0: nobody could see it missing
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def _xl_cases(given: Material) -> list[Case]:
    found: list[Case] = []
    model = _xl()
    layer: Any = model.layers[0]
    for sample in given.samples:
        batch = batch_of(sample.mask, None)
        with torch.no_grad(), model.capture("layers.0.output", "embeddings.output") as seen:
            model(sample.input_ids, sample.mask)

        def attention(x: Tensor, batch: Any = batch) -> Tensor:
            with torch.no_grad():
                return layer.attention(x, batch)

        arguments = {
            "x": seen["embeddings.output"],
            "attention": attention,
            "feed_forward": torch.no_grad()(layer.feed_forward),
            "attention_norm": torch.no_grad()(layer.attention_norm),
            "feed_forward_norm": torch.no_grad()(layer.feed_forward_norm),
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
