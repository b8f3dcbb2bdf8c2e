"""The accuracy of a masked language model on held-out text, beside a baseline that ignores the context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.corpus import Corpus, sentences_in
from xlmr_core.training.masking import mask_tokens


@dataclass(frozen=True)
class Accuracy:
    """The results for the held-out text of one language."""

    tokens: int  # number of masked tokens
    accuracy: float  # share of masked tokens that the model ranks first
    top5: float  # share that it ranks among the first five
    loss: float  # mean negative log-likelihood, in nats a token
    unigram_accuracy: float  # share that equals the most frequent token of the training text


@torch.no_grad()
def evaluate(
    model: XLMRobertaForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    corpus: Corpus,
    held_out_files: Sequence[Path],
    *,
    max_sentences: int = 500,
    batch_size: int = 50,
) -> dict[str, Accuracy]:
    """Masks 15 % of the tokens of each held-out file and counts how many the model predicts.

    The choice of tokens is the same each time. Every chosen token becomes `<mask>`.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer. A line is cut at `tokenizer.max_tokens`.
        corpus: The training text, for the baseline.
        held_out_files: Text files, UTF-8. A file whose language is not in `corpus` is skipped.
        max_sentences: The number of lines of a file that are used, from the first one on.
        batch_size: The number of lines in one forward pass.

    Returns:
        The results, by language.

    Raises:
        ValueError: A file has no sentence, a line that is not UTF-8, or no token to mask.
    """
    results: dict[str, Accuracy] = {}
    for path in held_out_files:
        if path.stem not in corpus.languages:
            continue
        commonest = corpus.unigrams(path.stem).index_fill(0, torch.tensor([0, 1, 2, 3]), 0).argmax()
        lines = sentences_in(path)[:max_sentences]
        generator = torch.Generator().manual_seed(0)
        ranks: list[Tensor] = []
        losses: list[Tensor] = []
        baseline: list[Tensor] = []
        for start in range(0, len(lines), batch_size):
            ids = tokenizer(lines[start : start + batch_size], truncation=True, specials_in_text=False).input_ids
            batch = mask_tokens(ids, tokenizer, generator, mask_share=1.0, random_share=0.0)
            device = model.lm_head.dense.weight.device
            logits = model(batch.input_ids.to(device), positions=batch.positions.to(device)).logits.float().cpu()
            right = logits.gather(1, batch.labels[:, None])
            ranks.append((logits > right).sum(dim=1))
            losses.append(F.cross_entropy(logits, batch.labels, reduction="none"))
            baseline.append(batch.labels == commonest)
        rank = torch.cat(ranks)
        if not len(rank):
            raise ValueError(f"{path} has no token to mask: none of its text is in the vocabulary. Give other text")
        results[path.stem] = Accuracy(
            tokens=len(rank),
            accuracy=(rank == 0).double().mean().item(),
            top5=(rank < 5).double().mean().item(),
            loss=torch.cat(losses).double().mean().item(),
            unigram_accuracy=torch.cat(baseline).double().mean().item(),
        )
    return results


def table(results: Mapping[str, Accuracy]) -> str:
    """Formats the results of `evaluate` as a Markdown table.

    Args:
        results: The results, by language.

    Returns:
        One row for each language, and their mean in the last row.
    """
    lines = [
        "| language | masked tokens | right | right among 5 | unigram baseline | nats a token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows = {**results, "mean": _mean(list(results.values()))}
    for language, row in rows.items():
        shares = f"{row.accuracy:.1%} | {row.top5:.1%} | {row.unigram_accuracy:.1%}"
        lines.append(f"| {language} | {row.tokens} | {shares} | {row.loss:.2f} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Accuracy]) -> Accuracy:
    """The mean over languages, each with the same weight."""
    count = len(rows)
    return Accuracy(
        tokens=sum(row.tokens for row in rows),
        accuracy=sum(row.accuracy for row in rows) / count,
        top5=sum(row.top5 for row in rows) / count,
        loss=sum(row.loss for row in rows) / count,
        unigram_accuracy=sum(row.unigram_accuracy for row in rows) / count,
    )
