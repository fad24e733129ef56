"""MME: files of questions in both forms, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from vlmfix.evals.mme.dataset import mme_samples
from vlmfix.evals.mme.files import read_subtask

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol

QUESTION = "Is there a {} in this image? Please answer yes or no."


def rows(*images: str) -> str:
    """The lines of a subtask without predictions."""
    return "".join(
        f"{image}\t{QUESTION.format(name)}\t{label}\n"
        for image in images
        for name, label in (("dog", "Yes"), ("cat", "No"))
    )


def samples(root: Path, name: str = "mme.hallucination") -> list[Sample]:
    return mme_samples(DataFolder.find(root), load_protocol(name))


def test_a_file_for_each_subtask(tmp_path: Path) -> None:
    (tmp_path / "existence.txt").write_text(rows("1.jpg", "2.jpg"))
    (tmp_path / "color.txt").write_text(rows("1.jpg").replace("\n", "\r\n"))
    folder = tmp_path / "existence" / "images"
    folder.mkdir(parents=True)
    (folder / "1.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "2.jpg").touch()
    with pytest.warns(
        UserWarning, match="lacks the MME subtasks count, position; scores over them are called"
    ):
        found = {sample.id: sample for sample in samples(tmp_path)}
    assert list(found) == [
        f"mme/{name}/{number}"
        for name in ("color/1.jpg", "existence/1.jpg", "existence/2.jpg")
        for number in (1, 2)
    ]
    first = found["mme/existence/1.jpg/1"]
    assert (first.prompt, first.target) == (QUESTION.format("dog"), "yes")
    assert (first.cluster, first.meta["split"]) == ("existence/1.jpg", "existence")
    assert first.image == folder / "1.jpg"
    assert found["mme/existence/2.jpg/2"].image == tmp_path / "images" / "2.jpg"
    assert found["mme/existence/2.jpg/2"].target == "no"


def test_the_official_release(tmp_path: Path) -> None:
    base = tmp_path / "release" / "MME_Benchmark"
    for name, inside in (("existence", ""), ("scene", "questions_answers_YN")):
        (base / name / inside).mkdir(parents=True)
        for image in ("a", "b"):
            text = f"{QUESTION.format('dog')}\tNo\n{QUESTION.format('cat')}\tYes\n"
            (base / name / inside / f"{image}.txt").write_text(text)
    (base / "scene" / "images").mkdir()
    (base / "scene" / "images" / "a.png").touch()
    (base / "existence" / "b.jpg").touch()
    (tmp_path / "release" / "eval_tool").mkdir()
    shutil.copy(base / "existence" / "a.txt", tmp_path / "release" / "eval_tool" / "readme.txt")
    folder = DataFolder.find(tmp_path)
    with pytest.warns(UserWarning, match="lacks the MME subtasks count, position, color, posters"):
        found = {sample.id: sample for sample in mme_samples(folder, load_protocol("mme.official"))}
    assert len(found) == 8
    assert found["mme/scene/a/1"].image == base / "scene" / "images" / "a.png"
    assert found["mme/existence/b/2"].image == base / "existence" / "b.jpg"
    assert [found[f"mme/scene/a/{number}"].target for number in (1, 2)] == ["no", "yes"]
    assert {role: used["rows"] for role, used in folder.used.items()} == {"mme existence": 4, "mme scene": 4}
    before = folder.used["mme scene"]["sha256"]
    (base / "scene" / "questions_answers_YN" / "a.txt").write_text("A?\tYes\nB?\tNo\n")
    with pytest.warns(UserWarning, match="lacks"):
        mme_samples(folder, load_protocol("mme.official"))
    assert folder.used["mme scene"]["sha256"] != before


def test_the_subset_reads_no_other_subtask(tmp_path: Path) -> None:
    for name in ("existence", "count", "position", "color"):
        (tmp_path / f"{name}.txt").write_text(rows("1.jpg"))
    (tmp_path / "OCR.txt").write_text("broken")
    assert len(samples(tmp_path)) == 8
    with pytest.raises(ValueError, match=r"OCR.txt, line 1: 1 columns"):
        samples(tmp_path, "mme.official")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rows("1.jpg") + rows("2.jpg").splitlines()[0], r"1 of 2 images have not two questions \(2.jpg\)"),
        (rows("1.jpg", "1.jpg"), r"1 of 1 images have not two questions \(1.jpg\)"),
        (rows("1.jpg").replace("No", "Yes"), r"1 of 1 images have the same label twice \(1.jpg\)"),
        (rows("1.jpg").replace("No", "Maybe"), 'line 2: the label is "Maybe"; it must be yes or no'),
        (
            rows("1.jpg").replace("\tYes", "\tYes\tyes\tit is"),
            "line 1: 5 columns; .* replace tabs in predictions",
        ),
        ("1.jpg Is it? Yes\n", "line 1: 1 columns"),
        ("\tIs it?\tYes\n\tIs it?\tNo\n", "line 1: no image; complete the line"),
        ("1.jpg\t\tYes\n", "line 1: no question; complete the line"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "count.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_subtask(path)


def test_files_of_images_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "a.txt").write_text("Is it?\tYes\nIs it?\tNo\n")
    (tmp_path / "count" / "b.txt").write_text("Is it?\tYes\n")
    with pytest.raises(ValueError, match=r"count of .*: 1 of 2 images have not two questions \(b\)"):
        samples(tmp_path)
    (tmp_path / "count" / "b.txt").write_text("b\tIs it?\tYes\n")
    with pytest.raises(ValueError, match=r"b.txt, line 1: 3 columns; there must be question and label"):
        samples(tmp_path)


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no questions of MME, neither existence.txt nor a folder"
    ):
        samples(tmp_path)
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(
        ValueError, match="mme looks for its questions below a folder; give it with --data DIR"
    ):
        mme_samples(DataFolder.find(instances=tmp_path / "instances.json"), load_protocol("mme.official"))
