"""Writes docs/divergence-guide.md: each row is measured on a model with the fault. `make pages` runs it."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import reference
import torch
from reference import CONFIGS, ORACLE_TOLERANCE, Pair
from torch import Tensor

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.compare import compare
from xlmr_core.parity.diagnose import one_mask
from xlmr_core.parity.faults import FAULTS, POOLING_FAULTS, TOKENIZER_FAULTS, Fault, mean_pooled
from xlmr_core.parity.patterns import describe
from xlmr_core.parity.tap_values import elements

PATH = Path(__file__).parents[1] / "docs" / "divergence-guide.md"

INTRODUCTION = """\
# Divergence guide

What each known fault of a port looks like. You need not search these tables by eye: the kit makes each fault in our
model and names the one that gives the numbers of your port.

```
xlmr parity record FacebookAI/xlm-roberta-base --text "The capital of France is <mask>." -o trace.safetensors
# run your port on the ids in the trace, write its tensors to port.npz, and list their names in names.toml
xlmr parity check trace.safetensors port.npz --names names.toml
xlmr parity diagnose trace.safetensors port.npz --names names.toml
```

`diagnose` names a fault only if our model with this fault agrees with your numbers, to rounding, at every tap, or as
far as the next fault. Otherwise it describes the difference, in the words of the second column below.

Record several texts of different lengths: without padding, faults of masks and positions do not show. Two faults are
found but not named, because no simulation gives the same numbers: a decoder that kept its random initial values (only
the logits are wrong, and unrelated to ours), and products kept in float16, which round differently in another order.

