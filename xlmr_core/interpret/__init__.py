"""Which parts of a model an answer depends on: patching, paths, and contributions to the logits.

    from xlmr_core.interpret import activation_patching, head_parts

    heads = head_parts(model.config)
    effects = activation_patching(model, clean, corrupted, score, "layers.*.attention.context", heads)

Everything here is a few lines on `model.capture` and `model.intervene`; docs/interpretability/ explains each function
on a page that runs.
"""

from xlmr_core.interpret.contributions import Contributions, decompose, direct_logit_attribution, head_outputs
from xlmr_core.interpret.patching import activation_patching, attribution_patching, head_parts, position_parts
from xlmr_core.interpret.paths import path_patching

__all__ = [
    "Contributions",
    "activation_patching",
    "attribution_patching",
    "decompose",
    "direct_logit_attribution",
    "head_outputs",
    "head_parts",
    "path_patching",
    "position_parts",
]
