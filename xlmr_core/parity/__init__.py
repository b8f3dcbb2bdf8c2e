"""Is a port right, and if not, why: golden traces, comparison, noise floors, and the faults that ports make.

trace.py records what a checkpoint computes, compare.py holds something else against it, floors.py measures what
rounding alone does, adapters.py runs other libraries' models, faults.py makes the faults on purpose.
"""

from xlmr_core.parity.adapters import Place, compare_models
from xlmr_core.parity.compare import Comparison, Floors, Row, compare
from xlmr_core.parity.faults import FAULTS, Fault, find_fault
from xlmr_core.parity.floors import FloorTable, measure_floors
from xlmr_core.parity.trace import Trace, TraceError, record

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
