"""Text in, answers out."""

from xlmr_core.tasks.fill_mask import Filling, FillMask

__all__ = ["FillMask", "Filling"]
