"""Examples in memory, 4 bytes a token, and the order in which a run sees them."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlmr_core.training.examples import Example

WINDOW_BATCHES = 32  # batches whose examples are sorted together: enough examples of every length


@dataclass(frozen=True)
class Batch:
    """Some examples, packed: their sequences follow one another without padding."""

    input_ids: Tensor  # (T,), int64
    lengths: Tensor  # (B,), tokens of each sequence
    sequences: list[int]  # sequences of each example
    targets: Tensor  # the numbers of all examples, float32

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a model."""
        return {"input_ids": self.input_ids, "lengths": self.lengths}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(self.input_ids.to(device), self.lengths.to(device), self.sequences, self.targets.to(device))


class Examples:
    """Any number of examples, in flat arrays."""

    def __init__(self, examples: Iterable[Example]) -> None:
        ids, lengths, targets = array("i"), array("i"), array("f")
        ends: tuple[list[int], list[int], list[int]] = ([0], [0], [0])  # of the three, by example
        for example in examples:
            for sequence in example.sequences:
                ids.extend(sequence)
                lengths.append(len(sequence))
            targets.extend(example.target)
            for counts, flat in zip(ends, (ids, lengths, targets), strict=True):
                counts.append(len(flat))
        self.ids, self.lengths, self.targets = (_tensor(flat) for flat in (ids, lengths, targets))
        self.id_ends, self.length_ends, self.target_ends = ends

    def __len__(self) -> int:
        return len(self.id_ends) - 1

    def tokens(self, index: int) -> int:
        """The number of tokens of an example, in all its sequences."""
        return self.id_ends[index + 1] - self.id_ends[index]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some examples as a batch."""
        return Batch(
            _gather(self.ids, self.id_ends, indices).long(),
            _gather(self.lengths, self.length_ends, indices).long(),
            [self.length_ends[i + 1] - self.length_ends[i] for i in indices],
            _gather(self.targets, self.target_ends, indices),
        )

    def in_order_of_length(self, batch_tokens: int) -> list[list[int]]:
        """All examples in batches, the short ones first, for an evaluation."""
        return _packed(sorted(range(len(self)), key=self.tokens), self.tokens, batch_tokens)


class Order:
    """The batches of each step of a run. They depend only on the lengths of the examples and on the settings.

    Args:
        examples: The examples.
        batch_tokens: The most tokens in a batch. A longer example is a batch on its own.
        batches_per_step: Batches whose gradients are added up.
        epochs: How often each example is seen.
        seed: Of the order.
    """

    def __init__(
        self, examples: Examples, *, batch_tokens: int, batches_per_step: int = 1, epochs: int = 1, seed: int = 1
    ) -> None:
        self.examples = examples
        self.batch_tokens = batch_tokens
        self.batches_per_step = batches_per_step
        self.seed = seed
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)
        steps = [-(-len(self._epoch(epoch)) // batches_per_step) for epoch in range(epochs)]
        self.epoch_ends = list(accumulate(steps))  # steps after each epoch

    @property
    def steps(self) -> int:
        """The number of steps of the run."""
        return self.epoch_ends[-1]

    def at(self, step: int) -> list[list[int]]:
        """The batches of a step: the numbers of their examples.

        Args:
            step: The number of the step, from 0.
        """
        epoch = bisect_right(self.epoch_ends, step)
        first = (step - (self.epoch_ends[epoch - 1] if epoch else 0)) * self.batches_per_step
        return self._epoch(epoch)[first : first + self.batches_per_step]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch. Examples of like lengths run together, in a random order of batches."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
        batches: list[list[int]] = []
        for window in _packed(shuffled, self.examples.tokens, self.batch_tokens * WINDOW_BATCHES):
            batches += _packed(sorted(window, key=self.examples.tokens), self.examples.tokens, self.batch_tokens)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _packed(indices: Iterable[int], tokens: Any, limit: int) -> list[list[int]]:
    """The indices in lists of at most `limit` tokens; one with more is a list on its own."""
    lists: list[list[int]] = []
    room = 0
    for index in indices:
        count = tokens(index)
        if not lists or count > room:
            lists.append([])
            room = limit
        lists[-1].append(index)
        room -= count
    return lists


def _tensor(flat: "array[Any]") -> Tensor:
    return torch.from_numpy(np.array(flat))


def _gather(flat: Tensor, ends: Sequence[int], indices: Sequence[int]) -> Tensor:
    return torch.cat([flat[ends[i] : ends[i + 1]] for i in indices])
