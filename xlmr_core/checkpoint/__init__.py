"""Checkpoints: from published files to a model and back, with an account of every key.

layouts.py has the key tables, mapping.py the set algebra, files.py the formats, hub.py the network (guard.py checks
what a server answers, cache.py what it sent), loading.py the way from files to a model and back: these know no model
class. inspection.py, convert.py and trimming.py, which look for the class that fits a file, come after the heads.
Nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmr_core._lazy import lazy

if TYPE_CHECKING:
    from xlmr_core.checkpoint.files import bundled
    from xlmr_core.checkpoint.inspection import Inspection, inspect_checkpoint
    from xlmr_core.checkpoint.loading import find_tokenizer, load_pretrained, save_pretrained
    from xlmr_core.checkpoint.mapping import KeyStatus, LoadReport
    from xlmr_core.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "Inspection",
    "KeyStatus",
    "LoadReport",
    "bundled",
    "find_tokenizer",
    "inspect_checkpoint",
    "load_pretrained",
    "save_pretrained",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "files": ["bundled"],
        "inspection": ["Inspection", "inspect_checkpoint"],
        "loading": ["find_tokenizer", "load_pretrained", "save_pretrained"],
        "mapping": ["KeyStatus", "LoadReport"],
        "xlmr_core.errors": ["CheckpointError"],
    },
)
