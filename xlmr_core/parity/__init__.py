"""Is a port right, and if not, why: the mistakes that ports make, each ready to be made on purpose."""

from xlmr_core.parity.faults import FAULTS, Fault, find_fault

__all__ = ["FAULTS", "Fault", "find_fault"]
