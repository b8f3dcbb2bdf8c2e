"""The bundled model on one sentence in two languages, with every tap; its numbers and pictures as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from drawing import bars, chart, heat_map, side_by_side, strip
from source_code import inline
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.model import position_ids_from
from xlmr_core.tokenizer import Token

TEXTS = ("The house <mask> very big.", "La maison <mask> très grande.")
SHOWN = 4  # numbers of a vector, and columns of a picture of heads


@dataclass(frozen=True)
class Run:
    """The model on the two sentences, with every tap."""

    tokenizer: XLMRobertaTokenizer
    model: XLMRobertaForMaskedLM
    tokens: list[list[Token]]
    ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S)
    positions: Tensor  # (B, S)
    taps: dict[str, Tensor]

    @property
    def masks(self) -> list[int]:
        """Where `<mask>` is in each sentence."""
        return [[token.piece for token in row].index("<mask>") for row in self.tokens]

    def pieces(self, row: int) -> list[str]:
        """The pieces of a sentence, without padding."""
        return [token.piece for token in self.tokens[row]]

    def layer(self, index: int, name: str) -> Tensor:
        """A tap of a layer."""
        return self.taps[f"layers.{index}.{name}"]


@torch.no_grad()
def run() -> Run:
    """Runs the bundled model."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    batch = tokenizer(TEXTS)
    with model.capture("**") as seen:
        model(**batch)
    tokens = [list(tokenizer.explain(text).tokens) for text in TEXTS]
    positions = position_ids_from(batch.input_ids, tokenizer.pad_token_id)
    return Run(tokenizer, model, tokens, batch.input_ids, batch.attention_mask, positions, dict(seen))


# ---- what was computed -----------------------------------------------------------------------------------------------


def digits(tensor: Tensor) -> str:
    """The first numbers, with three digits: these are the same on every processor."""
    shown = [f"{value:.3g}" for value in tensor.flatten()[:SHOWN].tolist()]
    return ", ".join(shown) + (", ..." if tensor.numel() > SHOWN else "")


def at_mask(made: Run, tensor: Tensor) -> Tensor:
    """What a tensor has for `<mask>` of the first sentence: its vector, or its row of the first head."""
    place = made.masks[0]
    return tensor[0, 0, place] if tensor.ndim == 4 else tensor[0, place]


def tensor_html(made: Run, name: str, axes: str, tensor: Tensor, meaning: str) -> str:
    """A tensor with its shape, its dtype and a few numbers; of integers and truth values all of them."""
    rows = [str(row) for row in tensor.flatten(1).tolist()] if not tensor.is_floating_point() else []
    numbers = "\n".join(rows) or digits(at_mask(made, tensor))
    kind = str(tensor.dtype).removeprefix("torch.")
    return (
        f'<div class="tensor"><code>{name}</code> {axes} = {tuple(tensor.shape)}, {kind}<br>{inline(meaning)}'
        f"<pre>{numbers}</pre></div>"
    )


def taps_html(made: Run, names: Sequence[str]) -> str:
    """Some taps, with what the package says about each."""
    known = {tap.name: tap for tap in made.model.taps()}
    return "".join(tensor_html(made, name, known[name].shape, made.taps[name], known[name].meaning) for name in names)


# ---- pictures --------------------------------------------------------------------------------------------------------


def pieces_html(made: Run) -> str:
    """The pieces of each sentence."""
    return "".join(f"<pre>{escape(' '.join(made.pieces(row)[1:-1]))}</pre>" for row in range(len(TEXTS)))


def ids_pictures(made: Run) -> str:
    """Pieces and both kinds of numbers."""
    found = []
    for row in made.tokens:
        spm = ["" if token.spm_id is None else str(token.spm_id) for token in row]
        rows = [("piece", [token.piece for token in row]), ("in the file", spm), ("id", [str(x.id) for x in row])]
        found.append(strip(rows, [False] * len(row), "pieces with their numbers in SentencePiece and in the model"))
    return figure(*found)


def batch_picture(made: Run, name: str, tensor: Tensor) -> str:
    """A number for each token of each sentence; padding is faint."""
    found = []
    for row, numbers in enumerate(tensor.tolist()):
        pieces = made.pieces(row) + ["<pad>"] * (tensor.shape[1] - len(made.tokens[row]))
        is_pad = [piece == "<pad>" for piece in pieces]
        found.append(strip([("piece", pieces), (name, list(map(str, numbers)))], is_pad, f"{name} of each token"))
    return figure(*found)


