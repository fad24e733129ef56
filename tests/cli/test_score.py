"""`vlmfix score`: tables, one JSON document, and one line for everything a user can mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlmfix.cli.app import app

QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
]
INSTANCES = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 18}],
}
PEOPLE = [{"answer": "cat", "answer_id": number} for number in range(10)]
ANNOTATIONS = {
    "annotations": [
        {"question_id": number, "question_type": "what", "answer_type": "other", "answers": PEOPLE}
        for number in (1, 2)
    ]
}


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    contents: dict[str, Any] = {
        "labels.json": QUESTIONS,
        "answers.json": [{"question_id": 1, "answer": "Yes"}, {"question_id": 2, "answer": "maybe"}],
        "instances.json": INSTANCES,
        "references.json": {"images": [], "annotations": [{"image_id": 1, "caption": "A cat"}]},
        "captions.json": [
            {"image_id": 1, "caption": "A dog and a cat."},
            {"image_id": 2, "caption": "A [dog]"},
        ],
        "annotations.json": ANNOTATIONS,
        "questions.json": {"questions": [{"question_id": 1}, {"question_id": 2}]},
        "results.json": [{"question_id": 1, "answer": "Cat"}, {"question_id": 2, "answer": "dog"}],
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def pope(
    folder: Path, *options: str | Path, answers: str = "answers.json", labels: str = "labels.json"
) -> Any:
    return run("pope", "--answers", folder / answers, "--labels", folder / labels, *options)


def chair(folder: Path, *options: str | Path, captions: str = "captions.json") -> Any:
    return run("chair", "--captions", folder / captions, "--instances", folder / "instances.json", *options)


def vqa(folder: Path, *options: str | Path, results: str = "results.json") -> Any:
    return run("vqa", "--results", folder / results, "--annotations", folder / "annotations.json", *options)


def test_pope(folder: Path) -> None:
    result = pope(folder)
    assert result.exit_code == 0, result.stderr
    for text in ("strict", "50.00", "100.00", "paired", "null answers", "duplicates"):
        assert text in result.stdout
    document = json.loads(pope(folder, "--parser", "all", "--json").stdout)
    scores = document["splits"][0]["scores"]
    assert list(scores) == ["official", "opera", "vcd", "lmms_eval", "vlmevalkit", "mme", "strict"]
    assert (scores["official"]["accuracy"], scores["strict"]["unparsed_share"]) == (0.5, 0.5)
    one = json.loads(pope(folder, "--parser", "mme", "--parser", "vcd", "--parser", "mme", "--json").stdout)
    assert list(one["splits"][0]["scores"]) == ["mme", "vcd"]


def test_pope_with_splits(folder: Path) -> None:
    pair = ("--answers", folder / "answers.json", "--labels", folder / "labels.json")
    result = run("pope", *pair, *pair, "--parser", "vlmevalkit")
    assert result.exit_code == 0, result.stderr
    for text in ("POPE labels, percent", "POPE labels 2, percent", "unweighted mean of 2 splits", "Overall"):
        assert text in result.stdout


def test_chair(folder: Path) -> None:
    result = chair(folder)
    assert result.exit_code == 0, result.stderr
    for text in (
        "CHAIRs",
        "100.0",
        "66.7",
        "give --coco-captions",
        "not the official list",
        "without objects",
    ):
        assert text in " ".join(result.stdout.split())
    words = folder / "words.txt"
    words.write_text("dog, puppy\ncat\n")
    document = json.loads(
        chair(folder, "--coco-captions", folder / "references.json", "--synonyms", words, "--json").stdout
    )
    assert (document["scores"]["chair_i"], document["vocabulary"]["classes"]) == (1 / 3, 2)
    assert document["captions"][1]["hallucinated"] == [{"word": "dog", "category": "dog", "index": 2}]
    assert json.loads(chair(folder, "--variant", "corrected", "--json").stdout)["variant"] == "corrected"


def test_vqa(folder: Path) -> None:
    result = vqa(folder, "--questions", folder / "questions.json")
    assert result.exit_code == 0, result.stderr
    for text in ("overall", "answer type: other", "50.00", "share answered", "100.00%"):
        assert text in result.stdout
    for variant, expected in {"official": 0.0, "always": 50.0, "m4c": 50.0, "evalai": 50.0}.items():
        document = json.loads(vqa(folder, "--variant", variant, "--json").stdout)
        assert document["scores"]["overall"]["rounded"] == expected
    assert json.loads(vqa(folder, "--leave-one-out", "dict", "--json").stdout)["leave_one_out"] == "dict"


ROW = '{"question_id": 1, "answer": "Yes"}'
BAD_POPE = {
    "missing": (None, "no file"),
    "folder": ("/", "is a folder"),
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "latin-1": (b'{"answer": "caf\xe9"}', "is not UTF-8"),
    "malformed line": (ROW + '\n{"question_id": 2, "answer"\n', "line 2: not valid JSON"),
    "CSV with a row too short": ("question_id,answer\n1\n", "line 2: 1 cells under 2 columns"),
    "CSV of nothing known": ("number,said\n1,yes\n", "line 1: not valid JSON"),
    "no samples": ("[]", "holds no records"),
    "list of texts": ('["yes", "no"]', 'record 1: "yes" is no object'),
    "list of lists": ('[["yes"], ["no"]]', 'record 1: ["yes"] is no object'),
    "a number": ("3", "3 is no object"),
    "wrong keys": ('{"question_id": 1, "reply": "Yes"}', "no answer; expected the key 'answer'"),
    "NaN answer": ('{"question_id": 1, "answer": NaN}', "line 1: NaN is no JSON number"),
    "NaN score": (ROW[:-1] + ', "score": NaN}', "line 1: NaN is no JSON number"),
    "list answer": ('{"question_id": 1, "answer": ["Yes", "No"]}', "the answer is"),
    "boolean answer": ('{"question_id": 1, "answer": true}', "the answer is true"),
    "null id": ('{"question_id": null, "answer": "Yes"}', "the question id is null"),
    "list id": ('{"question_id": [1], "answer": "Yes"}', "the question id is [1]"),
    "duplicate ids": (f"{ROW}\n{ROW.replace('Yes', 'No')}", "1 answers with a repeated id (1)"),
    "null answer": (
        '{"question_id": 1, "answer": null}\n{"question_id": 2, "answer": "no"}',
        "1 null answers",
    ),
    "unknown id": (ROW.replace("1", "7"), "1 answers with an unknown id (7)"),
    "text id": ('{"question_id": "one", "answer": "Yes"}', "1 answers with an unknown id (one)"),
    "missing sample": (ROW, "1 labels without an answer (2)"),
    "fewer, no ids": ('{"answer": "Yes"}', "1 answers for 2 labels"),
    "ids on some": (ROW + '\n{"answer": "no"}', "line 2: no question id"),
    "two answers": ('{"answer": "Yes", "output": "No"}', "could both be the answer"),
}
BAD_LABELS = {
    "label maybe": ('[{"label": "maybe"}]', 'record 1: the label is "maybe"; it must be yes or no'),
    "null label": ('[{"label": null}]', "record 1: the label is null"),
    "number label": ('[{"label": 2}]', "record 1: the label is 2"),
    "no label": ('[{"text": "Is there?"}]', "no label; expected the key 'label'"),
    "repeated label id": (
        '[{"question_id": 1, "label": "yes"}, {"question_id": 1, "label": "no"}]',
        "1 labels with a repeated id (1)",
    ),
    "empty labels": ("", "is empty"),
}
BAD_CAPTIONS = {
    "missing": (None, "no file"),
    "folder": ("/", "is a folder"),
    "empty": ("", "is empty"),
    "latin-1": (b'[{"image_id": 1, "caption": "caf\xe9"}]', "is not UTF-8"),
    "malformed line": ('{"image_id": 1, "caption": "A"}\n{"image_id": 2', "line 2: not valid JSON"),
    "no samples": ("{}", "no caption"),
    "no captions": ('{"captions": []}', "holds no records"),
    "list of texts": ('["A dog"]', 'record 1: "A dog" is no object'),
    "wrong keys": ('[{"image_id": 1, "sentence": "A dog"}]', "no caption; expected the key 'caption'"),
    "unknown image": (
        '[{"image_id": 9, "caption": "A dog"}]',
        "captions of images that the COCO files lack (9)",
    ),
    "duplicates": ('[{"image_id": 1, "caption": "A"}, {"image_id": "1", "caption": "B"}]', "second captions"),
    "null": ('[{"image_id": 1, "caption": null}]', "1 null captions"),
    "number": ('[{"image_id": 1, "caption": 5}]', "the caption is 5"),
    "text id": ('[{"image_id": "dog", "caption": "A"}]', 'the image id is "dog"'),
    "NaN id": ('[{"image_id": NaN, "caption": "A"}]', "NaN is no JSON number"),
    "half id": ('[{"image_id": 1.5, "caption": "A"}]', "the image id is 1.5"),
}
BAD_RESULTS = {
    "missing": (None, "no file"),
    "folder": ("/", "is a folder"),
    "empty": ("", "is empty"),
    "no samples": ("[]", "holds no records"),
    "duplicates": ('[{"question_id": 1, "answer": "x"}, {"question_id": "1", "answer": "y"}]', "different"),
    "unknown": ('[{"question_id": 3, "answer": "x"}]', "lacks: 1 (3)"),
    "list": ('[{"question_id": 1, "answer": []}]', "the answer is []"),
    "NaN": ('[{"question_id": 1, "answer": NaN}]', "NaN is no JSON number"),
    "no answer": ('[{"question_id": 1}]', "no answer; expected"),
    "no id": ('[{"answer": "x"}]', "no question id; expected"),
}


def assert_one_line(result: Any, message: str) -> None:
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def put(folder: Path, content: str | bytes | None) -> str:
    """The name of a file with this content; None is no file, "/" a folder."""
    path = folder / "bad.json"
    if content == "/":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path.name


@pytest.mark.parametrize(("content", "message"), BAD_POPE.values(), ids=BAD_POPE)
def test_bad_answers(content: str | bytes | None, message: str, folder: Path) -> None:
    assert_one_line(pope(folder, answers=put(folder, content)), message)


@pytest.mark.parametrize(("content", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels(content: str, message: str, folder: Path) -> None:
    assert_one_line(pope(folder, labels=put(folder, content), answers="answers.json"), message)


@pytest.mark.parametrize(("content", "message"), BAD_CAPTIONS.values(), ids=BAD_CAPTIONS)
def test_bad_captions(content: str | bytes | None, message: str, folder: Path) -> None:
    assert_one_line(chair(folder, captions=put(folder, content)), message)


@pytest.mark.parametrize(("content", "message"), BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_bad_results(content: str | bytes | None, message: str, folder: Path) -> None:
    assert_one_line(vqa(folder, results=put(folder, content)), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pope"], "--answers"),
        (["pope", "--answers", "{answers}"], "--labels"),
        (
            ["pope", "--answers", "{answers}", "--labels", "{labels}", "--parser", "oficial"],
            "unknown parser 'oficial'",
        ),
        (
            ["pope", "--answers", "{answers}", "--labels", "{labels}", "--pairing", "name"],
            "unknown pairing 'name'",
        ),
        (
            ["pope", "--answers", "{answers}", "--labels", "{labels}", "--answer-key", "said"],
            "expected the key 'said'",
        ),
        (
            ["pope", "--answers", "{answers}", "--answers", "{answers}", "--labels", "{labels}"],
            "2 --answers for 1",
        ),
        (["chair", "--captions", "{captions}"], "--instances"),
        (
            ["chair", "--captions", "{captions}", "--instances", "{captions}"],
            "is no object; a COCO file is one",
        ),
        (["chair", "--captions", "{captions}", "--instances", "{references}"], "under 'categories'"),
        (
            ["chair", "--captions", "{captions}", "--instances", "{instances}", "--variant", "lemmas"],
            "unknown variant 'lemmas'",
        ),
        (
            ["chair", "--captions", "{captions}", "--instances", "{instances}", "--synonyms", "{captions}"],
            "is not a class and its words",
        ),
        (
            [
                "chair",
                "--captions",
                "{captions}",
                "--instances",
                "{instances}",
                "--coco-captions",
                "{instances}",
            ],
            "has no 'caption'",
        ),
        (["vqa", "--results", "{results}", "--annotations", "{results}"], "no list of people's answers"),
        (["vqa", "--results", "{results}", "--annotations", "{questions}"], "no question id"),
        (
            ["vqa", "--results", "{results}", "--annotations", "{annotations}", "--variant", "soft"],
            "unknown variant 'soft'",
        ),
        (
            ["vqa", "--results", "{results}", "--annotations", "{annotations}", "--leave-one-out", "ids"],
            "unknown leave_one_out 'ids'",
        ),
        (["nothing"], "nothing"),
        (["pope", "--wrong"], "--wrong"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(arguments: list[str], message: str, folder: Path) -> None:
    places = {path.stem: path for path in folder.iterdir()}
    assert_one_line(run(*(argument.format(**places) for argument in arguments)), message)


def test_null_answers_are_counted(folder: Path) -> None:
    content = '{"question_id": 1, "answer": null}\n{"question_id": 2, "answer": "no"}'
    result = pope(folder, "--allow-partial", answers=put(folder, content))
    assert result.exit_code == 0
    assert "1 null answers left out" in result.stdout
    result = vqa(folder, results=put(folder, content))
    assert "1 null answers, left out" in result.stdout


def test_upper_case_labels_are_counted(folder: Path) -> None:
    content = '{"question_id": 1, "label": "YES"}\n{"question_id": 2, "label": "No"}'
    result = pope(folder, labels=put(folder, content))
    assert result.exit_code == 0
    assert "2 labels not in lower case" in result.stdout


def test_partial_captions_are_counted(folder: Path) -> None:
    content = '{"image_id": 9, "caption": "A dog"}\n{"image_id": 1, "caption": "A dog"}'
    result = chair(folder, "--allow-partial", captions=put(folder, content))
    assert result.exit_code == 0
    assert "1 captions of unknown images, left out" in result.stdout


def test_help_names_the_commands() -> None:
    assert all(name in run("--help").stdout for name in ("pope", "chair", "vqa"))
