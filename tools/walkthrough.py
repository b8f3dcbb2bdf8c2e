"""One sentence in two languages from text to the filled mask: every tensor beside the lines that make it, as a page.

`make docs` runs it. The lines come from the package by their functions, the numbers from a run of the bundled model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import one_run
from one_run import SHOWN, TEXTS, Run, tensor_html
from source_code import FILES, Lines, beside, inline

from xlmr_core import FillMask, XLMRobertaTokenizer
from xlmr_core.heads import EncoderWithHead, LMHead
from xlmr_core.kernels import batch_of
from xlmr_core.model import (
    Embeddings,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    XLMRobertaModel,
    position_ids_from,
)
from xlmr_core.taps import POST_NORM_LAYER
from xlmr_core.tokenizer import _xlmr_id

INTRODUCTION = """\
---
hide: [navigation]
---

# One sentence, from text to the filled mask

The bundled model reads one sentence in two languages, `{first}` and `{second}`, as one batch. Each step below shows the
lines of the package that compute it, and what they computed: this page is written by running them. Of a vector, the
first {shown} numbers at `<mask>` of the first sentence are shown.

The axes: B = {B} sentences, S = {S} tokens, H = {H} features, N = {N} heads of D = {D} features, F = {F} features
inside the feed-forward part, V = {V} pieces. The four files as a whole: {files}. For your own sentence, see
[Capture and intervene](internals.md); to write these lines yourself, take [the course](course.md).

