"""Files of POPE answers that hold several splits, conversations, or their own labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.pope.score_command import Report, score_files

from tests.support.paths import OFFICIAL
from vlmfix.evaluation.files.answers import Keys

FORMATS = OFFICIAL / "formats"
SPLITS = ("random", "popular", "adversarial")


def asked(name: str) -> str:
    return f"Is there a {name} in the image?"


def file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


VECTOR = [
    ("random,popular,adversarial", "Yes", "Yes"),
    ("random", "No", "Yes"),
    ("popular,adversarial", "No", "No"),
    ("adversarial", "No", "Unknown"),
    ("random, popular", "Yes", "No"),
]


def vlmevalkit(tmp_path: Path, **more: list[Any]) -> Path:
    rows = [
        {"index": place, "question": asked(f"thing{place}"), "answer": answer, "category": category}
        | {"prediction": said}
        | {key: values[place] for key, values in more.items()}
        for place, (category, answer, said) in enumerate(VECTOR)
    ]
    return table(tmp_path / "model_POPE.tsv", rows)


def figures(report: Report, parser: str) -> dict[str, list[str]]:
    scores = {split.name: split.scores[parser] for split in report.splits} | {"": report.pooled[parser]}
    return {
        name: [
            str(each.paired),
            *(f"{value:.6f}" for value in (each.f1, each.accuracy, each.precision, each.recall)),
        ]
        for name, each in scores.items()
    }


def test_a_table_of_vlmevalkit_counts_a_row_for_each_of_its_splits(tmp_path: Path) -> None:
    report = score_files([vlmevalkit(tmp_path)], [], ["vlmevalkit"])
    assert figures(report, "vlmevalkit") == {
        "": ["9", "0.666667", "0.555556", "0.750000", "0.600000"],
        "random": ["3", "0.500000", "0.333333", "0.500000", "0.500000"],
        "popular": ["3", "0.666667", "0.666667", "1.000000", "0.500000"],
        "adversarial": ["3", "1.000000", "0.666667", "1.000000", "1.000000"],
    }
    assert report.notes[:2] == [
        "labels are those beside the answers",
        "read as: table of VLMEvalKit; answer from 'prediction', joined by position",
    ]


def test_a_table_of_vlmevalkit_beside_label_files(tmp_path: Path) -> None:
    labels = [
        file(
            tmp_path / f"coco_pope_{split}.json",
            [
                {
                    "question_id": 7 - place,
                    "image": f"{place}.jpg",
                    "text": asked(f"thing{place}"),
                    "label": answer,
                }
                for place, (category, answer, _) in reversed(list(enumerate(VECTOR)))
                if split in category
            ],
        )
        for split in SPLITS
    ]
    pictures = vlmevalkit(tmp_path, image_path=[f"{place}.png" for place in range(5)])
    report = score_files([pictures], labels, ["vlmevalkit"])
    assert figures(report, "vlmevalkit")["adversarial"][2] == "0.666667"
    assert "joined by image and object" in report.notes[0]
    failed = tmp_path / "failed.tsv"
    failed.write_text(pictures.read_text().replace("\tUnknown", "\tFailed to obtain answer"))
    with pytest.raises(
        ValueError, match="do not belong together"
    ):  # without pictures, only the order is left
        score_files([vlmevalkit(tmp_path)], labels, ["vlmevalkit"])
    with pytest.raises(ValueError, match="1 null answers"):
        score_files([failed], labels)
    [_, _, adversarial] = score_files([failed], labels, allow_partial=True).splits
    assert (adversarial.scores["strict"].paired, adversarial.counts["strict"]["null_answers"]) == (2, 1)


def lmms(tmp_path: Path, **changes: str) -> tuple[Path, list[Path]]:
    """A run of the task pope, and the labels of its splits: the first question is that of all three."""
    order = ("adversarial", "popular", "random")
    labels, rows = [], []
    for split in order:
        own = [
            {"question_id": id, "image": "a.jpg", "text": asked(name), "label": label}
            for id, name, label in ((1, "dog", "yes"), (2, split, "no"), (3, "cup", "yes"))
        ]
        labels.append(file(tmp_path / f"coco_pope_{split}.json", own))
        rows += [(split, each) for each in own]
    samples = [
        {
            "doc_id": place,
            "target": row["label"],
            "filtered_resps": changes.get(f"{split}{row['question_id']}", row["label"].title()),
            "input": f"{row['text']}\nAnswer the question using a single word or phrase.",
            "pope_accuracy": {"question_id": str(row["question_id"]), "score": 1.0},
        }
        for place, (split, row) in enumerate(rows)
    ]
    return file(tmp_path / "samples", list(reversed(samples))), [labels[2], labels[0], labels[1]]


def test_one_run_of_lmms_eval_over_three_splits(tmp_path: Path) -> None:
    answers, labels = lmms(tmp_path)
    report = score_files([answers], labels, ["lmms_eval", "official"])
    assert [split.name for split in report.splits] == ["random", "adversarial", "popular"]
    for split in report.splits:
        assert {name: each.accuracy for name, each in split.scores.items()} == {"lmms_eval": 1, "official": 1}
        assert split.counts["lmms_eval"]["disagreeing"] == 0
    assert not any("A GUESS" in note.upper() for note in report.notes)


def test_shared_questions_with_different_answers_go_by_doc_id(tmp_path: Path) -> None:
    answers, labels = lmms(tmp_path, popular1="No")
    report = score_files([answers], labels)
    assert {split.name: split.scores["strict"].fn for split in report.splits} == {
        "random": 0,
        "adversarial": 0,
        "popular": 1,
    }
    assert any(
        "1 QUESTIONS THAT SEVERAL SPLITS SHARE HAVE DIFFERENT ANSWERS" in note for note in report.notes
    )


def test_a_part_of_the_splits_of_lmms_eval_is_refused(tmp_path: Path) -> None:
    answers, labels = lmms(tmp_path)
    with pytest.raises(
        ValueError, match=r"questions come more or less often than .* give the --labels of all"
    ):
        score_files([answers], labels[:2])
    with pytest.raises(ValueError, match="answers with a repeated id"):
        score_files([answers], labels[:1])


def test_one_range_of_llava_names_its_split(tmp_path: Path) -> None:
    rows = [{"question_id": 20000007, "prompt": asked("dog"), "text": "No", "answer_id": "x"}]
    labels = file(
        tmp_path / "coco_pope_popular.json",
        [{"question_id": 7, "text": asked("dog"), "label": "no", "image": "a"}],
    )
    [split] = score_files([file(tmp_path / "answers", rows)], [labels]).splits
    assert (split.name, split.scores["strict"].accuracy) == ("popular", 1.0)
    other = labels.rename(tmp_path / "coco_pope_random.json")
    with pytest.raises(ValueError, match=r"holds the splits popular, and the name of coco_pope_random\.json"):
        score_files([tmp_path / "answers"], [other])


def test_splits_of_llava_that_are_left_out_are_told(tmp_path: Path) -> None:
    rows = [
        {"question_id": id, "prompt": asked("dog"), "text": "No", "answer_id": "x"} for id in (7, 10000007)
    ]
    labels = file(
        tmp_path / "coco_pope_adversarial.json",
        [{"question_id": 7, "text": asked("dog"), "label": "no", "image": "a"}],
    )
    report = score_files([file(tmp_path / "answers", rows)], [labels])
    assert "1 answers of random left out; give the label files of these splits, too" in report.notes


def test_answers_of_repope_hold_their_split_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    row = {"question_id": 3, "text": asked("dog"), "label": "no", "response": "No dog", "answer": "no"}
    path.write_text(json.dumps({split: {"3": {**row, "dataset": split}} for split in SPLITS}))
    report = score_files([path])
    assert {split.name for split in report.splits} == set(SPLITS)
    assert report.pooled["strict"].accuracy == 1.0


def test_labels_beside_the_answers_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: no label beside the answer; give the files of --labels"):
        score_files([file(tmp_path / "answers", [{"question_id": 1, "answer": "yes"}])])


def test_keys_of_answers_and_labels(tmp_path: Path) -> None:
    answers = file(tmp_path / "answers", [{"nr": 2, "said": "No"}, {"nr": 1, "said": "Yes"}])
    rows = [
        {"nr": id, "right": label, "text": asked("dog"), "label": "?"}
        for id, label in ((1, "yes"), (2, "no"))
    ]
    labels = file(tmp_path / "labels", rows)
    report = score_files([answers], [labels], keys=Keys("said", "nr", "right"))
    assert report.splits[0].scores["strict"].accuracy == 1.0
    assert report.notes[0] == "read as: answers; answer from 'said', joined by nr"
    assert report.notes[1].startswith("pairing unchecked")


CHAT = [
    {
        "text": [asked(f"{name}{turn}") for turn in range(3)],
        "label": ["yes", "no", "yes"],
        "chat_id": chat,
        "image": name,
    }
    for chat, name in enumerate(("a", "b", "c"))
]


def chat_log(order: list[tuple[int, int]], **changes: str) -> list[dict[str, Any]]:
    rows = []
    for chat, turn in order:
        texts = CHAT[chat]["text"]
        prompt = " </s>".join(f"USER: {text} ASSISTANT: yes" for text in texts[: turn + 1])
        said = "No, sure." if turn == 1 else "Yes, sure."
        rows.append(
            {"query": texts[turn], "label": int(turn != 1), "ans": said, "question": prompt, **changes}
        )
    return rows


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("parser", ["strict", "official"])
def test_conversations_in_every_order_of_logs(together: int, parser: str, tmp_path: Path) -> None:
    order = [
        (chat, turn)
        for start in range(0, 3, together)
        for turn in range(3)
        for chat in range(start, min(start + together, 3))
    ]
    labels = file(tmp_path / "coco_pope_chat_random.json", CHAT)
    log = file(tmp_path / "log", chat_log(order))
    [split] = score_files([log], [labels], [parser]).splits
    assert (split.name, split.scores[parser].accuracy, split.scores[parser].paired) == ("chat_random", 1.0, 9)
    part = file(tmp_path / "part", chat_log(order)[:4])
    with pytest.raises(ValueError, match="5 labels without an answer"):
        score_files([part], [labels], [parser])
    assert score_files([part], [labels], [parser], allow_partial=True).splits[0].scores[parser].paired == 4


def test_conversations_and_single_questions_are_not_paired(tmp_path: Path) -> None:
    order = [(chat, turn) for chat in range(3) for turn in range(3)]
    log, labels = file(tmp_path / "log", chat_log(order)), file(tmp_path / "chat.json", CHAT)
    rows = [
        {"question_id": place, "image": "a", "text": text, "label": "yes"}
        for place, text in enumerate(text for each in CHAT for text in each["text"])
    ]
    single = file(tmp_path / "single.json", rows)
    with pytest.raises(
        ValueError, match=r"is a log of conversations and .*single\.json asks single questions"
    ):
        score_files([log], [single])
    plain = file(tmp_path / "plain", [{"question_id": row["question_id"], "answer": "yes"} for row in rows])
    with pytest.raises(
        ValueError, match=r"chat\.json asks in conversations and the answers of .* are no log"
    ):
        score_files([plain], [labels])
    turned = file(tmp_path / "turned", chat_log(order[::-1]))
    with pytest.raises(ValueError, match="the questions come in another order than those of"):
        score_files([turned], [labels])
    with pytest.raises(ValueError, match="9 answers for the 3 questions of conversations"):
        score_files([log], [file(tmp_path / "short.json", CHAT[:1])])
    broken = file(tmp_path / "broken.json", [{**CHAT[0], "label": ["yes"]}])
    with pytest.raises(ValueError, match="3 questions with 1 labels; give one each"):
        score_files([log], [broken])


@pytest.mark.skipif(not FORMATS.exists(), reason="the public answer files are not beside the checkout")
def test_public_logs() -> None:
    chat, single = FORMATS / "paint_pope_chat_log.jsonl", FORMATS / "paint_pope_log.jsonl"
    labels = FORMATS / "pope_chat_questions.jsonl"
    [split] = score_files([chat], [labels], ["opera"], allow_partial=True).splits
    assert (split.scores["opera"].paired, split.counts["opera"]["disagreeing"]) == (6, 0)
    [inside] = score_files([chat], [], ["opera"]).splits
    assert inside.scores["opera"].accuracy == split.scores["opera"].accuracy
    with pytest.raises(ValueError, match="are no log of such"):
        score_files([single], [labels], allow_partial=True)
    [alone] = score_files([single], [], ["opera"]).splits
    by_position = score_files(
        [single], [OFFICIAL / "pope" / "coco_pope_random.json"], ["opera"], allow_partial=True
    )
    assert alone.scores["opera"] == by_position.splits[0].scores["opera"]
