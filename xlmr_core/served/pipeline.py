"""From a text to the vector or the score that a server returns, as steps of which each can be changed.

The right steps are those of the checkpoint's own files, as `Embed`, `Rerank` and `Classify` read them. A fault of a
pipeline is a change of one or two fields of `Steps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self, Unpack

from xlmr_core.checkpoint import find_tokenizer
from xlmr_core.hub_options import HubOptions
from xlmr_core.parity.faults import TOKENIZER_FAULTS, Fault, find_fault
from xlmr_core.parity.variants import variant
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.served.normalizers import Normalization, encoder
from xlmr_core.tasks.classify import ACTIVATION_OF, Classify
from xlmr_core.tasks.embed import POOLINGS, Embed, EmbeddingConfig
from xlmr_core.tokenizer import SPECIALS, XLMRobertaTokenizer

Input = tuple[str, ...]  # a text, or the two texts of a pair
Kind = Literal["embedding", "score"]
Padding = Literal["right", "left", "full"]
Rounding = Literal["float16", "bfloat16", "int8", "4 bits", "4 decimals", "6 decimals"]
GROUP = 32  # weights that share a scale, as in llama.cpp's Q8_0 and Q4_0
FULL_WIDTH = 512  # tokens that a pipeline pads to which has one width for all batches


def _unknown_as_end(ids: list[int], tokenizer: XLMRobertaTokenizer) -> list[int]:
    return [tokenizer.eos_token_id if id == tokenizer.unk_token_id else id for id in ids]


ID_RULES = {fault.name: fault.rule for fault in TOKENIZER_FAULTS} | {"unk_is_end": _unknown_as_end}


@dataclass(frozen=True)
class Steps:
    """What is done to a text, in the order in which it is done."""

    lower: bool = False
    prompt: str = ""  # put before the text
    normalizer: Literal["right"] | Normalization = "right"
    specials_in_text: bool = False  # whether "<mask>" and the like in a text are tokens
    max_tokens: int = 512  # of a row, special tokens included
    cut: Literal["right", "left", "row", "before specials"] = "right"  # "row": the ends of rows go, </s> with them
    start: bool = True  # <s>
    separator: Literal["</s></s>", "</s><s>"] = "</s></s>"
    id_rules: tuple[str, ...] = ()  # names in ID_RULES
    padding: Padding = "right"
    weights: Rounding | None = None
    encoder: tuple[str | Fault, ...] = ()  # names in FAULTS, or others
    tokens: Literal["real", "all", "text", "sum over width"] = "real"  # what is pooled
    normalize_tokens: bool = False
    pooling: tuple[str, ...] = ("mean",)
    dimensions: int | None = None
    cut_after_normalize: bool = False
    normalize: bool = False
    activations: tuple[str, ...] = ()  # of a score
    rounding: Rounding | None = None  # of the result


@dataclass
class Pipeline:
    """A checkpoint with the steps that its files define."""

    model: PretrainedModel  # float64, eager attention
    tokenizer: XLMRobertaTokenizer
    kind: Kind
    right: Steps
    prompts: tuple[str, ...] = ()  # the checkpoint's
    vocabulary: Path | None = None  # the SentencePiece model file; None: no other normaliser can be tried
    _encoders: dict[str, Callable[[str], list[int]]] = field(default_factory=dict[Any, Any])

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        kind: Kind = "embedding",
        prompt: str | None = None,
        config: EmbeddingConfig | None = None,
        raw_scores: bool = False,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Loads a checkpoint.

        Args:
            source: A hub id, a folder, or "xlmr-tiny".
            kind: "embedding" for vectors, "score" for a cross-encoder's or a classifier's.
            prompt: The name of one of the checkpoint's prompts, or text; by default as the checkpoint's files say.
            config: Overrides what the checkpoint's files say about embeddings.
            raw_scores: Whether right scores are logits, without sigmoid or softmax.
            hub: As for `XLMRobertaModel.from_pretrained`.

        Raises:
            CheckpointError: The checkpoint cannot be read, or it lacks the head.
        """
        vocabulary = find_tokenizer(source, **hub)[0]
        if kind == "embedding":
            task = Embed.from_pretrained(source, config=config, **hub)
            prompts = dict(task.config.prompts or {})
            default = prompts.get(task.config.default_prompt or "", "")
            right = Steps(
                prompt=default if prompt is None else prompts.get(prompt, prompt),
                max_tokens=task.max_tokens,
                pooling=task.config.pooling,
                normalize=task.config.normalize,
            )
            return cls(_exact(task.model), task.tokenizer, kind, right, tuple(prompts.values()), vocabulary)
        scorer = Classify.from_pretrained(source, **hub)
        labels = scorer.model.config.num_labels
        activation = ACTIVATION_OF.get(scorer.model.config.problem_type) or ("sigmoid" if labels == 1 else "softmax")
        activations = () if raw_scores or activation == "none" else (activation,)
        right = Steps(max_tokens=scorer.max_tokens, activations=activations, pooling=(), prompt=prompt or "")
        return cls(_exact(scorer.model), scorer.tokenizer, kind, right, vocabulary=vocabulary)

    def row(self, input: Input, steps: Steps) -> list[int]:
        """The ids of one text or pair, `<s>` and `</s>` included."""
        texts = [text.lower() if steps.lower else text for text in input]
        texts[0] = steps.prompt + texts[0]
        parts = [self._encoder(steps)(text) for text in texts]
        frame = 2 * len(parts)
        limit = steps.max_tokens
        if steps.cut == "before specials":
            limit = min(limit + frame, self.model.config.max_tokens)
        if steps.cut != "row":
            parts = _cut(parts, limit - frame, left=steps.cut == "left")
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        row = [begin, *parts[0], end]
        for part in parts[1:]:
            row += [end if steps.separator == "</s></s>" else begin, *part, end]
        row = row[:limit]
        for name in steps.id_rules:
            row = ID_RULES[name](row, self.tokenizer)
        row = row if steps.start else row[1:]
        return row or [end]

    def _encoder(self, steps: Steps) -> Callable[[str], list[int]]:
        if steps.normalizer == "right":
            return lambda text: self.tokenizer.encode([text], specials_in_text=steps.specials_in_text)[0]
        if steps.normalizer not in self._encoders:
            if self.vocabulary is None:
                raise ValueError("another normaliser needs the SentencePiece model file: name it as `vocabulary`")
            self._encoders[steps.normalizer] = encoder(self.vocabulary, steps.normalizer)
        encode = self._encoders[steps.normalizer]
        return (lambda text: self._between_specials(text, encode)) if steps.specials_in_text else encode

    def _between_specials(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """The ids of a text in which special tokens are tokens; `encode` gives those of what lies between them."""
        parts = re.split(f"({'|'.join(SPECIALS)})", text)
        rows = [[self.tokenizer.token_to_id(part)] if part in SPECIALS else encode(part) for part in parts]
        return [id for row in rows for id in row]

    def batch(self, rows: Sequence[Sequence[int]], steps: Steps) -> tuple[Tensor, Tensor]:  # (B, S), (B, S)
        """The ids of a padded batch, and its mask."""
        width = max(map(len, rows))
        if steps.padding == "full":
            width = max(width, min(FULL_WIDTH, self.model.config.max_tokens))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            places = slice(width - len(row), width) if steps.padding == "left" else slice(0, len(row))
            ids[index, places] = torch.tensor(row)
            mask[index, places] = 1
        return ids, mask

    @torch.no_grad()
    def encoded(self, ids: Tensor, mask: Tensor, steps: Steps, model: PretrainedModel | None = None) -> Tensor:
        """What the model computes: hidden states (B, S, H), or logits (B, C).

        Args:
            ids: (B, S).
            mask: (B, S).
            steps: Its `encoder` and `weights` are used.
            model: Instead of the one in float64: a copy in another precision.

        Raises:
            ValueError: The model has no such part to make an encoder fault in.
        """
        model = model or self.model
        with ExitStack() as stack:
            if steps.weights is not None:
                stack.enter_context(_rounded_weights(model, steps.weights))
            for fault in steps.encoder:
                its = find_fault(fault) if isinstance(fault, str) else fault
                stack.enter_context(its.applied(model))
            out: Any = model(ids, mask)
        return out.last_hidden_state if self.kind == "embedding" else out.logits

    def finished(self, encoded: Tensor, ids: Tensor, mask: Tensor, steps: Steps) -> Tensor:  # (B, D)
        """From what the model computes to vectors or scores."""
        if self.kind == "score":
            for activation in steps.activations:
                encoded = ACTIVATIONS[activation](encoded)
            return rounded(encoded, steps.rounding)
        rows = zip(encoded, ids, mask.bool(), strict=True)
        vectors = torch.stack([self._pooled(*row, steps) for row in rows])
        if steps.normalize and not steps.cut_after_normalize:
            vectors = F.normalize(vectors[:, : steps.dimensions], dim=-1)
        elif steps.normalize:
            vectors = F.normalize(vectors, dim=-1)
        return rounded(vectors[:, : steps.dimensions], steps.rounding)

    def _pooled(self, hidden: Tensor, ids: Tensor, real: Tensor, steps: Steps) -> Tensor:  # (S, H) -> (D)
        width = len(hidden)
        if steps.tokens == "text":
            frame = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            real = real & ~torch.isin(ids, torch.tensor(frame))
        tokens = hidden if steps.tokens == "all" else hidden[real]
        if not len(tokens):  # a text without tokens of its own
            return hidden.new_zeros(hidden.shape[1] * len(steps.pooling))
        if steps.normalize_tokens:
            tokens = F.normalize(tokens, dim=-1)
        pooled = torch.cat([POOLINGS[name](tokens) for name in steps.pooling])
        return pooled * len(tokens) / width if steps.tokens == "sum over width" else pooled

    def run(self, inputs: Sequence[Input], steps: Steps | None = None, model: PretrainedModel | None = None) -> Tensor:
        """The vectors or scores of one batch, (B, D).

        Args:
            inputs: Run together: the padding of each depends on the longest.
            steps: By default the right ones.
            model: As for `encoded`.
        """
        steps = steps or self.right
        ids, mask = self.batch([self.row(input, steps) for input in inputs], steps)
        return self.finished(self.encoded(ids, mask, steps, model), ids, mask, steps)

    def with_right(self, **changes: Any) -> Pipeline:
        """The same with other right steps."""
        return replace(self, right=replace(self.right, **changes))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "softmax over the batch": lambda logits: logits.softmax(dim=0),
}


