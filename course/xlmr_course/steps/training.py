"""Loss, gradient and one step of AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from xlmr_course.material import Material
from xlmr_course.step import Case, Fault, Function, Step

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
    correct: bool = True,
    decoupled: bool = True,
    decay: bool = True,
    eps_inside: bool = False,
    sign: float = -1.0,
    root: bool = True,
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
        below = (v + eps).sqrt() if eps_inside else (v.sqrt() if root else v) + eps
        return shrunk + sign * lr * m / below, mean, square

    return wrong


def _corrected_returned(**given: Any) -> Three:
    weight, mean, square = _adamw()(**given)
    return weight, mean / (1 - given["beta1"] ** given["step"]), square / (1 - given["beta2"] ** given["step"])


def _decay_last(**given: Any) -> Three:
    weight, mean, square = _adamw(decay=False)(**given)
    return weight * (1 - given["lr"] * given["weight_decay"]), mean, square


def _softmax_minus_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(-1) - one_hot(labels.clamp(min=0), logits.shape[-1])


def _columns(logits: Tensor, labels: Tensor) -> Tensor:
    """1 in the column of every label, whatever the token."""
    columns = torch.zeros_like(logits)
    columns[..., labels[labels != NO_LABEL]] = 1
    return columns


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
                    "-100 as an index",
                    "Tokens without a label count: -100 is taken for an index, which in NumPy is the 100th from the end.",
                    lambda logits, labels: _loss(logits, labels % logits.shape[-1]),
                ),
                Fault(
                    "tokens without a label count",
                    "-100 becomes the label 0, and its tokens count like the others. Select the labelled tokens first.",
                    lambda logits, labels: _loss(logits, labels.clamp(min=0)),
                ),
                Fault(
                    "every label at every token",
                    "Each labelled token is asked for the labels of all: x[:, labels] takes columns. Each row has one label: "
                    "x[rows, labels].",
                    lambda logits, labels: (
                        -logits[labels != NO_LABEL].log_softmax(-1)[:, labels[labels != NO_LABEL]].mean()
                    ),
                ),
                Fault(
                    "softmax over everything",
                    "The probabilities of all tokens together add up to 1. Those of each token must: the last axis.",
                    lambda logits, labels: (
                        logits.flatten().logsumexp(0)
                        - logits[labels != NO_LABEL].gather(-1, labels[labels != NO_LABEL][:, None]).mean()
                    ),
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
                    "probabilities without a label",
                    "Tokens without a label keep their probabilities. Nothing asks them for anything: theirs is 0.",
                    lambda logits, labels: (
                        (logits.softmax(-1) - one_hot(labels.clamp(min=0), logits.shape[-1]) * _labelled(labels))
                        / _labelled(labels).sum()
                    ),
                ),
                Fault(
                    "-100 as an index",
                    "Tokens without a label have a gradient: -100 is taken for an index, which in NumPy is the 100th from the "
                    "end.",
                    lambda logits, labels: (
                        (logits.softmax(-1) - one_hot(labels % logits.shape[-1], logits.shape[-1]))
                        / _labelled(labels).sum()
                    ),
                ),
                Fault(
                    "every label at every token",
                    "1 is taken away at the labels of all tokens: x[..., labels] takes columns. Each token has one label.",
                    lambda logits, labels: (
                        (logits.softmax(-1) - _columns(logits, labels)) * _labelled(labels) / _labelled(labels).sum()
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
                    "decay without lr",
                    "The weight is shrunk by weight_decay. It is shrunk by lr * weight_decay.",
                    lambda weight_decay, lr, **given: _adamw()(weight_decay=weight_decay / lr, lr=lr, **given),
                ),
                Fault(
                    "step counted once more",
                    "The correction is that of the next step: `step` counts from 1 already.",
                    lambda step, **given: _adamw()(step=step + 1, **given),
                ),
                Fault(
                    "betas exchanged",
                    "beta1 is used for the square and beta2 for the mean.",
                    lambda beta1, beta2, **given: _adamw()(beta1=beta2, beta2=beta1, **given),
                ),
                Fault(
                    "no root",
                    "The step is divided by square', not by its root.",
                    _adamw(root=False),
                ),
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
