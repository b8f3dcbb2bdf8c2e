"""Loss, gradient, one step: see the page of this step. `xlmr course check training` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def loss(logits, labels):
    """logits: (B, S, V); labels: (B, S), -100 where there is none. Returns one number."""
    raise NotImplementedError


def gradient(logits, labels):
    """The gradient of `loss` by logits, (B, S, V), written out: no autograd."""
    raise NotImplementedError


def adamw(
    weight,
    gradient,
    mean,
    square,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
):
    """One step of AdamW. step counts from 1. Returns the new weight, mean and square."""
    raise NotImplementedError
