"""`vlmfix score hallusionbench`: answers inside the items or beside them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.hallusionbench import score_command
from vlmfix.evals.hallusionbench.score_command import score_files

from tests.support import jobs
from tests.support.hallusionbench import ANSWERS, vector

KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
JUDGED = ["1", "0", "1", "1", "2", "1"]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def beside(path: Path, **more: list[Any]) -> Path:
    """Answers with nothing but the keys of their items."""
    rows = [{name: row[name] for name in KEYS} for row in vector()]
    more = {"answer": ANSWERS, **more}
    return write(path, [row | {name: more[name][at] for name in more} for at, row in enumerate(rows)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "HallusionBench.json", vector())


def headline(document: Any, group: str = "") -> dict[str, float]:
    metrics = document["tasks"][0]["methods"][0]["metrics"]
    return {each["name"]: each["value"] for each in metrics if each["group"] == group}


VECTOR = {"aAcc": 0.833333, "fAcc": 0.666667, "qAcc": 0.666667, "easy": 0.666667, "hard": 1.0}


def test_answers_beside_the_data(data: Path, tmp_path: Path) -> None:
    found = score_files(beside(tmp_path / "answers.json"), data.parent)
    values = headline(found.document)
    assert {name: values[name] for name in VECTOR} == pytest.approx(VECTOR, abs=1e-6)
    assert found.document["tasks"][0]["protocol"] == "hallusionbench.parse_all/custom"
    assert found.document["tasks"][0]["methods"][0]["counts"] == {"samples": 6, "answered": 6, "unparsed": 1}
    assert found.notes[0] == "pairing unchecked: the answers carry neither question nor label"
    assert (
        "6 items, and HallusionBench's file has 1,129; numbers from the two are not comparable"
        in found.notes[1]
    )
    verdicts = {each["id"]: each["verdict"] for each in found.document["samples"]}
    assert verdicts["hallusionbench/VS/chart/0/0/0"] == "unparsed, which is right without a picture"


def test_answers_inside_a_complete_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = write(tmp_path / "result.json", vector(ANSWERS))
    with pytest.raises(ValueError, match="has 6 items of 1,129 for parse_all; give --data"):
        score_files(answers)
    monkeypatch.setattr(score_command, "ITEMS", 6)
    monkeypatch.setattr(score_command, "WITH_IMAGE", 5)
    found = score_files(answers)
    assert headline(found.document)["qAcc"] == pytest.approx(2 / 3)
    assert found.notes == []
    with pytest.raises(ValueError, match="--allow-partial is for answers beside their data"):
        score_files(answers, partial=True)
    pictured = write(
        tmp_path / "pictured.json", [row for row in vector(ANSWERS) if row["visual_input"] != "0"]
    )
    with pytest.raises(ValueError, match=r"no items without a picture, .*--protocol parse_image_only"):
        score_files(pictured)
    assert headline(score_files(pictured, rule="parse_image_only").document)["aAcc"] == 0.8


def test_only_items_with_a_picture(data: Path, tmp_path: Path) -> None:
    answers = [*ANSWERS[:3], "neither", *ANSWERS[4:]]
    found = score_files(beside(tmp_path / "a.json", answer=answers), data, rule="parse_image_only")
    assert found.document["tasks"][0]["protocol"] == "hallusionbench.parse_image_only/custom"
    assert headline(found.document)["aAcc"] == pytest.approx(3 / 5)  # what cannot be read is wrong
    assert found.document["tasks"][0]["methods"][0]["counts"]["samples"] == 5


def test_items_in_samples_of_lmms_eval(data: Path, tmp_path: Path) -> None:
    rows = [
        {"doc_id": 0, "filtered_resps": "x", "aAcc": row}
        for row in vector(ANSWERS)
        if row["figure_id"] != "0" or row["category"] == "VD"
    ]
    found = score_files(write(tmp_path / "samples.json", rows), data, rule="parse_image_only")
    assert headline(found.document)["aAcc"] == 0.8


def test_parsers_side_by_side(data: Path, tmp_path: Path) -> None:
    found = score_files(beside(tmp_path / "a.json"), data, parsers=["official", "strict"])
    [method] = found.document["tasks"][0]["methods"]
    assert list(method["parsers"]) == ["official", "strict"]
    assert found.document["tasks"][0]["protocol"].endswith("+parser=official")
    assert headline(found.document)["aAcc"] == pytest.approx(5 / 6)  # "Perhaps." is a yes, which is right
    assert found.tables[0].title == "hallusionbench.parse_all by official, with 95 % intervals"


def test_verdicts_of_a_judge_stand_beside(data: Path, tmp_path: Path) -> None:
    more = {"gpt4v_output_gpt_check": ["1", "1", "1", "0", "2", "2"]}
    found = score_files(beside(tmp_path / "a.json", **more), data)
    judged = found.document["tasks"][0]["methods"][0]["parsers"]["official_judge"]
    values = {each["name"]: each["value"] for each in judged if each["group"] == ""}
    assert values["aAcc"] == pytest.approx(4 / 6)  # unclear is right on figure 0 of VS alone
    assert values["qAcc"] == pytest.approx(1 / 3)
    assert found.document["official_judge"] == {"counts": {"right": 3, "wrong": 1, "unclear": 2}}
    assert found.notes[-2].startswith("official_judge has the verdicts of the file; no other")
    assert found.notes[-1].startswith("no diagnosis of errors: 3 answers have no 'same'")
    more["same"] = [None, None, "0", "1", None, "0"]
    found = score_files(beside(tmp_path / "a.json", **more), data)
    assert found.document["official_judge"]["diagnosis"] == {
        "VD": {"language hallucination": 0, "visual illusion": 0, "mixed": 1},
        "VS": {"language hallucination": 0, "visual illusion": 1, "mixed": 0},
    }


def test_answers_that_are_missing(data: Path, tmp_path: Path) -> None:
    answers = beside(tmp_path / "a.json")
    answers.write_text(json.dumps(json.loads(answers.read_text())[1:]))
    with pytest.raises(ValueError, match=r"1 questions without an answer \(VD/chart/0/0/0\); complete"):
        score_files(answers, data)
    found = score_files(answers, data, partial=True)
    assert any(note.startswith("83.33% of the items are answered") for note in found.notes)
    sizes = {
        each["name"]: each["samples"]
        for each in found.document["tasks"][0]["methods"][0]["metrics"]
        if not each["group"]
    }
    assert (sizes["aAcc"], sizes["fAcc"], sizes["qAcc"], sizes["easy"], sizes["hard"]) == (5, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"gt_answer": ["0", "1", "0", "0", "1", "1"]},
            r"a.json: 1 of 6 answers carry another label than .*HallusionBench.json \(record 1\)",
        ),
        (
            {"question": ["Is it VD 0?", "Is it?", "Who?", "Is it VD 1?", "Is it VS 0?", "Is it VS 0?"]},
            r"2 of 6 answers have another question than .* \(record 2, record 3\)",
        ),
        ({"figure_id": ["9", "0", "1", "1", "0", "1"]}, r"1 answers with an unknown item \(VD/chart/0/9/0\)"),
        (
            {"gpt4v_output_gpt_check": [*JUDGED[:5], None]},
            r"1 answers have no gpt4v_output_gpt_check.* \(VS/chart/0/1/0\)",
        ),
        ({"gpt4v_output_gpt_check": ["3", *JUDGED[1:]]}, "it must be 0"),
        ({"answer": [*ANSWERS[:5], None]}, "1 null answers"),
        ({"prediction": ["Never"] * 6}, "could both be the answer; choose with --answer-key"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    more: dict[str, list[Any]], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        score_files(beside(tmp_path / "a.json", **more), data)


def test_two_verdicts_on_one_answer(data: Path, tmp_path: Path) -> None:
    answers = beside(tmp_path / "a.json", gpt4v_output_gpt_check=JUDGED)
    rows = json.loads(answers.read_text())
    write(answers, [*rows, rows[0] | {"gpt4v_output_gpt_check": "0"}])
    with pytest.raises(ValueError, match="record 7: a second, different verdict on VD/chart/0/0/0; keep one"):
        score_files(answers, data)


def test_command(data: Path, tmp_path: Path) -> None:
    options = ("score", "hallusionbench", "--answers", beside(tmp_path / "a.json"), "--data", data)
    result = jobs.cli(*options, "--parser", "all")
    assert result.exit_code == 0, result.stderr
    assert "hallusionbench.parse_all by vlmevalkit" in result.stdout
    assert jobs.refused(*options, "--protocol", "judge").endswith("choose from parse_all, parse_image_only")
    assert "unknown parser 'best'" in jobs.refused(*options, "--parser", "best")
