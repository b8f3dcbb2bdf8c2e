"""What the kit says about the answer of a port."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlmr_core.parity.check import check_trace, dump_from_file, measure_trace
from xlmr_core.parity.compare import Floors, Row
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.int8 import INT8
from xlmr_core.parity.recording import Checkpoint, record
from xlmr_core.served import Pipeline, judge
from xlmr_core.served.faults import with_faults
from xlmr_core.served.ids import IdVerdict, judge_ids
from xlmr_core.served.probe import probe_texts

# Run as one batch, whose hidden states are compared: five scripts, accents, and rows of several lengths.
BATCH = (
    "The cat sees the dog.",
    "naïve café, Ångström №5",
    "हिन्दी में एक वाक्य",
    "中文的一个句子，很短。",
    "Der Zug nach Süden fährt heute von einem anderen Gleis ab, weil die Brücke gesperrt ist.",
)
BATCHES = probe_texts()
BUDGET = 60.0  # seconds of search for pairs of faults


class Checked:
    """A checkpoint with what is right for it: ids, hidden states with their noise, and vectors."""

    def __init__(self, folder: Path, texts: Sequence[str], precisions: Sequence[str]) -> None:
        self.texts = texts
        self.checkpoint = Checkpoint.load(folder)
        self.trace = record(folder, BATCH)
        self.floors = measure_trace(self.trace, self.checkpoint, dtypes=precisions).floors
        self.pipeline = Pipeline.from_pretrained(
            folder
        )  # last: its float64 weights need not lie beside those of floors

    def request(self) -> dict[str, Any]:
        """What a port is asked for."""
        inputs = {name: tensor.tolist() for name, tensor in self.trace.inputs.items()}
        return {"texts": list(self.texts), "batches": BATCHES, **inputs}

    def ids(self, found: Sequence[Sequence[int]]) -> IdVerdict:
        """Whether the ids of the texts are right, and if not, which faults give them."""
        return judge_ids(self.pipeline, self.texts, found)

    def states(self, dump_file: Path, dtype: str | None) -> dict[str, Any]:
        """Whether the hidden states agree to the noise of their precision; if not, where they part first, and why."""
        dump = dump_from_file(self.trace, dump_file)
        floors = Floors(self.floors.errors, self.floors.factor, dtype)
        comparison = check_trace(self.trace, dump, floors=floors, partial=True)
        first = comparison.first_divergence
        rows = [row for row in comparison.rows if row.verdict != "extra"]  # a pooler that the port drew at random
        row = first or max((row for row in rows if row.max_abs > 0), key=share, default=rows[-1])
        found = {"ok": comparison.ok, "taps": len(rows), "tap": row.tap, "error": row.max_abs}
        found |= {"allowed": row.allowed, "last": rows[-1].relative, "faults": []}
        if first is not None and dtype not in INT8:
            model, inputs = self.checkpoint.model, self.trace.inputs
            diagnosis = diagnose(model, inputs, dump, dtype=getattr(torch, dtype) if dtype else None)
            found["faults"] = list(diagnosis.faults)
        return found

    def vectors(self, found: Sequence[Sequence[float]], ids: IdVerdict | None) -> dict[str, Any]:
        """What is said of vectors that a server gave, whose ids have the faults that were found."""
        pipeline = with_faults(self.pipeline, ids.candidates[0]) if ids and ids.candidates else self.pipeline
        sizes = [len(batch) for batch in BATCHES]
        batches = [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
        texts = [text for batch in BATCHES for text in batch]
        return judge(pipeline, texts, torch.tensor(found), batches=batches, budget=BUDGET).as_dict()


def share(row: Row) -> float:
    """The error, in units of what rounding explains; infinite where that is nothing."""
    return row.max_abs / row.allowed if row.allowed else math.inf
