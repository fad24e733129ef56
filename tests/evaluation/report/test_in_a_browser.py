"""Pages in a browser: nothing is cut or printed over at any width, light and dark, and filters work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.support import outcomes, searches
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.report.html import write_report
from vlmfix.tuning.page import write_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]
WIDTHS = (1280, 900, 400)
DARK, LIGHT = "0", "1"
PROBE = """
  const rects = (root) => {
    const walker = root.ownerDocument.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (!node.data.trim()) continue;
      const range = root.ownerDocument.createRange();
      range.selectNodeContents(node);
      for (const rect of range.getClientRects()) found.push([rect, node.data.trim()]);
    }
    return found;
  };
  const clashes = (found) => found.flatMap(([a, one], index) => found.slice(index + 1)
    .filter(([b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map(([, other]) => `${one} | ${other}`));
  const measured = (view) => {
    const page = view.document;
    const shown = () => page.querySelectorAll("#samples .samples > li:not([hidden])").length;
    const first = shown();
    let filtered = null;
    const form = page.querySelector("#samples .filter");
    if (form) {
      form.elements.change.value = "fixed";
      form.dispatchEvent(new Event("input"));
      const fixed = parseInt(page.querySelector("#samples .found").textContent);
      form.elements.text.value = "no such text";
      form.dispatchEvent(new Event("input"));
      filtered = [first, fixed, shown()];
      form.reset();
      form.dispatchEvent(new Event("input"));
    }
    page.querySelectorAll("details").forEach((each) => { each.open = true; });
    const tables = [...page.querySelectorAll(".fitted > table")];
    const boxed = tables.filter((each) => view.getComputedStyle(each).display === "block");
    // The words of a pseudo-element cannot be measured, so that a real one takes its place.
    for (const cell of boxed.flatMap((table) => [...table.querySelectorAll("td")])) {
      const head = page.createElement("span");
      const { gridRow, whiteSpace, overflowWrap } = view.getComputedStyle(cell, "::before");
      Object.assign(head.style, { gridRow, whiteSpace, overflowWrap, gridColumn: "1" });
      head.textContent = cell.dataset.head;
      cell.prepend(head);
    }
    page.head.insertAdjacentHTML("beforeend", "<style>td::before { display: none !important; }</style>");
    return {
      width: page.documentElement.scrollWidth,
      height: page.documentElement.scrollHeight,
      tables: tables.length,
      boxed: boxed.length,
      cut: tables.filter((each) => each.scrollWidth > each.parentElement.clientWidth + 1)
        .map((each) => each.caption.textContent),
      clashing: [
        ...[...page.querySelectorAll(".fitted tr, .legend")].flatMap((each) => {
          const isHidden = view.getComputedStyle(each.closest("thead") ?? each).clipPath !== "none";
          return isHidden ? [] : clashes(rects(each));
        }),
        ...[...page.querySelectorAll(".plot svg")].flatMap((each) => clashes(rects(each))),
      ],
      letters: Math.min(...[...page.querySelectorAll(".plot svg text")].map((each) => {
        const { a, b } = each.getScreenCTM();
        return parseFloat(view.getComputedStyle(each).fontSize) * Math.hypot(a, b);
      })),
      paper: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.querySelector(".plot svg text")).fill,
      filtered,
    };
  };
  onload = () => {
    const found = [...document.querySelectorAll("iframe")].map((each) => measured(each.contentWindow));
    document.title = btoa(encodeURIComponent(JSON.stringify(found)));
  };
"""


Measured = dict[tuple[str, int], dict[str, Any]]


def measure(folder: Path, pages: dict[str, str], scheme: str) -> Measured:
    """What frames with the pages measure, by page and width; no window is as narrow as a phone."""
    places = [(name, width) for name in pages for width in WIDTHS]
    sources = {name: html.escape(page) for name, page in pages.items()}
    frames = "".join(
        f'<iframe style="border: 0" width="{width}" height="2000" srcdoc="{sources[name]}"></iframe>'
        for name, width in places
    )
    source = f'<meta charset="utf-8">{frames}<script>{PROBE}</script>'
    (folder / "frames.html").write_text(source, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"]
    command.append((folder / "frames.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None
    return dict(zip(places, json.loads(unquote(b64decode(found[1]).decode())), strict=True))


def report(folder: Path) -> str:
    """The page of 13 methods with long and short names on questions with margins, and of 5 on captions."""
    Image.effect_noise((640, 480), 90).save(folder / "picture.png")
    given: dict[str, Any] = {"images": 12, "pictures": [folder / "picture.png"]}
    several = [
        outcomes.with_margins(outcomes.yes_no(**given, baseline_of=""), 9),
        outcomes.yes_no("baseline.prompt_bias(word=yes)", **given, yes_bias=1.0, baseline_of=""),
        outcomes.yes_no("baseline.output_shift(m1)", **given, baseline_of="m1", failed=(2,)),
    ]
    for index in range(10):
        name = f"m{index}" if index else "long(moved_fraction=0.6, layers=[1, 2, 3], words='a b c')"
        made = outcomes.yes_no(name, **given, yes_bias=0.3 + 0.04 * index, seed=index % 4)
        several.append(outcomes.with_margins(made, index))
    several += [outcomes.captions(f"c{index}", **given, care=index / 5, seed=index % 2) for index in range(5)]
    write_report(folder / "report.html", compare(several), title="Many methods")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """Pages of an evaluation and of a search, light and dark."""
    folder = tmp_path_factory.mktemp("pages")
    write_page(folder / "tune.html", searches.captions())
    pages = {"report": report(folder), "search": (folder / "tune.html").read_text(encoding="utf-8")}
    return {scheme: measure(folder, pages, scheme) for scheme in (LIGHT, DARK)}


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_nothing_is_cut_or_printed_over(measured: dict[str, Measured], scheme: str) -> None:
    for (_, width), found in measured[scheme].items():
        assert found["width"] <= width
        assert found["height"] > 2000
        assert found["cut"] == []
        assert found["clashing"] == []
        assert found["letters"] > 9.5


def test_rows_become_blocks_where_tables_do_not_fit(measured: dict[str, Measured]) -> None:
    boxed = [measured[LIGHT]["report", width]["boxed"] for width in WIDTHS]
    assert boxed == sorted(boxed)
    assert boxed[0] == 0
    assert boxed[-1] > 6
    assert measured[LIGHT]["report", WIDTHS[0]]["tables"] == 12


def test_filters_of_samples(measured: dict[str, Measured]) -> None:
    first, fixed, none = measured[LIGHT]["report", WIDTHS[0]]["filtered"]
    assert first == 20
    assert fixed > 0
    assert none == 0


def test_dark_pages_have_light_letters(measured: dict[str, Measured]) -> None:
    def lightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    for place, light in measured[LIGHT].items():
        dark = measured[DARK][place]
        assert lightness(light["paper"]) > 700 > 300 > lightness(light["ink"])
        assert lightness(dark["paper"]) < 100 < 400 < lightness(dark["ink"])
