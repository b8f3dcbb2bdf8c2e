"""Is a port right, and if not, why: golden traces, comparison, noise floors, and the faults that ports make.

recording.py records what a checkpoint computes, as a trace (trace.py). compare.py holds something else against it,
floors.py measures the rounding errors of a right implementation, adapters.py runs other libraries' models, and faults/
makes the faults on purpose.
"""

from xlmr_core.parity.adapters import Place, compare_models
from xlmr_core.parity.compare import Comparison, Floors, Row, compare
from xlmr_core.parity.faults import FAULTS, Fault, find_fault
from xlmr_core.parity.floors import FloorTable, measure_floors
from xlmr_core.parity.recording import record
from xlmr_core.parity.trace import Trace, TraceError

__all__ = [
    "FAULTS",
    "Comparison",
    "Fault",
    "FloorTable",
    "Floors",
    "Place",
    "Row",
    "Trace",
    "TraceError",
    "compare",
    "compare_models",
    "find_fault",
    "measure_floors",
    "record",
]
