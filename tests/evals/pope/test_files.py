"""POPE's figures and files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.pope import scores
from vlmfix.evals.pope.questions import asked_object
from vlmfix.evals.pope.score_command import as_json, score_files

from tests.support.paths import OFFICIAL
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.ratios import object_errors
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

DATA = OFFICIAL / "pope"
WORDS: dict[str, Verdict | None] = {"y": "yes", "n": "no", "u": None}


def test_figures_of_the_example() -> None:
    labels: list[Verdict] = ["yes", "no", "yes", "no", "yes", "no", "no", "yes"]
    score = scores.score([WORDS[letter] for letter in "yynnynny"], labels)
    assert (score.tp, score.fp, score.tn, score.fn) == (3, 1, 3, 1)
    figures = (score.accuracy, score.precision, score.recall, score.f1, score.yes_ratio)
    assert figures == (0.75, 0.75, 0.75, 0.75, 0.5)
    assert score.undefined == ()


def test_figures_of_forty_and_six() -> None:
    verdicts: list[Verdict | None] = ["yes"] * 46 + ["no"] * 54
    labels: list[Verdict] = ["yes"] * 40 + ["no"] * 6 + ["no"] * 44 + ["yes"] * 10
    score = scores.score(verdicts, labels)
    figures = (score.accuracy, score.precision, score.recall, score.f1, score.yes_ratio)
    assert [f"{figure:.6f}" for figure in figures] == [
        "0.840000",
        "0.869565",
        "0.800000",
        "0.833333",
        "0.460000",
    ]


def test_unparsed_answers_are_wrong_and_no_yes() -> None:
    verdicts: list[Verdict | None] = ["yes", None, None, "no"]
    labels: list[Verdict] = ["yes", "yes", "no", "no"]
    score = scores.score(verdicts, labels)
    assert (score.tp, score.fp, score.tn, score.fn, score.unparsed_yes, score.unparsed_no) == (
        1,
        0,
        1,
        0,
        1,
        1,
    )
    assert (score.accuracy, score.recall, score.yes_ratio, score.unparsed_share) == (0.5, 0.5, 0.25, 0.5)
    lenient = scores.score(verdicts, labels, parser="lmms_eval")
    assert (lenient.accuracy, lenient.recall, lenient.f1) == (0.5, 1.0, 1.0)


def test_zero_denominators_are_flagged() -> None:
    score = scores.score(["no", "no"], ["no", "no"])
    assert (score.accuracy, score.precision, score.recall, score.f1) == (1.0, 0.0, 0.0, 0.0)
    assert score.undefined == ("precision", "recall", "f1")


def test_official_counts_a_surplus_in_the_yes_ratio_only() -> None:
    score = scores.score(["yes", "no", "yes", "yes"], ["yes", "no"], parser="official")
    assert (score.paired, score.answers, score.accuracy, score.yes_ratio) == (2, 4, 1.0, 0.75)
    with pytest.raises(ValueError, match="2 verdicts for 1 labels"):
        scores.score(["yes", "no"], ["yes"])


def test_mean_of_splits_is_unweighted() -> None:
    score = scores.score(["yes"], ["yes"])
    splits = [dataclasses.replace(score, accuracy=accuracy) for accuracy in (0.87, 0.86, 0.84)]
    assert f"{scores.mean_of_splits(splits)['accuracy']:.8f}" == "0.85666667"
    with pytest.raises(ValueError, match="no splits"):
        scores.mean_of_splits([])


def test_objects() -> None:
    assert asked_object("Is there a dining table in the image?") == "dining table"
    assert asked_object("Is there an apple in the imange?") == "apple"
    assert asked_object("What is this?") is None
    errors = object_errors([("car", True), ("dog", False), ("car", False), ("dog", False)])
    assert list(errors.items()) == [("dog", (2, 2)), ("car", (1, 2))]


def file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a car in the image?", "label": "yes"},
    {"question_id": 4, "image": "b.jpg", "text": "Is there a bus in the image?", "label": "no"},
]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return file(tmp_path / "coco_pope_random.json", QUESTIONS)


def given(texts: list[str | None], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"answer": text, **{key: value[at] for key, value in fields.items()}} for at, text in enumerate(texts)
    ]


@pytest.mark.parametrize("key", ["answer", "prediction", "response", "output", "caption", "text"])
def test_answers_under_every_key(key: str, labels: Path, tmp_path: Path) -> None:
    answers = file(tmp_path / "answers.jsonl", [{key: "Yes"}, {key: "no"}, {key: "no"}, {key: "No"}])
    score = score_files([answers], [labels]).splits[0].scores["strict"]
    assert (score.tp, score.fp, score.tn, score.fn) == (1, 0, 2, 1)


@pytest.mark.parametrize("key", ["label", "answer", "gt"])
def test_labels_under_every_key_and_in_any_case(key: str, tmp_path: Path) -> None:
    target = file(tmp_path / "labels.json", [{key: "YES", "image_name": "x", "query": "Is it?"}, {key: "No"}])
    report = score_files([file(tmp_path / "answers", given(["yes", "no"]))], [target])
    assert report.splits[0].scores["strict"].accuracy == 1.0
    assert report.splits[0].counts["strict"]["rewritten_labels"] == 2
    assert "labels, paired by position: 2 labels not in lower case" in report.notes


def test_a_question_under_text_is_no_answer(labels: Path, tmp_path: Path) -> None:
    rows = [{**question, "output": "yes"} for question in QUESTIONS]
    report = score_files([file(tmp_path / "answers", rows)], [labels])
    assert report.splits[0].scores["strict"].yes_ratio == 1.0
    assert report.splits[0].counts["strict"]["disagreeing"] == 0


def test_two_possible_answers_must_be_chosen_between(labels: Path, tmp_path: Path) -> None:
    rows = [{"answer": "yes", "response": "no"}] * 4
    answers = file(tmp_path / "answers", rows)
    with pytest.raises(ValueError, match="line 1: 'answer' and 'response' could both be the answer"):
        score_files([answers], [labels])
    [split] = score_files([answers], [labels], keys=Keys(answer="response")).splits
    assert split.scores["strict"].yes_ratio == 0.0


def test_order_does_not_matter_with_ids_but_does_to_the_official_script(labels: Path, tmp_path: Path) -> None:
    rows = given(["no", "yes", "no", "yes"], question_id=["4", 3, 2, 1])
    report = score_files([file(tmp_path / "answers", rows)], [labels], ["strict", "official"])
    split = report.splits[0]
    assert split.scores["strict"].accuracy == 1.0
    assert split.scores["official"].accuracy == 0.0
    assert (split.counts["strict"]["pairing"], split.counts["strict"]["disagreeing"]) == ("id", 0)
    assert (split.counts["official"]["pairing"], split.counts["official"]["disagreeing"]) == ("position", 4)
    assert any("4 PAIRS WHOSE ID, QUESTION OR IMAGE DIFFER" in note for note in report.notes)
    assert any("differ by more than 0.5 points" in note for note in report.notes)
    by_id = score_files([tmp_path / "answers"], [labels], ["official"], pairing="id")
    assert by_id.splits[0].scores["official"].accuracy == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"question": ["Is there a dog in the image?", "Is there a cow in the image?"] + [None] * 2},
        {"image": ["val/a.png", "c.jpg", "b.jpg", "b.jpg"]},
    ],
)
def test_questions_and_images_at_a_position_are_compared(
    fields: dict[str, Any], labels: Path, tmp_path: Path
) -> None:
    answers = file(tmp_path / "answers", given(["yes"] * 4, **fields))
    assert score_files([answers], [labels]).splits[0].counts["strict"]["disagreeing"] == 1


@pytest.mark.parametrize(("rows", "wrong", "refused"), [(10, 1, False), (100, 2, False), (100, 3, True)])
def test_files_of_other_questions_are_refused(rows: int, wrong: int, refused: bool, tmp_path: Path) -> None:
    asked = [f"Is there a thing{row} in the image?" for row in range(rows)]
    labels = [
        {"question_id": row, "image": f"{row}.jpg", "text": text, "label": "yes"}
        for row, text in enumerate(asked)
    ]
    answers = [
        {
            "question_id": row,
            "question": "Is there a cow in the imange?" if row < wrong else text,
            "answer": "yes",
        }
        for row, text in enumerate(asked)
    ]
    files = [file(tmp_path / "answers", answers)], [file(tmp_path / "labels", labels)]
    for parser in list(PARSERS):
        if refused:
            with pytest.raises(
                ValueError, match=rf"do not belong together: {wrong} of {rows} pairs .*line 1"
            ):
                score_files(*files, [parser])
        else:
            assert score_files(*files, [parser]).splits[0].counts[parser]["disagreeing"] == wrong


def llava(tmp_path: Path) -> tuple[Path, Path, list[Path]]:
    """LLaVA's answer and question files of three splits, the answers being right; and POPE's labels."""
    answers, asked, labels = [], [], []
    for place, split in enumerate(("adversarial", "random", "popular")):
        rows = [
            {
                "question_id": 1,
                "image": "a_000000000042.jpg",
                "text": "Is there a dog in the image?",
                "label": "yes",
            },
            {
                "question_id": 2,
                "image": "a_000000000042.jpg",
                "text": f"Is there a {split} in the image?",
                "label": "no",
            },
        ]
        labels.append(file(tmp_path / f"coco_pope_{split}.json", rows))
        for row in rows:
            text = f"{row['text']}\nAnswer the question using a single word or phrase."
            id = place * 10_000_000 + int(row["question_id"])
            word = str(row["label"]).title()
            asked.append({"question_id": id, "image": row["image"], "text": text, "category": split})
            answers.append(
                {"question_id": id, "prompt": text, "text": word, "answer_id": "x", "metadata": {}}
            )
    return file(tmp_path / "answers", answers), file(tmp_path / "questions", asked), labels


@pytest.mark.parametrize("parser", list(PARSERS))
def test_the_one_file_of_llava_is_told_apart_by_its_ids(parser: str, tmp_path: Path) -> None:
    answers, questions, labels = llava(tmp_path)
    for given in ({}, {"questions": questions}, {"questions": questions, "pairing": "question"}):
        report = score_files([answers], labels, [parser], **given)
        assert [split.scores[parser].accuracy for split in report.splits] == [1.0] * 3
    alone = score_files([answers], labels[2:], [parser])  # the labels of one split
    assert (alone.splits[0].name, alone.splits[0].scores[parser].accuracy) == ("popular", 1.0)


def test_labels_and_questions_that_do_not_go_with_llavas_file(tmp_path: Path) -> None:
    answers, questions, labels = llava(tmp_path)
    other = labels[0].rename(tmp_path / "mine.json")
    with pytest.raises(
        ValueError, match=r"splits adversarial, random, popular, and the name of mine\.json ends"
    ):
        score_files([answers], [other])
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    with pytest.raises(ValueError, match="question id 20000002 is not in"):
        score_files([answers], labels[1:], questions=file(tmp_path / "fewer", rows[:-1]))
    rows[2]["category"] = "popular"
    with pytest.raises(ValueError, match=r'category of question id 10000001 is "popular", .* it is random'):
        score_files([answers], labels[1:], questions=file(tmp_path / "changed", rows))
    plain = file(tmp_path / "plain", given(["Yes", "No"], question_id=[1, 2]))
    with pytest.raises(ValueError, match="the answers are not LLaVA's one file"):
        score_files([plain], labels[1:2], questions=questions)


@pytest.mark.skipif(not DATA.exists(), reason="the official POPE files are not beside the checkout")
def test_public_answers_of_llava() -> None:
    """Excerpts of two ranges."""
    public = DATA.parent / "formats"
    answers, questions = public / "llava_pope_answers.jsonl", public / "llava_pope_questions.jsonl"
    labels = [DATA / f"coco_pope_{split}.json" for split in ("adversarial", "random")]
    for pairing in ("id", "question"):
        report = score_files([answers], labels, questions=questions, pairing=pairing, allow_partial=True)
        for split in report.splits:
            assert (split.scores["strict"].paired, split.counts["strict"]["disagreeing"]) == (12, 0)
    report = score_files([answers], labels, ["official"])
    assert [split.scores["official"].paired for split in report.splits] == [12, 12]


PAI = [
    {"query": f"Is there a {name} in the image?", "label": right, "ans": f"{word}, sure.", "file_path": "run"}
    for name, right, word in (("dog", 1, "Yes"), ("cat", 0, "No"), ("car", 1, "No"), ("bus", 0, "No"))
]


def test_a_log_with_its_labels_inside(labels: Path, tmp_path: Path) -> None:
    """That of PAI and PAINT: scored against labels, and against its own."""
    asked = [{**row, "question": f"USER: <ImageHere> {row['query']} ASSISTANT:"} for row in PAI]
    log = file(tmp_path / "log", asked)
    for right in (labels, log):
        split = score_files([log], [right]).splits[0]
        score = split.scores["strict"]
        assert (score.tp, score.fp, score.tn, score.fn) == (1, 0, 2, 1)
        assert (split.counts["strict"]["pairing"], split.counts["strict"]["disagreeing"]) == ("position", 0)
    turned = file(tmp_path / "turned", [{**row, "label": 1 - int(str(row["label"]))} for row in asked])
    with pytest.raises(ValueError, match=r"4 of 4 pairs by position .* have another label"):
        score_files([turned], [labels])


def test_samples_of_lmms_eval(labels: Path, tmp_path: Path) -> None:
    rows = [
        {
            "doc_id": place,
            "target": question["label"],
            "filtered_resps": ["Yes"] if place % 2 else "Yes",
            "input": f"{question['text']}\nAnswer the question using a single word or phrase.",
            "pope_accuracy": {"question_id": str(question["question_id"]), "score": 1.0, "prediction": "yes"},
        }
        for place, question in enumerate(reversed(QUESTIONS))
    ]
    split = score_files([file(tmp_path / "samples", rows)], [labels]).splits[0]
    assert (split.scores["strict"].accuracy, split.counts["strict"]["pairing"]) == (0.5, "id")
    assert split.counts["strict"]["disagreeing"] == 0


@pytest.mark.skipif(not DATA.exists(), reason="the official POPE files are not beside the checkout")
def test_a_public_log() -> None:
    log = DATA.parent / "formats" / "paint_pope_log.jsonl"
    split = score_files([log], [DATA / "coco_pope_random.json"], ["opera"], allow_partial=True).splits[0]
    assert (split.counts["opera"]["paired"], split.counts["opera"]["disagreeing"]) == (20, 0)


@pytest.mark.parametrize(
    ("given_answers", "pope", "kept", "corrected", "right"),
    [
        ("y n y y n y", (2, 2, 1, 1), (2, 1, 1, 1), (2, 1, 1, 1), 1),
        ("y y y y y y", (3, 3, 0, 0), (3, 2, 0, 0), (3, 2, 0, 0), 1),
    ],
)
def test_answers_under_corrected_labels(
    given_answers: str,
    pope: tuple[int, ...],
    kept: tuple[int, ...],
    corrected: tuple[int, ...],
    right: int,
    tmp_path: Path,
) -> None:
    def rows(labels: dict[int, str]) -> list[dict[str, Any]]:
        return [
            {
                "question_id": id,
                "image": f"{id}.jpg",
                "text": f"Is there a thing{id} in the image?",
                "label": word,
            }
            for id, word in labels.items()
        ]

    def cells(score: scores.Score) -> tuple[int, ...]:
        return score.tp, score.fp, score.tn, score.fn

    words = {"y": "yes", "n": "no"}
    asked = file(
        tmp_path / "coco_pope_random.json", rows({id: words["yn"[(id + 1) % 2]] for id in range(1, 7)})
    )
    turned = rows({1: "yes", 2: "no", 3: "no", 5: "yes", 6: "yes"})
    file(tmp_path / "coco_repope_random.json", turned)
    said = [words[letter] for letter in given_answers.split()]
    answers = file(tmp_path / "answers", given(said, question_id=list(range(1, 7))))
    for parser in list(PARSERS):
        report = score_files([answers], [asked], [parser], repope=tmp_path)
        [found] = report.corrected
        assert cells(report.splits[0].scores[parser]) == pope
        assert (cells(found.kept[parser]), cells(found.scores[parser])) == (kept, corrected)
        assert (found.rows, found.turned, found.turned_right[parser], found.yes_share) == (5, 2, right, 0.6)
        assert json.dumps(as_json(report))
    turned[0]["text"] = "Is there a cow in the image?"
    file(tmp_path / "coco_repope_random.json", turned)
    with pytest.raises(ValueError, match=r"asks something else than .* under 1 question ids \(1\)"):
        score_files([answers], [asked], repope=tmp_path)
    with pytest.raises(FileNotFoundError, match="coco_repope_random"):
        score_files([answers], [asked], repope=tmp_path / "none")


def test_what_has_no_partner(labels: Path, tmp_path: Path) -> None:
    rows = given(["yes", "no", "yes", "no", "yes"], question_id=[1, 2, 2, 9, 4])
    answers = file(tmp_path / "answers", rows)
    with pytest.raises(ValueError, match="1 labels without an answer") as caught:
        score_files([answers], [labels])
    for part in (
        "(3)",
        "1 answers with an unknown id (9)",
        "1 answers with a repeated id (2)",
        "--allow-partial",
    ):
        assert part in str(caught.value)
    split = score_files([answers], [labels], allow_partial=True).splits[0]
    names = ("paired", "missing", "unknown", "duplicates", "surplus")
    assert [split.counts["strict"][name] for name in names] == [3, 1, 1, 1, 0]
    score = split.scores["strict"]
    assert (score.tp, score.fp, score.tn, score.fn, score.answers) == (1, 1, 1, 0, 3)


def test_lists_of_different_length(labels: Path, tmp_path: Path) -> None:
    answers = file(tmp_path / "answers", given(["yes", "no", "yes", "no", "Yes."]))
    with pytest.raises(ValueError, match="5 answers for 4 labels, paired by position"):
        score_files([answers], [labels])
    score = score_files([answers], [labels], ["official"]).splits[0].scores["official"]
    assert (score.paired, score.answers, score.accuracy, score.yes_ratio) == (4, 5, 1.0, 0.6)
    split = score_files([answers], [labels], allow_partial=True).splits[0]
    assert (split.scores["strict"].answers, split.counts["strict"]["surplus"]) == (4, 1)
    short = score_files([file(tmp_path / "short", given(["yes"]))], [labels], ["official"]).splits[0]
    assert (short.counts["official"]["missing"], short.scores["official"].paired) == (3, 1)


def test_null_answers_are_missing_and_empty_ones_are_scored(labels: Path, tmp_path: Path) -> None:
    answers = file(tmp_path / "answers", given([None, "no", "yes", ""]))
    for parser in list(PARSERS):
        with pytest.raises(ValueError, match=r"1 null answers \(.*line 1\); complete the file"):
            score_files([answers], [labels], [parser])
    report = score_files([answers], [labels], list(PARSERS), allow_partial=True)
    for name in list(PARSERS):
        assert report.splits[0].scores[name].paired == 3
        assert report.splits[0].counts[name]["null_answers"] == 1
        assert report.splits[0].counts[name]["empty_answers"] == 1
    assert report.splits[0].scores["strict"].unparsed_no == 1
    assert any("1 null answers left out" in note for note in report.notes)


def test_splits_mean_and_all_rows(labels: Path, tmp_path: Path) -> None:
    other = [*QUESTIONS[:1], {**QUESTIONS[1], "text": "Is there a cow in the image?"}]
    second = file(tmp_path / "second.json", other)
    answers = (
        file(tmp_path / "answers", given(["yes", "no", "no", "no"])),
        file(tmp_path / "more", given(["yes", "yes"])),
    )
    report = score_files(answers, [labels, second], ["vlmevalkit"])
    assert [split.name for split in report.splits] == ["random", "second"]
    assert report.mean["vlmevalkit"]["accuracy"] == (0.75 + 0.5) / 2
    assert report.pooled["vlmevalkit"].accuracy == 4 / 6
    document = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert document["splits"][1]["objects"]["vlmevalkit"]["cow"] == {"wrong": 1, "asked": 1}
    assert document["splits"][0]["samples"]["vlmevalkit"][2]["verdict"] == "no"


def test_one_answer_file_a_label_file(labels: Path, tmp_path: Path) -> None:
    answers = file(tmp_path / "answers", given(["yes"] * 4))
    with pytest.raises(ValueError, match="2 --answers for 1 --labels"):
        score_files([answers, answers], [labels])
    with pytest.raises(ValueError, match="no files to score"):
        score_files([], [])
    with pytest.raises(ValueError, match="unknown pairing 'name'"):
        score_files([answers], [labels], pairing="name")


def test_ids_on_some_answers_only(labels: Path, tmp_path: Path) -> None:
    rows = given(["yes", "no", "yes", "no"])
    rows[0]["question_id"] = 1
    with pytest.raises(ValueError, match="line 2: no question id, though 1 other answers have one"):
        score_files([file(tmp_path / "answers", rows)], [labels])
    with pytest.raises(ValueError, match="line 2: no question id to join by"):
        score_files([tmp_path / "answers"], [labels], pairing="id")


@pytest.mark.skipif(not DATA.exists(), reason="the official POPE files are not beside the checkout")
def test_official_files(tmp_path: Path) -> None:
    splits = [DATA / f"coco_pope_{name}.json" for name in ("random", "popular", "adversarial")]
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in splits]
    answers = [
        file(
            tmp_path / path.stem, [{"question": row["text"], "answer": row["label"].title()} for row in each]
        )
        for path, each in zip(splits, rows, strict=True)
    ]
    report = score_files(answers, splits, list(PARSERS))
    for split in report.splits:
        assert (split.data["rows"], split.data["images"], split.data["yes_share"]) == (3000, 500, 0.5)
        assert all(score.accuracy == 1.0 and score.unparsed_share == 0 for score in split.scores.values())
        assert split.counts["strict"]["disagreeing"] == 0
    assert report.pooled["vlmevalkit"].paired == 9000
    assert as_json(report)["splits"][1]["objects"]["strict"]["car"]["asked"] >= 410
