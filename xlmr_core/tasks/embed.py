"""Embeddings: texts in, one vector for each out, as the checkpoint's own files define it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self, Unpack

from xlmr_core.checkpoint.sentence_transformers import SentenceConfig, read_prompts, read_sentence_config
from xlmr_core.hub_options import HubOptions
from xlmr_core.kernels import AttentionKind
from xlmr_core.model import XLMRobertaModel
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import Task, check_finite
from xlmr_core.tokenizer import XLMRobertaTokenizer

RETRIEVAL_ROWS = 8192  # passages that are compared with the queries at a time


def _weighted_mean(hidden: Tensor) -> Tensor:  # (S, H) -> (H)
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)[:, None]
    return (hidden * weights).sum(dim=0) / weights.sum()


# From the vectors of one text's tokens, <s> and </s> included, to one vector: (S, H) -> (H).
POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda hidden: hidden.mean(dim=0),
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.amax(dim=0),
    "last": lambda hidden: hidden[-1],
    "mean_sqrt_len": lambda hidden: hidden.sum(dim=0) / len(hidden) ** 0.5,
    "weighted_mean": _weighted_mean,  # a later token counts more: 1, 2, 3, ...
}


@dataclass(frozen=True)
class Hit:
    """One answer of a search."""

    index: int  # in the passages
    score: float  # cosine similarity


@dataclass(frozen=True)
class EmbeddingConfig:
    """How the vectors of the tokens become one vector for a text."""

    pooling: tuple[str, ...] = ("mean",)  # the vectors of more than one are put one after the other
    normalize: bool = False  # to length 1
    max_tokens: int | None = None  # of a text, special tokens included; None: what the model takes
    prompts: Mapping[str, str] | None = None  # by name: text that is put before each text
    default_prompt: str | None = None  # the name of the prompt that is used if none is asked for

    def __post_init__(self) -> None:
        unknown = [name for name in self.pooling if name not in POOLINGS]
        if unknown or not self.pooling:
            raise ValueError(f"pooling {unknown[0] if unknown else '()'!r} is not one of {', '.join(POOLINGS)}")
        if self.default_prompt is not None and self.default_prompt not in (self.prompts or {}):
            raise ValueError(f"the default prompt {self.default_prompt!r} is not one of the prompts")


class Embed(Task[XLMRobertaModel]):
    """Texts to vectors.

    A sentence-transformers checkpoint says how: pooling, normalisation, longest text and prompts are read from its
    files. Any other checkpoint is mean-pooled and not normalised, as sentence-transformers does it.
    """

    model_class = XLMRobertaModel

    def __init__(
        self, model: XLMRobertaModel, tokenizer: XLMRobertaTokenizer, config: EmbeddingConfig | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        self.config = config or EmbeddingConfig()
        if self.config.max_tokens is not None:
            self.max_tokens = min(self.max_tokens, self.config.max_tokens)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] one keyword more
        cls,
        source: str | PathLike[str],
        *,
        config: EmbeddingConfig | None = None,
        attention: AttentionKind = "sdpa",
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Loads a checkpoint as `Task.from_pretrained` does.

        Args:
            source: A hub id, a folder, or "xlmr-tiny".
            config: Overrides what the checkpoint's files say.
            attention: The attention kernel.
            dtype: The precision to run in; None keeps that of the file.
            device: Where to run.
            hub: As for `XLMRobertaModel.from_pretrained`.
        """
        task = super().from_pretrained(source, attention=attention, dtype=dtype, device=device, **hub)
        return cls(task.model, task.tokenizer, config or embedding_config_of(source, **hub))

    def __call__(self, text: str, **options: Any) -> Tensor:  # (H,)
        """The vector of one text; options as for `stream`."""
        return self.batch([text], **options)[0]

    def batch(self, texts: Sequence[str], **options: Any) -> Tensor:  # (texts, H)
        """The vectors of several texts, one a row; options as for `stream`."""
        vectors = list(self.stream(texts, **options))
        return torch.stack(vectors) if vectors else torch.empty(0, self.model.config.hidden_size)

    def stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        truncation: bool = False,
        dimensions: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[Tensor]:
        """The vector of each text, in order, lazily.

        Args:
            texts: Any iterable.
            prompt: The name of one of the checkpoint's prompts ("query"), or text to put before each text.
            truncation: Whether a text that is too long is cut. Otherwise it is an error.
            dimensions: Keep so many leading entries of each vector (Matryoshka); normalised again where the
                checkpoint normalises.
            batch_tokens: Tokens that run together.
            on_error: Called with a text that the model cannot take and with the error, in the order of the texts; the
                text then has no result. None raises the error.

        Yields:
            float32 vectors of shape (H,), on the CPU.

        Raises:
            ValueError: A text is too long, or the model's numbers are not finite.
        """
        before = self._prompt(prompt)
        results = run_in_order(
            texts,
            lambda text: [self._row(before + text, truncation=truncation)],
            lambda rows: self._vectors(rows, dimensions),
            batch_tokens=batch_tokens,
            on_error=on_error,
        )
        for _, [vector] in results:
            yield vector

    @torch.inference_mode()
    def _vectors(self, rows: Sequence[Row], dimensions: int | None) -> list[Tensor]:
        hidden = self.model(**packed(rows, self.device)).last_hidden_state.float()  # (T, H)
        pooled = [
            torch.cat([POOLINGS[name](own) for name in self.config.pooling])
            for own in hidden.split([len(row) for row in rows])
        ]
        vectors = torch.stack(pooled)[:, :dimensions]  # (B, H)
        if self.config.normalize:
            vectors = F.normalize(vectors, dim=-1)
        check_finite(vectors)
        return list(vectors.cpu())

    def _prompt(self, prompt: str | None) -> str:
        prompts = self.config.prompts or {}
        if prompt is None:
            return prompts[self.config.default_prompt] if self.config.default_prompt is not None else ""
        return prompts.get(prompt, prompt)


