"""`vlmfix score humblebench`: answers with their questions or beside the data, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.humblebench.score_command import score_files

from tests.support import jobs
from tests.support.humblebench import VECTOR, rows, without_answer

TEXTS = [text for _, text in VECTOR]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in content), encoding="utf-8")
    return path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write(tmp_path / "answers.jsonl", rows(prediction=TEXTS))


@pytest.fixture
def e_answers(tmp_path: Path) -> Path:
    return write(tmp_path / "e.jsonl", [without_answer(each) for each in rows(prediction=TEXTS)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "HumbleBench.jsonl", rows())


def values(document: Any, parser: str) -> dict[str, float]:
    metrics = document["tasks"][0]["methods"][0]["parsers"][parser]
    return {each["name"]: each["value"] for each in metrics if not each["group"]}


def test_both_parsers_on_a_file_with_its_questions(answers: Path) -> None:
    found = score_files(answers)
    official = values(found.document, "letter_set")
    expected = {"acc": 0.75, "e_recall": 1.0, "e_precision": 0.75, "false_e": 0.2, "raw E accuracy": 0.333333}
    assert {name: official[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    first = values(found.document, "letter_first")
    assert (first["acc"], first["share_NA"]) == (0.75, 0.0)  # "A cat": the text of option A
    assert "raw E accuracy" not in first
    assert found.document["tasks"][0]["protocol"] == "humblebench.humble/custom"
    assert found.tables[0].title == "humblebench.humble by letter_first, with 95 % intervals"
    [note] = found.notes
    assert "8 questions of the 22,831 published" in note


def test_beside_the_data(answers: Path, data: Path, tmp_path: Path) -> None:
    bare = [{"question_id": at, "response": text} for at, text in enumerate(TEXTS)]
    found = score_files(write(tmp_path / "bare.jsonl", bare), data.parent)
    assert values(found.document, "letter_set") == values(score_files(answers).document, "letter_set")
    assert found.notes[0] == "pairing unchecked: the answers carry neither question nor label"
    assert score_files(answers, data).document["tasks"] == found.document["tasks"]


def test_without_right_options(answers: Path, e_answers: Path, data: Path) -> None:
    found = score_files(e_answers, variant="humble_e")
    assert found.document["tasks"][0]["protocol"] == "humblebench.humble_e/custom"
    assert values(found.document, "letter_set")["acc"] == 0.5
    assert found.notes[-1].startswith("always E has 100 %: read it beside acc and false_e of humble")
    assert score_files(e_answers, data, variant="humble_e").document["tasks"] == found.document["tasks"]
    both = score_files(e_answers, variant="humble_e", humble=answers)
    assert values(both.document["humble"], "letter_set")["false_e"] == pytest.approx(0.2)
    assert len(both.tables) > len(found.tables)
    assert not any("always E" in note for note in both.notes)


def test_noise(answers: Path) -> None:
    found = score_files(answers, variant="humble_gn")
    assert found.document["tasks"][0]["methods"][0]["metrics"][0]["name"] == "share_E"


@pytest.mark.parametrize("variant", ["humble", "humble_gn"])
def test_files_of_another_variant(variant: str, answers: Path, e_answers: Path, data: Path) -> None:
    for beside in (None, data):
        with pytest.raises(ValueError, match=r"every label of .*e.jsonl is E, so it is of humble_e"):
            score_files(e_answers, beside, variant=variant)
        with pytest.raises(ValueError, match=r"answers.jsonl is not of humble_e, .*: 5 of 8 are others"):
            score_files(answers, beside, variant="humble_e")
    with pytest.raises(ValueError, match=r"every label of .*e.jsonl is E"):
        score_files(e_answers, variant="humble_e", humble=e_answers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "C"}, r"1 of 8 answers carry another label than .*HumbleBench.jsonl \(line 1\)"),
        ({"question_id": 99}, r"1 questions without an answer \(0\); 1 answers with an unknown id \(99\)"),
        ({"prediction": None}, "1 null answers"),
        ({"question_id": 1}, "1 further, different answers to the same id"),
        ({"answer": "B"}, "could both be the answer; choose with --answer-key"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    change: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    content = rows(prediction=TEXTS)
    content[0] |= change
    with pytest.raises(ValueError, match=message):
        score_files(write(tmp_path / "a.jsonl", content), data)


def test_other_questions_are_refused(data: Path, tmp_path: Path) -> None:
    questions = [
        each["question"].replace("dog", "cat" if at < 2 else "dog") for at, each in enumerate(rows())
    ]
    path = write(tmp_path / "a.jsonl", rows(prediction=TEXTS, question=questions))
    with pytest.raises(ValueError, match=r"2 of 8 answers have another question than .* \(line 1, line 2\)"):
        score_files(path, data)


def test_answers_that_are_missing(data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(prediction=TEXTS)[:6])
    found = score_files(path, data, partial=True)
    assert any(note.startswith("75.00% of the questions are answered") for note in found.notes)
    assert values(found.document, "letter_set")["acc"] == pytest.approx(5 / 6)


def test_repeated_rows_without_data(tmp_path: Path) -> None:
    content = rows(prediction=TEXTS)
    found = score_files(write(tmp_path / "a.jsonl", [*content, content[0]]))
    assert found.notes[0] == "1 rows repeat another one and count once"
    with pytest.raises(ValueError, match="1 of 9 answers carry another label"):
        score_files(write(tmp_path / "a.jsonl", [*content, content[0] | {"label": "B"}]))


def test_answers_without_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prediction": "A"}])
    with pytest.raises(ValueError, match="line 1: no question_id; add it, or name its key with --id-key"):
        score_files(path)


def test_command(answers: Path, e_answers: Path, tmp_path: Path) -> None:
    score = ("score", "humblebench", "--answers")
    result = jobs.cli(*score, e_answers, "--variant", "humble_e", "--humble", answers)
    assert result.exit_code == 0, result.stderr
    assert "humblebench.humble_e by letter_first" in result.stdout
    assert "humblebench.humble by letter_set" in result.stdout
    assert "choose from humble, humble_e, humble_gn" in jobs.refused(*score, answers, "--variant", "noise")
    assert "leave it out" in jobs.refused(*score, answers, "--humble", answers)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    assert "is Parquet" in jobs.refused(*score, answers, "--data", tmp_path / "rows.parquet")
