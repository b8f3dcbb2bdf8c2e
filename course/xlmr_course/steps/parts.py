"""What several steps compute or describe in the same way."""

from typing import Any

from torch import Tensor
from torch.nn.functional import layer_norm

from xlmr_course.material import Sample
from xlmr_course.step import Case

LAYER = 1  # of the bundled model; the first has plain embeddings below it


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The features of each token through a layer norm."""
    return layer_norm(x, weight.shape, weight, bias, eps)


def in_layer(sample: Sample, arguments: dict[str, Any], expected: Tensor, counts: Tensor | None) -> Case:
    """A case in the layer that the steps look at."""
    return Case(arguments, expected, f"layer {LAYER}, {sample.about}", counts=counts)