"""


@dataclass(frozen=True)
class Step:
    """One step: its lines, what it means, the taps that it makes, and what else is shown."""

    title: str
    lines: tuple[Lines, ...]
    words: str
    taps: tuple[str, ...] = ()
    shown: Callable[[Run], str] = lambda made: ""

    def html(self, made: Run) -> str:
        """The step with its lines on the left."""
        found = f"<p>{inline(self.words)}</p>{one_run.taps_html(made, self.taps)}{self.shown(made)}"
        return f"## {self.title}\n\n" + beside("".join(lines.html() for lines in self.lines), found, "walk")


def _mask_html(made: Run) -> str:
    batch = batch_of(made.attention_mask, None)
    assert batch.mask is not None  # the sentences differ in length
    return tensor_html(made, "batch.mask", "(B, 1, 1, S)", batch.mask, "True where a key may be attended to")


def _layer_taps(index: int) -> tuple[str, ...]:
    return tuple(f"layers.{index}.{tap.name}" for tap in POST_NORM_LAYER)


def _other_layers(made: Run) -> str:
    parts = []
    for index in range(1, made.model.config.num_hidden_layers):
        parts.append(
            f"<details><summary>Layer {index}</summary>{one_run.taps_html(made, _layer_taps(index))}</details>"
        )
    return "".join(parts)


STEPS = (
    Step(
        "Text becomes pieces",
        (
            Lines(XLMRobertaTokenizer.tokenize, "tokens: list", "return tokens"),
            Lines(XLMRobertaTokenizer._plain_tokens, "_, origins", "spm_ids:"),
        ),
        "`<mask>` is cut out of the text first: SentencePiece never sees it. The text around it is normalised and cut "
        "into the likeliest pieces. `▁` is a space.",
        shown=one_run.pieces_html,
    ),
    Step(
        "Pieces become ids",
        (Lines(_xlmr_id, "return"), Lines(XLMRobertaTokenizer.__call__, "rows.append")),
        "fairseq, with which XLM-R was trained, numbers pieces one higher than SentencePiece's file does. `<s>` (0) "
        "comes in front, `</s>` (2) at the end, and `<mask>` has the last id.",
        shown=one_run.ids_pictures,
    ),
    Step(
        "Rows of one width",
        (Lines(XLMRobertaTokenizer.__call__, "lengths = ", "return Batch"),),
        "A batch is a rectangle. The shorter sentence is filled up with `<pad>` (1), and `attention_mask` is 0 there.",
        shown=lambda made: (
            tensor_html(made, "input_ids", "(B, S)", made.ids, "the ids of each sentence")
            + tensor_html(made, "attention_mask", "(B, S)", made.attention_mask, "1 for a token, 0 for padding")
            + one_run.batch_picture(made, "id", made.ids)
        ),
    ),
    Step(
        "The model is called",
        (Lines(EncoderWithHead.forward, "encoded ="), Lines(XLMRobertaModel.forward, "pad = ", "batch = ")),
        "Every token has token type 0. The mask gets axes for heads and queries, so that it fits the scores.",
        shown=_mask_html,
    ),
    Step(
        "Positions",
        (Lines(position_ids_from, "real =", "return"),),
        "Positions are counted from pad + 1 = 2 over the tokens that are not pad. A pad has position 1, whose row of "
        "the table is zero.",
        shown=lambda made: (
            tensor_html(made, "position_ids", "(B, S)", made.positions, "rows of the position table")
            + one_run.batch_picture(made, "position", made.positions)
        ),
    ),
    Step(
        "Three tables, one sum",
        (
            Lines(XLMRobertaModel.forward, "hidden = self.embeddings"),
            Lines(Embeddings.forward, "total = self.word", "return"),
        ),
        "Each token becomes the sum of a row of each table. Then the norm gives every vector mean 0 and variance 1, "
        "scales and moves it by two trained vectors. The first layer reads the result. Dropout does nothing in eval "
        "mode.",
        ("embeddings.word", "embeddings.token_type", "embeddings.position", "embeddings.sum", "embeddings.output"),
        lambda made: one_run.lengths_picture(made, [name for name in made.taps if name.startswith("embeddings.")]),
    ),
    Step(
        "Queries, keys, values",
        (Lines(SelfAttention.forward, "q, k, v = self.q_proj"), Lines(SelfAttention.forward, "q, k, v = (self")),
        "Layer 0 begins with three linear maps of the same vectors: what a token looks for, what it offers, what it "
        "gives. The features of a head lie side by side; the second line makes them an axis of their own.",
        ("layers.0.attention.q", "layers.0.attention.k", "layers.0.attention.v"),
    ),
    Step(
        "Scores",
        (Lines(SelfAttention._eager_context, "scores = torch", "if mask"),),
        "The dot product of each query with each key, divided by sqrt(D). The columns of padding get the lowest number "
        "there is.",
        ("layers.0.attention.scores",),
    ),
    Step(
        "Attention",
        (Lines(SelfAttention._eager_context, "probs = "),),
        "The softmax makes each row positive with sum 1. In the pictures a row is a token that looks, a column a token "
        "that is looked at.",
        ("layers.0.attention.probs",),
        lambda made: one_run.head_pictures(made, 0),
    ),
    Step(
        "What was looked at",
        (Lines(SelfAttention._eager_context, "return"), Lines(SelfAttention.forward, "return self.out_proj(batch")),
        "Each head gives each token the weighted mean of the values. The heads are put side by side again, and one "
        "more linear map mixes them.",
        ("layers.0.attention.context", "layers.0.attention.output"),
    ),
    Step(
        "Residual and norm",
        (Lines(EncoderLayer.forward, "attended = self.attention(hidden", "mid = self.attention_norm"),),
        "The result is added to what the layer read, and the sum is normalised: post-norm. XL and XXL have the norm "
        "first, in the lines above these.",
        ("layers.0.attention.residual", "layers.0.mid"),
    ),
    Step(
        "Feed-forward",
        (Lines(FeedForward.forward, "return"),),
        "Each token by itself goes up to F features, through GELU, and back.",
        ("layers.0.feed_forward.pre", "layers.0.feed_forward.post", "layers.0.feed_forward.output"),
        one_run.gelu_picture,
    ),
    Step(
        "The layer's output",
        (Lines(EncoderLayer.forward, "transformed = self.feed_forward(mid", "return self.feed_forward_norm"),),
        "Added and normalised again. The next layer reads this.",
        ("layers.0.feed_forward.residual", "layers.0.output"),
    ),
    Step(
        "The other layers",
        (Lines(XLMRobertaModel.forward, "for layer", "return"),),
        "The same lines with other weights, once for each layer. The final norm is that of XL and XXL; here it changes "
        "nothing.",
        shown=lambda made: _other_layers(made) + one_run.depth_picture(made) + one_run.depth_answers(made),
    ),
    Step(
        "Every head on both sentences",
        (Lines(SelfAttention._eager_context, "probs = "),),
        "A picture for each head, a line for each layer: first the first sentence, then the second.",
        shown=lambda made: one_run.all_heads_picture(made, 0) + one_run.all_heads_picture(made, 1),
    ),
    Step(
        "The LM head",
        (Lines(LMHead.forward, "return"),),
        "Dense, GELU and norm; then each vector is compared with every row of the word table, which is the decoder's "
        "weight as well. The bias has one number for each piece.",
        ("lm_head.dense", "lm_head.norm", "lm_head.logits"),
    ),
    Step(
        "The likeliest pieces",
        (Lines(FillMask._best, "scores = "),),
        "The softmax of the logits at `<mask>` is a probability for each piece.",
        shown=one_run.answers_picture,
    ),
    Step(
        "Back to text",
        (Lines(XLMRobertaTokenizer.decode, "numbers:", "return"),),
        "Pieces are joined, and `▁` is a space again. Both sentences have their word.",
        shown=one_run.filled,
    ),
)


def page() -> str:
    """The text of the page."""
    made = one_run.run()
    config = made.model.config
    first, second = TEXTS
    head = INTRODUCTION.format(
        first=first, second=second, shown=SHOWN, B=made.ids.shape[0], S=made.ids.shape[1], H=config.hidden_size,
        N=config.num_attention_heads, D=config.head_dim, F=config.intermediate_size, V=config.vocab_size,
        files=", ".join(f"[{name}.py](source/{name}.md)" for name in FILES),
    )  # fmt: skip
    return head + "".join(step.html(made) for step in STEPS)
