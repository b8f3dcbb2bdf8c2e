"""The written pages of the site in a real browser: nothing fails, a phone shows all of it, and it is not large."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import site_pages
from mkdocs.commands.build import build
from mkdocs.config import load_config

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra `browser`")

ROOT = Path(__file__).parents[2]
PAGES = [path.replace(".md", ".html") for path in (*site_pages.PAGES, "course/05-scores.md", "slides.md")]


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
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The written pages, those of the course and the slides. `make docs` checks the links of the whole site."""
    docs, site = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("site")
    for name in ("extra.css", "slides.md"):
        shutil.copy(ROOT / "docs" / name, docs)
    settings = {"docs_dir": str(docs), "site_dir": str(site), "plugins": [], "nav": [{"Start": "slides.md"}]}
    settings |= {"strict": False, "validation": {"links": {"not_found": "ignore"}, "nav": {"omitted_files": "ignore"}}}
    build(load_config(str(ROOT / "mkdocs.yml"), **settings))
    return site


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_without_an_error(page: str, scheme: str, browser: Any, site: Path) -> None:
    file = site / page
    assert file.stat().st_size < 2_000_000
    shown = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=scheme).new_page()
    errors: list[str] = []
    shown.on("pageerror", lambda event: errors.append(str(event)))
    shown.on("console", lambda event: errors.append(event.text))
    shown.goto(file.as_uri())
    shown.wait_for_load_state()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    assert errors == []
