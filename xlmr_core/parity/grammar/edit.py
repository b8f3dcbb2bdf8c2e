"""One small change of a term, with its cost and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from xlmr_core.parity.grammar.rules import Rule
from xlmr_core.parity.grammar.terms import Term


@dataclass(frozen=True)
class Edit:
    """One small change of a term.

    Attributes:
        path: Of the part that is changed.
        part: What is there now.
        cost: How unusual it is.
        says: It in words.
        kinds: The same change of any part of the model that it fits, with which parts those are in words.
        whole: Whether the change is one of several parts at once, as `kinds` has it, and never of this part only.
        measured: Whether it was read off the dump: there are few such edits, and they are tried however late it is.
    """

    path: tuple[int, ...]
    part: Term
    cost: float
    says: str
    kinds: tuple[tuple[str, Rule], ...] = ()
    whole: bool = False
    measured: bool = False

    def of(self, term: Term) -> Term:
        return term.with_part(self.path, self.part)
