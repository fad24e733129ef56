"""The page in Chromium, by mouse and keyboard, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlmfix

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed (pip install playwright)"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]
OVERLAY = "document.getElementById('overlay').toDataURL()"


@pytest.fixture(scope="module")
def file(explained: vlmfix.Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained.save(tmp_path_factory.mktemp("explained") / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 400])
def page(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert said == []


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    wide = """[...document.querySelectorAll("main *")].filter((each) => !each.closest(".wide, svg")
        && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    small = """[...document.querySelectorAll("p, td, dd, .word, label")].filter((each) => each.offsetParent
        && parseFloat(getComputedStyle(each).fontSize) < 12).length"""
    assert page.evaluate(small) == 0


def test_a_click_shows_another_map(page: Any) -> None:
    assert "“tv”" in page.locator("#told").inner_text()
    before = page.evaluate(OVERLAY)
    page.get_by_role("button", name="cat").first.click()
    page.mouse.move(0, 0)
    assert "“cat” is 153 times as likely with the picture" in page.locator("#told").inner_text()
    assert page.locator('[aria-pressed="true"]').inner_text() == "cat"
    after = page.evaluate(OVERLAY)
    assert after != before
    for name in ("rollout", "contrast", "difference", "encoder", "layer", "head"):
        page.locator("select[name=map]").select_option(name)
        drawn = page.evaluate(OVERLAY)
        assert drawn != after, name
        after = drawn


def test_it_is_used_by_keyboard_alone(page: Any) -> None:
    for _ in range(12):  # to the word that is pinned
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('word')"):
            break
    assert page.evaluate("document.activeElement.textContent").startswith("tv")
    page.keyboard.press("ArrowLeft")
    assert page.locator('[aria-pressed="true"]').inner_text() == "purple"
    assert "“purple”" in page.locator("#told").inner_text()
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.textContent") == "The"
    page.keyboard.press("End")
    assert "log p without the method" in page.locator("#told").inner_text()
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(ring) == "solid"


def test_the_hot_spot_lies_on_the_object(page: Any) -> None:
    """The brightest pixel of the cat's map is within a cell of the cat."""
    page.get_by_role("button", name="cat").first.click()
    page.mouse.move(0, 0)
    for name in ("sinks", "outline"):
        page.locator(f"input[name={name}]").set_checked(False)
    place = """(() => {
        const canvas = document.getElementById("overlay");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let best = 0;
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] > data[4 * best + 3]) best = at / 4;
        return [(best % canvas.width) / canvas.width, Math.floor(best / canvas.width) / canvas.height];
    })()"""
    across, down = page.evaluate(place)
    assert 34 - 14 <= across * 112 <= 53 + 14
    assert 4 - 14 <= down * 112 <= 25 + 14


def test_the_object_of_a_word_is_outlined(page: Any) -> None:
    outline = page.locator("input[name=outline]")
    assert not outline.is_visible()  # there is no tv
    page.get_by_role("button", name="couch").first.click()
    page.mouse.move(0, 0)
    assert outline.is_visible()
    drawn = page.evaluate(OVERLAY)
    outline.set_checked(False)
    assert page.evaluate(OVERLAY) != drawn


def test_words_are_coloured_by_what_is_chosen(page: Any) -> None:
    colours = "[...document.querySelectorAll('.strip .word')].map((each) => each.style.background)"
    gains = page.evaluate(colours)
    page.locator("#measure select").select_option("entropy")
    assert page.evaluate(colours) != gains
    assert any(gains)
