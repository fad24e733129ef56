"""Workers: batches that change nothing, failures that stay with their sample, and a model left as it was."""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vlmfix
from tests.support import jobs
from vlmfix.evaluation.runner import loading
from vlmfix.evaluation.runner.records import Draw
from vlmfix.evaluation.runner.run_store import RunStore
from vlmfix.evaluation.runner.writing import TooManyErrorsError
from vlmfix.evaluation.sample import UNREACHED, Sample
from vlmfix.inference import stream as answer_stream
from vlmfix.inference.batch import prepare_batch
from vlmfix.inference.output import Answer
from vlmfix.inference.pictures import open_images
from vlmfix.inference.stream import AnswerStream
from vlmfix.methods.baselines.output_shift import answer_ids

FIELDS = {
    "id": str,
    "repeat": int,
    "seed": int,
    "key": str,
    "image": str,
    "prompt": str,
    "batch_size": int,
    "environment": int,
    "host": str,
    "written_at": float,
    "status": str,
    "text": str,
    "parsed": str,
    "token_ids": list,
    "n_prompt_tokens": int,
    "n_new_tokens": int,
    "finish": str,
    "method_info": dict,
    "time_prefill": float,
    "time_decode": float,
    "forwards_per_token": float,
    "peak_memory": int,
    "checksum": str,
}
FAILED = [
    "batch_size",
    "environment",
    "host",
    "id",
    "image",
    "key",
    "prompt",
    "repeat",
    "seed",
    "written_at",
]


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return jobs.start(tmp_path / "run")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Nine questions about three pictures."""
    return jobs.samples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def expected(loaded: tuple[Any, Any], asked: list[Sample]) -> list[str]:
    """What the library answers one by one."""
    return [
        vlmfix.generate(*loaded, sample.image, sample.prompt, max_new_tokens=jobs.PROTOCOL.max_new_tokens)
        for sample in asked
    ]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The prompts of each batch that a model is asked."""
    seen: list[list[str]] = []

    def watched(stream: AnswerStream, batch: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append([each.question.text for each in batch])
        return begin(stream, batch, *args, **kwargs)

    begin = AnswerStream.begin
    monkeypatch.setattr(AnswerStream, "begin", watched)
    return seen


def failing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, when: Callable[[list[Any]], bool]
) -> list[int]:
    """Let the model raise an error for some batches; the sizes of all batches."""
    sizes: list[int] = []

    def raising(stream: AnswerStream, batch: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(batch))
        if when(batch):
            raise error
        return begin(stream, batch, *args, **kwargs)

    begin = AnswerStream.begin
    monkeypatch.setattr(AnswerStream, "begin", raising)
    return sizes


def texts(run: RunStore, asked: list[Sample]) -> list[str]:
    found = jobs.answered(run, jobs.draws(asked))
    return [found[sample.id, 0]["text"].strip() for sample in asked]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_answers_are_those_of_the_library(
    batch_size: int, loaded: tuple[Any, Any], asked: list[Sample], expected: list[str], run: RunStore
) -> None:
    jobs.worker(loaded, batch_size=batch_size).work(run, jobs.draws(asked)[::-1], max_errors=0)
    assert texts(run, asked) == expected


