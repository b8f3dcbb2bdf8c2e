"""The page in a real browser: keys, names for screen readers, dark, narrow, right-to-left, and the time to draw it.

They run where playwright is installed (`pip install -e ".[browser]"`) with a Chromium: playwright's own, or the one
that is on the path.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explore.test_explore import base_size_page

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.explore import explore

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra `browser`")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    explore(model, tokenizer, ["What are <mask> doing here?", "ماذا <mask> هنا؟"]).save(path)
    return path


def opened(browser: Any, file: Path, *, width: int = 1280, scheme: str = "light") -> Any:
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.errors = []

    def keep(event: Any) -> None:
        page.errors.append(str(event))

    def keep_request(request: Any) -> None:
        if not request.url.startswith("file:"):
            page.errors.append(request.url)

    page.on("pageerror", keep)
    page.on("console", keep)
    page.on("request", keep_request)
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]")
    return page


def test_every_control_works_and_nothing_fails(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    first = page.locator("section.panel").first
    for view in ("matrix", "rollout", "tokens"):
        first.locator("[data-key=view]").select_option(view)
    first.locator("[data-key=layer]").select_option("0")
    first.locator("[data-key=head]").select_option("1")
    first.get_by_role("button", name="layer 1, head 0").click()
    assert "without layer 1, head 0" in first.inner_text()
    first.get_by_role("button", name="layer 1, head 0").click()
    assert "without layer 1" not in first.inner_text()
    first.locator("[data-key=token1]").click()
    assert "Choose a masked token" in first.inner_text()
    assert page.errors == []


def test_it_is_used_by_keys_only(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.key") == "token0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.key") == "token1"
    assert "token 1" in page.locator("#said").inner_text()
    page.locator("[data-key=view]").first.select_option("matrix")
    page.locator("[data-key='cell1-0']").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.key") == "cell2-0"
    assert "%" in page.locator("#said").inner_text()


def test_everything_that_is_used_has_a_name(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, svg')].filter((x) => !(x.ariaLabel || x.textContent.trim()"
        " || x.getAttribute('aria-label'))).length"
    )
    assert unnamed == 0
    assert page.locator("h1").count() == 1
    assert page.locator("html[lang=en]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_what_is_behind_it(browser: Any, file: Path, scheme: str) -> None:
    page = opened(browser, file, scheme=scheme)
    lowest = page.evaluate(
        """() => {
          const channels = (color) => color.match(/[\\d.]+/g).map(Number);
          const luminance = ([r, g, b]) => [r, g, b].map((x) => x / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
            .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (element) => {
            const color = element ? channels(getComputedStyle(element).backgroundColor) : [255, 255, 255];
            const [r, g, b, alpha = 1] = color;
            if (alpha === 1 || !element) return [r, g, b];
            const under = behind(element.parentElement);
            return [r, g, b].map((x, i) => alpha * x + (1 - alpha) * under[i]);
          };
          const ratios = [...document.querySelectorAll("p, button, th, td, h1, h2")]
            .filter((element) => element.textContent.trim() && element.offsetWidth > 1).map((element) => {
              const pair = [channels(getComputedStyle(element).color).slice(0, 3), behind(element)].map(luminance);
              return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            });
          return Math.min(...ratios);
        }"""
    )
    assert lowest >= 4.5  # WCAG 2.2, 1.4.3


def test_a_phone_scrolls_in_one_direction(browser: Any, file: Path) -> None:
    page = opened(browser, file, width=360, scheme="dark")
    page.locator("[data-key=view]").first.select_option("matrix")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_arabic_tokens_run_from_right_to_left(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    second = page.locator("section.panel").nth(1)
    begin, end = second.locator("[data-key=token0]").bounding_box(), second.locator("[data-key=token2]").bounding_box()
    assert begin["x"] > end["x"]


def test_64_tokens_of_base_size_are_drawn_within_two_seconds(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "base.html"
    base_size_page().save(path)
    start = time.perf_counter()
    page = opened(browser, path)
    page.locator("[data-key=view]").select_option("matrix")
    page.locator("[data-key='cell0-63']").wait_for()
    assert time.perf_counter() - start < 2
    assert page.errors == []
