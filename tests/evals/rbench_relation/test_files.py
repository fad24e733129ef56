"""Files of answers scored with R-Bench's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.rbench_relation.score_command import score_file

from tests.support import jobs
from vlmfix.evaluation.files.answers import Keys

TEXTS = [f"Is there a man on horse {number} in the image?" for number in range(10)]
LABELS = ["yes", "no"] * 5


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten questions about five pictures, and five lists of four questions each."""
    folder = tmp_path / "rbench"
    (folder / "lists").mkdir(parents=True)
    rows = [
        {"question_id": number, "image": f"{number // 2}.jpg", "text": text, "label": label}
        for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    (folder / "image-level_filterd.json").write_text(json.dumps(rows), encoding="utf-8")
    for number in range(1, 6):
        ids = list(range(number - 1, number + 3))
        path = folder / "lists" / f"nocaps_image-level_rel_ids_{number}.json"
        path.write_text(json.dumps(ids), encoding="utf-8")
    return folder


def answers(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"question_id": number, "prompt": TEXTS[number], "text": text, "answer_id": "x", "model_id": "m"}
        for number, text in enumerate(texts)
    ]


RIGHT = answers(["Yes" if label == "yes" else "No" for label in LABELS])
YES = answers(["Yes."] * 10)


def scored(data: Path, rows: list[dict[str, Any]], variant: str = "all", **options: Any) -> dict[str, Any]:
    path = data.parent / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = score_file(path, data, "image", variant=variant, parsers=["official"], keys=Keys(), **options)
    return dict(found.document)


def value(document: dict[str, Any], name: str) -> float:
    [found] = [each for each in document["tasks"][0]["methods"][0]["metrics"] if each["name"] == name]
    return float(found["value"])


def test_every_question_once(data: Path) -> None:
    document = scored(data, YES)
    assert [value(document, name) for name in ("accuracy", "precision", "recall")] == [0.5, 0.5, 1]
    assert len(document["samples"]) == 10
    assert document["notes"] == []
    assert set(document["files"]) == {"answers", "answers_sha256", "image-level_filterd.json"}
    assert value(scored(data, RIGHT), "accuracy") == 1


def test_the_mean_over_five_lists(data: Path) -> None:
    document = scored(data, YES, "official")
    assert len(document["subsets"]) == 5
    assert document["mean"]["accuracy"] == 0.5
    assert f"{document['mean']['precision']:.6f}" == "0.499999"  # 2 / 4.00001
    assert len(document["files"]) == 8


def test_lists_need_answers(data: Path) -> None:
    covering = RIGHT[:8]  # the lists end at question 7
    assert scored(data, covering, "official")["mean"]["accuracy"] == 1
    with pytest.raises(ValueError, match=r"1 questions without an answer \(7\)"):
        scored(data, RIGHT[:7], "official")
    assert scored(data, RIGHT[:7], "official", partial=True)["mean"]["accuracy"] == 1
    with pytest.raises(ValueError, match="no question of list 4 of 5 is answered"):
        scored(data, RIGHT[:3], "official", partial=True)


def test_lists_of_other_questions(data: Path) -> None:
    path = data / "lists" / "nocaps_image-level_rel_ids_3.json"
    path.write_text("[99]")
    with pytest.raises(ValueError, match=r"1 ids of the five lists are of no question \(99\)"):
        scored(data, RIGHT, "official")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"ids_3.json: {} is no list of ids"):
        scored(data, RIGHT, "official")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"_ids_3.json"):
        scored(data, RIGHT, "official")


def test_answers_to_other_questions_are_refused(data: Path) -> None:
    shifted = [row | {"prompt": TEXTS[(number + 1) % 10]} for number, row in enumerate(RIGHT)]
    with pytest.raises(ValueError, match="10 of 10 answers are to other questions, such as"):
        scored(data, shifted)
    marked = [row | {"prompt": row["prompt"].replace(" on", " in red bounding box on")} for row in RIGHT]
    assert value(scored(data, marked), "accuracy") == 1
    bare = [{"question_id": row["question_id"], "text": row["text"]} for row in RIGHT]
    assert scored(data, bare)["notes"] == [
        "the answers do not tell their questions: nothing but their ids says that they belong here"
    ]


def test_ids_that_do_not_fit(data: Path) -> None:
    with pytest.raises(ValueError, match=r"1 questions without an answer \(9\); 1 answers with an unknown"):
        scored(data, [*RIGHT[:9], RIGHT[9] | {"question_id": 77}])
    with pytest.raises(ValueError, match="no question_id to join by"):
        scored(data, [{"text": "Yes", "prompt": "?"}])


def test_the_command(data: Path) -> None:
    scored(data, YES)
    command = ("score", "rbench_relation", "--answers", data.parent / "answers.jsonl", "--data", data)
    for variant, expected in (("all", "accuracy, % │ 50.0"), ("official", "mean │ 50.00")):
        result = jobs.cli(*command, "--level", "image", "--variant", variant)
        assert result.exit_code == 0, result.output
        assert expected in " ".join(result.stdout.split())
    assert "unknown level 'x'" in jobs.refused(*command, "--level", "x")
    assert "unknown variant 'x'" in jobs.refused(*command, "--level", "web", "--variant", "x")
    assert "leave --parser out" in jobs.refused(
        *command, "--level", "image", "--variant", "official", "--parser", "strict"
    )
    assert "has no instance-level_filterd.json" in jobs.refused(*command, "--level", "instance")
