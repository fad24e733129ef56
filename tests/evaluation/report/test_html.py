"""The HTML report: complete, harmless whatever models say, and readable in a browser without a network."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import outcomes
from tests.support.reports import Page
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.disagreements import (
    LONGEST_SIDE,
    disagreements,
    shared_failures,
    thumbnail,
)
from vlmfix.evaluation.report.html import SHARED, SHOWN, write_report
from vlmfix.evaluation.report.provenance import run_provenance, task_facts, unlike

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
    return outcomes.two_tasks(pictures)


def test_everything_is_on_the_page(tmp_path: Path, pictures: list[Path]) -> None:
    page = Page(written(tmp_path, *run_of(pictures), title="Two tasks", caveats=["Synthetic scenes."]))
    for text in (
        "Two tasks",
        "Synthetic scenes.",
        "vhr never acted",
        "llava-1.5-7b",
        "sha256:aaaaaaaaaaaa ",
        "bfloat16",
        "sdpa (text)",
        "NVIDIA H100",
        "vlmfix 0.1.0, torch 2.9.0, transformers 5.23.0",
        "2025-11-21T09:12:00Z",
        "720 samples about 40 images · greedy, at most 16 new tokens · scored by strict",
        "40 of 500 images, 720 samples",
        "questions: rows 3000, sha256 bbbbbbbbbbbb ",
        "pope.llava/synthetic",
        "accuracy, %",
        "AUC, %",
        "lower is better",
        "value with its 95 % interval, clustered by image",
        "10,000 bootstrap resamples of images",
        "McNemar, all",
        "1 of 720 samples failed (1 OSError)",
        "Two parsers differ by more than 0.5 points",
        "the same answers under all parsers",
        "By group: random, popular, adversarial",
        "recall against false-yes rate; the upper left is best",
        "calibration of yes, in 10 bins",
        "wrong answers by object",
        "answers and costs",
        "(\N{MULTIPLICATION SIGN}1.18)",
        "15.2 GiB",
        "calibration error, %",
        "site share",
        "Samples on which methods disagree",
        "Samples that no method has right",
        "Samples without an answer",
        "pope/random/0000/3",
        '"moved_fraction": 0.4',
        "USER: Is there a dog?",
    ):
        assert text in page.text, text
    assert page.tags["caption"] == page.tags["table"] > 10
    assert page.tags["svg"] == len(page.all("div", role="img")) == 3
    assert all(image["alt"] for image in page.all("img"))
    assert all(each["aria-label"] for each in page.all("div", role="img"))
    assert len({each["id"] for _, each in page.elements if "id" in each}) == sum(
        "id" in each for _, each in page.elements
    )
    assert page.all("meta", name="viewport")


def test_said_once(tmp_path: Path, pictures: list[Path]) -> None:
    page = Page(written(tmp_path, *run_of(pictures)))
    for text in (
        "clustered by image",
        "bootstrap resamples",
        "swap test agree",
        "against the first",
        "15.2 GiB",
    ):
        assert page.text.count(text) <= (3 if text == "15.2 GiB" else 1), text  # three methods
    assert "not corrected" not in page.text
    plain = Page(written(tmp_path, outcomes.captions()))
    for text in ("swap test", "AUC", "baseline", "reference on the same samples"):
        assert text not in plain.text, text


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
    assert task_facts([outcome])[1].startswith(text)
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
    assert not re.search(r"url\((?!#)|@import|https?://", source)
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
    listed = Page(source).all("li", **{"data-task": "0"})
    assert sum("data-changes" in each for each in listed) == SHOWN
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


def test_samples_that_no_method_has_right() -> None:
    first = outcomes.yes_no(splits=["random"])
    [comparison] = compare([first, outcomes.yes_no("x", splits=["random"], yes_bias=0.6)])
    found = shared_failures(comparison)
    rows = [row.outcome.samples for row in comparison.rows]
    wrong = {before.id for before, after in zip(*rows, strict=True) if not (before.score or after.score)}
    assert {each.sample.id for each in found} == wrong
    assert 0 < len(wrong) < sum(not sample.score for sample in first.samples)
    assert [methods for methods, _ in found[0].answers] == [["greedy", "x"]]
    [alone] = compare([first])
    assert shared_failures(alone) == []


def test_samples_with_a_part_right_come_later_and_failed_ones_never() -> None:
    first = outcomes.captions(images=4)
    scores = (0.5, 0.0, 0.25, 1.0)
    samples = [
        dataclasses.replace(sample, score=score) for sample, score in zip(first.samples, scores, strict=True)
    ]
    lost = [dataclasses.replace(samples[0], verdict="other"), samples[1], *samples[2:]]
    before = dataclasses.replace(first, samples=samples)
    [comparison] = compare([before, dataclasses.replace(first, method="x", samples=lost)])
    found = shared_failures(comparison)
    assert [each.sample.score for each in found] == [0.0, 0.25, 0.5]
    assert [methods for methods, _ in found[-1].answers] == [["greedy"], ["x"]]
    lost[1] = dataclasses.replace(samples[1], score=None)
    [comparison] = compare([before, dataclasses.replace(first, method="x", samples=lost)])
    assert [each.sample.score for each in shared_failures(comparison)] == [0.25, 0.5]


def test_shared_failures_are_shown_with_pictures(tmp_path: Path, pictures: list[Path]) -> None:
    several = (
        outcomes.yes_no(images=60, pictures=pictures, yes_bias=0.9),
        outcomes.yes_no("x", images=60, pictures=pictures, yes_bias=0.9),
    )
    page = Page(written(tmp_path, *several))
    assert f"pope: showing {SHARED} of " in page.text
    assert not page.all("section", id="samples")
    assert len(page.all("li", **{"data-task": "0"})) == SHARED
    assert len(page.all("img")) > SHARED / 2
    assert "every method Yes." in page.text


def test_details_that_methods_share_are_written_once(tmp_path: Path) -> None:
    assert unlike({"a": {"b": 1, "c": 2}, "d": [3], "e": 4}, {"a": {"b": 1, "c": 5}, "e": 4}) == {
        "a": {"c": 2},
        "d": [3],
    }
    source = written(tmp_path, *outcomes.two_tasks())
    assert source.count(64 * "b") == 2  # once a task


def test_parts_of_the_images_are_named(tmp_path: Path) -> None:
    part = outcomes.captions(images=10, subset="10 of 500 images, 10 samples")
    page = Page(written(tmp_path, part, dataclasses.replace(part, method="x")))
    assert page.text.count("10 of 500 images, 10 samples") == 1
    whole = outcomes.captions("x", images=20)
    page = Page(written(tmp_path, part, whole))
    assert "x not paired all images" in page.text
    assert "only one of the two has 10 of the samples" in page.text
