"""Text in, answers out: one small module for each task, on a model and its tokenizer.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmr_core._lazy import lazy

if TYPE_CHECKING:
    from xlmr_core.tasks.answer import Answer, Span
    from xlmr_core.tasks.classify import Classify, LabelScore, ZeroShot
    from xlmr_core.tasks.embed import Embed, EmbeddingConfig, cosine_similarity, search
    from xlmr_core.tasks.fill_mask import Filling, FillMask
    from xlmr_core.tasks.m3 import M3, M3Scores, M3Vectors, m3_scores
    from xlmr_core.tasks.rerank import Ranked, Rerank
    from xlmr_core.tasks.score import Score, TextScore
    from xlmr_core.tasks.tag import Entity, Tag
    from xlmr_core.tasks.task import Pair

__all__ = [
    "M3",
    "Answer",
    "Classify",
    "Embed",
    "EmbeddingConfig",
    "Entity",
    "FillMask",
    "Filling",
    "LabelScore",
    "M3Scores",
    "M3Vectors",
    "Pair",
    "Ranked",
    "Rerank",
    "Score",
    "Span",
    "Tag",
    "TextScore",
    "ZeroShot",
    "cosine_similarity",
    "m3_scores",
    "search",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "answer": ["Answer", "Span"],
        "classify": ["Classify", "LabelScore", "ZeroShot"],
        "embed": ["Embed", "EmbeddingConfig", "cosine_similarity", "search"],
        "fill_mask": ["Filling", "FillMask"],
        "m3": ["M3", "M3Scores", "M3Vectors", "m3_scores"],
        "rerank": ["Ranked", "Rerank"],
        "score": ["Score", "TextScore"],
        "tag": ["Entity", "Tag"],
        "task": ["Pair"],
    },
)
