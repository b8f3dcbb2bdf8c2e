"""Is a served vector or score right, and if not, why: the pipeline from text to vector, its faults, and the search.

pipeline.py computes a vector or a score as the checkpoint's files define it, faults.py lists what pipelines do
otherwise, ids.py finds the fault that gives the ids of a server, search.py the one that gives its numbers, verdict.py
reports it, probe.py has texts at which every fault shows, client.py asks a server.
"""

from xlmr_core.served.faults import PIPELINE_FAULTS, PipelineFault
from xlmr_core.served.pipeline import Pipeline, Steps
from xlmr_core.served.probe import probe_pairs, probe_texts
from xlmr_core.served.search import Verdict, judge

__all__ = [
    "PIPELINE_FAULTS",
    "Pipeline",
    "PipelineFault",
    "Steps",
    "Verdict",
    "judge",
    "probe_pairs",
    "probe_texts",
]
