"""The catalogue of faults: bugs that ports of XLM-R have had, each of which can be made in our model.

    with find_fault("q_k_swapped").applied(model):
        wrong = model(**batch)

A fault states what the port does wrong, what the numbers look like, and the first tap that differs. It is used in two
ways: `diagnose` makes each in our model and compares the numbers with a dump, and the tests make each and check that
the comparisons notice it.

patching.py makes a fault in a model and takes it back; operations.py exchanges an operation of the encoder for another.
encoder.py, heads.py and training.py contain the rows of `FAULTS`. text.py contains `TOKENIZER_FAULTS`, rules that turn
right ids into wrong ones, and `POOLING_FAULTS`, which make a wrong sentence vector of right token vectors. A fault that
can be seen at two levels, in the ids of a dump and in its word vectors, has the same name in both lists.
"""

from xlmr_core.parity.faults.encoder import ENCODER_FAULTS
from xlmr_core.parity.faults.heads import HEAD_FAULTS
from xlmr_core.parity.faults.patching import Fault, Patch
from xlmr_core.parity.faults.text import (
    POOLING_FAULTS,
    TOKENIZER_FAULTS,
    Pool,
    PoolingFault,
    TokenizerFault,
    mean_pooled,
)
from xlmr_core.parity.faults.training import TRAINING_FAULTS

FAULTS: tuple[Fault, ...] = (*ENCODER_FAULTS, *HEAD_FAULTS, *TRAINING_FAULTS)

__all__ = [
    "FAULTS",
    "POOLING_FAULTS",
    "TOKENIZER_FAULTS",
    "Fault",
    "Patch",
    "Pool",
    "PoolingFault",
    "TokenizerFault",
    "find_fault",
    "mean_pooled",
]


def find_fault(name: str) -> Fault:
    """Finds a fault of `FAULTS`.

    Args:
        name: Its name.

    Returns:
        The fault.

    Raises:
        KeyError: No fault has that name. The message lists all names.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise KeyError(f"no fault is called {name!r}; expected one of {', '.join(fault.name for fault in FAULTS)}")
