"""What results show in a notebook: escaped, without scripts, colours and addresses, and not long."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import torch

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer, notebook
from xlmr_core.parity.compare import Comparison, Leaning, Row, compare
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.findings import Diagnosis, Evidence, Finding
from xlmr_core.parity.recording import record

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "&lt;b&gt;",
    "</summary></details><iframe srcdoc='<script>'>",
    "a\u202eb\u2066c\x00d\ud800e\nf",
)
TAGS = {"p", "b", "br", "table", "tr", "th", "td", "details", "summary"}


class Reader(HTMLParser):
    """Checks that tags are closed in order and known, and keeps the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert all(name == "style" and value in STYLES for name, value in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


STYLES = ("text-align: left", "text-align: left; font-weight: bold")


def shown(result: object) -> Reader:
    page = result._repr_html_()  # type: ignore[attr-defined]
    page.encode()  # a notebook writes UTF-8
    assert not re.search(r"color|http|url\(|javascript:", page.replace("onerror", "")), page
    return Reader(page)


def hostile_results() -> Iterator[object]:
    for name in HOSTILE:
        rows = (Row(name, "DIVERGES", (1, 2), 1.0, 1.0, 0.5, 0.1, name), Row("embeddings.sum", "equal"))
        yield Comparison(rows, (name,), (Leaning(name, 1.0, 0.1, 9.0, ties=(name,)),))
        evidence = (Evidence(name, 1.0, 1e-7, 1e-6),)
        finding = Finding(name, (find_fault("gelu_tanh"), find_fault("eps_of_bert")), evidence, (name,), (name,))
        yield Diagnosis((finding,), name, (name,), 3, 9, "unexplained")
        yield Diagnosis((), None, (), 9, 9, "explained", (Leaning(name, 1.0, 0.1, 9.0),))


def test_hostile_strings_stay_text() -> None:
    for result in hostile_results():
        assert "script" not in Reader(result._repr_html_()).open  # type: ignore[attr-defined]
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    for text in HOSTILE[:-1]:
        assert text in Reader(tokenizer.explain(text)._repr_html_()).text


@pytest.mark.parametrize("name", HOSTILE)
def test_every_character_is_there_or_escaped(name: str) -> None:
    text = Reader(notebook.table([[name], [name]]) + notebook.folded(name, "") + notebook.heading(name)).text
    assert text.isprintable()
    expected = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert text.count(expected) == 4


def test_results_of_the_bundled_checkpoint() -> None:
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    batch = tokenizer(["Bonjour <mask> !"])
    with torch.no_grad(), model.capture("**") as acts:
        model(**batch)
    real = batch.attention_mask.bool()
    agrees = shown(compare(acts, acts, real=real))
    assert agrees.text.startswith("parity: ")
    moved = {name: tensor + (name > "layers.1") for name, tensor in acts.items()}
    page = shown(compare(acts, moved, real=real)).text
    assert "first divergence: " in page
    assert "more" in page
    assert "DIVERGES" in page

    with find_fault("gelu_tanh").applied(model), torch.no_grad(), model.capture("layers.*.output") as faulty:
        model(**batch)
    found = diagnose(model, batch, faulty, tokenizer=tokenizer)
    page = shown(found).text
    assert "gelu_tanh" in page
    assert "evidence at" in page
    assert all(line.strip() in page.replace("\n", "") for line in str(found).splitlines()[:1])
    assert "xlmr-tiny" in shown(record("xlmr-tiny", ["Bonjour <mask> !"])).text
