"""Writes docs/what-catches-what.md: which comparison of the parity tests cannot see which fault, and why.

`make pages` runs it. Every list and number of the page comes from running the comparisons on models with faults.
"""

from pathlib import Path

from fault_matrix import groups, notices

from xlmr_core.parity import FAULTS, Fault

PATH = Path(__file__).parents[1] / "docs" / "what-catches-what.md"

INTRODUCTION = """\
# What catches what

The parity tests are tested themselves: each fault of the catalogue is made in our model, and each comparison of the
parity tests is run on it. A comparison that passes cannot see that fault. The comparisons:

| name | what is compared |
|---|---|
| oracle | every tap in float64, with plain Python loops |
| eager, sdpa | hidden states and logits with transformers, bit for bit, with that attention kernel |
| packed, packed sdpa | every tap of a packed batch in float64, with the same loops, for each attention kernel |
| probs | attention probabilities with transformers |
| bfloat16 | our error against float64 with that of transformers |
| training, gradients | logits in train mode under one seed, and the gradient of every parameter, with transformers |
| pooler, classifier, tagger, answer | the outputs of models with these heads, with transformers |

"""

# Why these comparisons cannot see some faults. A group of comparisons without a reason is a KeyError.
REASONS = {
    "bfloat16": "the fault is smaller than the rounding of bfloat16",
    "training, gradients": "train mode has dropout anyway",
    "packed sdpa": "a packed batch has no padding, so fused attention takes no mask",
    "probs": "these parts are above the last attention",
    "all except training, gradients": "there is no dropout in eval mode",
    "all except gradients": "outputs are right, only gradients are wrong",
}


def page() -> str:
    """The text of the page."""
    rows: dict[str, list[str]] = {}
    for fault in FAULTS:
        rows.setdefault(blind_comparisons("pre-norm" if fault.norm == "pre" else "post-norm", fault), []).append(
            fault.name
        )
    seen_by_all = rows.pop("")
    lines = [
        f"Of {len(FAULTS)} faults, {len(seen_by_all)} are noticed by every comparison whose model has the part.",
        "The others:",
        "",
        "| not noticed by | faults | why |",
        "|---|---|---|",
    ]
    for names, faults in rows.items():
        lines.append(f"| {names} | {', '.join(f'`{name}`' for name in faults)} | {REASONS[names]} |")
    unnoticed = [f"`{fault.name}`" for fault in FAULTS if fault.norm != "post" and not noticed("pre-norm", fault)]
    lines += [
        "",
        f"In pre-norm models (XL, XXL), no comparison notices {', '.join(unnoticed)}: transformers' XL",
        "lacks that dropout, so the tests switch it off.",
    ]
    return INTRODUCTION + "\n".join(lines) + "\n"


def blind_comparisons(norm: str, fault: Fault) -> str:
    """The comparisons that do not notice the fault although their model has the part, in words."""
    found = {name: notices(norm, name, fault) for name in groups(norm)}
    seeing = [name for name, noticed in found.items() if noticed]
    blind = [name for name, noticed in found.items() if noticed is False]
    return f"all except {', '.join(seeing)}" if len(blind) > len(seeing) else ", ".join(blind)


def noticed(norm: str, fault: Fault) -> bool:
    """Whether any comparison notices the fault."""
    return any(notices(norm, name, fault) for name in groups(norm))


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
