"""Text in, answers out: one small module for each task, on a model and its tokenizer."""

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
