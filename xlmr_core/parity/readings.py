"""What a foreign tensor could be by its shape: each order of axes that fits, and its numbers in that order.

Not all numbers are looked at: a sample of them, drawn once for all taps of one shape, is enough to recognise a tensor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xlmr_core.parity.axes import LAYERS, NOTHING, PART, our_letters
from xlmr_core.parity.dump_files import Shape
from xlmr_core.parity.tap_values import LOGITS, TOP, TOP_IDS, UNDERFLOW, in_reading_order, shape_of
from xlmr_core.parity.trace import Trace

SAMPLE = 1_024  # numbers of a tap that are looked at
MOST_READINGS = 64  # of a shape, where axes have equal sizes
MOST_AXES = 8
PARTS = (3, 2)  # queries, keys and values in one tensor; keys and values
UNMASKED = 0.25  # is added to the error of scores in which no key is masked: another tensor of the same numbers


@dataclass(frozen=True)
class Kind:
    """The taps of one shape, and their numbers at M entries."""

    letters: tuple[str, ...]
    sizes: Mapping[str, int]
    taps: tuple[str, ...]  # K of them
    at: Mapping[str, Tensor]  # letter -> (M,): where the entries are
    values: Tensor  # (K, M)
    counted: Tensor  # (K, M): 0 where a tap has a mask in place of a number
    layers: int

    def errors(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """How far tensors are from the taps.

        Args:
            numbers: (R, M), of R tensors at the entries.

        Returns:
            (R, K) the norm of the difference in units of the tap's norm, and (R, K) the cosine.
        """
        finite = numbers.isfinite()
        known = numbers.where(finite, torch.zeros(()).double())
        expected = self.values * self.counted
        norm = expected.square().sum(1)
        theirs, product = known.square() @ self.counted.T, known @ expected.T
        error = ((theirs - 2 * product + norm).clamp(min=0) / norm).sqrt()
        error[(~finite).double() @ self.counted.T > 0] = math.inf
        error[self._unmasked(numbers)] += UNMASKED
        cosine = product / (theirs * norm).sqrt()
        return error.nan_to_num(math.inf, math.inf), cosine.nan_to_num(0.0)

    def _unmasked(self, numbers: Tensor) -> Tensor:
        """(R, K): which tensors have a number like any other where a tap has a mask."""
        hidden = self.counted == 0
        highest = numbers.nan_to_num(-math.inf).amax(1, keepdim=True)
        seen = (numbers > highest - UNDERFLOW).double() @ hidden.double().T
        return seen > 0


@dataclass(frozen=True)
class Reading:
    """One order of axes: the letters of each axis of the foreign tensor."""

    groups: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]

    @property
    def axes(self) -> str:
        """As a map of names has it."""
        texts = [" ".join(group).replace("N D", "H") or NOTHING for group in self.groups]
        return " ".join(f"({text})" if " " in text else text for text in texts)

    @property
    def letters(self) -> list[str]:
        """The letters of all axes."""
        return [letter for group in self.groups for letter in group]

    def numbers(self, tensor: Tensor, kind: Kind) -> Iterator[tuple[int, int, Tensor]]:
        """For each part and each layer that the tensor holds: their indices and the numbers, (M,)."""
        flat = tensor.flatten()
        for part in range(self.sizes.get(PART, 1)):
            for layer in range(self.sizes.get(LAYERS, 1)):
                at = {**kind.at, PART: torch.tensor(part), LAYERS: torch.tensor(layer)}
                index = torch.zeros(1, dtype=torch.long)
                for letter in self.letters:
                    index = index * self.sizes[letter] + at[letter]
                yield part, layer, flat[index].double()


def kinds_of(trace: Trace) -> list[Kind]:
    """The taps of a trace by shape. Gradients and losses are not among them."""
    taps: dict[tuple[str, Shape], list[str]] = {}
    for tap in in_reading_order(trace.taps):
        shape = () if tap == LOGITS else tuple(trace.tensors[tap].shape)
        taps.setdefault((shape_of(tap) or "", shape), []).append(tap)
    return [_kind(names, trace) for names in taps.values()]


def _kind(taps: Sequence[str], trace: Trace) -> Kind:
    config, (texts, tokens) = trace.config, trace.real.shape
    letters = our_letters(taps[0])
    if config.num_attention_heads == 1 and letters[-2:] == ["N", "D"]:
        letters = [*letters[:-2], "H"]
    sizes = {"B": texts, "S": tokens, "Q": tokens, "K": tokens, "T": int(trace.real.sum())}
    sizes |= {"N": config.num_attention_heads, "D": config.head_dim, "H": config.hidden_size}
    sizes |= {"V": config.vocab_size, "F": config.intermediate_size}
    sizes |= {letter: trace.tensors[taps[0]].shape[-1] for letter in letters[-1:] if letter not in sizes}
    draw = torch.Generator().manual_seed(0)
    at = {letter: torch.randint(sizes[letter], (SAMPLE,), generator=draw) for letter in letters}
    places = trace.real.nonzero()  # (T, 2)
    at["T"] = torch.randint(len(places), (SAMPLE,), generator=draw)
    if letters[1:2] == ["S"] or "Q" in letters:
        at["B"], at["Q" if "Q" in letters else "S"] = places[at["T"]].unbind(1)
    elif "S" not in letters:
        rows = trace.real[:, 0].nonzero()[:, 0]
        at["B"] = rows[at["B"] % len(rows)] if len(rows) else at["B"]
    if taps[0] == LOGITS and LOGITS not in trace.tensors:
        kept = torch.randint(trace.tensors[TOP].shape[-1], (SAMPLE,), generator=draw)
        at["V"] = trace.tensors[TOP_IDS][at["B"], at["S"], kept]
        values = trace.tensors[TOP][at["B"], at["S"], kept][None]
    else:
        index = tuple(at[letter] for letter in letters)
        shape = [sizes[letter] for letter in letters]
        values = torch.stack([trace.tensors[tap].reshape(shape)[index] for tap in taps])
    counted = torch.ones(values.shape, dtype=torch.double)
    for row, tap in zip(counted, taps, strict=True):
        if tap.endswith("attention.scores"):
            row *= trace.real[at["B"], at["K"]]
    layers = config.num_hidden_layers if any(tap.startswith("layers.") for tap in taps) else 0
    return Kind(tuple(letters), sizes, tuple(taps), at, values.double(), counted, layers)


@dataclass
class Readings:
    """The orders of axes that fit, kept by shape: a dump has many tensors of few shapes."""

    kinds: Sequence[Kind]
    _known: dict[Shape, list[tuple[Kind, Reading]]] = field(default_factory=dict[Shape, list[tuple[Kind, Reading]]])

    def of(self, shape: Shape) -> list[tuple[Kind, Reading]]:
        """The kinds of taps that a tensor of this shape can hold, and how; the simplest reading of each comes first."""
        if shape not in self._known:
            self._known[shape] = [(kind, reading) for kind in self.kinds for reading in readings(shape, kind)]
        return self._known[shape]


def readings(shape: Shape, kind: Kind) -> list[Reading]:
    """The orders of axes in which a tensor of this shape holds taps of a kind, the simplest first."""
    if len(shape) > MOST_AXES:
        return []
    found: list[Reading] = []
    packed = ("T", *kind.letters[2:])
    forms = [kind.letters, packed] if kind.letters[:2] == ("B", "S") else [kind.letters]
    for form in forms:
        for parts in (1, *(PARTS if "D" in form else ())):
            for layers in sorted({1, kind.layers or 1, kind.layers + 1}):
                sizes = {**kind.sizes, PART: parts, LAYERS: layers}
                extra = (*([PART] if parts > 1 else []), *([LAYERS] if layers > 1 else []))
                letters = (*form, *extra)
                if math.prod(shape) == math.prod(sizes[letter] for letter in letters):
                    used = {letter: sizes[letter] for letter in letters}
                    found += [Reading(groups, used) for groups in _orders(shape, letters, sizes)]
    return sorted(found, key=lambda reading: _effort(reading, kind))[:MOST_READINGS]


def _effort(reading: Reading, kind: Kind) -> tuple[int, int, int, str]:
    """How far a reading is from ours: parts and layers, merged axes, letters out of order."""
    letters = reading.letters
    own = [kind.letters.index(letter) for letter in letters if letter in kind.letters]
    out_of_order = sum(a > b for i, a in enumerate(own) for b in own[i:])
    axes = reading.axes
    return len({PART, LAYERS} & {*letters}), axes.count("(") + axes.count(NOTHING), out_of_order, axes


def _orders(shape: Shape, letters: tuple[str, ...], sizes: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Every way to give each axis its letters. A batch of one text may lack its axis."""
    if not shape:
        if all(letter == "B" and sizes[letter] == 1 for letter in letters):
            yield ()
        return
    for group in _groups(shape[0], letters, sizes):
        left = tuple(letter for letter in letters if letter not in group)
        for rest in _orders(shape[1:], left, sizes):
            yield (group, *rest)


def _groups(length: int, letters: tuple[str, ...], sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Every sequence of letters that makes an axis of this length; none for an axis of one entry."""
    if length == 1:
        yield from ((letter,) for letter in letters if sizes[letter] == 1)
        yield ()
    for letter in letters:
        if sizes[letter] == length > 1:
            yield (letter,)
        elif sizes[letter] > 1 and length % sizes[letter] == 0 and letter != LAYERS:
            left = tuple(other for other in letters if other not in (letter, LAYERS))
            for rest in _groups(length // sizes[letter], left, sizes):
                if rest and sizes[rest[0]] > 1:
                    yield (letter, *rest)