For each row, the fault was made in a small model with random weights, in float64, on five rows of uneven lengths with
padding on the right, on the left and inside. `make pages` writes this page, and a test checks that it is up to date.
"""

# The traps of the architecture: a property of XLM-R, and the faults that come from missing it or where it is handled.
TRAPS: tuple[tuple[str, tuple[str, ...] | str], ...] = (
    (
        "Positions start at pad + 1 = 2 and skip padding; 514 rows hold 512 tokens; each packed sequence starts anew.",
        ("positions_from_zero", "positions_from_one", "positions_count_padding", "positions_without_restart"),
    ),
    ("Position rows cut out wrongly have the right shape.", ("position_rows_shifted",)),
    (
        "SentencePiece's ids are one lower than the model's; its <unk>, <s>, </s> are 0, 1, 2, the model's 3, 0, 2; "
        "<mask> is the last id.",
        ("ids_without_offset", "tokenizer_unk_is_zero", "tokenizer_mask_id_wrong"),
    ),
    ("<mask> swallows the space on its left.", "`print(tokenizer.explain(text))` shows every piece with its place"),
    ("The eps of the norms is 1e-5, not BERT's 1e-12.", ("eps_of_bert",)),
    ("GELU is exact, by erf.", ("gelu_tanh", "gelu_quick", "relu_for_gelu", "lm_head_gelu_tanh")),
    (
        "Norms come after each sublayer, and one after the embeddings, before dropout; in XL and XXL before each "
        "sublayer, and one at the end.",
        (
            "embedding_norm_missing",
            "norm_placement_exchanged",
            "norm_before_residual",
            "final_norm_missing",
            "embedding_dropout_before_norm",
        ),
    ),
    (
        "Dropout: on probs, on both sublayers' outputs before the residual, on the embeddings after the norm; none "
        "after GELU.",
        (
            "probs_dropout_missing",
            "attention_output_dropout_missing",
            "feed_forward_output_dropout_missing",
            "embedding_dropout_missing",
            "dropout_after_residual",
            "dropout_after_activation",
            "dropout_left_on",
        ),
    ),
    (
        "LM head: dense, GELU, norm, the word table again, and a bias over the vocabulary that has two names.",
        (
            "vocabulary_bias_missing",
            "lm_head_activation_missing",
            "lm_head_norm_missing",
            "lm_head_untied",
            "lm_head_tied_by_copy",
        ),
    ),
    ("The one token-type vector is added everywhere.", ("token_type_missing", "token_type_twice")),
    (
        "fairseq's files: q, k and v in one matrix; the second norm is called final_layer_norm.",
        ("k_v_swapped", "norms_exchanged"),
    ),
    ("A pair is `<s> a </s></s> b </s>`.", ("tokenizer_single_separator",)),
    (
        "A row without a real token: -inf for every key gives NaN.",
        "our model attends to every position of such a row, so its numbers are finite; they are not compared",
    ),
    ("The numbers at padding differ between right implementations.", "only real tokens are compared"),
    (
        "The pooler of published checkpoints was not trained to be an embedding.",
        (
            "pooled_first_token",
            "pooled_over_padding",
            "pooler_last_token",
            "pooler_bias_missing",
            "pooler_tanh_missing",
        ),
    ),
    (
        "A classifier reads <s> through a map, tanh and a second map; it has no use for the pooler.",
        ("classifier_mean_pooled", "classifier_tanh_missing", "classifier_dense_bias_missing"),
    ),
    (
        "Not all that has XLM-R's vocabulary is XLM-R (multilingual-e5-small is BERT).",
        "`xlmr inspect` reports the architecture, which it finds by the keys of the file",
    ),
    ("Checkpoints are stored in float16, too.", ("weights_float16", "scores_float16")),
)


def text() -> str:
    """The page."""
    lines = [INTRODUCTION, "## Outputs", ""]
    lines += [
        "| first wrong tap | what the error looks like there | largest | fault | cause |",
        "|---|---|---|---|---|",
    ]
    lines += [row(*cells) for cells in outputs()]
    lines += ["", "## Training only", ""]
    lines += ["Outputs in eval mode are right.", ""]
    lines += header("first wrong tap", "what changes there", "what to look for", "fault", "cause")
    lines += [row(*cells) for cells in training()]
    lines += [
        "",
        "## Ids",
        "",
        f"Right: `{' '.join(map(str, IDS))}`, a pair with `<mask>` and an unknown character.",
        "",
    ]
    lines += ["| ids | what to look for | fault | cause |", "|---|---|---|---|"]
    lines += [row(*cells) for cells in ids()]
    lines += ["", "## Sentence vectors", "", "Token vectors are right.", ""]
    lines += header("what the error looks like", "largest", "fault", "cause")
    lines += [row(*cells) for cells in pooling()]
    lines += ["", "## Traps of XLM-R", "", *header("trap", "faults")]
    for trap, faults in TRAPS:
        lines.append(row(trap, faults if isinstance(faults, str) else ", ".join(f"`{name}`" for name in faults)))
    return "\n".join(lines) + "\n"


def header(*titles: str) -> list[str]:
    return [row(*titles), "|" + "---|" * len(titles)]


def row(*cells: str) -> str:
    """Of a Markdown table; "<" is itself in code and markup elsewhere."""
    escaped = [cell if "`" in cell else cell.replace("<", "&lt;") for cell in cells]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in escaped) + " |"


def outputs() -> Iterator[tuple[str, ...]]:
    for fault in FAULTS:
        if fault.shows == "outputs":
            pair, healthy, faulty = runs(fault)
            compared = compare(healthy, faulty, real=pair.real)
            wrong = next(r for r in compared.rows if r.verdict == "missing" or r.max_abs > ORACLE_TOLERANCE)
            seen = looks_like(pair, healthy, faulty, wrong.tap)
            yield wrong.tap, seen, size(wrong.max_abs), f"`{fault.name}`", fault.cause


def runs(fault: Fault) -> tuple[Pair, dict[str, Tensor], dict[str, Tensor]]:
    """Every tap without and with the fault, in float64."""
    pair = pair_for("pre-norm" if fault.norm == "pre" else "post-norm", fault.tap.split(".")[0])
    healthy = {tap: one_mask(tap, tensor) for tap, tensor in dump_of(pair.ours, pair.batch).items()}
    torch.manual_seed(0)
    with fault.applied(pair.ours):
        faulty = {tap: one_mask(tap, tensor) for tap, tensor in dump_of(pair.ours, pair.batch).items()}
    return pair, healthy, faulty


@cache
def pair_for(norm: str, part: str = "lm_head") -> Pair:
    pair = reference.build_pair_with(CONFIGS[norm], part if part in reference.HEADED else "lm_head")
    pair.ours.double()
    return pair


def looks_like(pair: Pair, healthy: dict[str, Tensor], faulty: dict[str, Tensor], tap: str) -> str:
    if tap not in faulty:
        return "the whole layer is missing"
    heads = pair.config.num_attention_heads
    return "; ".join(describe(tap, healthy[tap], faulty[tap], pair.real, heads=heads, allowed=ORACLE_TOLERANCE))


def size(value: float) -> str:
    """Two digits; a word where one side is masked and the other is not."""
    return "-" if value != value else "masked" if value > 1e3 else f"{value:.1e}"


def training() -> Iterator[tuple[str, ...]]:
    for fault in FAULTS:
        if fault.shows != "outputs":
            tap, seen = gradient_change(fault) if fault.shows == "gradients" else dropout_change(fault)
            yield tap, seen, fault.symptom, f"`{fault.name}`", fault.cause


def dropout_change(fault: Fault) -> tuple[str, str]:
    """The first tap that differs in train mode under the same seed, and how many of its values are exactly 0."""
    pair = pair_for("post-norm")
    healthy = in_train_mode(pair)
    with fault.applied(pair.ours):
        faulty = in_train_mode(pair)
    tap = next(r.tap for r in compare(healthy, faulty, real=pair.real).rows if r.max_abs > ORACLE_TOLERANCE)
    before, after = (float((dump[tap][pair.real] == 0).double().mean()) for dump in (healthy, faulty))
    return tap, f"{after:.0%} of the values are exactly 0; in a right model {before:.0%}"


def in_train_mode(pair: Pair) -> dict[str, Tensor]:
    pair.ours.train()
    torch.manual_seed(3)
    dump = dump_of(pair.ours, pair.batch)
    pair.ours.eval()
    return dump


def gradient_change(fault: Fault) -> tuple[str, str]:
    """The table whose gradient differs, and whether the padding row has one."""
    pair = pair_for("post-norm")
    healthy = table_gradient(pair)
    with fault.applied(pair.ours):
        faulty = table_gradient(pair)
    rows = (healthy - faulty).abs().amax(dim=1) > ORACLE_TOLERANCE
    assert rows.any()
    return "gradient of the word table", f"wrong in {int(rows.sum())} of {len(rows)} rows"


def table_gradient(pair: Pair) -> Tensor:
    pair.ours.zero_grad()
    pair.ours(**pair.batch).logits[pair.real].square().mean().backward()
    gradient = pair.ours.encoder.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    return gradient.clone()


IDS = [0, 35378, 250001, 3, 2, 2, 8999, 2]


def ids() -> Iterator[tuple[str, ...]]:
    numbers: Any = SimpleNamespace(bos_token_id=0, pad_token_id=1, eos_token_id=2, unk_token_id=3, mask_token_id=250001)
    for fault in TOKENIZER_FAULTS:
        wrong = fault.rule(list(IDS), numbers)
        assert wrong != IDS
        yield f"`{' '.join(map(str, wrong))}`", fault.symptom, f"`{fault.name}`", fault.cause


def pooling() -> Iterator[tuple[str, ...]]:
    pair = pair_for("post-norm")
    with torch.no_grad():
        hidden, mask = pair.ours(**pair.batch).last_hidden_state, pair.batch["attention_mask"]
    right = mean_pooled(hidden, mask)
    for fault in POOLING_FAULTS:
        wrong = fault.pool(hidden, mask)
        rows = (wrong - right).abs().amax(dim=1) > ORACLE_TOLERANCE
        padded = ~pair.real.all(dim=1)
        where = "rows with padding are wrong, others right" if torch.equal(rows, padded) else "every row is wrong"
        cosine = torch.cosine_similarity(wrong, right, dim=1)
        direction = "in the right direction" if (cosine > 1 - 1e-9).all() else "in another direction"
        largest = float(elements("sentence.mean", wrong - right, pair.real).abs().max())
        yield f"{where}; {direction}", size(largest), f"`{fault.name}`", fault.cause


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
