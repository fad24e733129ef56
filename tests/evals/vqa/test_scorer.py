"""VQA accuracy: normal forms, modes, leaving one out, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.vqa import scorer
from vlmfix.evals.vqa.normalize import CONTRACTIONS, normalized
from vlmfix.evals.vqa.score_command import as_json, score_files

from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.files.pairs import UNCHECKED


def ten(first: str, count: int, second: str = "") -> list[str]:
    return [first] * count + [second] * (10 - count)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Cat", ten("cat", 10), (0, 1, 1)),
        ("Stop.", ten("Stop.", 10), (1, 1, 1)),
        ("stop", ten("Stop.", 10), (0, 1, 1)),
        ("Cat.", ten("cat", 9, "kitten"), (1, 1, 1)),
        ("bus", ten("bus", 0, "van"), (0, 0, 0)),
        ("bus", ten("bus", 1, "van"), (0.3, 0.3, 0.3)),
        ("bus", ten("bus", 2, "van"), (0.6, 0.6, 0.6)),
        ("bus", ten("bus", 3, "van"), (0.9, 0.9, 0.9)),
        ("bus", ten("bus", 4, "van"), (1, 1, 1)),
        ("four", ten("4", 6, "5"), (1, 1, 1)),
        ("eleven", ten("11", 6, "12"), (0, 0, 0)),
        ("A", ten("a", 6, "b"), (1, 1, 1)),
        ("555 1234", ten("555-1234", 6, "none"), (1, 1, 1)),
        ("2500 wh", ten("2,500 w/h", 6, "x"), (1, 1, 0)),
        ("isnt", ten("isn't", 6, "no"), (1, 1, 1)),
        ("red blue", ten("red ; blue", 6, "red"), (1, 1, 1)),
        ("usa", ten("u.s.a", 6, "x"), (1, 1, 1)),
        ("12", ten("12.", 6, "13"), (1, 1, 1)),
        ("hot dog", ten("hot\tdog", 6, "dog"), (1, 1, 1)),
        ("", ten("red", 6, "blue"), (0, 0, 0)),
        ("." * 40 + "x", ten("x", 6, "y"), (0, 1, 0)),
    ],
)
def test_modes(prediction: str, answers: list[str], expected: tuple[float, ...]) -> None:
    found = [scorer.accuracy(prediction, answers, mode) for mode in scorer.OF_PEOPLE]
    assert found == pytest.approx(list(expected), abs=1e-12)
    assert scorer.accuracy(prediction, answers) == found[1]
    assert scorer.accuracy(prediction, answers, "evalai") == found[2]


def test_eight_answers_and_three_hits() -> None:
    answers = ["red"] * 3 + ["blue"] * 5
    assert scorer.accuracy("red", answers) == 0.875
    assert scorer.accuracy("red", answers, "official") == 0.875
    with pytest.raises(ValueError, match="8 answers; the variant m4c needs ten"):
        scorer.accuracy("red", answers, "m4c")


def test_leaving_out_equal_fields() -> None:
    answers: list[dict[str, Any]] = [{"answer": answer} for answer in ["a cat"] * 5 + list("vwxyz")]
    assert scorer.accuracy("cat", answers, "official") == 1.0
    assert scorer.accuracy("cat", answers, "official", leave_one_out="dict") == 0.5
    numbered = [{**each, "answer_id": number} for number, each in enumerate(answers)]
    assert scorer.accuracy("cat", numbered, "official", leave_one_out="dict") == 1.0
    assert scorer.accuracy("cat", [each["answer"] for each in answers], leave_one_out="dict") == 0.5


def test_annotations_stay_as_they_are() -> None:
    answers: list[dict[str, Any]] = [{"answer": "A  Cat."}] * 5 + [{"answer": "two\n"}] * 5
    before = json.dumps(answers)
    scorer.accuracy("cat", answers, "official", leave_one_out="dict")
    assert json.dumps(answers) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("x", ["x"], "offical"),
            "unknown variant 'offical'; choose from official, always, m4c, gqa, evalai",
        ),
        (("x", []), "no answers to compare with"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer.accuracy(*arguments)


def test_unknown_way_to_leave_one_out() -> None:
    with pytest.raises(ValueError, match="unknown leave_one_out 'ids'; choose from position, dict"):
        scorer.accuracy("x", ["x"], leave_one_out="ids")


def test_contractions() -> None:
    assert len(CONTRACTIONS) == 120
    assert normalized("Dont couldntve couldn'tve couldnt've") == "don't couldntve couldn't've couldn't've"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("let's", "let's"),
        ("somebody'd", "somebodyd"),
        ("yall'd've", "y'all'd've"),
        ("ows'at", "ows'at"),
        ("ow's'at", "'ow's'at"),
        ("Im", "im"),
        ("The None of an Ten", "0 of 10"),
        ("3.5 kg.", "3.5 kg"),
        ("1:30", "1:30"),
        ("a-b", "b"),
        ("left/right", "left right"),
        ("left / right", "left right"),
        ("1,000-2,000", "10002000"),
        ("x, y", "x y"),
        ("x,y", "x y"),
    ],
)
def test_normal_forms(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_groups_round_like_the_official_script() -> None:
    judged = [
        scorer.Judged(number, kind, "other", "x", accuracy)
        for number, (kind, accuracy) in enumerate([("what", 1.0), ("what", 1.0), ("how", 0.3)])
    ]
    score = scorer.score(judged)
    assert (score.overall.questions, score.overall.rounded) == (3, 76.67)
    assert score.overall.accuracy == pytest.approx(2.3 / 3)
    assert {name: each.rounded for name, each in score.question_types.items()} == {"how": 30.0, "what": 100.0}
    assert list(score.answer_types) == ["other"]
    assert scorer.score([]).overall.undefined


def saved(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def annotation(question_id: int, answers: list[Any], **fields: Any) -> dict[str, Any]:
    return {"question_id": question_id, "image_id": 1, "answers": answers, **fields}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    people = [{"answer": "cat", "answer_id": number, "answer_confidence": "yes"} for number in range(10)]
    rows = [
        annotation(1, people, question_type="what", answer_type="other"),
        annotation(2, people, question_type="is", answer_type="yes/no"),
    ]
    return saved(tmp_path / "annotations.json", {"info": {}, "annotations": rows})


def test_files(annotations: Path, tmp_path: Path) -> None:
    questions = saved(
        tmp_path / "questions.json", {"questions": [{"question_id": number} for number in (1, 2, 3)]}
    )
    results = saved(
        tmp_path / "results.json", [{"question_id": 2, "answer": "dog"}, {"question_id": 1, "answer": "cat"}]
    )
    report = score_files(results, annotations, questions, mode="official")
    assert report.score.overall.rounded == 50.0
    assert {name: each.rounded for name, each in report.score.answer_types.items()} == {
        "other": 100.0,
        "yes/no": 0.0,
    }
    assert (report.share_answered, report.mean_words) == (1.0, 1.0)
    document = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert [each["rounded"] for each in document["questions"]] == [100.0, 0.0]


def test_a_part_of_the_questions(annotations: Path, tmp_path: Path) -> None:
    results = saved(tmp_path / "results.json", [{"question_id": "1", "answer": "Cat"}])
    report = score_files(results, annotations)
    assert (report.score.overall.accuracy, report.share_answered, report.counts["missing"]) == (1.0, 0.5, 1)
    assert report.notes == [
        "read as: results of VQA; answer from 'answer', joined by question_id",
        UNCHECKED,
        "1 questions without an answer, left out",
    ]
    with pytest.raises(
        ValueError, match=r"questions without an answer, which the variant official wants.*: 1 \(2\)"
    ):
        score_files(results, annotations, mode="official")


def test_odd_answers_are_counted(tmp_path: Path) -> None:
    target = saved(
        tmp_path / "target.json", {"data": [annotation(number, ["2"] * 10) for number in range(4)]}
    )
    rows = [{"question_id": number, "answer": answer} for number, answer in enumerate([None, 2, "", 2.0])]
    report = score_files(saved(tmp_path / "results.json", rows), target)
    assert [each.accuracy for each in report.judged] == [1, 0, 0]
    assert [report.counts[name] for name in ("missing", "null_answers", "empty_answers")] == [1, 1, 1]
    assert "2 answers that are numbers, read as texts" in report.notes
    with pytest.raises(ValueError, match=r"which the variant official wants.*: 1 \(0\)"):
        score_files(tmp_path / "results.json", target, mode="official")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question_id": 1, "answer": "x"}, {"question_id": "1", "answer": "y"}],
            r"different answers to the same question ids: 1 \(1\)",
        ),
        ([{"question_id": 7, "answer": "x"}], r"answers to questions that .* lacks: 1 \(7\)"),
        (
            [{"question_id": 1, "answer": ["x", "y"]}],
            r"record 1: the answer is a list of 2 texts; choose one with --sample",
        ),
        ([{"question_id": 1, "answer": True}], "record 1: the answer is true"),
        ([{"question_id": 1}], "record 1: no answer; expected the key 'answer'"),
        ([{"answer": "x"}], "record 1: no question id; expected the key 'question_id'"),
        ([{"question_id": None, "answer": "x"}], "record 1: the question id is null"),
    ],
)
def test_results_that_do_not_fit(
    rows: list[dict[str, Any]], message: str, annotations: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        score_files(saved(tmp_path / "results.json", rows), annotations)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, "no list of people's answers"),
        ({"answers": []}, "no question id; expected the key 'question_id'"),
        (annotation(1, []), "no answers to compare with"),
        ({"question_id": 1, "answers": "cat"}, "'answers' is \"cat\"; it must be a list"),
        (annotation(1, [{"text": "cat"}]), "one of 'answers' is"),
        (annotation(1, [None]), "one of 'answers' is null"),
    ],
)
def test_annotations_that_do_not_fit(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    results = saved(tmp_path / "results.json", [{"question_id": 1, "answer": "x"}])
    with pytest.raises(ValueError, match=message):
        score_files(results, saved(tmp_path / "target.json", [row]))


def test_questions_must_have_the_ids(annotations: Path, tmp_path: Path) -> None:
    results = saved(tmp_path / "results.json", [{"question_id": 1, "answer": "x"}])
    questions = saved(tmp_path / "questions.json", {"questions": [{"question_id": 1}]})
    with pytest.raises(ValueError, match=r"annotations.json: questions that .* lacks: 1 \(2\)"):
        score_files(results, annotations, questions)


def test_images_as_ids(tmp_path: Path) -> None:
    target = saved(
        tmp_path / "target.json", [{"image": "VizWiz_val_00000000.jpg", "answers": [{"answer": "tea"}] * 10}]
    )
    results = saved(tmp_path / "results.json", [{"image": "VizWiz_val_00000000.jpg", "answer": "Tea"}])
    assert score_files(results, target).score.overall.accuracy == 1.0


def test_samples_of_lmms_eval(annotations: Path, tmp_path: Path) -> None:
    """With ids in the submission; and with running numbers only, which an index turns into ids."""
    sample = {
        "doc_id": 0,
        "target": "cat",
        "filtered_resps": "Cat",
        "input": "What is it?\nAnswer in a word.",
    }
    named = [{**sample, "submission": {"question_id": 1, "answer": "cat"}}]
    report = score_files(saved(tmp_path / "named.json", named), annotations)
    assert (report.score.overall.accuracy, report.judged[0].answer) == (1.0, "Cat")
    numbered = saved(tmp_path / "numbered.json", [{**sample, "exact_match": 1.0}])
    with pytest.raises(
        ValueError, match="record 1: no question id, and 0 only counts the rows of a run; say"
    ):
        score_files(numbered, annotations)
    index = saved(tmp_path / "index.json", [{"doc_id": 0, "question_id": 1, "question": "What is it?"}])
    report = score_files(numbered, annotations, index=index)
    assert report.score.overall.accuracy == 1.0
    assert "joined by the numbers in index.json" in report.notes[0]
    assert UNCHECKED not in report.notes


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    ids = range(10)
    target = saved(tmp_path / "target.json", [annotation(id, ["cat"] * 10) for id in ids])
    questions = saved(
        tmp_path / "questions.json", [{"question_id": id, "question": f"What is {id}?"} for id in ids]
    )
    for wrong in (0, 1, 2):
        rows = [
            {"question_id": id, "question": "Why?" if id < wrong else f"What is {id}?", "answer": "Cat"}
            for id in ids
        ]
        results = saved(tmp_path / "results.json", rows)
        if wrong < 2:
            assert UNCHECKED not in score_files(results, target, questions).notes
        else:
            with pytest.raises(
                ValueError,
                match=r"2 of 10 answers have another question than .*questions.json \(record 1, record 2\)",
            ):
                score_files(results, target, questions)


def test_submissions_that_are_normalised_already_are_told(tmp_path: Path) -> None:
    target = saved(tmp_path / "target.json", [annotation(id, ["cat"] * 10) for id in range(20)])
    for last, told in (("cat", True), ("Cat", False)):
        rows = [{"question_id": id, "answer": last if id == 19 else "cat"} for id in range(20)]
        notes = score_files(saved(tmp_path / "results.json", rows), target).notes
        assert any("every answer is normalised already" in note for note in notes) == told


def test_keys_of_results_and_annotations(tmp_path: Path) -> None:
    target = saved(tmp_path / "target.json", [{"nr": 1, "people": [{"answer": "cat"}] * 10}])
    results = saved(tmp_path / "results.json", [{"nr": 1, "said": "Cat", "answer": "dog"}])
    report = score_files(results, target, keys=Keys("said", "nr", "people"))
    assert report.score.overall.accuracy == 1.0
    with pytest.raises(ValueError, match="no list of people's answers; expected the key 'persons'"):
        score_files(results, target, keys=Keys("said", "nr", "persons"))
    twice = saved(tmp_path / "results.json", [{"nr": 1, "said": "Cat"}] * 2)
    assert score_files(twice, target, keys=Keys("said", "nr", "people")).counts["repeated"] == 1


@pytest.mark.parametrize(
    ("prediction", "expected"), [("Yes.", 1), (" yes ", 1), ("yes, it is", 0), ("yes..", 0), ("", 0)]
)
def test_one_answer_must_be_the_same(prediction: str, expected: float) -> None:
    assert scorer.accuracy(prediction, ["yes"], "gqa") == expected


def test_one_answer_is_one() -> None:
    with pytest.raises(ValueError, match="2 answers; the variant gqa needs one"):
        scorer.accuracy("yes", ["yes", "no"], "gqa")