def lengths_picture(made: Run, names: Sequence[str]) -> str:
    """How long the vector of `<mask>` is at some taps."""
    lengths = [(name, float(at_mask(made, made.taps[name]).norm())) for name in names]
    picture = bars([(name, x, f"{x:.3g}") for name, x in lengths], "the length of the vector of <mask>")
    return figure(picture, caption="the length of the vector of `<mask>`")


def head_pictures(made: Run, layer: int, *, row: int = 0) -> str:
    """Every head of a layer: the token that looks on the left, what it looks at above."""
    probs, pieces = made.layer(layer, "attention.probs")[row], made.pieces(row)
    real = len(pieces)
    maps = [
        heat_map(head[:real, :real].tolist(), "", rows=pieces, columns=pieces, size=16, title=f"head {number}")
        for number, head in enumerate(probs)
    ]
    return figure(side_by_side(maps, f"attention of the heads of layer {layer}", columns=2), caption=f"`{TEXTS[row]}`")


def all_heads_picture(made: Run, row: int) -> str:
    """Every head of every layer, small: a line of pictures for each layer."""
    real = len(made.tokens[row])
    maps = [
        heat_map(head[:real, :real].tolist(), "", size=7, title=f"layer {layer}, head {number}")
        for layer in range(made.model.config.num_hidden_layers)
        for number, head in enumerate(made.layer(layer, "attention.probs")[row])
    ]
    picture = side_by_side(maps, f"attention of every head on {TEXTS[row]}", columns=SHOWN, gap=10)
    return figure(picture, caption=f"`{TEXTS[row]}`")


def gelu_picture(made: Run) -> str:
    """GELU, with the numbers of one token on it."""
    before, after = (at_mask(made, made.layer(0, f"feed_forward.{side}")) for side in ("pre", "post"))
    across = torch.linspace(float(before.min()), float(before.max()), 60)
    curve = list(zip(across.tolist(), torch.nn.functional.gelu(across).tolist(), strict=True))
    dots = list(zip(before[::8].tolist(), after[::8].tolist(), strict=True))
    picture = chart([("gelu", curve)], "GELU, with every eighth number of one token", dots=dots, across="pre")
    return figure(picture, caption="every eighth number of `<mask>` on the curve of GELU")


def depth_picture(made: Run) -> str:
    """How long the vector of `<mask>` is before and after the norms, from layer to layer."""
    series = []
    for name in ("attention.residual", "feed_forward.residual", "output"):
        layers = range(made.model.config.num_hidden_layers)
        series.append((name, [(i, float(at_mask(made, made.layer(i, name)).norm())) for i in layers]))
    picture = chart(series, "the length of the vector of <mask> in each layer", across="layer", up="length")
    return figure(picture, caption="the length of the vector of `<mask>` before and after the norms")


def answers_picture(made: Run) -> str:
    """The five likeliest pieces for each mask."""
    found = []
    for row, place in enumerate(made.masks):
        best = made.taps["lm_head.logits"][row, place].softmax(dim=-1).topk(5)
        pieces = [made.tokenizer.id_to_token(number) for number in best.indices.tolist()]
        values = [(piece, p, f"{p:.1%}") for piece, p in zip(pieces, best.values.tolist(), strict=True)]
        found.append(figure(bars(values, "the likeliest pieces"), caption=f"`{TEXTS[row]}`"))
    return "".join(found)


def depth_answers(made: Run) -> str:
    """What the LM head answers after each layer."""
    rows = []
    for layer in range(made.model.config.num_hidden_layers):
        hidden = made.layer(layer, "output")
        with torch.no_grad():
            logits = [made.model.lm_head(hidden[row, place]) for row, place in enumerate(made.masks)]
        best = [made.tokenizer.id_to_token(int(one.argmax())) for one in logits]
        rows.append(f"<tr><td>{layer}</td>" + "".join(f"<td><code>{piece}</code></td>" for piece in best) + "</tr>")
    return (
        "<p>What the LM head would answer after each layer (the logit lens):</p><table><tr><th>layer</th>"
        f"<th>first sentence</th><th>second</th></tr>{''.join(rows)}</table>"
    )


def filled(made: Run) -> str:
    """Each sentence with its likeliest piece."""
    sentences = []
    for row, place in enumerate(made.masks):
        ids = [token.id for token in made.tokens[row]]
        ids[place] = int(made.taps["lm_head.logits"][row, place].argmax())
        sentences.append(made.tokenizer.decode(ids[1:-1]))
    return "".join(f"<pre>{sentence}</pre>" for sentence in sentences)


def figure(*pictures: str, caption: str = "") -> str:
    """Pictures below one another, and a line of words below them."""
    words = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
    return f"<figure>{''.join(pictures)}{words}</figure>"
