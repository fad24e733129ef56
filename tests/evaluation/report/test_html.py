"""The HTML report: complete, harmless whatever models say, and readable in a browser without a network."""

import dataclasses
import html
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import outcomes
from tests.support.reports import Page
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.disagreements import LONGEST_SIDE, disagreements, thumbnail
from vlmfix.evaluation.report.html import SHOWN, write_report
from vlmfix.evaluation.report.provenance import run_provenance, task_provenance
from vlmfix.evaluation.report.tradeoff_plot import tradeoff_plot

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
NASTY = (
    "<script>alert(1)</script>",
    "</script></style></title><img src=http://evil.example/x.png onerror=alert(1)>",
    "\"quoted\" & 'quoted' {{ 7 * 7 }} {% raw %}",
    "",
    "👩‍👩‍👧 ünïcödé \u202eright to left\u202c مرحبا بالعالم",
    "long " * 20_000,
    "x" * 5_000,
    "a lone \ud800 surrogate and a \x00 byte",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide, a high, a transparent, a grey, a broken, and a missing picture."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, size, mode in (("wide.jpg", (640, 480), "RGB"), ("high.png", (200, 900), "RGB")):
        pixels = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / name)
    Image.new("RGBA", (50, 50), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("L", (60, 40), 128).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:900])
    names = ("wide.jpg", "high.png", "clear.png", "grey.png", "broken.jpg", "missing.jpg")
    return [folder / name for name in names]


def written(path: Path, *several: Outcome, title: str = "A run", caveats: Sequence[str] = ()) -> str:
    write_report(path / "report.html", compare(several), title=title, caveats=caveats)
    return (path / "report.html").read_text(encoding="utf-8")


def run_of(pictures: Sequence[Path | None] = (None,)) -> list[Outcome]:
    details = {
        "key": {
            "library": "0.1.0",
            "model": {
                "id": "llava-1.5-7b",
                "revision": "sha256:" + 64 * "a",
                "dtype": "bfloat16",
                "attention": {"text": "sdpa", "vision": None},
            },
            "protocol": {"parser": "strict", "temperature": 0.0, "num_beams": 1, "max_new_tokens": 16},
        },
        "info": {
            "started_at": "2025-11-21T09:12:00Z",
            "first_prompt": "USER:\nIs there a dog?",
            "data": {"questions": {"file": "/data/questions.json", "rows": 3000, "sha256": 64 * "b"}},
        },
        "environments": [{"device": "NVIDIA H100", "torch": "2.9.0", "transformers": "5.23.0"}],
    }
    return [
        outcomes.yes_no(images=40, pictures=pictures, details=details),
        outcomes.yes_no("var(moved_fraction=0.6)", images=40, yes_bias=0.5, failed=(3,), details=details),
        outcomes.yes_no("vhr", images=40, yes_bias=0.68, inactive=True, details=details),
        outcomes.captions(images=40, pictures=pictures, details=details),
        outcomes.captions("vcd", images=40, care=0.8, pictures=pictures, details=details),
    ]


def test_everything_is_on_the_page(tmp_path: Path, pictures: list[Path]) -> None:
    page = Page(written(tmp_path, *run_of(pictures), title="Two tasks", caveats=["Synthetic scenes."]))
    for text in (
        "Two tasks",
        "Synthetic scenes.",
        "vhr was inactive on pope",
        "llava-1.5-7b",
        "sha256:aaaaaaaaaaaa ",
        "bfloat16",
        "sdpa (text)",
        "NVIDIA H100",
        "vlmfix 0.1.0, torch 2.9.0, transformers 5.23.0",
        "2025-11-21T09:12:00Z",
        "720 about 40 images",
        "greedy, at most 16 new tokens",
        "questions: rows 3000, sha256 bbbbbbbbbbbb ",
        "pope.llava/synthetic",
        "accuracy, %",
        "lower is better",
        "10,000 image-level bootstrap resamples",
        "exact McNemar tests against greedy",
        "1 of 720 samples failed (1 OSError)",
        "Two parsers differ by more than 0.5 points",
        "the same answers under all parsers",
        "pope by group",
        "the upper left is best",
        "share of wrong answers by object",
        "cost, and its ratio to greedy",
        "(\N{MULTIPLICATION SIGN}1.18)",
        "15.2 GiB",
        "site share",
        "Samples on which methods disagree",
        "Samples without an answer",
        "pope/random/0000/3",
        '"moved_fraction": 0.4',
        "USER:\\nIs there a dog?",
    ):
        assert text in page.text, text
    assert page.tags["caption"] == page.tags["table"] > 10
    assert page.tags["svg"] == 4  # for wide and for narrow screens
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("meta", name="viewport")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_beams": 5}, "5 beams, at most 16 new tokens"),
        (
            {"temperature": 1.0, "top_p": 0.9, "seeds": [0, 1, 2]},
            "temperature 1, top-p 0.9, 3 repeats, at most",
        ),
    ],
)
def test_decoding_in_words(changes: dict[str, object], text: str) -> None:
    protocol = {"temperature": 0.0, "num_beams": 1, "max_new_tokens": 16} | changes
    outcome = outcomes.captions(details={"key": {"protocol": protocol}})
    assert task_provenance([outcome])["decoding"].startswith(text)
    assert run_provenance([outcome]) == {}


