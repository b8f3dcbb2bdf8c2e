"""What stands above the encoder, and the file that its numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from xlmr_course.material import Material, Sample, material
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import norm_faults, normalised

# ---- the LM head -----------------------------------------------------------------------------------------------------


def _head_cases(material: Material) -> list[Case]:
    parameters = material.parameters
    last = material.config.num_hidden_layers - 1

    def case(sample: Sample) -> Case:
        arguments = {
            "hidden": sample.taps[f"layers.{last}.output"],
            "dense_weight": parameters["lm_head.dense.weight"],
            "dense_bias": parameters["lm_head.dense.bias"],
            "norm_weight": parameters["lm_head.norm.weight"],
            "norm_bias": parameters["lm_head.norm.bias"],
            "word": parameters["embeddings.word_embeddings.weight"],
            "bias": parameters["lm_head.decoder.bias"],
            "eps": material.config.layer_norm_eps,
        }
        return Case(arguments, sample.taps["lm_head.logits"], sample.about, counts=sample.mask)

    return material.cases(case)


def _head(
    dense: bool = True,
    dense_bias: bool = True,
    activation: Callable[[Tensor], Tensor] = gelu,
    norm: bool = True,
    vocabulary_bias: bool = True,
    norm_first: bool = False,
    residual: bool = False,
) -> Callable[..., Tensor]:
    def wrong(hidden: Tensor, word: Tensor, bias: Tensor, eps: float, **given: Tensor) -> Tensor:
        def normed(x: Tensor) -> Tensor:
            return normalised(x, given["norm_weight"], given["norm_bias"], eps) if norm else x

        x = linear(hidden, given["dense_weight"], given["dense_bias"] if dense_bias else None) if dense else hidden
        added = hidden if residual else torch.zeros_like(hidden)
        x = activation(normed(x)) if norm_first else normed(activation(x) + added)
        return x @ word.T + bias if vocabulary_bias else x @ word.T

    return wrong


def _nothing(x: Tensor) -> Tensor:
    return x


LM_HEAD = Step(
    "lm-head",
    "Vectors to words",
    (
        Function(
            "logits",
            ("text", "token", "piece"),
            _head_cases,
            (
                Fault(
                    "no vocabulary bias",
                    "The bias of the vocabulary, one number for each piece, is not added. It is the part that ports "
                    "forget most often: it has a key of its own in the file.",
                    _head(vocabulary_bias=False),
                ),
                Fault("no dense map", "The linear map of the head is left out.", _head(dense=False)),
                Fault("no dense bias", "The bias of the head's linear map is not added.", _head(dense_bias=False)),
                Fault("no activation", "GELU is left out.", _head(activation=_nothing)),
                Fault(
                    "tanh GELU",
                    "GELU is the tanh approximation; here, too, it is exact.",
                    _head(activation=lambda x: gelu(x, approximate="tanh")),
                ),
                Fault("tanh", "The activation is tanh, which belongs to the pooler.", _head(activation=torch.tanh)),
                Fault("no norm", "The norm of the head is left out.", _head(norm=False)),
                Fault(
                    "weight transposed",
                    "The weight is (out, in): hidden @ dense_weight.T. It is square, so no error stops you.",
                    lambda dense_weight, **given: _head()(dense_weight=dense_weight.T, **given),
                ),
                *norm_faults(_head()),
                Fault(
                    "log-softmax",
                    "These are log-probabilities. The softmax is not part of the head.",
                    lambda **given: _head()(**given).log_softmax(-1),
                ),
                Fault(
                    "softmax",
                    "These are probabilities. The softmax is not part of the head.",
                    lambda **given: _head()(**given).softmax(-1),
                ),
                Fault(
                    "residual",
                    "`hidden` is added before the norm. The head has no residual connection.",
                    _head(residual=True),
                ),
                Fault("norm before GELU", "The norm stands before GELU. It comes after it.", _head(norm_first=True)),
                Fault(
                    "word table only",
                    "The vectors go to the word table as they are: dense map, GELU and norm are left out.",
                    _head(dense=False, activation=_nothing, norm=False),
                ),
            ),
        ),
    ),
)

# ---- loading ---------------------------------------------------------------------------------------------------------


def _loading_cases(material: Material) -> list[Case]:
    published, expected = material.published, material.parameters
    hidden = material.config.hidden_size
    extra = {  # published files have keys that this model has no use for
        "roberta.embeddings.position_ids": torch.arange(material.config.max_position_embeddings)[None],
        "roberta.pooler.dense.weight": torch.zeros(hidden, hidden, dtype=torch.float64),
        "roberta.pooler.dense.bias": torch.zeros(hidden, dtype=torch.float64),
    }
    encoder = {name.removeprefix("roberta."): x for name, x in published.items() if name.startswith("roberta.")}
    of_encoder = {name: tensor for name, tensor in expected.items() if not name.startswith("lm_head.")}
    return [
        Case({"published": published}, expected, "the file of the bundled model"),
        Case({"published": published | extra}, expected, "a file with position ids and a pooler"),
        Case({"published": encoder}, of_encoder, "the file of an encoder, whose keys have no prefix"),
    ]


Names = dict[str, Tensor]


def _changed(change: Callable[[Names, Names], Names]) -> Callable[..., Names]:
    """What `change` makes of the right result, given the published tensors as well."""

    def wrong(published: Names) -> Names:
        case = next(
            case for case in _loading_cases(material()) if case.arguments["published"].keys() == published.keys()
        )
        return change(dict(case.expected), published)

    return wrong


def _exchanged(one: str, other: str) -> Callable[..., Names]:
    def change(right: Names, _published: Names) -> Names:
        def partner(name: str) -> str:
            return name.replace(one, other) if one in name else name.replace(other, one)

        return {name: right.get(partner(name), tensor) for name, tensor in right.items()}

    return _changed(change)


def _renamed(ours: str, wrong: str) -> Callable[..., Names]:
    return _changed(lambda right, _published: {name.replace(ours, wrong): x for name, x in right.items()})


def _without(part: str) -> Callable[..., Names]:
    return _changed(lambda right, _published: {name: x for name, x in right.items() if part not in name})


def _with_useless(*parts: str) -> Callable[..., Names]:
    def change(right: Names, published: Names) -> Names:
        return right | {
            name.removeprefix("roberta."): x for name, x in published.items() if any(part in name for part in parts)
        }

    return _changed(change)


def _transposed(right: Names, _published: Names) -> Names:
    return {name: x.T if "_proj.weight" in name and x.shape[0] == x.shape[1] else x for name, x in right.items()}


def _off_by_one(right: Mapping[str, Tensor], _published: Names) -> Names:
    count = material().config.num_hidden_layers
    found = dict(right)
    for name in right:
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            found[name] = right[f"layers.{min(int(index) + 1, count - 1)}.{rest}"]
    return found


LOADING = Step(
    "loading",
    "The published names",
    (
        Function(
            "load",
            ("name",),
            _loading_cases,
            (
                Fault(
                    "queries and keys exchanged",
                    "query and key are exchanged: all shapes fit, and every score is transposed.",
                    _exchanged("q_proj", "k_proj"),
                ),
                Fault(
                    "keys and values exchanged",
                    "key and value are exchanged: all shapes fit.",
                    _exchanged("k_proj", "v_proj"),
                ),
                Fault(
                    "queries and values exchanged",
                    "query and value are exchanged: all shapes fit.",
                    _exchanged("q_proj", "v_proj"),
                ),
                Fault(
                    "short names first",
                    "output.dense is found in attention.output.dense, too: replace the longer name first.",
                    _renamed("attention.out_proj", "attention.feed_forward.down_proj"),
                ),
                Fault(
                    "decoder without a head",
                    "lm_head.decoder.weight is there, but the file has no head. Tie it only where there is a lm_head.",
                    _changed(
                        lambda right, _p: right | {"lm_head.decoder.weight": right["embeddings.word_embeddings.weight"]}
                    ),
                ),
                Fault(
                    "norms exchanged",
                    "attention.output.LayerNorm and output.LayerNorm are exchanged. The first follows attention, the second "
                    "the feed-forward part; look for the longer name first.",
                    _exchanged("attention_norm", "feed_forward_norm"),
                ),
                Fault(
                    "weights transposed",
                    "Square weights are transposed. The file has them as torch does: (out, in).",
                    _changed(_transposed),
                ),
                Fault(
                    "everything transposed",
                    "Every matrix is transposed, the tables as well. The file has them as torch does: (out, in).",
                    _changed(lambda right, _p: {name: x.T if x.ndim == 2 else x for name, x in right.items()}),
                ),
                Fault(
                    "no vocabulary bias",
                    "lm_head.bias, the bias of the vocabulary, is not carried over.",
                    _without("decoder.bias"),
                ),
                Fault(
                    "decoder not tied",
                    "lm_head.decoder.weight is not in the file: it is the word table again. Put the same tensor there.",
                    _without("decoder.weight"),
                ),
                Fault(
                    "layers off by one",
                    "Each layer has the weights of the next.",
                    _changed(_off_by_one),
                ),
                Fault(
                    "unused rows of the position table cut",
                    "The first rows of the position table are cut off, because they are not used. Positions count from 2, so "
                    "every token would then read the wrong row.",
                    _changed(
                        lambda right, _p: (
                            right
                            | {
                                "embeddings.position_embeddings.weight": right["embeddings.position_embeddings.weight"][
                                    2:
                                ]
                            }
                        )
                    ),
                ),
                Fault(
                    "keys that have no use",
                    "The result has names that the model lacks: leave position_ids and the pooler out.",
                    _with_useless("pooler", "position_ids"),
                ),
                Fault(
                    "position_ids kept",
                    "The pooler is left out, but position_ids is not. It is a list of numbers, not a weight.",
                    _with_useless("position_ids"),
                ),
                Fault(
                    "pooler kept",
                    "position_ids is left out, but the pooler is not. This model has none.",
                    _with_useless("pooler"),
                ),
            ),
        ),
    ),
)
