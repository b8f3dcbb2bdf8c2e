"""What changes are like: whether they round, and whether what they change may be below the noise."""

from __future__ import annotations

from collections.abc import Mapping

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.functions import NARROW_NORMS
from xlmr_core.parity.grammar.matrices import PRUNED, REQUANTISED
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.grammar.transforms import STEPPED


def rounds(terms: Mapping[str, Term]) -> bool:
    """Whether new terms have narrower numbers in them, or others that ports compute with errors of their own."""
    parts = [part for term in terms.values() for part in term.walk_parts()]
    kinds = [part.value for part in parts if part.op in ("values", "tensor")]
    of_values = any(
        kind in PRECISIONS or kind in REQUANTISED or kind in PRUNED or str(kind).startswith(STEPPED) for kind in kinds
    )
    of_norms = any(part.op == "standard" and part.value in NARROW_NORMS for part in parts)
    return of_values or of_norms or any(part.op in ("scaled like", "sinusoids", "flash") for part in parts)


def is_gentle(edit: Edit) -> bool:
    """Whether a difference that it makes may be below the noise."""
    if edit.part.op in ("activation", "standard"):
        return True
    return any(part.value in PRECISIONS for part in edit.part.walk_parts() if part.op in ("values", "tensor"))


def is_eps(term: Term) -> bool:
    """Whether the open number of a term is the eps of a norm."""
    return any(part.op == "standard" and part.args[1].op == "open" for _, part in term.walk())
