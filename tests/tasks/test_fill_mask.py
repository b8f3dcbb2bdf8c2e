"""Fill-mask from text to answers, on a model with random weights: what it must do does not depend on its quality."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xlmr_core import FillMask, XLMRobertaForMaskedLM


@pytest.fixture(scope="module")
def fill(toy_checkpoint: Path) -> FillMask:
    return FillMask.from_pretrained(toy_checkpoint)


def test_scores_are_the_softmax_of_the_logits_at_the_mask(fill: FillMask) -> None:
    text = "the cat <mask> the dog"
    [fillings] = fill(text, top_k=7)
    batch = fill.tokenizer([text])
    with torch.inference_mode():
        logits = fill.model(**batch).logits[0]
    [position] = (batch.input_ids[0] == fill.tokenizer.mask_token_id).nonzero().flatten().tolist()
    best = logits[position].softmax(dim=-1).topk(7)
    assert [filling.token for filling in fillings] == best.indices.tolist()
    assert [filling.score for filling in fillings] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [filling.score for filling in fillings] == sorted((f.score for f in fillings), reverse=True)


def test_the_filling_stands_in_the_sequence(fill: FillMask) -> None:
    for filling in fill("the cat <mask> the dog", top_k=fill.tokenizer.vocab_size)[0]:
        if filling.token > 3:  # one of <s>, <pad>, </s>, <unk> is a legal answer of a random model, too
            assert filling.sequence.startswith("the cat")
            assert filling.sequence.endswith("the dog")
            assert filling.token_str in filling.sequence
            assert filling.token_str == fill.tokenizer.decode([filling.token])


def test_several_masks_are_filled_each_with_the_others_in_place(fill: FillMask) -> None:
    first, second = fill("the <mask> sees the <mask>", top_k=3)
    assert len(first) == len(second) == 3
    assert all(filling.sequence.count("<mask>") == 1 for filling in first + second if filling.token_str != "<mask>")
    assert first[0].sequence.endswith("the<mask>")
    assert second[0].sequence.startswith("the<mask>")


def test_a_batch_answers_as_its_texts_alone(fill: FillMask) -> None:
    texts = ["<mask>", "the cat <mask> the dog <mask>", "кіт <mask> पक्षी"]
    for text, together in zip(texts, fill.batch(texts), strict=True):
        alone = fill(text)
        assert [[f.token for f in mask] for mask in together] == [[f.token for f in mask] for mask in alone]
        for a, b in zip(together, alone, strict=True):
            assert [f.score for f in a] == pytest.approx([f.score for f in b], rel=1e-5)


def test_no_texts_give_no_answers(fill: FillMask) -> None:
    assert fill.batch([]) == []


@pytest.mark.parametrize("text", ["no mask here", "", "   ", "[MASK]", "<MASK>"])
def test_a_text_without_a_mask_is_an_error_that_shows_how_to_write_one(fill: FillMask, text: str) -> None:
    with pytest.raises(ValueError, match=r"no <mask> in .*: write <mask>"):
        fill(text)


def test_a_long_text_is_refused_or_cut(fill: FillMask) -> None:
    text = "the cat sees <mask> " + "the dog " * 30
    with pytest.raises(ValueError, match="at most 20"):
        fill(text)
    assert len(fill(text, truncation=True)) == 1
    with pytest.raises(ValueError, match=r"a <mask> of .* was cut off: truncation keeps 20 tokens"):
        fill("the dog " * 30 + "<mask>", truncation=True)
    with pytest.raises(ValueError, match=r"a <mask> of .* was cut off"):  # the other one stays
        fill("the <mask> " + "the dog " * 30 + "<mask>", truncation=True)
    with pytest.raises(ValueError, match="no <mask> in"):
        fill("the dog " * 30, truncation=True)


@pytest.mark.parametrize("top_k", [0, -1, 10_000])
def test_top_k_has_limits(fill: FillMask, top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must lie between 1 and the vocabulary's"):
        fill("<mask>", top_k=top_k)


@pytest.mark.parametrize("difference", [-1, 1024])
def test_a_foreign_tokenizer_is_refused(fill: FillMask, difference: int) -> None:
    size = fill.tokenizer.vocab_size
    other = XLMRobertaForMaskedLM(replace(fill.model.config, vocab_size=size + difference))
    with pytest.raises(
        ValueError, match=f"has {size} tokens, but the model has {size + difference}: they do not belong together"
    ):
        FillMask(other, fill.tokenizer)


def test_rows_of_the_table_beyond_the_vocabulary_are_no_answers(fill: FillMask) -> None:
    model = XLMRobertaForMaskedLM(replace(fill.model.config, vocab_size=fill.tokenizer.vocab_size + 100))
    model.initialize()
    with torch.no_grad():
        model.lm_head.decoder.bias[fill.tokenizer.vocab_size + 3] = 50.0
    [fillings] = FillMask(model.eval(), fill.tokenizer)("<mask>", top_k=fill.tokenizer.vocab_size)
    assert sorted(filling.token for filling in fillings) == list(range(fill.tokenizer.vocab_size))
    assert sum(filling.score for filling in fillings) < 1e-3  # probabilities are among all rows


def test_logits_are_computed_for_a_few_masks_at_a_time(fill: FillMask, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["<mask>" * 18, "the <mask> dog"] * 3
    together = fill.batch(texts, top_k=2)
    rows: list[int] = []
    hook = fill.model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(len(logits)))
    monkeypatch.setattr("xlmr_core.tasks.fill_mask.LOGITS_AT_ONCE", 7 * fill.model.config.vocab_size + 1)
    try:
        apart = fill.batch(texts, top_k=2)
    finally:
        hook.remove()
    assert rows == [7] * 8 + [1]
    for a, b in zip(together, apart, strict=True):
        assert [[filling.token for filling in mask] for mask in a] == [
            [filling.token for filling in mask] for mask in b
        ]
        assert [f.score for mask in a for f in mask] == pytest.approx([f.score for mask in b for f in mask], rel=1e-5)


def test_pad_in_a_text(fill: FillMask) -> None:
    text = "the <pad> <mask>"
    with pytest.raises(ValueError, match=r"'the <pad> <mask>' contains <pad>.*specials_in_text=False"):
        fill.batch(["<mask>", text])
    [fillings] = fill(text, top_k=3, specials_in_text=False)
    ids = fill.tokenizer(text, specials_in_text=["<mask>"]).input_ids
    assert (ids == fill.tokenizer.mask_token_id).sum() == 1
    assert not (ids == fill.tokenizer.pad_token_id).any()
    logits = fill.model(ids).logits[ids == fill.tokenizer.mask_token_id]
    assert [filling.token for filling in fillings] == logits[0].topk(3).indices.tolist()


def test_it_agrees_with_transformers(fill: FillMask, toy_checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference library is not installed")
    reference = transformers.XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint, attn_implementation="sdpa").eval()
    batch = fill.tokenizer(["the cat <mask> the dog"])
    with torch.inference_mode():
        logits = reference(batch.input_ids, batch.attention_mask).logits
    best = logits[batch.input_ids == fill.tokenizer.mask_token_id].softmax(dim=-1).topk(5)
    [fillings] = fill("the cat <mask> the dog")
    assert [filling.token for filling in fillings] == best.indices[0].tolist()
    assert [filling.score for filling in fillings] == pytest.approx(best.values[0].tolist(), rel=1e-5)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(number: float, fill: FillMask) -> None:
    sick = XLMRobertaForMaskedLM(fill.model.config)
    sick.initialize()
    with torch.no_grad():
        sick.lm_head.decoder.bias[5] = number
    with pytest.raises(ValueError, match=r"logits are not finite: `xlmr inspect --values SOURCE` shows where"):
        FillMask(sick.eval(), fill.tokenizer)("the <mask>")


def test_targets_are_ranked_with_their_scores_among_the_whole_vocabulary(fill: FillMask) -> None:
    text = "the cat <mask> the dog"
    [every] = fill(text, top_k=fill.tokenizer.vocab_size)
    of_word = {word: fill.tokenizer.encode([word])[0] for word in ("the", "a", "s", "t", "d")}
    words = [word for word, ids in of_word.items() if len(ids) == 1]
    assert len(words) >= 2
    [some] = fill(text, targets=[*words, words[0]])
    expected = [filling for filling in every if [filling.token] in [of_word[word] for word in words]]
    assert [filling.token for filling in some] == [filling.token for filling in expected]
    assert [f.score for f in some] == pytest.approx([f.score for f in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["cat"], "'cat' is not one piece of the vocabulary; its pieces are ▁ c a t: choose another word"),
        (["\U0001f600"], "not one piece of the vocabulary"),
        ([""], "its pieces are none"),
        ([], "targets must be a list of at least one word"),
        ("cat", "targets must be a list of at least one word, not 'cat'"),
    ],
)
def test_a_target_is_one_piece(fill: FillMask, targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill("<mask>", targets=targets)


def test_masks_filled_jointly_see_the_more_confident_ones(fill: FillMask) -> None:
    text = "the <mask> sees <mask> <mask>"
    found = fill(text, joint=True, top_k=2)
    ids = fill.tokenizer(text).input_ids
    left = (ids[0] == fill.tokenizer.mask_token_id).nonzero().flatten().tolist()
    expected: dict[int, list[int]] = {}
    while left:
        with torch.inference_mode():
            scores = fill.model(ids).logits[0].softmax(dim=-1)
        place = max(left, key=lambda i: float(scores[i].max()))
        expected[place] = scores[place].topk(2).indices.tolist()
        ids[0, place] = expected[place][0]
        left.remove(place)
    assert [[filling.token for filling in mask] for mask in found] == [expected[place] for place in sorted(expected)]
    assert len({mask[0].sequence for mask in found}) == 1
    in_company = fill.batch(["<mask>", text], joint=True, top_k=2)[1]
    assert [[f.sequence for f in mask] for mask in in_company] == [[f.sequence for f in mask] for mask in found]
    assert [f.token for f in fill("the <mask>", joint=True)[0]] == [f.token for f in fill("the <mask>")[0]]


def test_a_stream_passes_over_what_the_model_cannot_take(fill: FillMask) -> None:
    refused: list[tuple[str, str]] = []
    texts = ["the <mask>", "nothing", "<mask> cat", "<pad> <mask>"]
    results = list(fill.stream(texts, on_error=lambda text, error: refused.append((text, str(error)))))
    assert results == fill.batch([texts[0], texts[2]])
    assert [text for text, _ in refused] == ["nothing", "<pad> <mask>"]
    with pytest.raises(ValueError, match="input 1: no <mask> in 'nothing'"):
        list(fill.stream(texts))
