"""A model of 8,194 positions takes 8,192 tokens. Of a longer input, nothing is lost without a message.

The expected numbers are those of a head on the vectors that transformers' encoder gives for the same ids.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xlmr_core import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.checkpoint import bundled
from xlmr_core.heads import (
    HeadInput,
    XLMRobertaForM3,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)
from xlmr_core.tasks import M3, Answer, Classify, Embed, FillMask, Rerank, Score, Tag
from xlmr_core.tasks.score import MaskedRow
from xlmr_core.tasks.tag import _with_most_context

LIMIT = 8192
TOO_LONG = r"has 8193 tokens, special ones included; at most 8192 fit: pass truncation=True"
WORDS = ("the", "and", "what", "with", "from", "they", "this", "have", "Der", "und", "nicht", "les", "pour", "que")
TOLERANCE = 1e-5
LABELS = {"labels": ["O", "B-PER", "I-PER"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two narrow layers with random weights and 8,194 positions, and the vocabulary of xlmr-tiny."""
    folder = tmp_path_factory.mktemp("long")
    tokenizer = XLMRobertaTokenizer(bundled() / "sentencepiece.bpe.model", max_tokens=LIMIT)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=48,
        max_position_embeddings=LIMIT + 2,
        initializer_range=0.3,
    )
    model = XLMRobertaForMaskedLM(config)
    model.initialize()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(folder: Path) -> Callable[..., Any]:
    """A function that gives a task on the checkpoint; a head that it lacks is new."""

    def make(task: type[Any], cls: type[Any], **new_head: Any) -> Any:
        torch.manual_seed(0)
        options = {"new_head": True, **new_head} if cls not in (XLMRobertaModel, XLMRobertaForMaskedLM) else {}
        model = cls.from_pretrained(folder, attention="sdpa", **options)
        return task(model, XLMRobertaTokenizer.from_pretrained(folder))

    return make


@pytest.fixture(scope="module")
def hidden_of(folder: Path) -> Callable[[Sequence[int]], Tensor]:
    """A function from ids to the vectors of transformers' encoder, (S, H). What was computed once is kept."""
    encoder = transformers.XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
    encoder.eval()
    kept: dict[tuple[int, ...], Tensor] = {}

    def hidden_of(ids: Sequence[int]) -> Tensor:
        if tuple(ids) not in kept:
            with torch.inference_mode():
                kept[tuple(ids)] = encoder(torch.tensor([ids])).last_hidden_state[0]
        return kept[tuple(ids)]

    return hidden_of


def text_of(count: int) -> str:
    """A text of so many tokens, special ones not included. A longer one begins with the shorter one."""
    return " ".join(random.Random(0).choices(WORDS, k=count))


def pair_of(count: int) -> tuple[str, str]:
    return "what is that", text_of(count - 3)


def ids_of(task: Any, *texts: str) -> list[int]:
    encoded = task.tokenizer.encode(texts, specials_in_text=("<mask>",))
    return [0, *encoded[0], *(i for own in encoded[1:] for i in (2, 2, *own)), 2]


def head_on(model: Any, ids: Sequence[int], hidden: Tensor) -> Any:
    given = HeadInput(torch.tensor(ids), None, torch.tensor([len(ids)]))
    with torch.inference_mode():
        return model.head(hidden, given)


