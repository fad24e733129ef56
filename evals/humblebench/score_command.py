"""Files of answers to HumbleBench, scored."""

from __future__ import annotations

from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys, check_pairs, read_answers, texts_of
from vlmfix.evaluation.files.readers import read_records, sha256_of
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import FILES, row_samples
from .rows import ROWS, VARIANTS, Variant, check_variant, read_rows, without_answer
from .task import HumbleBench


def score_files(
    answers: str | Path,
    data: str | Path | None = None,
    *,
    variant: str = VARIANTS[0],
    humble: str | Path | None = None,
    partial: bool = False,
    keys: Keys | None = None,
) -> ScoredFiles:
    """Score answers to HumbleBench.

    Args:
        answers: records with `question_id` and an answer; with `question`, `label`, `type` and `image`, too,
            `data` is not needed.
        data: rows of the data as JSON, or a folder with them.
        variant: one of `VARIANTS`.
        humble: answers of the same model to the variant `humble`, for the figures beside those of `humble_e`.
        partial: whether answers may be missing, unknown or contradict each other, and are left out.
        keys: of the answers' records.

    Raises:
        OSError: a file cannot be read.
        ValueError: files are broken, of another variant, or do not fit each other, or the variant is unknown.
    """
    known = next((each for each in VARIANTS if each == variant), None)
    if known is None:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    if humble is not None and variant != "humble_e":
        raise ValueError(f"--humble is for figures beside those of humble_e, not of {variant}; leave it out")
    scored = _scored(answers, data, known, partial=partial, keys=keys)
    if humble is not None:
        beside = _scored(humble, data, "humble", partial=partial, keys=keys)
        return ScoredFiles(
            {**scored.document, "humble": beside.document},
            [*scored.tables, *beside.tables],
            [*scored.notes, *(f"humble: {note}" for note in beside.notes)],
        )
    if variant == "humble_e":
        note = "always E has 100 %: read it beside acc and false_e of humble, whose answers --humble takes"
        return ScoredFiles(scored.document, scored.tables, [*scored.notes, note])
    return scored


def _scored(
    answers: str | Path, data: str | Path | None, variant: Variant, *, partial: bool, keys: Keys | None
) -> ScoredFiles:
    protocol = load_protocol(f"humblebench.{variant}").on("custom")
    given = read_answers(answers, keys)
    lacking = next((answer for answer in given if answer.id is None), None)
    if lacking is not None:
        raise ValueError(f"{lacking.where}: no question_id; add it, or name its key with --id-key")
    labels = [str(answer.label).strip() for answer in given if answer.label is not None]
    check_variant(labels, variant, str(answers))
    path = Path(answers)
    if data is None:
        first = {answer.id: answer.record for answer in reversed(given)}
        rows = read_rows(reversed(first.values()), without_answers=variant == "humble_e")
    else:
        path = _data_file(Path(data))
        rows = read_rows(read_records(path))
        rows = list(map(without_answer, rows)) if variant == "humble_e" else rows
    by_id = {row.id: row for row in rows}
    texts, notes = texts_of(given, list(by_id), lambda answer: answer.id, partial=partial)
    paired = [(answer, by_id[answer.id]) for answer in given if answer.id is not None and answer.id in by_id]
    notes += check_pairs(
        [(answer, row.question, row.label) for answer, row in paired],
        lambda answer: str(answer.label).strip(),
        of=str(path),
    )
    if len(rows) != ROWS:
        notes.append(f"{path}: {len(rows):,} questions of the {ROWS:,} published; not comparable with these")
    if missing := sum(text is None for text in texts.values()):
        notes.append(f"{1 - missing / len(texts):.2%} of the questions are answered")
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    if data is not None:
        files |= {"data": str(path), "data_sha256": sha256_of(path)}
    samples = row_samples(rows, protocol)
    ordered = {f"humblebench/{id}": text for id, text in texts.items()}
    return score_samples(
        HumbleBench(DataFolder(), protocol),
        samples,
        [ordered[sample.id] for sample in samples],
        notes=notes,
        files=files,
    )


def _data_file(path: Path) -> Path:
    """The rows as JSON, which are read without the library `datasets`.

    Raises:
        ValueError: they are Parquet.
    """
    file = DataFolder.find(path).find_file("humblebench", *FILES) if path.is_dir() else path
    if file.suffix == ".parquet":
        raise ValueError(
            f"{file} is Parquet, and files are scored with JSON or JSON Lines; leave --data out where the "
            "answers carry question, label, type and image"
        )
    return file