def test_starts_of_several_runs() -> None:
    several = [outcomes.captions(details={"info": {"started_at": time}}) for time in ("b", "c", "a")]
    assert run_provenance(several) == {"started": "a to c"}


def test_no_request_leaves_the_page(tmp_path: Path, pictures: list[Path]) -> None:
    source = written(tmp_path, *run_of(pictures))
    page = Page(source)
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "poster", "data") and value
    ]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", source)
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:;")


def test_answers_are_text_only(tmp_path: Path) -> None:
    base = outcomes.captions(images=len(NASTY))
    harmless = Page(written(tmp_path, base, outcomes.captions("vcd", images=len(NASTY), care=0.9))).tags

    def with_texts(outcome: Outcome, score: float) -> Outcome:
        samples = [
            dataclasses.replace(sample, answer=text, verdict=text[:50], prompt=text, target=text, score=score)
            for sample, text in zip(outcome.samples, NASTY, strict=True)
        ]
        return dataclasses.replace(outcome, samples=samples)

    source = written(
        tmp_path,
        with_texts(base, 0.0),
        with_texts(dataclasses.replace(base, method="<b>x</b>"), 1.0),
        title="<i>title</i>",
        caveats=["<u>note</u>"],
    )
    page = Page(source)
    assert page.tags["script"] == harmless["script"] == 1
    assert page.tags["u"] == 0
    assert page.tags["img"] == 0
    for text in NASTY[:3]:
        assert text in page.text
    assert "<i>title</i>" in page.text
    assert "<u>note</u>" in page.text
    assert "empty answer" in page.text
    assert "مرحبا" in page.text
    assert "(100,000 characters)" in page.text
    assert len(source) < 300_000
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


@pytest.mark.parametrize(
    "outcome",
    [
        outcomes.yes_no(images=1),
        outcomes.yes_no(images=1, splits=["random"], failed=range(6)),
        outcomes.captions(images=1),
        outcomes.captions(images=0),
        dataclasses.replace(outcomes.captions(images=3), metrics=[], tradeoff=None, costs={}, counts={}),
    ],
)
def test_pages_with_next_to_nothing(outcome: Outcome, tmp_path: Path) -> None:
    for others in ([], [dataclasses.replace(outcome, method="other")]):
        page = Page(written(tmp_path, outcome, *others))
        assert not page.all("section", id="samples")
        assert page.tags["table"] >= 1


def test_no_outcomes(tmp_path: Path) -> None:
    assert "A run" in Page(written(tmp_path)).text


def test_disagreements_name_who_is_right(tmp_path: Path) -> None:
    first, second = outcomes.yes_no(splits=["random"]), outcomes.yes_no("x", splits=["random"], yes_bias=0.2)
    [comparison] = compare([first, second, outcomes.yes_no("y", splits=["random"])])
    found = disagreements(comparison)
    differing = sum(
        one.verdict != other.verdict for one, other in zip(first.samples, second.samples, strict=True)
    )
    assert len(found) == differing > 0
    for each in found:
        before, after = each.answers
        assert (before.method, before.change, after.method, each.same) == ("greedy", "", "x", ["y"])
        assert after.change == ("fixed" if after.sample.score else "broken")
    page = Page(written(tmp_path, first, second))
    assert f"pope: showing {differing} of {differing}." in page.text


def test_same_score_with_another_verdict_is_a_change_and_failures_are_not() -> None:
    first = outcomes.captions(images=3)
    samples = [
        dataclasses.replace(first.samples[0], verdict="not there: boat"),
        dataclasses.replace(first.samples[1], score=None, answer=None),
        first.samples[2],
    ]
    [comparison] = compare([first, dataclasses.replace(first, method="x", samples=samples)])
    [found] = disagreements(comparison)
    assert (found.sample.id, found.answers[1].change) == (first.samples[0].id, "changed")


def test_many_disagreements_are_sampled(tmp_path: Path, pictures: list[Path]) -> None:
    several = (
        outcomes.yes_no(images=150, pictures=pictures, yes_bias=0.9),
        outcomes.yes_no("x", images=150, pictures=pictures, yes_bias=0.1),
    )
    source = written(tmp_path, *several)
    assert f"showing {SHOWN} of " in Page(source).text
    assert "chosen by the hash of their ids" in Page(source).text
    assert len(Page(source).all("li", **{"data-task": "0"})) == SHOWN
    assert len(source) < 8_000_000
    again = written(tmp_path, *map(outcomes.shuffled, several))
    assert source == again