def close(found: Any, expected: Any) -> bool:
    return torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=TOLERANCE)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def test_embed(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    embed = make(Embed, XLMRobertaModel)
    text, longer = text_of(LIMIT - 2), text_of(LIMIT - 1)
    assert len(ids_of(embed, text)) == LIMIT
    vector = embed(text)
    assert close(vector, hidden_of(ids_of(embed, text)).mean(dim=0))
    with pytest.raises(ValueError, match=TOO_LONG):
        embed(longer)
    assert torch.equal(embed(longer, truncation=True), vector)


def test_m3(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    m3 = make(M3, XLMRobertaForM3)
    text = text_of(LIMIT - 2)
    vectors = m3(text)
    expected = head_on(m3.model, ids_of(m3, text), hidden_of(ids_of(m3, text)))
    assert close(vectors.dense, expected.dense[0])
    assert close(vectors.colbert, expected.colbert[1:])
    with pytest.raises(ValueError, match=TOO_LONG):
        m3(text_of(LIMIT - 1))


def test_classify(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    classify = make(Classify, XLMRobertaForSequenceClassification, **LABELS)
    text = text_of(LIMIT - 2)
    expected = head_on(classify.model, ids_of(classify, text), hidden_of(ids_of(classify, text))).logits[0]
    found = {score.label: score.score for score in classify(text, activation="none")}
    assert close([found[label] for label in classify.model.config.labels], expected)
    for too_long in (text_of(LIMIT - 1), pair_of(LIMIT - 3)):
        with pytest.raises(ValueError, match=TOO_LONG):
            classify(too_long)


def test_rerank(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    rerank = make(Rerank, XLMRobertaForSequenceClassification, labels=["relevance"])
    query, passage = pair_of(LIMIT - 4)
    ids = ids_of(rerank, query, passage)
    assert len(ids) == LIMIT
    [ranked] = rerank(query, [passage])
    assert close(ranked.logit, head_on(rerank.model, ids, hidden_of(ids)).logits[0, 0])
    _, longer = pair_of(LIMIT - 3)
    with pytest.raises(ValueError, match=TOO_LONG):
        rerank(query, [longer])
    [cut] = rerank(query, [longer], truncation=True)  # the passage is cut, the query is not
    assert cut.logit == ranked.logit


def test_fill_mask(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    fill = make(FillMask, XLMRobertaForMaskedLM)
    text = text_of(LIMIT - 3) + " <mask>"  # the last position that the model has is that of </s>
    [[best]] = fill(text, top_k=1)
    hidden = hidden_of(ids_of(fill, text))[-2]
    with torch.inference_mode():
        probability, token = fill.model.lm_head(hidden).softmax(dim=0).max(dim=0)
    assert (best.token, best.score) == (int(token), pytest.approx(float(probability), abs=TOLERANCE))
    longer = text_of(LIMIT - 2) + " <mask>"
    with pytest.raises(ValueError, match=TOO_LONG):
        fill(longer)
    with pytest.raises(ValueError, match=r"a <mask> of .* was cut off"):
        fill(longer, truncation=True)


def test_score(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 8,192 tokens takes 8,190 runs: here they are only counted. Their rows are not copies of the text."""
    score = make(Score, XLMRobertaForMaskedLM)
    texts: set[int] = set()

    def no_run(rows: Sequence[MaskedRow]) -> list[float]:
        texts.update(id(row.ids) for row in rows)
        return [-float(len(row)) for row in rows]

    monkeypatch.setattr(score, "_log_probabilities", no_run)
    scored = score(text_of(LIMIT - 2))
    assert len(texts) == 1
    assert set(scored.log_probabilities) == {-float(LIMIT)}
    assert len(scored.tokens) == LIMIT - 2
    with pytest.raises(ValueError, match=TOO_LONG):
        score(text_of(LIMIT - 1))


def test_tag(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    tag = make(Tag, XLMRobertaForTokenClassification, **LABELS)

    def probabilities(ids: Sequence[int]) -> Tensor:
        return head_on(tag.model, ids, hidden_of(ids)).logits.softmax(dim=-1)[1:-1]

    ids = ids_of(tag, text_of(LIMIT - 2))
    found = tag(text_of(LIMIT - 2), aggregation="none", ignore=())
    assert close([entity.score for entity in found], probabilities(ids).amax(dim=1))

    longer = text_of(LIMIT - 1)
    ids = ids_of(tag, longer)[1:-1]
    room = LIMIT - 2
    windows = [range(room), range(room - room // 4, len(ids))]  # they share a quarter
    own = [probabilities([0, *ids[window.start : window.stop], 2]) for window in windows]
    found = tag(longer, aggregation="none", ignore=())
    assert len(found) == len(ids)
    assert close([entity.score for entity in found], _with_most_context(windows, own).amax(dim=1))


def test_answer(make: Callable[..., Any], hidden_of: Callable[..., Tensor]) -> None:
    answer = make(Answer, XLMRobertaForQuestionAnswering)
    question, context = pair_of(LIMIT - 4)

    def best_of(ids: Sequence[int]) -> float:
        """The highest score in a window, found among all pairs of a start and an end."""
        output = head_on(answer.model, ids, hidden_of(ids))
        places = [0, *range(6, len(ids) - 1)]  # <s>, and the context behind the question
        start, end = (logits[places].softmax(dim=0)[1:] for logits in (output.start_logits, output.end_logits))
        return max(float((start[: len(end) - n] * end[n:]).max()) for n in range(15))

    options = {"max_tokens": LIMIT, "whole_words": False}
    with Largest() as seen:
        [best] = answer(question, context, **options)
    assert close(best.score, best_of(ids_of(answer, question, context)))
    assert seen.elements < LIMIT**2 / 2  # not all pairs of a start and an end

    _, longer = pair_of(LIMIT - 3)
    asked, tokens = answer.tokenizer.encode([question, longer])
    room = LIMIT - len(asked) - 4
    windows = [range(room), range(room - 128, len(tokens))]
    rows = [[0, *asked, 2, 2, *tokens[window.start : window.stop], 2] for window in windows]
    [best] = answer(question, longer, **options)
    assert close(best.score, max(map(best_of, rows)))
    with pytest.raises(ValueError, match="it must leave more than the overlap of 128"):
        answer(text_of(LIMIT - 132), "the", **options)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_fused_attention_makes_no_scores(folder: Path, layout: str) -> None:
    count = 1024
    ids = torch.full((count,), 5)
    padded = {"input_ids": torch.stack([ids, ids.index_fill(0, torch.arange(900, count), 1)])}
    given = padded if layout == "padded" else {"input_ids": ids, "lengths": torch.tensor([count])}
    largest: dict[str, int] = {}
    for attention in ("sdpa", "eager"):
        model = XLMRobertaModel.from_pretrained(folder, attention=attention)
        with torch.inference_mode(), Largest() as seen:
            model(**given)
        largest[attention] = seen.elements
    assert largest["sdpa"] < count**2 <= largest["eager"]
