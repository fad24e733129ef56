"""Answer files met in public: every layout with what it holds, what is refused by name, and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import OFFICIAL
from vlmfix.evaluation.files.answers import Answers, Keys, read_answers, texts_of
from vlmfix.evaluation.files.index import Index
from vlmfix.evaluation.files.pairs import are_mixed_up

FORMATS = OFFICIAL / "formats"
ASKED = "Is there a dog in the image?"
LONG = f"{ASKED}\nAnswer the question using a single word or phrase."


def file(folder: Path, content: Any) -> Path:
    path = folder / "answers.json"
    lines = map(json.dumps, content) if isinstance(content, list) else [json.dumps(content)]
    path.write_text("\n".join(lines))
    return path


LMMS = {"doc_id": 3, "target": "yes", "filtered_resps": "Yes", "input": LONG, "doc_hash": "h"}
POPE = {"question_id": "4", "score": 1.0, "prediction": "yes", "ground_truth": "yes"}
DOC = {
    "question_id": "4",
    "image_source": "COCO_val2014_000000000042",
    "category": "random",
    "question": ASKED,
}
LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LLaVA answers": (
        {
            "question_id": 20000007,
            "prompt": LONG,
            "text": "No",
            "answer_id": "x",
            "model_id": "m",
            "metadata": {},
        },
        {"text": "No", "id": 20000007, "question": LONG},
    ),
    "log of PAI or PAINT": (
        {
            "query": ASKED,
            "label": 1,
            "ans": "Yes, a dog.",
            "question": f"USER: {ASKED} ASSISTANT:",
            "file_path": "r",
        },
        {"text": "Yes, a dog.", "id": None, "question": ASKED, "label": 1},
    ),
    "samples of lmms-eval": (
        {**LMMS, "pope_accuracy": POPE, "pope_f1_score": POPE},
        {"text": "Yes", "id": 4, "question": LONG, "label": "yes", "number": 3, "split": None},
    ),
    "samples of lmms-eval, one object": (
        {
            "args": {},
            "logs": [
                {
                    "doc_id": 3,
                    "target": "yes",
                    "doc": DOC,
                    "arguments": [[LONG, {"until": []}]],
                    "resps": [["Yes"]],
                    "filtered_resps": ["Yes"],
                    "pope_accuracy": 1.0,
                }
            ],
        },
        {"text": "Yes", "id": 4, "question": LONG, "image": DOC["image_source"], "split": "random"},
    ),
    "samples of lmms-eval, vqav2_test": (
        {**LMMS, "submission": {"question_id": 7, "answer": "yes"}},
        {"text": "Yes", "id": 7, "number": 3},
    ),
    "samples of lmms-eval, vqav2_val": (
        {**LMMS, "exact_match": 1.0},
        {"text": "Yes", "id": None, "number": 3},
    ),
    "caption samples of lmms-eval": (
        {**LMMS, "coco_CIDEr": {"answer": ["A dog"], "pred": "A dog.", "image_id": 42, "id": 1}},
        {"text": "A dog.", "id": None, "image": "42"},
    ),
    "CHAIR samples of lmms-eval": (
        {**LMMS, "coco_cap_chair_i": {"answer": ["dog"], "pred": ["dog"], "image_id": 42}},
        {"text": "Yes", "image": "42"},
    ),
    "table of VLMEvalKit": (
        {"index": 5, "question": ASKED, "answer": "Yes", "category": "random,popular", "prediction": "yes"},
        {"text": "yes", "id": None, "label": "Yes", "split": "random,popular", "number": 5},
    ),
    "answers of RePOPE": (
        {
            "random": {
                "3": {
                    "question_id": 3,
                    "text": ASKED,
                    "label": "no",
                    "dataset": "random",
                    "response": "No dog",
                    "answer": "no",
                }
            }
        },
        {"text": "No dog", "id": 3, "label": "no", "split": "random", "question": ASKED},
    ),
    "output of the CHAIR code": (
        {
            "overall_metrics": {},
            "sentences": [{"image_id": 42, "caption": "A dog.", "mscoco_gt_words": [], "metrics": {}}],
        },
        {"text": "A dog.", "image": "42"},
    ),
    "captions": (
        {"image_id": "val2014/000000000042.png", "caption": "A dog."},
        {"image": "val2014/000000000042.png"},
    ),
    "captions, imgToEval": ({"imgToEval": {"42": {"image_id": 42, "caption": "A dog."}}}, {"image": "42"}),
    "captions with times": (
        {"image_id": "a.jpg", "method": "Greedy", "elapsed_sec": 3.5, "new_tokens": 51, "caption": "A dog"},
        {"text": "A dog", "image": "a.jpg"},
    ),
    "answers by running number": (
        {"id": 1004, "response": "A dog."},
        {"text": "A dog.", "id": 1004, "image": None},
    ),
    "answers of POPE's code": (
        {"question": ASKED, "answer": "No"},
        {"text": "No", "id": None, "question": ASKED},
    ),
    "results of VQA": ({"question_id": "7", "answer": "cat"}, {"text": "cat", "id": 7}),
    "answers, by id": ({"1": "Yes"}, {"text": "Yes", "id": 1}),
    "answers": (
        {"question_id": 1, "image": "a.jpg", "question": ASKED, "prediction": "Yes", "model_answer": "Yes"},
        {"text": "Yes", "id": 1, "image": "a.jpg", "question": ASKED},
    ),
}


@pytest.mark.parametrize("title", LAYOUTS)
def test_layouts(title: str, tmp_path: Path) -> None:
    content, expected = LAYOUTS[title]
    [answer] = read = read_answers(file(tmp_path, content))
    assert read.layout.title == title.partition(",")[0]
    assert {name: getattr(answer, name) for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "questions of LLaVA": (
        {"question_id": 1, "image": "a.jpg", "text": ASKED, "category": "random"},
        "no answers",
    ),
    "labels of POPE": ({"question_id": 1, "image": "a.jpg", "text": ASKED, "label": "yes"}, "no answers"),
    "labels of POPE, as rows of the hub": (
        {"id": "0", "question": ASKED, "answer": "yes", "image_source": "a", "category": "random"},
        "their answers are the right ones",
    ),
    "questions of POPE-chat": (
        {"text": [ASKED], "label": ["yes"], "chat_id": 0, "image": "a.jpg"},
        "no answers",
    ),
    "answers to MMHal-Bench": (
        {"question_topic": "x", "image_content": [], "question": "?", "gt_answer": "a", "model_answer": "b"},
        "a model has to judge them, and vlmfix has no judge",
    ),
    "answers to OwlEval": (
        {"image": "1.jpg", "question_id": 1, "question": "What is funny?", "answer": "All.", "model_id": "m"},
        "they are free texts",
    ),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_holds_no_answers_is_refused_by_name(title: str, tmp_path: Path) -> None:
    row, why = REFUSED[title]
    with pytest.raises(ValueError, match=rf"holds {title.partition(',')[0]}: .*{why}.*name --answer-key"):
        read_answers(file(tmp_path, [row]))


def test_a_refusal_gives_way_to_a_key(tmp_path: Path) -> None:
    row, _ = REFUSED["answers to OwlEval"]
    assert read_answers(file(tmp_path, [row]), Keys(answer="answer"))[0].text == "All."


def test_how_a_file_was_read_is_one_line(tmp_path: Path) -> None:
    read = read_answers(file(tmp_path, [LAYOUTS["LLaVA answers"][0]]))
    assert read.reading("id") == "read as: LLaVA answers; answer from 'text', joined by question_id"
    read = read_answers(file(tmp_path, [LAYOUTS["samples of lmms-eval"][0]]))
    assert read.reading("id").endswith("'filtered_resps', joined by pope_accuracy/question_id")
    assert read.reading("position").endswith("joined by position")


def test_captions_that_lmms_eval_cuts_are_told(tmp_path: Path) -> None:
    read = read_answers(file(tmp_path, [LAYOUTS["caption samples of lmms-eval"][0]]))
    assert ["end at the first blank line" in note for note in read.notes] == [True]


def test_captions_of_several_lengths_need_a_key(tmp_path: Path) -> None:
    row = {"id": 1, "response_64": "A", "response_128": "A dog", "response_length": 128}
    path = file(tmp_path, [row])
    with pytest.raises(
        ValueError, match=r"'response_64', 'response_128', .* could all be the answer; choose with"
    ):
        read_answers(path)
    assert read_answers(path, Keys(answer="response_128"))[0].text == "A dog"


def test_keys_may_be_named(tmp_path: Path) -> None:
    path = file(tmp_path, [{"said": "Yes", "nr": "7", "right": 1, "id": 1, "answer": "No"}])
    [answer] = read = read_answers(path, Keys("said", "nr", "right"))
    assert (answer.text, answer.id, answer.label) == ("Yes", 7, 1)
    assert read.reading("id") == "read as: answers; answer from 'said', joined by nr"
    for key in (Keys("x"), Keys(id="x"), Keys(label="x")):
        with pytest.raises(ValueError, match="expected the key 'x'"):
            read_answers(path, key)


def test_failed_requests_and_empty_cells_of_vlmevalkit(tmp_path: Path) -> None:
    row = LAYOUTS["table of VLMEvalKit"][0]
    texts = ["Failed to obtain answer via API.", "nan", "Yes"]
    read = read_answers(file(tmp_path, [row | {"prediction": text} for text in texts]))
    assert [answer.text for answer in read] == [None, "", "Yes"]
    assert read.notes[0] == "1 requests failed and have no answer"
    assert read.notes[1].startswith("1 answers are 'nan'")


def test_labels_and_echoes_are_no_answers(tmp_path: Path) -> None:
    rows = [{"question": ASKED, "label": label, "answer": label.title()} for label in ("yes", "no")]
    with pytest.raises(ValueError, match="every answer is the label beside it"):
        read_answers(file(tmp_path, rows))
    assert len(read_answers(file(tmp_path, [*rows, rows[0] | {"answer": "No"}]))) == 3
    assert len(read_answers(file(tmp_path, rows), Keys(answer="answer"))) == 2
    echo = [{"id": place, "question": ASKED, "answer": f" {ASKED}" if place else "Yes"} for place in range(3)]
    with pytest.raises(ValueError, match="2 of 3 answers are the question"):
        read_answers(file(tmp_path, echo))
    assert len(read_answers(file(tmp_path, [*echo, echo[0]]))) == 4


def test_text_is_the_question_of_labels_and_questions(tmp_path: Path) -> None:
    for row in ({"label": 1}, {"category": "random"}, {"image": "a.jpg"}):
        with pytest.raises(ValueError, match=r"(no answer; expected the key|holds labels of POPE)"):
            read_answers(file(tmp_path, [{"id": 1, "text": ASKED, **row}]))
    for row in ({"prompt": "x", "label": 1}, {"image": "a.jpg"}, {}):
        assert read_answers(file(tmp_path, [{"id": 1, "text": "Yes", **row}]))[0].text == "Yes"


def test_prompts_before_the_answer(tmp_path: Path) -> None:
    texts = [f"USER: {ASKED} ASSISTANT: yes", f"{ASKED} no", "Yes"]
    path = file(
        tmp_path, [{"id": place, "question": ASKED, "answer": text} for place, text in enumerate(texts)]
    )
    read = read_answers(path)
    assert [answer.text for answer in read] == texts
    assert read.notes == ["2 of 3 texts hold the prompt; see --strip-prompt"]
    read = read_answers(path, Keys(strip_prompt=True))
    assert ([answer.text for answer in read], read.notes) == ([" yes", " no", "Yes"], [])


def test_of_several_answers_one_is_chosen(tmp_path: Path) -> None:
    path = file(tmp_path, [{"id": 1, "answer": ["a", "b"]}, {"id": 2, "answer": ["c", "d"]}])
    with pytest.raises(
        ValueError, match="line 1: the answer is a list of 2 texts; choose one with --sample 1 to 2"
    ):
        read_answers(path)
    assert [answer.text for answer in read_answers(path, Keys(sample=2))] == ["b", "d"]
    with pytest.raises(ValueError, match="list of 2 texts"):
        read_answers(path, Keys(sample=3))
    rows = [{"id": id, "answer": text} for id, text in ((1, "a"), (2, "c"), (1, "b"), (2, "d"))]
    assert [answer.text for answer in read_answers(file(tmp_path, rows), Keys(sample=2))] == ["b", "d"]
    with pytest.raises(
        ValueError, match=r"1 questions have fewer than 2 answers \(.*line 2\); choose --sample 1 to 2"
    ):
        read_answers(file(tmp_path, rows[:3]), Keys(sample=2))


def test_texts_of_keeps_its_word(tmp_path: Path) -> None:
    rows = [{"id": id, "answer": text} for id, text in ((1, "a"), (1, "a"), (2, None), (9, "x"))]
    read = read_answers(file(tmp_path, rows))
    with pytest.raises(ValueError, match=r"1 answers with an unknown id \(9\); 1 null answers \(2\)"):
        texts_of(read, [1, 2], lambda answer: answer.id)
    texts, notes = texts_of(read, [1, 2], lambda answer: answer.id, partial=True)
    assert (texts, len(notes)) == ({1: "a", 2: None}, 3)


@pytest.mark.parametrize(
    "content",
    [
        [{"doc_id": 3, "question_id": 77}],
        [{"index": "3", "question_id": 77, "question": ASKED}],
        {"3": "77"},
        {"3": 77},
    ],
)
def test_an_index_of_running_numbers(content: Any, tmp_path: Path) -> None:
    [answer] = read_answers(file(tmp_path, [{**LMMS, "exact_match": 1.0}]))
    index = Index(file(tmp_path, content), ["question_id"])
    assert int(index[answer]["question_id"]) == 77


def test_numbers_that_an_index_lacks(tmp_path: Path) -> None:
    [answer] = read_answers(file(tmp_path, [{**LMMS, "exact_match": 1.0}]))
    with pytest.raises(ValueError, match=r"line 1: the number 3 is not in .*answers.json; complete it"):
        Index(file(tmp_path, {"4": "77"}), ["question_id"])[answer]
    twice = file(tmp_path, [{"doc_id": 3, "question_id": id} for id in (1, 2)])
    with pytest.raises(ValueError, match="line 2: the number 3 comes twice"):
        Index(twice, ["question_id"])


@pytest.mark.parametrize(
    ("wrong", "comparable", "refused"),
    [(2, 100, False), (3, 100, True), (1, 10, False), (1, 1, False), (2, 10, True), (0, 0, False)],
)
def test_the_share_of_pairs_that_may_be_wrong(wrong: int, comparable: int, refused: bool) -> None:
    assert are_mixed_up(wrong, comparable) == refused


PUBLIC = {
    "adaiat_captions_twice.jsonl": ("captions with times", 12),
    "amber_style_captions.json": ("captions", 4),
    "llava_pope_answers.jsonl": ("LLaVA answers", 24),
    "paint_pope_log.jsonl": ("log of PAI or PAINT", 20),
    "paint_pope_chat_log.jsonl": ("log of PAI or PAINT", 6),
}
PUBLIC_REFUSED = {
    "halc_answers.jsonl": "answers to OwlEval",
    "llava_pope_questions.jsonl": "questions of LLaVA",
    "pope_chat_questions.jsonl": "questions of POPE-chat",
}


@pytest.mark.skipif(not FORMATS.exists(), reason="the public answer files are not beside the checkout")
def test_public_files() -> None:
    found: dict[str, Answers] = {name: read_answers(FORMATS / name) for name in PUBLIC}
    assert {name: (each.layout.title, len(each)) for name, each in found.items()} == PUBLIC
    for name, title in PUBLIC_REFUSED.items():
        with pytest.raises(ValueError, match=title):
            read_answers(FORMATS / name)
