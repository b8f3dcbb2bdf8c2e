"""The bundled checkpoint is small, published as the real ones are, and has learnt something."""

import json
import re
from pathlib import Path

import pytest
import torch

from xlmr_core import FillMask, XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.checkpoint import bundled
from xlmr_core.training.corpus import Corpus
from xlmr_core.training.evaluation import evaluate, table

README = Path(__file__).parents[2] / "weights" / "README.md"
LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fa", "fr", "hi", "it", "nl", "pl", "pt", "tr", "uk", "zh-Hans"]


@pytest.fixture(scope="module")
def fill() -> FillMask:
    return FillMask.from_pretrained("xlmr-tiny")


def figures() -> dict[str, dict[str, float]]:
    return json.loads((bundled() / "evaluation.json").read_text(encoding="utf-8"))


def test_it_has_the_published_layout_and_fits_in_15_megabytes() -> None:
    files = {path.name: path.stat().st_size for path in bundled().iterdir()}
    assert files.keys() >= {"config.json", "model.safetensors", "sentencepiece.bpe.model"}
    assert sum(files.values()) < 15_000_000


def test_transformers_reads_it_to_the_same_logits(fill: FillMask) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    batch = fill.tokenizer(["The <mask> is open", "Ich habe keine <mask> mehr für dich."])
    ours = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(
        bundled(), attn_implementation="eager", dtype=torch.float32
    )
    with torch.inference_mode():
        expected = theirs.eval()(batch.input_ids, batch.attention_mask).logits
        logits = ours(**batch).logits
    real = batch.attention_mask.bool()
    assert torch.equal(logits[real], expected[real])


def test_it_names_no_path_of_the_machine_that_made_it() -> None:
    for path in bundled().iterdir():
        assert not re.search(rb"/(home|tmp|root|work|Users)/", path.read_bytes()), path.name


def test_it_beats_the_baseline_in_every_language() -> None:
    assert sorted(figures()) == LANGUAGES
    for language, row in figures().items():
        assert row["accuracy"] > row["unigram_accuracy"], language
        assert row["top5"] > row["accuracy"], language


def test_the_readme_shows_these_figures() -> None:
    from xlmr_core.training.evaluation import Accuracy

    assert table({name: Accuracy(**row) for name, row in figures().items()}) in README.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_figures_come_out_again(shared: Path) -> None:
    corpus_folder, held_out = shared / "corpus" / "common_voice_cc0", shared / "corpus" / "ntrex128_ccbysa4"
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    languages = ["de", "el", "hi"]
    corpus = Corpus([corpus_folder / f"{language}.txt" for language in languages], tokenizer)
    results = evaluate(model, tokenizer, corpus, [held_out / f"{language}.txt" for language in languages])
    for language, row in results.items():
        assert row.tokens == figures()[language]["tokens"]
        assert row.accuracy == pytest.approx(figures()[language]["accuracy"], abs=2e-3)
        assert row.unigram_accuracy == figures()[language]["unigram_accuracy"]
