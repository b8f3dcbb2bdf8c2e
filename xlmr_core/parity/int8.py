"""What int8 does to a model, simulated in floating point: every linear map quantises its weight and its input.

There are two precisions, the usual schemes of dynamic quantisation:

- "int8": one scale for a whole weight matrix, the default of torch's `quantize_dynamic` and of ONNX Runtime.
- "int8-per-channel": one scale for each output feature, that is for each row of the matrix.

Weights are symmetric, from -127 to 127. The input of a linear map gets one scale and one zero point each time the model
runs, from its smallest and its largest value. The embeddings, the norms, the products of attention and all sums stay in
floating point.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INT8 = ("int8", "int8-per-channel")
LARGEST_WEIGHT = 127
# Inputs have 7 bits: on processors that add products of int8 in 16 bits, 8 would overflow, and torch and ONNX Runtime
# leave one out there (`reduce_range`). A port that uses all 8 is nearer to the truth.
INPUT_STEPS = 127


def quantise(model: nn.Module, precision: str) -> None:
    """Makes every linear map of a model compute as if in int8.

    Args:
        model: In a floating-point dtype. It is changed: tied weights are taken apart, for the embeddings stay as they
            are.
        precision: One of INT8.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantisedLinear(child, per_channel=precision == "int8-per-channel"))


class QuantisedLinear(nn.Linear):
    """A linear map whose weight was rounded to int8, and whose input is when it runs."""

    def __init__(self, linear: nn.Linear, *, per_channel: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(rounded_weight(linear.weight.detach(), per_channel))
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:  # (*, in) -> (*, out)
        return F.linear(rounded_input(input), self.weight, self.bias)


def rounded_weight(weight: Tensor, per_channel: bool) -> Tensor:  # (out, in) -> (out, in)
    """A weight that is a whole number of steps, with one scale for all of it or one for each output feature."""
    largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().amax()
    scale = (largest / LARGEST_WEIGHT).clamp(min=torch.finfo(weight.dtype).tiny)  # of a row of zeros, too
    return (weight / scale).round() * scale


def rounded_input(x: Tensor, steps: int = INPUT_STEPS) -> Tensor:  # (*, in) -> (*, in)
    """An input that is a whole number of steps, with one scale and one zero point for all of it."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)  # 0 must be among the numbers that int8 can hold
    scale = ((high - low) / steps).clamp(min=torch.finfo(x.dtype).tiny)
    zero_point = (-low / scale).round()
    return (((x / scale).round() + zero_point).clamp(0, steps) - zero_point) * scale


def rounded_by_token(x: Tensor) -> Tensor:  # (*, in) -> (*, in)
    """An input that is a whole number of steps from -127 to 127, with one scale for each token."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / LARGEST_WEIGHT).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scale).round() * scale