def test_a_record_says_all_about_its_answer(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    worker = jobs.worker(
        loaded, batch_size=4, judge=lambda sample, text, cut: {"parsed": f"{sample.id}: {text}, {cut}"}
    )
    worker.work(run, jobs.draws(asked), max_errors=0)
    written = jobs.records(run.path)
    assert len(written) == len(asked)
    ends = set(loaded[1].tokenizer.convert_tokens_to_ids(["</s>"]))
    for record in written:
        assert {name: type(value) for name, value in record.items()} == FIELDS
        assert record["parsed"] == f"{record['id']}: {record['text']}, {record['finish'] == 'length'}"
        assert record["n_new_tokens"] == len(record["token_ids"]) <= jobs.PROTOCOL.max_new_tokens
        assert (record["finish"] == "eos") == (record["token_ids"][-1] in ends)
        assert 1 <= record["batch_size"] <= 4
        assert record["n_prompt_tokens"] > 64  # so many image tokens alone
        assert record["time_prefill"] > 0
        assert record["time_decode"] > 0
        decoded = loaded[1].tokenizer.decode(record["token_ids"], skip_special_tokens=True)
        assert record["text"] == decoded


def test_questions_about_an_image_run_together(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, batches: list[list[str]]
) -> None:
    jobs.worker(loaded, batch_size=3).work(run, jobs.draws(asked)[::-1], max_errors=0)
    images = [record["image"] for record in jobs.records(run.path)]
    assert [len(set(images[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert [sorted(batch) for batch in batches] == [sorted(jobs.QUESTIONS)] * 3


def test_images_are_encoded_once_a_batch(loaded: tuple[Any, Any], asked: list[Sample], run: RunStore) -> None:
    encoded: list[int] = []
    tower = next(part for name, part in loaded[0].named_modules() if name.endswith("vision_tower"))
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: count(args, kwargs), with_kwargs=True
    )

    def count(args: Any, kwargs: Any) -> None:
        encoded.append(len(args[0] if args else kwargs["pixel_values"]))

    try:
        jobs.worker(loaded, batch_size=9).work(run, jobs.draws(asked), max_errors=0)
    finally:
        handle.remove()
    assert sum(encoded) == 3


def test_a_batch_is_on_disk_before_the_next_begins(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    told: list[str] = []

    def look(records: list[dict[str, Any]]) -> None:
        told.extend(record["id"] for record in records)
        assert [record["id"] for record in jobs.records(run.path)] == told

    jobs.worker(loaded, batch_size=2).work(run, jobs.draws(asked), max_errors=0, on_records=look)
    assert sorted(told) == sorted(sample.id for sample in asked)


def test_nothing_to_do_writes_nothing(loaded: tuple[Any, Any], run: RunStore) -> None:
    jobs.worker(loaded).work(run, [], max_errors=0)
    assert list((run.path / "records").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_want_of_memory_halves_the_batch_for_good(
    error: Exception,
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = failing(monkeypatch, error, lambda batch: len(batch) > 2)
    jobs.worker(loaded, batch_size=8).work(run, jobs.draws(asked), max_errors=0)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert texts(run, asked) == expected
    assert len(jobs.records(run.path)) == len(asked)


def test_reasoning_is_kept_apart_and_what_does_not_end_is_no_answer(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such samples count, are not judged, and stop no run."""
    judged: list[str] = []

    def thinking(*args: Any) -> list[Answer]:
        answers = read_answers(*args)  # the tokens of which are the reasoning's
        ends = {"text": "No.", "reasoning": "Is it?", "reasoning_tokens": 2}
        open_ended = {"text": "", "reasoning": "Yes", "reasoning_tokens": len(answers[0].token_ids)}
        return [
            dataclasses.replace(answer, **(ends if number else {**open_ended, "reached": False}))
            for number, answer in enumerate(answers)
        ]

    read_answers = answer_stream.read_answers
    monkeypatch.setattr(answer_stream, "read_answers", thinking)

    def judge(sample: Sample, text: str, cut: bool) -> dict[str, Any]:
        judged.append(text)
        return {"parsed": text}

    worker = jobs.Writer(*loaded, (), jobs.PROTOCOL, judge, 3, answer_ids=((3,), (4,)))
    worker.work(run, jobs.draws(asked), max_errors=0)
    found = run.read({draw.identity: draw.key for draw in jobs.draws(asked)})
    assert (len(found.failed), len(found.done)) == (3, len(asked) - 3)
    assert judged == ["No."] * len(found.done)
    for record in found.done.values():
        assert (record["text"], record["reasoning"], record["n_reasoning_tokens"]) == ("No.", "Is it?", 2)
        assert len(record["token_ids"]) == record["n_new_tokens"] - 2
        assert "margin" not in record
    for record in found.failed.values():
        assert record["error_type"] == UNREACHED
        assert "did not end within" in record["error"]
        assert "parsed" not in record
        assert record["reasoning"] == "Yes"


def test_want_of_memory_for_a_single_sample_is_recorded(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry = asked[4]
    failing(
        monkeypatch,
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"),
        lambda batch: any(
            str(each.pictures[0].tobytes()) == content and each.question.text == hungry.prompt
            for each in batch
        ),
    )
    content = str(open_images(hungry.image)[0].tobytes())
    jobs.worker(loaded, batch_size=4).work(run, jobs.draws(asked), max_errors=1)
    found = run.read({draw.identity: draw.key for draw in jobs.draws(asked)})
    assert set(found.failed) == {(hungry.id, 0)}
    assert found.failed[hungry.id, 0]["error"] == "CUDA out of memory. Tried to allocate 20 GiB"
    assert found.failed[hungry.id, 0]["error_type"] == "OutOfMemoryError"
    assert len(found.done) == len(asked) - 1


def test_want_of_memory_while_pictures_are_opened(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several huge pictures may not fit where one does."""
    opened: list[Path] = []

    def hungry(path: Path) -> list[Image.Image]:
        opened.append(path)
        if len(opened) == 2:
            raise MemoryError
        return open_images(path)

    monkeypatch.setattr(loading, "open_images", hungry)
    jobs.worker(loaded, batch_size=8).work(run, jobs.draws(asked), max_errors=0)
    assert texts(run, asked) == expected
    assert {record["status"] for record in jobs.records(run.path)} == {"ok"}


def test_the_next_batch_is_loaded_while_the_model_is_at_work(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = [threading.Event() for _ in range(len(asked) + 1)]
    prepared: list[Any] = []

    def noted(processor: Any, batch: Any, show: Any) -> Any:
        prepared.append(processor)
        begun[len(prepared)].set()
        return prepare_batch(processor, batch, show)

    def waiting(stream: AnswerStream, batch: Any, show: Any, prepared: Any, **kwargs: Any) -> Any:
        answered.append(len(batch))
        is_last = sum(answered) == len(asked)
        assert is_last or begun[len(answered) + 1].wait(timeout=60)
        assert prepared is not None
        return begin(stream, batch, show, prepared, **kwargs)

    begin = AnswerStream.begin

    answered: list[int] = []
    monkeypatch.setattr(loading, "prepare_batch", noted)
    monkeypatch.setattr(AnswerStream, "begin", waiting)
    jobs.worker(loaded, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    assert texts(run, asked) == expected
    assert len(prepared) == len(answered) > 1
    assert all(processor is not loaded[1] for processor in prepared)  # which no two threads may use


def test_a_sample_that_breaks_a_batch_is_found(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = [dataclasses.replace(sample) for sample in asked]
    poison[5] = dataclasses.replace(asked[5], prompt="poison")
    error = RuntimeError("index out of range\n in self")
    sizes = failing(monkeypatch, error, lambda batch: any(each.question.text == "poison" for each in batch))
    jobs.worker(loaded, batch_size=6).work(run, jobs.draws(poison), max_errors=1)
    found = run.read({draw.identity: draw.key for draw in jobs.draws(poison)})
    assert list(found.failed) == [(poison[5].id, 0)]
    assert found.failed[poison[5].id, 0]["error"] == "index out of range in self"
    answers = {id: record["text"].strip() for (id, _), record in found.done.items()}
    assert answers == {
        sample.id: text for sample, text in zip(poison, expected, strict=True) if sample.prompt != "poison"
    }
    assert sorted(sizes, reverse=True)[0] == 6
    assert sizes.count(1) >= 3


def broken(folder: Path) -> dict[str, Path]:
    """Files that are no pictures, by what is wrong with them."""
    whole = folder / "whole.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    contents = {
        "empty": b"",
        "text": b"not a picture",
        "truncated": whole.read_bytes()[:-200],
        "bomb": bomb(),
    }
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    return {name: folder / f"{name}.jpg" for name in (*contents, "folder", "loop", "missing", "of\0no\0file")}


def bomb() -> bytes:
    """The head of a bitmap of 60,000 x 60,000 pixels."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)


def test_broken_pictures_are_failures_once_each(
    loaded: tuple[Any, Any], asked: list[Sample], expected: list[str], run: RunStore, tmp_path: Path
) -> None:
    bad = [
        Sample(f"pope/{name}/0", name, path, jobs.QUESTIONS[0], "yes", {})
        for name, path in broken(tmp_path).items()
    ]
    everything = jobs.draws([*asked, *bad])
    jobs.worker(loaded, batch_size=5).work(run, everything, max_errors=len(bad))
    found = run.read({draw.identity: draw.key for draw in everything})
    assert texts(run, asked) == expected
    assert set(found.failed) == {(sample.id, 0) for sample in bad}
    reasons = {id.split("/")[1]: record["error"] for (id, _), record in found.failed.items()}
    for name in ("empty", "text", "truncated"):
        assert f"{name}.jpg' is not a readable image" in reasons[name]
    assert "too many pixels" in reasons["bomb"]
    for name in ("folder", "loop", "missing", "of\0no\0file"):
        assert "no image file" in reasons[name]
    assert len(jobs.records(run.path)) == len(everything)
    for record in found.failed.values():
        assert sorted(record) == sorted([*FAILED, "status", "error", "error_type"])


@pytest.mark.parametrize("error", [struct.error("unpack"), KeyError("tag"), RecursionError(), EOFError()])
def test_readers_of_pictures_may_raise_anything(
    error: Exception,
    loaded: tuple[Any, Any],
    asked: list[Sample],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(path: Path) -> list[Image.Image]:
        if path == asked[0].image:
            raise error
        return open_images(path)

    monkeypatch.setattr(loading, "open_images", unreadable)
    jobs.worker(loaded).work(run, jobs.draws(asked), max_errors=3)
    found = run.read({draw.identity: draw.key for draw in jobs.draws(asked)})
    assert {record["error_type"] for record in found.failed.values()} == {type(error).__name__}
    assert (len(found.failed), len(found.done)) == (3, 6)


def test_a_placeholder_for_images_in_a_question_is_a_failure_of_that_sample(
    loaded: tuple[Any, Any], asked: list[Sample], expected: list[str], run: RunStore
) -> None:
    strange = [
        dataclasses.replace(asked[1], id=f"pope/strange/{number}", prompt=prompt)
        for number, prompt in enumerate(["Is <image> here?", "<image><image>"])
    ]
    jobs.worker(loaded).work(run, jobs.draws([*asked, *strange]), max_errors=2)
    assert texts(run, asked) == expected
    failed = run.read({draw.identity: draw.key for draw in jobs.draws(strange)}).failed
    assert set(failed) == {(sample.id, 0) for sample in strange}
    assert all("image" in record["error"] for record in failed.values())


def test_strange_questions_are_answered_alone_and_together(
    loaded: tuple[Any, Any], asked: list[Sample], tmp_path: Path
) -> None:
    prompts = [
        "</s>",
        "<pad><unk>",
        "\u202e\u200b\U0001f600 \x00\x07",
        "{{ 7 * 7 }} %s",
        "USER: hi ASSISTANT:",
    ]
    strange = [
        dataclasses.replace(asked[0], id=f"pope/strange/{number}", prompt=prompt)
        for number, prompt in enumerate(prompts)
    ]
    found = []
    for size in (1, 8):
        run = jobs.start(tmp_path / str(size))
        jobs.worker(loaded, batch_size=size).work(run, jobs.draws(strange), max_errors=0)
        found.append(texts(run, strange))
    assert found[0] == found[1]


def test_questions_without_image(loaded: tuple[Any, Any], asked: list[Sample], run: RunStore) -> None:
    bare = [dataclasses.replace(sample, id=f"{sample.id}/bare", image=None) for sample in asked[:2]]
    jobs.worker(loaded).work(run, jobs.draws([*asked[:3], *bare]), max_errors=0)
    plain = vlmfix.generate(*loaded, [None, None], [sample.prompt for sample in bare], max_new_tokens=4)
    assert texts(run, bare) == plain
    assert {record["image"] for record in jobs.answered(run, jobs.draws(bare)).values()} == {None}


def test_a_prompt_that_is_far_longer_goes_alone(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, batches: list[list[str]]
) -> None:
    """Padding its neighbours to its length would cost more than the batch saves."""
    longer = [dataclasses.replace(asked[4], prompt="word " * 600), *asked[:4], *asked[5:]]
    jobs.worker(loaded, batch_size=9).work(run, jobs.draws(longer), max_errors=0)
    [alone] = [batch for batch in batches if "word " * 600 in batch]
    assert alone == ["word " * 600]
    assert len(batches) == 3
    assert len(jobs.answered(run, jobs.draws(longer))) == 9


@pytest.mark.parametrize(("allowed", "stops"), [(2, True), (3, False)])
def test_too_many_failures_stop_the_work(
    allowed: int, stops: bool, loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, tmp_path: Path
) -> None:
    bad = [dataclasses.replace(sample, image=tmp_path / "missing.png") for sample in asked[:3]]
    worker = jobs.worker(loaded, batch_size=1)
    everything = jobs.draws([*bad, *asked[3:]])
    if stops:
        message = r"3 samples failed, more than the 2 that --max-errors allows; fix them .* was pope/0/\d: no"
        with pytest.raises(TooManyErrorsError, match=message):
            worker.work(run, everything, max_errors=allowed)
    else:
        worker.work(run, everything, max_errors=allowed)
        assert len(jobs.answered(run, everything)) == 6
    assert sum(record["status"] == "error" for record in jobs.records(run.path)) == 3


def test_a_method_that_does_not_go_with_the_model_stops_the_work(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, vlmfix.UnsupportedError("static cache"), lambda batch: True)
    with pytest.raises(vlmfix.UnsupportedError, match="static cache"):
        jobs.worker(loaded).work(run, jobs.draws(asked), max_errors=100)
    assert jobs.records(run.path) == []


def test_a_parser_that_raises_loses_no_answer(
    loaded: tuple[Any, Any], asked: list[Sample], expected: list[str], run: RunStore
) -> None:
    def judge(sample: Sample, text: str, truncated: bool) -> dict[str, Any]:
        if sample == asked[3]:
            raise ValueError("unheard of")
        return {"parsed": text}

    jobs.worker(loaded, judge=judge).work(run, jobs.draws(asked), max_errors=0)
    assert texts(run, asked) == expected
    assert jobs.answered(run, jobs.draws(asked))[asked[3].id, 0]["parsed"] is None


@pytest.mark.parametrize("name", ["greedy", "var", "vhr", "fastv", "var+vhr"])
def test_what_methods_did_adds_up_over_samples(
    name: str, loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    methods = [] if name == "greedy" else [vlmfix.make_method(each) for each in name.split("+")]
    jobs.worker(loaded, methods, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    infos = [record["method_info"] for record in jobs.records(run.path)]
    assert all(list(info) == [type(each).__name__.lower() for each in methods] for info in infos)
    for method in methods:
        rows = [info[type(method).__name__.lower()] for info in infos]
        activity = method.edit_stats()
        sums = {key: sum(row[key] for row in rows) for key in ("steps", "steps_edited", "edited", "eligible")}
        assert sums["edited"] > 0
        assert activity.rows == len(asked)
        assert activity.rows_touched == sum(row["edited"] > 0 for row in rows)
        assert (activity.steps, activity.steps_edited) == (sums["steps"], sums["steps_edited"])
        assert activity.site_share == pytest.approx(sums["edited"] / sums["eligible"])


def test_methods_give_the_same_answers_in_batches_as_in_the_library(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    strong = vlmfix.VAR(moved_fraction=1.0, min_image_mass=0.0, min_non_sink_share=0.0)
    jobs.worker(loaded, [strong], batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    alone = [
        vlmfix.generate(*loaded, sample.image, sample.prompt, strong, max_new_tokens=4) for sample in asked
    ]
    assert texts(run, asked) == alone


@pytest.mark.parametrize("name", ["carve", "carve+var", "mrfd"])
def test_a_method_that_asks_several_times(
    name: str, loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    methods = [vlmfix.make_method(each) for each in name.split("+")]
    few = asked[:2]
    jobs.worker(loaded, methods, batch_size=8).work(run, jobs.draws(few), max_errors=0)
    assert texts(run, few) == [
        vlmfix.generate(*loaded, sample.image, sample.prompt, name, max_new_tokens=4) for sample in few
    ]
    written = jobs.records(run.path)
    assert sum(record["method_info"][methods[0].name]["edited"] for record in written) == len(few)
    for record in written:
        assert record["batch_size"] == 1
        assert record["forwards_per_token"] > 1.5
        assert record["n_new_tokens"] == len(record["token_ids"])
        assert set(record["method_info"]) == set(name.split("+"))


def test_patch_matters_answers_questions_plainly(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    method = vlmfix.PatchMatters(samples_per_region=1, max_caption_tokens=4)
    few = asked[:2]
    jobs.worker(loaded, [method], batch_size=8).work(run, jobs.draws(few), max_errors=0)
    skipped = {
        record["id"]: record["method_info"]["patch_matters"]["skipped"] for record in jobs.records(run.path)
    }
    assert [bool(skipped[sample.id]) for sample in few] == [sample.prompt.startswith("Is ") for sample in few]
    assert texts(run, few) == [
        vlmfix.generate(*loaded, sample.image, sample.prompt, method, max_new_tokens=4) for sample in few
    ]


def state(model: Any) -> Any:
    """What methods and workers touch of a model."""
    decoder = model.get_decoder()
    return (
        {name: dict(vars(part)) for name, part in (("model", model), ("decoder", decoder))},
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        decoder.config._attn_implementation,
        vars(model.base_model).get("get_image_features"),
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), vlmfix.UnsupportedError("no"), OSError(28, "full")])
@pytest.mark.parametrize("place", ["model", "records"])
def test_the_model_is_left_as_it_was(
    error: BaseException,
    place: str,
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever interrupts the work, the next worker goes on with what is left."""
    before = state(loaded[0])
    methods = [vlmfix.make_method("var"), vlmfix.make_method("vhr")]
    worker = jobs.worker(loaded, methods, batch_size=3)

    def stop(records: list[dict[str, Any]]) -> None:
        raise error

    if place == "records":
        with pytest.raises(type(error)):
            worker.work(run, jobs.draws(asked), max_errors=9, on_records=stop)
    else:
        original = type(loaded[0]).prepare_inputs_for_generation
        calls: list[int] = []

        def prepare(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == jobs.PROTOCOL.max_new_tokens + 2 and not isinstance(error, OSError):
                raise error
            return original(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(type(loaded[0]), "prepare_inputs_for_generation", prepare)
            if isinstance(error, OSError):
                patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                worker.work(run, jobs.draws(asked), max_errors=9)
    assert state(loaded[0]) == before
    open_files = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [name for name in open_files if name.startswith(str(run.path))]
    assert vlmfix.generate(*loaded, asked[0].image, asked[0].prompt, max_new_tokens=4) == expected[0]
    there = jobs.answered(run, jobs.draws(asked))
    assert len(there) == 3
    left = [draw for draw in jobs.draws(asked) if draw.identity not in there]
    again = jobs.start(run.path)
    jobs.worker(loaded, methods).work(again, left, max_errors=0)
    assert len(jobs.records(run.path)) == len(asked)


@pytest.fixture(scope="module")
def sampled(
    loaded: tuple[Any, Any], asked: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], str]:
    """Three repeats of each sample, one draw at a time."""
    run = jobs.start(tmp_path_factory.mktemp("sampled"))
    draws = jobs.draws(asked, jobs.SAMPLED)
    jobs.worker(loaded, protocol=jobs.SAMPLED, batch_size=1).work(run, draws, max_errors=0)
    return {identity: record["text"] for identity, record in jobs.answered(run, draws).items()}


@pytest.mark.slow
def test_repeats_differ(sampled: dict[tuple[str, int], str], asked: list[Sample]) -> None:
    assert len(sampled) == 27
    different = [len({sampled[sample.id, repeat] for repeat in range(3)}) for sample in asked]
    assert sum(different) > 15
    assert {sampled[sample.id, 0] for sample in asked} != {sampled[sample.id, 1] for sample in asked}


@pytest.mark.parametrize(("batch_size", "shards"), [(4, 1), (32, 1), (5, 2), (32, 3)])
def test_repeats_depend_on_neither_batches_nor_workers(
    batch_size: int,
    shards: int,
    sampled: dict[tuple[str, int], str],
    loaded: tuple[Any, Any],
    asked: list[Sample],
    run: RunStore,
) -> None:
    draws = jobs.draws(asked, jobs.SAMPLED)
    for index in reversed(range(shards)):
        own = [draw for number, draw in enumerate(draws) if number % shards == index]
        worker = jobs.worker(
            loaded, protocol=jobs.SAMPLED, batch_size=batch_size, shard=f"{index}-of-{shards}"
        )
        worker.work(jobs.start(run.path), own, max_errors=0)
    found = {identity: record["text"] for identity, record in jobs.answered(run, draws).items()}
    assert found == sampled


def test_repeats_follow_the_seed_of_the_run(
    sampled: dict[tuple[str, int], str], loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    draws = [dataclasses.replace(draw, seed=draw.seed + 100) for draw in jobs.draws(asked, jobs.SAMPLED)]
    jobs.worker(loaded, protocol=jobs.SAMPLED, batch_size=32).work(run, draws, max_errors=0)
    found = {identity: record["text"] for identity, record in jobs.answered(run, draws).items()}
    assert found != sampled


def test_carve_samples_its_final_answer(loaded: tuple[Any, Any], asked: list[Sample], run: RunStore) -> None:
    draws = jobs.draws(asked[2:3], jobs.SAMPLED)
    jobs.worker(loaded, [vlmfix.CARVE()], protocol=jobs.SAMPLED).work(run, draws, max_errors=0)
    assert len({record["text"] for record in jobs.records(run.path)}) > 1


def test_beams(loaded: tuple[Any, Any], asked: list[Sample], run: RunStore) -> None:
    protocol = jobs.PROTOCOL.with_(num_beams=3)
    method = vlmfix.VAR()
    jobs.worker(loaded, [method], protocol=protocol, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    steps = [record["method_info"]["var"]["steps"] for record in jobs.records(run.path)]
    assert sum(steps) == method.edit_stats().steps
    alone = [
        vlmfix.generate(*loaded, sample.image, sample.prompt, method, max_new_tokens=4, num_beams=3)
        for sample in asked
    ]
    assert texts(run, asked) == alone


def test_a_draw_stands_beside_those_of_its_image() -> None:
    samples = [Sample(f"{name}/{number}", name, None, "?", "", {}) for number in range(3) for name in "abcde"]
    order = sorted(
        (Draw(sample, repeat, 0, "") for sample in samples for repeat in (1, 0)), key=lambda d: d.order
    )
    clusters = [draw.sample.cluster for draw in order]
    assert [clusters[start : start + 6] for start in range(0, 30, 6)] == [[c] * 6 for c in clusters[::6]]
    assert [draw.identity for draw in order[:4]] == [
        (f"{clusters[0]}/0", 0),
        (f"{clusters[0]}/0", 1),
        (f"{clusters[0]}/1", 0),
        (f"{clusters[0]}/1", 1),
    ]


@pytest.mark.slow
def test_methods_say_what_is_asked_and_how_it_is_decoded(
    loaded: tuple[Any, Any], asked: list[Sample], tmp_path: Path
) -> None:
    class Searching(vlmfix.VAR):
        def prompt(self, text: str) -> str:
            return f"{text} Answer in a word."

        def decoding(self, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
            return {"num_beams": 3, **generate_kwargs}

    for beams, protocol in ((3, jobs.PROTOCOL), (2, jobs.PROTOCOL.with_(num_beams=2))):
        run = jobs.start(tmp_path / str(beams))
        jobs.worker(loaded, [Searching()], protocol=protocol, batch_size=4).work(
            run, jobs.draws(asked), max_errors=0
        )
        assert texts(run, asked) == [
            vlmfix.generate(
                *loaded,
                sample.image,
                f"{sample.prompt} Answer in a word.",
                "var",
                max_new_tokens=4,
                num_beams=beams,
            )
            for sample in asked
        ]
        prompts = {record["prompt"] for record in jobs.records(run.path)}
        assert prompts == {f"{sample.prompt} Answer in a word." for sample in asked}


def test_what_logit_methods_move_adds_up_over_samples(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore
) -> None:
    method = vlmfix.M3ID(decay=0.5)
    jobs.worker(loaded, [method], batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    infos = [record["method_info"]["m3id"] for record in jobs.records(run.path)]
    activity = method.edit_stats()
    assert activity.kl_steps == sum(info["kl_steps"] for info in infos)
    assert activity.kl_mean == pytest.approx(sum(info["kl"] for info in infos) / activity.kl_steps)
    assert activity.kl_max == max(info["kl_max"] for info in infos)
    assert activity.argmax_changed == sum(info["argmax_changed"] for info in infos) / activity.kl_steps


def test_margins_between_yes_and_no(loaded: tuple[Any, Any], asked: list[Sample], tmp_path: Path) -> None:
    ids = answer_ids(loaded[1].tokenizer)
    margins: list[dict[str, float]] = []
    for size in (1, 9):
        run = jobs.start(tmp_path / str(size))
        worker = jobs.worker(loaded, batch_size=size)
        jobs.Writer(*loaded, [], jobs.PROTOCOL, worker.judge, size, ids).work(
            run, jobs.draws(asked), max_errors=0
        )
        margins.append({record["id"]: record["margin"] for record in jobs.records(run.path)})
    assert margins[0] == pytest.approx(margins[1], abs=2e-4)
    for sample, text in zip(asked, texts(run, asked), strict=True):
        if text in ("Yes", "No"):
            assert (margins[0][sample.id] > 0) == (text == "Yes")
    assert set(margins[0]) == {sample.id for sample in asked}