def embedding_config_of(source: str | PathLike[str], **hub: Unpack[HubOptions]) -> EmbeddingConfig:
    """What the files of a checkpoint say about embeddings; the default where they say nothing."""
    from xlmr_core.checkpoint.loading import find_checkpoint

    folder = find_checkpoint(source, **hub).root
    if not (folder / "modules.json").is_file():
        return EmbeddingConfig()
    sentence: SentenceConfig = read_sentence_config(folder)
    prompts, default = read_prompts(folder)
    return EmbeddingConfig(sentence.pooling, sentence.normalize, sentence.max_tokens, prompts, default)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:  # (A, H), (B, H) -> (A, B)
    """The cosine of each vector of `first` with each of `second`."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T


def search(queries: Tensor, passages: Tensor | Iterable[Tensor], *, top_k: int = 10) -> list[list[Hit]]:
    """The passages that are most similar to each query, the best first.

    Args:
        queries: (Q, H).
        passages: (P, H), or vectors of shape (H,) one after the other, as `Embed.stream` gives them.
        top_k: Passages for each query.
    """
    best = torch.empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long)
    vectors, start = iter(passages), 0
    while chunk := list(islice(vectors, RETRIEVAL_ROWS)):
        scores = cosine_similarity(queries, torch.stack(chunk))
        numbers = torch.arange(start, start + len(chunk)).expand(len(queries), -1)
        best, chosen = torch.cat([best, scores], dim=1).topk(min(top_k, best.shape[1] + len(chunk)), dim=1)
        where = torch.cat([where, numbers], dim=1).gather(1, chosen)
        start += len(chunk)
    return [
        [Hit(index, score) for index, score in zip(*row, strict=True)]
        for row in zip(where.tolist(), best.tolist(), strict=True)
    ]
