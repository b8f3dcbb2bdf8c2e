"""The run that a dump is compared with, going on with the dump's own tensors where these are right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from xlmr_core.parity.faults import mean_pooled
from xlmr_core.parity.grammar.carry import Change
from xlmr_core.parity.grammar.evaluate import UNFIT, Recorded
from xlmr_core.parity.grammar.terms import SENTENCE, Term, resolved, terms_of, weights_of
from xlmr_core.parity.judge import Judge
from xlmr_core.parity.local import counted_values
from xlmr_core.parity.tap_values import elements, one_mask
from xlmr_core.pretrained import PretrainedModel

WORSE = 2.0  # how much further from the dump a change may be at a tap that it moves


class Scenes:
    """What terms are evaluated on.

    Attributes:
        terms: The right ones.
        values: Every tap of the run, in float64.
        weights: The tensors of the checkpoint.
    """

    def __init__(self, judge: Judge, model: PretrainedModel) -> None:
        """Args: judge: The dump, and the model with the faults that were found. model: The right model."""
        self.judge, self.config = judge, model.config
        self.terms = terms_of(model)
        if judge.simulator.pool is not mean_pooled:
            self.terms[SENTENCE] = Term("pooled", self.terms[SENTENCE].args, judge.simulator.pool)
        self.values = judge.simulator.exact_taps(judge.made)
        self.weights = weights_of(judge.simulator.exact)

    def of(self, known: Iterable[str]) -> Recorded:
        """The run with the dump's own tensors at the taps that are known to be right.

        On them a change that rounds falls to the same side as the port's. Only those in float32 are taken: narrower
        ones may have been rounded after the port had used them.
        """
        simulator = self.judge.simulator
        scene = Recorded(
            self.terms,
            self.values | self._own(known),
            weights=self.weights,
            heads=self.config.num_attention_heads,
            pad=self.config.pad_token_id,
            rows=len(simulator.real),
            top_ids=simulator.top_ids,
        )
        scene.ids, scene.real = simulator.input_ids, simulator.real
        return scene

    def contradicted(self, change: Change) -> bool:
        """Whether the change makes a tap of the dump worse than it is, computed from the dump's own tensors.

        A change that rounds in too many places errs as much as it explains: only these local errors show that.
        """
        own = self._own(self.judge.dump)
        scene = self.of(own)
        for tap, new in change.terms.items():
            old = self.terms[tap]
            reads = {resolved(leaf) for leaf in (*new.leaves("tap"), *old.leaves("tap"))}
            if tap in own and reads <= own.keys():
                before, after = (self._error(scene, tap, term) for term in (old, new))
                if after is None or (before is not None and after > WORSE * before + self._unit(tap)):
                    return True
        return False

    def _own(self, known: Iterable[str]) -> dict[str, Tensor]:
        dump, real = self.judge.dump, self.judge.simulator.real
        pairs = {tap: (self.values[tap], dump[tap]) for tap in known if tap in self.values and tap in dump}
        return {
            tap: torch.where(counted_values(tap, ours, real), theirs.double(), ours)
            for tap, (ours, theirs) in pairs.items()
            if theirs.dtype == torch.float32 and theirs.shape == ours.shape and theirs.isfinite().all()
        }

    def _error(self, scene: Recorded, tap: str, term: Term) -> float | None:
        try:
            found = scene.evaluate(term)
        except UNFIT:
            return None
        if found.shape != self.values[tap].shape:
            return None
        a, b = (elements(tap, one_mask(tap, x), scene.real) for x in (found, self.judge.dump[tap]))
        return float((a - b).masked_fill(a == b, 0).square().mean().sqrt())

    def _unit(self, tap: str) -> float:
        """One rounding of the largest value."""
        return torch.finfo(torch.float32).eps * float(self.values[tap].abs().max())
