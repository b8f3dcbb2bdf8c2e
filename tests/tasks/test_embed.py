"""Embeddings against transformers' hidden states, pooled by the published formulas, and their configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from xlmr_core.tasks import Embed, EmbeddingConfig, cosine_similarity, search
from xlmr_core.tasks.embed import POOLINGS

FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (B, S, H), (B, S, 1) -> (B, H); sentence-transformers'
    "mean": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1),
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean_sqrt_len": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1).sqrt(),
    "last": lambda hidden, mask: hidden[torch.arange(len(hidden)), mask.sum(1)[:, 0].long() - 1],
    "weighted_mean": lambda hidden, mask: (hidden * mask * mask.cumsum(1)).sum(1) / (mask * mask.cumsum(1)).sum(1),
}


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("XLMRobertaModel")


@pytest.fixture(scope="module")
def embed(folder: Path) -> Embed:
    return Embed.from_pretrained(folder)


@pytest.fixture(scope="module")
def hidden(folder: Path, texts: list[str], their_tokenizer: Any) -> list[tuple[Tensor, Tensor]]:
    """transformers' hidden states and mask of the texts, 50 at a time."""
    model = transformers.XLMRobertaModel.from_pretrained(folder)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(texts), 50):
        batch = their_tokenizer(texts[start : start + 50], padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append((model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()))
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_the_pooled_hidden_states_of_transformers(
    embed: Embed, hidden: list[tuple[Tensor, Tensor]], texts: list[str], pooling: str
) -> None:
    expected = torch.cat([FORMULAS[pooling](*batch) for batch in hidden])
    ours = Embed(embed.model, embed.tokenizer, EmbeddingConfig((pooling,))).batch(texts)
    torch.testing.assert_close(ours, expected, atol=5e-6, rtol=1e-5)


def test_the_files_of_a_sentence_transformers_folder_are_followed(folder: Path, tmp_path: Path, embed: Embed) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    ours = Embed.from_pretrained(tmp_path)
    assert ours.config == EmbeddingConfig(("cls",), True, 16, prompts["prompts"], "passage")  # type: ignore[arg-type]
    plain = Embed(embed.model, embed.tokenizer, EmbeddingConfig(("cls",), True))
    assert torch.equal(ours("x"), plain("passage: x"))
    assert torch.equal(ours("x", prompt="query"), plain("query: x"))
    assert torch.equal(ours("x", prompt="In: "), plain("In: x"))
    assert torch.equal(ours("x", prompt=""), plain("x"))
    with pytest.raises(ValueError, match=r"has \d+ tokens, special ones included; at most 16 fit"):
        ours("word " * 30)
    assert torch.equal(ours("word " * 30, truncation=True), plain("passage: " + "word " * 12))


def test_fewer_dimensions_are_normalised_again(embed: Embed) -> None:
    normalised = Embed(embed.model, embed.tokenizer, EmbeddingConfig(normalize=True))
    vector = normalised("Hello", dimensions=8)
    assert vector.shape == (8,)
    assert vector.norm() == pytest.approx(1)


def test_vectors_do_not_depend_on_the_company(embed: Embed, texts: list[str]) -> None:
    some = texts[:60]
    together = embed.batch(some)
    torch.testing.assert_close(torch.stack([embed(text) for text in some]), together, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(embed.batch(some[::-1], batch_tokens=20).flip(0), together, atol=5e-6, rtol=1e-5)


def test_a_stream_reads_no_more_than_it_needs(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlmr_core.tasks.rows.WINDOW_INPUTS", 4)
    read: list[int] = []

    def endless() -> Any:
        for i in range(10**9):
            read.append(i)
            yield f"text {i}"

    stream = embed.stream(endless())
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(read) <= 5 + 2 * 4 + 4


def test_search_finds_the_nearest_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlmr_core.tasks.embed.RETRIEVAL_ROWS", 7)
    queries, passages = torch.randn(3, 5), torch.randn(40, 5)
    for hits, scores in zip(search(queries, passages, top_k=4), cosine_similarity(queries, passages), strict=True):
        best = scores.topk(4)
        assert [hit.index for hit in hits] == best.indices.tolist()
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist())
    assert search(queries, iter(passages[:2]), top_k=4) == search(queries, passages[:2], top_k=2)


def test_bad_configurations_are_named() -> None:
    with pytest.raises(ValueError, match="pooling 'median' is not one of mean, cls"):
        EmbeddingConfig(("median",))
    with pytest.raises(ValueError, match="default prompt 'x' is not one of the prompts"):
        EmbeddingConfig(default_prompt="x")
