"""The page of `xlmr explore` shows the model's own numbers, is small, and is safe with any text."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.cli import main
from xlmr_core.cli.outputs import is_page
from xlmr_core.explore import HeadOff, Likeliest, Page, TextMeasures, explore
from xlmr_core.tokenizer import Token

TEXT = "What are <mask> doing here?"


@pytest.fixture(scope="module")
def model() -> XLMRobertaForMaskedLM:
    return XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")


@pytest.fixture(scope="module")
def tokenizer() -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer.from_pretrained("xlmr-tiny")


def data_of(page: Page) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_numbers_are_those_of_the_model(model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
    page = explore(model, tokenizer, [TEXT])
    [text] = page.texts
    batch = tokenizer(TEXT)
    position = batch.input_ids[0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad(), model.capture("layers.*.attention.probs", "layers.*.output") as seen:
        logits = model(**batch).logits[0, position]
    probs = logits.softmax(dim=-1)
    assert torch.equal(text.attention[3], seen["layers.3.attention.probs"][0])
    torch.testing.assert_close(text.norms[2], seen["layers.1.output"][0].norm(dim=-1))
    assert text.lens is not None
    best = probs.topk(5)
    assert text.lens.ids[-1, position].tolist() == best.indices.tolist()
    torch.testing.assert_close(text.lens.probabilities[-1, position], best.values)
    torch.testing.assert_close(text.rollout.sum(dim=-1), torch.ones(text.rollout.shape[:2]))

    assert text.heads_off is not None
    assert text.heads_off.positions == (position,)
    layer, head, width = 1, 2, model.config.head_dim

    def without(context: torch.Tensor) -> torch.Tensor:
        context = context.clone()
        context[..., head * width : (head + 1) * width] = 0
        return context

    with torch.no_grad(), model.intervene({f"layers.{layer}.attention.context": without}):
        after = model(**batch).logits[0, position].log_softmax(dim=-1)
    change = float(after[best.indices[0]] - probs[best.indices[0]].log())
    assert float(text.heads_off.change[layer, head, 0]) == pytest.approx(change, abs=1e-4)
    assert abs(change) > 1e-3
    assert int(text.heads_off.likeliest.ids[layer, head, 0, 0]) == int(after.argmax())


def test_the_data_of_the_page_are_those_numbers(model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
    page = explore(model, tokenizer, [TEXT, "Я не знаю"])
    data = data_of(page)
    text = page.texts[0]
    count = len(text.tokens)
    assert [token[0] for token in data["texts"][0]["tokens"]] == [token.piece for token in text.tokens]
    attention = np.frombuffer(base64.b64decode(data["texts"][0]["attention"]), np.uint8).reshape(4, 4, count, count)
    np.testing.assert_allclose(attention / 255, text.attention.numpy(), atol=0.5 / 255 + 1e-6)
    second = data["texts"][1]["off"]
    assert second["positions"] == list(range(1, len(page.texts[1].tokens) - 1))  # no mask: every token of the text
    assert all(str(number) in data["pieces"] for number in second["likeliest"]["ids"])


def test_no_text_ends_the_script(model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
    hostile = "</script><script>alert(1)</script><!-- @@STYLE@@ &amp; \u2028"
    page = explore(model, tokenizer, [hostile], name="</title><b>")
    assert page.html().count("</script>") == 2
    assert data_of(page)["texts"][0]["text"] == hostile
    assert page.html().count("color-scheme: light dark") == 1  # not once more where the text has the mark of the style


def test_a_page_needs_no_network(model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
    text = explore(model, tokenizer, ["Hello"]).html()
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"\b(src|href)=", text)


def base_size_page(tokens: int = 64) -> Page:
    """As for xlm-roberta-base, with random numbers."""
    torch.manual_seed(0)
    layers = heads = 12
    row = tuple(Token(f"▁word{i}", i, i, 5 * i, 5 * i + 5) for i in range(tokens))

    def likeliest(*shape: int) -> Likeliest:
        return Likeliest(torch.randint(0, 250002, shape), torch.rand(shape))

    off = HeadOff(
        tuple(range(1, tokens - 1)),
        torch.randn(layers, heads, tokens - 2),
        likeliest(layers, heads, tokens - 2, 3),
    )
    attention = torch.rand(layers, heads, tokens, tokens).softmax(dim=-1)
    rollout, norms = torch.rand(layers, tokens, tokens), torch.rand(layers + 1, tokens)
    text = TextMeasures("word " * tokens, row, attention, rollout, norms, likeliest(layers + 1, tokens, 5), off)
    shown = set(off.likeliest.ids.flatten().tolist())
    return Page("base", layers, heads, (text,), dict.fromkeys(shown, "▁piece"))


def test_a_page_of_64_tokens_of_base_size_is_below_2_mb() -> None:
    assert len(base_size_page().html().encode()) < 2_000_000


def test_an_encoder_has_no_predictions(tokenizer: XLMRobertaTokenizer) -> None:
    [text] = explore(XLMRobertaModel.from_pretrained("xlmr-tiny"), tokenizer, ["Hello"]).texts
    assert text.lens is None
    assert text.heads_off is None


def test_what_a_page_cannot_show(model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer) -> None:
    with pytest.raises(ValueError, match="one text or two, not 3"):
        explore(model, tokenizer, ["a", "b", "c"])
    with pytest.raises(ValueError, match="a page shows at most 128: shorten it"):
        explore(model, tokenizer, ["word " * 200])
    with pytest.raises(ValueError, match="fused"):
        explore(XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny", attention="sdpa"), tokenizer, ["a"])


def test_a_model_that_computes_nan_has_no_page(tokenizer: XLMRobertaTokenizer) -> None:
    broken = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    broken.encoder.layers[1].attention.q_proj.weight.data.fill_(torch.nan)  # pyright: ignore
    with pytest.raises(FloatingPointError, match=r"layers\.1\.attention\.probs holds NaN or infinity for the text 'a'"):
        explore(broken, tokenizer, ["a"])


def test_the_command_and_a_notebook(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["explore", TEXT, "--beside", "Що ви <mask> робите?", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.stdout
    assert "Що ви" in path.read_text(encoding="utf-8")
    frame: str = getattr(base_size_page(4), "_repr_html_")()  # noqa: B009
    assert frame.startswith("<iframe")
    assert '"' not in frame.split('srcdoc="')[1].removesuffix('"></iframe>')


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("weights/page.html", "which is read: name a file outside that folder"),
        ("notes.txt", "exists and is not a page: name another file"),
        ("notes.txt/page.html", "is not a folder: make it first, or name another for page.html"),
        ("missing/page.html", "is not a folder: make it first, or name another for page.html"),
    ],
)
def test_a_page_is_written_over_nothing_else(output: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    result = CliRunner().invoke(
        main, ["explore", TEXT, "--model", str(tmp_path / "weights"), "-o", str(tmp_path / output)]
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_page_is_replaced_by_a_new_one(
    model: XLMRobertaForMaskedLM, tokenizer: XLMRobertaTokenizer, tmp_path: Path
) -> None:
    explore(model, tokenizer, ["a"]).save(tmp_path / "page.html")
    assert is_page(tmp_path / "page.html")
