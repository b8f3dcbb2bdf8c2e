"""Writes the picture of each step of the course, course/xlmr_course/pages/pictures/*.svg, with numbers of xlmr-tiny.

`make pages` runs it. A test draws the pictures again and compares the numbers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from drawing import as_file, bars, chart, heat_map, side_by_side, stacked, strip
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu
from xlmr_course.material import Material, Sample, material
from xlmr_course.steps import STEPS

from xlmr_core import XLMRobertaForMaskedLM

LAYER = 1  # that of the course's checks
FEATURES = 64  # shown of a vector


def pieces(made: Material, sample: Sample, row: int) -> list[str]:
    """The pieces of a text, with its padding."""
    return [made.tokenizer.id_to_token(number) for number in sample.input_ids[row].tolist()]


def place(made: Material, sample: Sample, row: int = 0) -> int:
    """Where `<mask>` is."""
    return sample.input_ids[row].tolist().index(made.tokenizer.mask_token_id)


def scaled(rows: Tensor) -> list[list[float]]:
    """The size of each number, the largest of its row as 1."""
    return (rows.abs() / rows.abs().amax(dim=-1, keepdim=True)).tolist()


def ids(made: Material, sample: Sample) -> str:
    tokens = made.tokenizer.explain("What are you doing here?").tokens
    file = ["" if token.spm_id is None else str(token.spm_id) for token in tokens]
    rows = [
        ("piece", [token.piece for token in tokens]),
        ("in the file", file),
        ("model", [str(token.id) for token in tokens]),
    ]
    return strip(
        rows, [False] * len(tokens), "Each piece of a text with its number in the file and its id in the model"
    )


def positions(made: Material, sample: Sample) -> str:
    strips = []
    for row, is_real in enumerate(sample.mask.long()):
        sums = is_real.cumsum(0)
        numbers = {"real": is_real, "cumsum": sums, "position": sums * is_real + 1}
        rows = [
            ("piece", pieces(made, sample, row)),
            *((name, [str(x) for x in y.tolist()]) for name, y in numbers.items()),
        ]
        strips.append(strip(rows, [not real for real in is_real.tolist()], ""))
    return stacked(strips, "Positions of three texts of unequal length: padding has position 1")


def embeddings(made: Material, sample: Sample) -> str:
    names = ("word", "position", "token_type", "sum", "output")
    at_mask = torch.stack([sample.taps[f"embeddings.{name}"][0, place(made, sample), :FEATURES] for name in names])
    return heat_map(scaled(at_mask), "The first 64 features of one token: three rows, their sum, and after the norm",
                    rows=names, size=18, width=8)  # fmt: skip


def heads(made: Material, sample: Sample) -> str:
    q = sample.layer(LAYER)["attention.q"][0, place(made, sample)]
    parts = scaled(q.unflatten(0, (made.config.num_attention_heads, -1)))
    names = [f"head {number}" for number in range(len(parts))]
    return heat_map(
        parts, "The query of one token, 256 features, split into 4 heads of 64", rows=names, size=18, width=8
    )


def scores(made: Material, sample: Sample) -> str:
    return _attention(made, sample, 2, "scores", "Scores of two heads: the columns of padding are empty")


def context(made: Material, sample: Sample) -> str:
    return _attention(made, sample, 2, "probs", "Weights of two heads: each row adds up to 1, padding has 0")


def _attention(made: Material, sample: Sample, row: int, name: str, label: str) -> str:
    words, real = pieces(made, sample, row), sample.mask[row]
    maps = []
    for number, weights in enumerate(sample.layer(LAYER)[f"attention.{name}"][row, :2]):
        seen = weights[:, real]
        low, high = (seen.min(), seen.max()) if name == "scores" else (0, 1)
        shown = torch.where(real, (weights - low) / (high - low), 0)
        maps.append(heat_map(shown.tolist(), "", rows=words, columns=words, size=18, title=f"head {number}"))
    return side_by_side(maps, label, columns=2)


def output(made: Material, sample: Sample) -> str:
    layer, at = sample.layer(LAYER), place(made, sample)
    shown = {"x": "input", "output": "attention.output", "x + output": "attention.residual", "mid": "mid"}
    lengths = [(name, float(layer[tap][0, at].norm())) for name, tap in shown.items()]
    return bars(
        [(name, x, f"{x:.3g}") for name, x in lengths], "The length of one token's vector: the sum, and its norm"
    )


def feed_forward(made: Material, sample: Sample) -> str:
    before = sample.layer(LAYER)["feed_forward.pre"][0, place(made, sample)]
    across = torch.linspace(float(before.min()), float(before.max()), 60).double()
    curve = list(zip(across.tolist(), gelu(across).tolist(), strict=True))
    dots = list(zip(before[::8].tolist(), gelu(before[::8]).tolist(), strict=True))
    return chart([("gelu", curve)], "GELU, and on it every eighth of the 1024 inner features of one token", dots=dots)


def stack(made: Material, sample: Sample) -> str:
    layers = range(made.config.num_hidden_layers)
    hidden = [sample.taps["embeddings.output"][0], *(sample.layer(i)["output"][0] for i in layers)]
    real = sample.mask[0]
    near = [cosine_similarity(x, hidden[-1], dim=-1)[real].clamp(min=0).tolist() for x in hidden]
    words = [piece for piece, is_real in zip(pieces(made, sample, 0), real.tolist(), strict=True) if is_real]
    label = "How near each token's vector is to its last one (cosine), from the embeddings up"
    return heat_map(near, label, rows=["embeddings", *(f"layer {i}" for i in layers)], columns=words)


def lm_head(made: Material, sample: Sample) -> str:
    best = sample.taps["lm_head.logits"][0, place(made, sample)].softmax(-1).topk(5)
    names = [made.tokenizer.id_to_token(number) for number in best.indices.tolist()]
    values = [(name, p, f"{p:.1%}") for name, p in zip(names, best.values.tolist(), strict=True)]
    return bars(values, "The five likeliest pieces for the mask in: What are <mask> doing here?")


def loading(made: Material, sample: Sample) -> str:
    groups = {"word table": "word_embeddings", "attention": ".attention.", "feed-forward": ".feed_forward."}
    groups |= {"position table": "position_embeddings", "LM head": "lm_head.", "norms": "norm"}
    counts = dict.fromkeys(groups, 0)
    for name, tensor in made.parameters.items():
        if name == "lm_head.decoder.weight":
            continue  # the word table, tied
        group = next((group for group, part in groups.items() if part in name), "word table")
        counts[group] += tensor.numel()
    return bars([(name, count, f"{count:,}") for name, count in counts.items()], "The numbers in xlmr-tiny, by part")


def packing(made: Material, sample: Sample) -> str:
    strips = []
    for row in range(2):
        padded = sample.mask[row].tolist()
        strips.append(strip([(f"row {row}", pieces(made, sample, row))], [not real for real in padded], ""))
    packed = [piece for row in range(2) for piece in pieces(made, sample, row)[: int(sample.mask[row].sum())]]
    counts = [str(2 + i) for row in range(2) for i in range(int(sample.mask[row].sum()))]
    strips.append(strip([("packed", packed), ("position", counts)], [False] * len(packed), ""))
    return stacked(strips, "Two texts in a padded batch, and packed: positions begin at 2 with each text")


def training(made: Material, sample: Sample) -> str:
    probabilities = sample.taps["lm_head.logits"][0, place(made, sample)].softmax(-1)
    best = probabilities.topk(5)
    label = best.indices[0]
    names = [made.tokenizer.id_to_token(number) for number in best.indices.tolist()]
    gradient = [p - float(i == label) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    rows = [
        ("piece", names),
        ("label", ["1" if number == label else "" for number in best.indices]),
        ("probability", [f"{p:.3f}" for p in best.values.tolist()]),
        ("gradient", [f"{g:.3f}" for g in gradient]),
    ]
    return strip(rows, [False] * 5, "Probabilities of five pieces at the mask, and the gradient of their logits")


def xl(made: Material, sample: Sample) -> str:
    other = XLMRobertaForMaskedLM(replace(made.config, norm_first=True)).double().eval()
    other.load_state_dict(made.model.state_dict(), strict=False)  # it has a final norm, and none after the embeddings
    with torch.no_grad(), other.capture("embeddings.output", "layers.*.output") as seen:
        other(sample.input_ids, sample.mask)
    depths = ["embeddings.output", *(f"layers.{i}.output" for i in range(made.config.num_hidden_layers))]
    series = [
        (name, [(i, float(taps[depth][sample.mask].norm(dim=-1).mean())) for i, depth in enumerate(depths)])
        for name, taps in (("post-norm", sample.taps), ("pre-norm", seen))
    ]
    label = "The mean length of the tokens' vectors from layer to layer, with the same weights in both orders"
    return chart(series, label, across="layers", up="length")


def numpy_port(made: Material, sample: Sample) -> str:
    layer, real = sample.layer(0), sample.mask
    names = ["input", *(name for name in layer if not name.endswith(("scores", "probs", "input")))]
    largest = [(name, float(layer[name][real].abs().max())) for name in names]
    label = "Layer 0 stage by stage: the largest number of each tensor, to compare with yours"
    return bars([(name, x, f"{x:.3g}") for name, x in largest], label)


DRAWN: dict[str, Callable[[Material, Sample], str]] = {
    "ids": ids, "positions": positions, "embeddings": embeddings, "heads": heads, "scores": scores, "context": context,
    "output": output, "feed-forward": feed_forward, "stack": stack, "lm-head": lm_head, "loading": loading,
    "packing": packing, "training": training, "xl": xl, "numpy-port": numpy_port,
}  # fmt: skip


def pictures() -> dict[str, str]:
    """The picture of each step, by its name."""
    made = material()
    return {name: as_file(draw(made, made.samples[0])) for name, draw in DRAWN.items()}


if __name__ == "__main__":
    found = pictures()
    for step in STEPS:
        step.picture.parent.mkdir(exist_ok=True)
        step.picture.write_text(found[step.name], encoding="utf-8")