def test_pictures_are_small_copies(pictures: list[Path], tmp_path: Path) -> None:
    wide, high, clear, grey, broken, missing = map(thumbnail, pictures)
    assert wide is not None
    assert high is not None
    assert (wide.width, wide.height) == (LONGEST_SIDE, 240)
    assert (high.width, high.height) == (71, LONGEST_SIDE)
    assert clear is not None
    assert grey is not None
    assert clear.uri.startswith("data:image/webp;base64,")
    assert broken is missing is thumbnail(tmp_path) is None


def test_missing_pictures_have_a_placeholder(tmp_path: Path, pictures: list[Path]) -> None:
    source = written(
        tmp_path,
        outcomes.yes_no(pictures=pictures[-2:]),
        outcomes.yes_no("x", pictures=pictures[-2:], yes_bias=0.1),
    )
    assert not Page(source).all("img")
    assert "no picture" in Page(source).text


def test_plot_keeps_points_and_labels_inside() -> None:
    several = [
        outcomes.captions(f"method{index}(strength={index / 10})", images=60, care=index / 10)
        for index in range(9)
    ]
    [comparison] = compare(several)
    for width, height in ((680, 430), (330, 360)):
        plot = tradeoff_plot(comparison, width=width, height=height)
        assert plot is not None
        assert plot.corner == "upper left"
        left, top, right, bottom = plot.frame
        assert len(plot.points) == 9
        assert plot.points[0].is_first
        assert not plot.points[1].is_first
        for point in plot.points:
            assert left <= min(point.x_ends) <= point.x <= max(point.x_ends) <= right
            assert top <= min(point.y_ends) <= point.y <= max(point.y_ends) <= bottom
            assert left <= point.label_at[0] <= right
            assert top <= point.label_at[1] <= bottom
        for axis in (plot.x, plot.y):
            assert 2 <= len(axis.ticks) <= 8
            assert len({text for _, text in axis.ticks}) == len(axis.ticks)


def test_no_plot_without_two_points() -> None:
    [one] = compare([outcomes.captions()])
    [none] = compare([outcomes.captions(tradeoff=None), outcomes.captions("x", tradeoff=None)])
    assert tradeoff_plot(one, width=300, height=300) is None
    assert tradeoff_plot(none, width=300, height=300) is None


def test_equal_methods_can_be_plotted() -> None:
    [comparison] = compare([outcomes.captions(images=1), outcomes.captions("x", images=1)])
    plot = tradeoff_plot(comparison, width=330, height=360)
    assert plot is not None
    assert plot.points[0].x == plot.points[1].x
    assert plot.points[0].label_at != plot.points[1].label_at


def chromium(*arguments: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_page_in_a_browser(width: int, tmp_path: Path, pictures: list[Path]) -> None:
    """A frame of the width of a phone holds the page; the text of its document is what the frame measured."""
    source = html.escape(written(tmp_path, *run_of(pictures)))
    probe = """
      onload = () => {
        const page = frames[0].document;
        const shown = () => page.querySelectorAll(".samples > li:not([hidden])").length;
        const { scrollWidth, scrollHeight } = page.documentElement;
        const first = shown();
        const { change, text } = page.getElementById("filter").elements;
        change.value = "fixed";
        change.dispatchEvent(new Event("input", { bubbles: true }));
        const status = page.getElementById("found").textContent;
        text.value = "no such text";
        text.dispatchEvent(new Event("input", { bubbles: true }));
        const background = frames[0].getComputedStyle(page.body).backgroundColor;
        document.title = [scrollWidth, scrollHeight, first, parseInt(status), shown(), background].join("|");
      };
    """
    frame = f'<iframe style="border: 0" width="{width}" height="2000" srcdoc="{source}"></iframe>'
    (tmp_path / "frame.html").write_text(
        f'<meta charset="utf-8"><body style="margin: 0">{frame}<script>{probe}</script>', encoding="utf-8"
    )
    backgrounds = set()
    for scheme in ("0", "1"):  # dark, light
        arguments = (f"--blink-settings=preferredColorScheme={scheme}", (tmp_path / "frame.html").as_uri())
        found = re.search(r"<title>(.*?)</title>", chromium("--dump-dom", *arguments))
        assert found is not None
        across, down, first, fixed, none, background = found[1].split("|")
        assert int(across) <= width
        assert int(down) > 2000
        assert int(first) == 20
        assert 0 < int(fixed) < SHOWN
        assert int(none) == 0
        backgrounds.add(background)
    assert len(backgrounds) == 2
    picture = tmp_path / "page.png"
    chromium(f"--window-size={max(width, 500)},2000", f"--screenshot={picture}", *arguments)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L").crop((0, 0, width, 2000)))
    assert pixels.std() > 10
    assert len(np.unique(pixels)) > 50
