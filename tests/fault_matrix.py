"""Which comparison notices which fault: every comparison of the parity tests, run on our model with a fault in it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import reference
import torch
from reference import CONFIGS, Pair

from xlmr_core.parity import Fault

HEADS = ("classifier", "tagger", "answer")


@dataclass(frozen=True)
class Group:
    """One comparison of the parity tests, on the pair of models it is made for."""

    check: Callable[[Pair], None]
    pair: Pair


@cache
def groups(norm: str) -> dict[str, Group]:
    """The comparisons, by name, that the parity tests make for one placement of norms."""
    config = CONFIGS[norm]
    eager, sdpa = reference.build_pair(config, "eager"), reference.build_pair(config, "sdpa")
    float64 = reference.build_pair(config, dtype=torch.float64)
    bfloat16 = reference.build_pair(config, dtype=torch.bfloat16)
    taps, logits = reference.oracle_taps(float64), reference.float64_logits(bfloat16)
    packed = reference.right_padded(float64)
    packed_sdpa = reference.right_padded(reference.build_pair(config, "sdpa", torch.float64))
    packed_taps = reference.oracle_taps(packed)
    return {
        "oracle": Group(lambda pair: reference.check_oracle(pair, taps), float64),
        "eager": Group(reference.check_outputs, eager),
        "sdpa": Group(reference.check_outputs, sdpa),
        "packed": Group(lambda pair: reference.check_packed(pair, packed_taps), packed),
        "packed sdpa": Group(lambda pair: reference.check_packed(pair, packed_taps), packed_sdpa),
        "probs": Group(reference.check_probs, eager),
        "bfloat16": Group(lambda pair: reference.check_precision(pair, logits), bfloat16),
        "training": Group(reference.check_training, eager),
        "gradients": Group(reference.check_gradients, eager),
        "pooler": Group(reference.check_pooler, reference.build_encoder_pair(config)),
        **{name: Group(reference.check_head, reference.build_pair_with(config, name)) for name in HEADS},
    }


@cache
def notices(norm: str, name: str, fault: Fault) -> bool | None:
    """Whether the comparison fails under the fault; None if the model has no such part."""
    group = groups(norm)[name]
    try:
        with fault.applied(group.pair.ours):
            group.check(group.pair)
    except AssertionError:
        return True
    except ValueError:
        return None
    return False
