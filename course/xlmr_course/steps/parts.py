"""What several steps compute or describe in the same way."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import layer_norm

from xlmr_course.material import Sample
from xlmr_course.step import Case, Fault

LAYER = 1  # of the bundled model; the first has plain embeddings below it


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The features of each token through a layer norm."""
    return layer_norm(x, weight.shape, weight, bias, eps)


def in_layer(sample: Sample, arguments: dict[str, Any], expected: Tensor, counts: Tensor | None) -> Case:
    """A case in the layer that the steps look at."""
    return Case(arguments, expected, f"layer {LAYER}, {sample.about}", counts=counts)


def norm_faults(right: Callable[..., Tensor]) -> tuple[Fault, Fault]:
    """The faults with the arguments of the norm, in a function that ends in one or hands them on."""
    return (
        Fault(
            "eps of another model",
            "The norm has an eps of its own, such as 1e-12. Use the argument `eps`.",
            lambda eps, **given: right(eps=1e-12, **given),
        ),
        Fault(
            "weight and bias of the norm exchanged",
            "The norm gets its bias for the weight and its weight for the bias.",
            lambda norm_weight, norm_bias, **given: right(norm_weight=norm_bias, norm_bias=norm_weight, **given),
        ),
    )
