"""Checkpoints: from published files to a model and back, with an account of every key.

layouts.py has the key tables, mapping.py the set algebra, files.py the formats, hub.py the network, guard.py the checks
of what a server answers, cache.py those of what it sent, loading.py the way from files to a model and back,
inspection.py a look at a file without loading it.
"""

from xlmr_core.checkpoint.files import bundled
from xlmr_core.checkpoint.inspection import Inspection, inspect_checkpoint
from xlmr_core.checkpoint.loading import find_tokenizer, load_pretrained, save_pretrained
from xlmr_core.checkpoint.mapping import CheckpointError, Fate, LoadReport

__all__ = [
    "CheckpointError",
    "Fate",
    "Inspection",
    "LoadReport",
    "bundled",
    "find_tokenizer",
    "inspect_checkpoint",
    "load_pretrained",
    "save_pretrained",
]