def _exact(model: PretrainedModel) -> PretrainedModel:
    return variant(model, torch.float64, "eager", "cpu")


def _cut(parts: list[list[int]], room: int, *, left: bool) -> list[list[int]]:
    """The parts, cut to `room` tokens together; the longer gives first."""
    lengths = [room]
    if len(parts) == 2:
        first, second = map(len, parts)
        shorter = min(first, second, room // 2)
        lengths = [shorter, room - shorter] if first <= second else [room - shorter, shorter]
    if left:
        return [part[max(0, len(part) - length) :] for part, length in zip(parts, lengths, strict=True)]
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


# ---- rounding --------------------------------------------------------------------------------------------------------


def rounded(x: Tensor, to: Rounding | None) -> Tensor:
    """Each row of x as it is after it was stored in so many bits: int8 and 4 bits with one scale for the row."""
    if to is None:
        return x
    if to in ("float16", "bfloat16"):
        return x.to(getattr(torch, to)).to(x.dtype)
    if to.endswith("decimals"):
        return x.round(decimals=int(to[0]))
    largest = 127 if to == "int8" else 7
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / largest
    return (x / scale).round() * scale


def _rounded_weight(weight: Tensor, to: Rounding) -> Tensor:
    if to in ("float16", "bfloat16"):
        return rounded(weight, to)
    if weight.dim() < 2:  # biases and norms stay as they are
        return weight
    grouped = weight.shape[-1] % GROUP == 0
    return rounded(weight.unflatten(-1, (-1, GROUP)), to).flatten(-2) if grouped else rounded(weight, to)


@contextmanager
def _rounded_weights(model: PretrainedModel, to: Rounding) -> Generator[None, None, None]:
    """The model with rounded weights while the context is open."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = _rounded_weight(data, to)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
