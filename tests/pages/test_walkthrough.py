"""The pages of the site that are written at its build: the walkthrough of a sentence, and the four files."""

import html
import re

import annotated
import one_run
import pytest
import site_pages
import torch
import walkthrough
from source_code import FILES, PACKAGE, Lines

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.model import FeedForward

LINE = re.compile(r'<span class="line" data-line="(\d+)"[^>]*>(.*?)</span>(?=\n<span class="line"|</code>)', re.DOTALL)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {path: text() for path, text in site_pages.PAGES.items()}


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_the_pages_are_the_same_each_time(pages: dict[str, str]) -> None:
    assert {path: text() for path, text in site_pages.PAGES.items()} == pages


def test_every_tap_is_shown_with_its_shape_and_numbers(pages: dict[str, str]) -> None:
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    batch = tokenizer(one_run.TEXTS)
    place = batch.input_ids[0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad(), model.capture("**") as acts:
        model(**batch)
    for tap in model.taps():
        shown = re.search(
            rf"<code>{re.escape(tap.name)}</code> (.*?)<br>.*?<pre>(.*?), \.\.\.</pre>", pages["walkthrough.md"]
        )
        assert shown is not None, tap.name
        assert shown[1] == f"{tap.shape} = {tuple(acts[tap.name].shape)}, float32"
        at_mask = acts[tap.name][0, 0, place] if acts[tap.name].dim() == 4 else acts[tap.name][0, place]
        numbers = torch.tensor([float(number) for number in shown[2].split(", ")])
        torch.testing.assert_close(numbers, at_mask[: len(numbers)], rtol=0.01, atol=1e-3)  # three digits


def test_the_lines_are_those_of_the_files(pages: dict[str, str]) -> None:
    for step in walkthrough.STEPS:
        for lines in step.lines:
            source = lines.file.read_text(encoding="utf-8").split("\n")
            shown = LINE.findall(lines.html())
            assert [int(number) for number, _ in shown] == list(lines.numbers)
            assert [plain(line).strip() for _, line in shown] == [source[i - 1].strip() for i in lines.numbers]


def test_lines_that_are_not_there_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"FeedForward.forward has 0 statements that begin with 'total ='"):
        _ = Lines(FeedForward.forward, "total =").numbers


def test_links_to_lines_lead_to_lines(pages: dict[str, str]) -> None:
    links = re.findall(r'href="source/(\w+)\.html#(L\d+)"', pages["walkthrough.md"])
    assert len(links) > 15
    for name, line in links:
        assert f'id="{line}"' in pages[f"source/{name}.md"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_complete_beside_its_prose(name: str, pages: dict[str, str]) -> None:
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").split("\n")
    code = {int(number): plain(line) for number, line in LINE.findall(pages[f"source/{name}.md"])}
    assert all(line == source[number - 1] for number, line in code.items())
    said = [number for block in annotated.blocks("\n".join(source)) for number in block.said]
    assert not set(said) & code.keys()
    missing = [number for number, line in enumerate(source, start=1) if line.strip()]
    assert [number for number in missing if number not in code and number not in said] == []


def test_prose_keeps_its_form() -> None:
    shown = annotated.prose_html("Adds `a<b`.\n\n    a  b\n\nArgs:\n    x: the first\n        number.\n    y: another.")
    assert shown == (
        "<p>Adds <code>a&lt;b</code>.</p><pre>a  b</pre><p><em>Args:</em></p>"
        "<ul><li><code>x</code>: the first number.</li><li><code>y</code>: another.</li></ul>"
    )


def test_a_comment_is_beside_the_code_below_it() -> None:
    function = 'def f():\n    """Two."""\n    # first half\n    # and second\n    return 2  # kept\n'
    source = f'"""A file."""\n\nx = 1\n\n\n{function}'
    first, second = annotated.blocks(source)
    assert (first.prose, first.code) == (["A file."], [3])
    assert (second.heading, second.prose, second.code) == ("`f`", ["Two.", "first half and second"], [6, 10])
