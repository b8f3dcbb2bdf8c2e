"""The learner's functions, joined from text to words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from xlmr_course.convert import with_tensors
from xlmr_course.judge import run_file
from xlmr_course.material import material
from xlmr_course.step import Step
from xlmr_course.steps import STEPS
from xlmr_course.workbook import Workbook

USED = ("ids", "stack", "lm-head", "loading")


def fill(book: Workbook, text: str, top_k: int) -> list[tuple[float, str]]:
    """The likeliest texts, each with its probability.

    Args:
        book: Whose functions are used.
        text: Has one `<mask>`.
        top_k: How many.

    Raises:
        ValueError: A step that is needed was not passed or fails now, or the text has not exactly one mask.
    """
    missing = [step for step in USED if step not in book.passed()]
    if missing:
        raise ValueError(f"first pass {', '.join(missing)}: your functions of these steps are used here")
    if text.count("<mask>") != 1:
        raise ValueError(f"{text!r} has {text.count('<mask>')} masks: write exactly one <mask>")
    spaces = {step.name: _guarded(step, run_file)(book.file(step)) for step in STEPS if step.name in USED}
    space, made = _functions(spaces), material()
    parameters = space["load"](made.published)
    before, after = text.split("<mask>")
    mask = made.tokenizer.mask_token_id
    first, last = (space["model_ids"](made.spm_ids(part)) for part in (before.rstrip(), after))
    ids = torch.tensor([[*first[:-1], mask, *last[1:]]])
    encoder = {name: tensor for name, tensor in parameters.items() if not name.startswith("lm_head.")}
    config = made.config
    hidden = space["encode"](
        ids, torch.ones_like(ids).bool(), encoder, config.num_attention_heads, config.layer_norm_eps
    )
    logits = space["logits"](
        hidden,
        parameters["lm_head.dense.weight"],
        parameters["lm_head.dense.bias"],
        parameters["lm_head.norm.weight"],
        parameters["lm_head.norm.bias"],
        parameters["embeddings.word_embeddings.weight"],
        parameters["lm_head.decoder.bias"],
        config.layer_norm_eps,
    )
    best = torch.as_tensor(logits)[0, len(first) - 1].softmax(-1).topk(top_k)
    words = [made.tokenizer.id_to_token(number).replace("▁", " ") for number in best.indices.tolist()]
    return [(p, before.rstrip() + word + after) for p, word in zip(best.values.tolist(), words, strict=True)]


def _functions(spaces: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[..., Any]]:
    """Every function by its name. Those of a learner who works in NumPy take and give tensors here."""
    found: dict[str, Callable[..., Any]] = {}
    for step in STEPS:
        for function in step.functions if step.name in spaces else ():
            written = spaces[step.name].get(function.name)
            numpy = spaces[step.name].get("ARRAYS") == "numpy"
            found[function.name] = _guarded(step, with_tensors(written) if numpy else written)
    return found


def _guarded(step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
    """A file may have changed since it passed: its errors are the learner's, not the program's."""

    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:
            raise ValueError(
                f"{step.file} fails with {type(error).__name__}: {error}. Run `xlmr course check {step.name}`"
            ) from None

    return call
