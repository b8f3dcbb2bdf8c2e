"""Which faults pass the acceptance rules that other projects use: writes docs/what-passes-elsewhere.md.

    python tools/passes_elsewhere.py

Each fault is made in the pipeline of xlmr-tiny, mean-pooled and brought to length 1, on the texts of the probe. The
vectors with the fault are compared with those without, as each rule does it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from xlmr_core.parity.variants import variant
from xlmr_core.served.faults import PipelineFault, faults_for
from xlmr_core.served.pipeline import Pipeline
from xlmr_core.served.probe import probe_texts
from xlmr_core.tasks.embed import EmbeddingConfig

PAGE = Path(__file__).parents[1] / "docs" / "what-passes-elsewhere.md"
SEEN = 1e-5  # relative length of a difference: a fault that changes less is not counted; float32 noise is below it
Rule = Callable[[Tensor, Tensor], bool]  # right, wrong (N, D) -> whether the wrong vectors pass


def lowest_cosine(right: Tensor, wrong: Tensor) -> float:
    """Of all texts."""
    return float(cosine_similarity(right, wrong, dim=-1).min())


def correlation(right: Tensor, wrong: Tensor) -> float:
    """Of all numbers of all texts."""
    return float(torch.corrcoef(torch.stack([right.flatten(), wrong.flatten()]))[0, 1])


RULES: dict[str, tuple[str, Rule]] = {
    "mean cosine > 0.95": (
        "llama.cpp, semantic_check.py: the grade EXCELLENT",
        lambda right, wrong: float(cosine_similarity(right, wrong, dim=-1).mean()) > 0.95,
    ),
    "correlation >= 0.92": (
        "tt-xla, for bge-m3: the asserted correlation of all numbers (PCC)",
        lambda right, wrong: correlation(right, wrong) >= 0.92,
    ),
    "cosine > 0.999": (
        "text-embeddings-inference, tests of the candle backend, against snapshots of itself",
        lambda right, wrong: lowest_cosine(right, wrong) > 0.999,
    ),
    "cosine >= 1 - 1e-3": (
        "vLLM, check_embeddings_close",
        lambda right, wrong: lowest_cosine(right, wrong) >= 1 - 1e-3,
    ),
    "atol 1e-2": (
        "CS336, the default of its snapshot tests, with rtol 1e-4",
        lambda right, wrong: torch.allclose(wrong, right, rtol=1e-4, atol=1e-2),
    ),
    "rtol 1e-3, atol 1e-4": (
        "ONNX Runtime, compare_bert_results.py",
        lambda right, wrong: torch.allclose(wrong, right, rtol=1e-3, atol=1e-4),
    ),
}


INTRODUCTION = """# What passes elsewhere

Projects that serve or convert encoders accept a result by a rule with a fixed limit. Such limits serve a purpose: they
hold on many machines, in many precisions and for many models. This page measures which faults lie below them.

Each fault is made in the pipeline of xlmr-tiny, mean-pooled and brought to length 1, on the texts of
`xlmr parity probe`, in float32. A rule is applied to the vectors with the fault and those without, over all texts; a
rule on the cosine holds for the text with the lowest one, unless it names the mean. Some projects use their rule on
hidden states or logits, whose numbers are larger: here each is applied to the final vector. The counts leave out
faults that only round, and hold for this model and these texts. `tools/passes_elsewhere.py` writes this page.
"""


def embedder() -> Pipeline:
    """The pipeline of xlmr-tiny that is judged."""
    pipeline = Pipeline.from_pretrained("xlmr-tiny", config=EmbeddingConfig(("mean",), normalize=True))
    pipeline.model = variant(pipeline.model, torch.float32, "eager", "cpu")
    return pipeline


def passed(pipeline: Pipeline, faults: Sequence[PipelineFault]) -> dict[str, set[str] | None]:
    """For each fault the names of the rules that it passes; None for one that changes nothing here."""
    groups = [[(text,) for text in texts] for texts in probe_texts()]
    right = torch.cat([pipeline.run(group) for group in groups])
    found: dict[str, set[str] | None] = {}
    for fault in faults:
        try:
            wrong = torch.cat([pipeline.run(group, fault.made(pipeline.right)) for group in groups])
        except ValueError:  # the model has no such part
            continue
        seen = float((wrong - right).norm() / right.norm()) > SEEN
        found[fault.name] = {name for name, (_, rule) in RULES.items() if rule(right, wrong)} if seen else None
    return found


def page(found: dict[str, set[str] | None], faults: Sequence[PipelineFault]) -> str:
    """The page, as Markdown."""
    visible = {name: rules for name, rules in found.items() if rules is not None}
    rounding = {fault.name for fault in faults if fault.rounding}
    counted = {name: rules for name, rules in visible.items() if name not in rounding}
    lines = [
        INTRODUCTION,
        f"{len(counted)} faults change the vectors.",
        "",
        "| rule | used by | faults that pass |",
        "|---|---|---|",
    ]
    for name, (user, _) in RULES.items():
        lines.append(f"| {name} | {user} | {sum(name in rules for rules in counted.values())} of {len(counted)} |")
    lines += [
        "",
        "`x`: the fault passes the rule. Faults that only round come last; a rule may let them pass on purpose.",
        "",
        f"| fault | {' | '.join(RULES)} |",
        f"|---|{'---|' * len(RULES)}",
    ]
    for name in sorted(visible, key=lambda name: (name in rounding, -len(visible[name]))):
        cells = " | ".join("x" if rule in visible[name] else "" for rule in RULES)
        lines.append(f"| {name} | {cells} |")
    without = ", ".join(name for name, rules in found.items() if rules is None)
    lines += ["", f"These change the vectors of these texts by less than {SEEN:.0e}, or not at all: {without}.", ""]
    return "\n".join(lines)


def main() -> None:
    pipeline = embedder()
    faults = faults_for(pipeline)
    PAGE.write_text(page(passed(pipeline, faults), faults), encoding="utf-8")


if __name__ == "__main__":
    main()
