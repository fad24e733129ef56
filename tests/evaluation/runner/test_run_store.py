"""Run directories: nothing that was written is lost, nothing is read twice, and no two settings mix."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import jobs
from vlmfix.evaluation.files import atomic
from vlmfix.evaluation.files.atomic import check_writable, create_json, write_json
from vlmfix.evaluation.runner.run_store import (
    ResumeError,
    RunStore,
    differences,
    read_manifest,
    sample_key,
    sealed,
)

KEY = {"method": {"name": "var", "moved_fraction": 0.4}, "seed": 0}
ENVIRONMENT = {"torch": "2.6", "device": "cpu"}
KEYS = {("a", 0): "k", ("b", 0): "k", ("c", 0): "k"}


def record(
    id: str, text: str = "Yes.", *, at: float = 1.0, key: str = "k", repeat: int = 0
) -> dict[str, Any]:
    return {
        "id": id,
        "repeat": repeat,
        "key": key,
        "status": "ok",
        "text": text,
        "finish": "eos",
        "written_at": at,
    }


def failure(id: str, *, at: float = 1.0, key: str = "k") -> dict[str, Any]:
    return {
        "id": id,
        "repeat": 0,
        "key": key,
        "status": "error",
        "error": "broken",
        "error_type": "ValueError",
        "written_at": at,
    }


def begin(path: Path, **changes: Any) -> RunStore:
    settings = {"key": KEY, "environment": ENVIRONMENT, "info": {}} | changes
    return RunStore.start(path, settings.pop("key"), settings.pop("environment"), **settings)


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return begin(tmp_path / "run")


def line(record: dict[str, Any]) -> str:
    return json.dumps(sealed(record)) + "\n"


def write(run: RunStore, *records: dict[str, Any], name: str = "0-of-1-000.jsonl") -> Path:
    """Records in a file, as a process would have left it."""
    path = run.path / "records" / name
    path.write_text("".join(map(line, records)), encoding="utf-8")
    return path


def fork(processes: int, work: Callable[[int], None]) -> None:
    """The same work in several processes at once."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)

    def child(number: int) -> None:
        barrier.wait()
        work(number)

    children = [context.Process(target=child, args=(number,)) for number in range(processes)]
    for each in children:
        each.start()
    for each in children:
        each.join()
    assert [each.exitcode for each in children] == [0] * processes


def test_records_come_back_as_they_were(run: RunStore) -> None:
    strange = "\n\r\u2028 \u0000 ein „Hund“ \U0001f600"
    run.append([record("a", ""), record("b", strange)], "0-of-1")
    run.append([failure("c")], "0-of-1")
    found = run.read(KEYS)
    assert [found.done[id, 0]["text"] for id in "ab"] == ["", strange]
    assert found.failed == {("c", 0): failure("c") | {"environment": 0}}
    assert (found.torn, found.duplicates) == ([], 0)
    assert [path.name for path in (run.path / "records").iterdir()] == ["0-of-1-000.jsonl"]


def test_records_of_other_samples_do_not_matter(run: RunStore) -> None:
    write(run, record("a"), record("z", key="other"), record("b", repeat=3))
    assert set(run.read(KEYS).done) == {("a", 0)}


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(run: RunStore) -> None:
    path = write(run, record("a"), record("b", "é"), record("c"))
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == 10]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        found = run.read(KEYS)
        assert len(found.done) == sum(end <= size for end in ends)
        assert found.torn == ([] if size in (0, *ends) else [path.name])


@pytest.mark.parametrize("line", [b"{", b"\0\0\0\0", b'{"id": "b"}', b"\xff\xfe", b"[]"])
def test_a_damaged_last_line_is_dropped_and_named(line: bytes, run: RunStore) -> None:
    path = write(run, record("a"))
    path.write_bytes(path.read_bytes() + line + b"\n")
    found = run.read(KEYS)
    assert set(found.done) == {("a", 0)}
    assert found.torn == [path.name]


DAMAGED = [
    "{",
    "[]",
    "null",
    '"text"',
    "{}",
    "",
    json.dumps(record("b") | {"text": 5}),
    json.dumps(record("b") | {"repeat": [1]}),
    json.dumps(record("b") | {"written_at": "now"}),
    json.dumps(record("b") | {"key": None}),
    json.dumps({key: value for key, value in record("b").items() if key != "finish"}),
    json.dumps({key: value for key, value in failure("b").items() if key != "error"}),
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_elsewhere_is_an_error_with_its_place(damaged: str, run: RunStore) -> None:
    path = write(run, record("a"))
    path.write_text(f"{line(record('a'))}{damaged}\n{line(record('c'))}")
    with pytest.raises(ValueError, match=r"0-of-1-000\.jsonl, line 2 is damaged .*remove this line"):
        run.read(KEYS)


def test_an_edited_line_is_an_error_unless_it_is_trusted(run: RunStore) -> None:
    run.append([record("a"), record("b", "No.")], "0-of-1")
    [path] = (run.path / "records").iterdir()
    path.write_text(path.read_text().replace("No.", "Yes."))
    with pytest.raises(ValueError, match=r"line 2 was edited .* vlmfix report --trust"):
        run.read(KEYS)
    assert run.read(KEYS, trust=True).done["b", 0]["text"] == "Yes."


def test_an_edited_manifest_is_an_error_unless_it_is_trusted(run: RunStore) -> None:
    file = run.path / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"info": {"model": "another"}}))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used \(it was edited .*--trust"):
        read_manifest(run.path)
    assert read_manifest(run.path, trust=True)["info"] == {"model": "another"}
    file.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match="its format is 99, and this version reads 2"):
        read_manifest(run.path, trust=True)


def test_a_damaged_line_before_a_torn_one_is_an_error(run: RunStore) -> None:
    path = write(run, record("a"))
    path.write_text(path.read_text() + "{\n" + json.dumps(record("c"))[:20])
    with pytest.raises(ValueError, match="line 2 is damaged"):
        run.read(KEYS)


def test_a_line_that_is_not_utf8_is_an_error_with_its_place(run: RunStore) -> None:
    path = write(run, record("a"))
    path.write_bytes(b'{"id": "\xff"}\n' + path.read_bytes())
    with pytest.raises(ValueError, match="line 1 is damaged"):
        run.read(KEYS)


def test_a_new_process_leaves_a_torn_file_alone(run: RunStore) -> None:
    path = write(run, record("a"), record("b"))
    path.write_bytes(path.read_bytes()[:-9])
    torn = path.read_bytes()
    again = begin(run.path)
    again.append([record("b", "No.")], "0-of-1")
    assert path.read_bytes() == torn
    assert (run.path / "records" / "0-of-1-001.jsonl").is_file()
    assert again.read(KEYS).done["b", 0]["text"] == "No."


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(1.0, 2.0, "x"), (2.0, 1.0, "y"), (1.0, 1.0, "x")],
    ids=["earlier file", "earlier time", "same time: by file"],
)
def test_of_two_answers_the_first_holds(first: float, second: float, kept: str, run: RunStore) -> None:
    write(run, record("a", "y", at=second), name="1-of-2-000.jsonl")
    write(run, record("a", "x", at=first), name="0-of-2-000.jsonl")
    found = run.read(KEYS)
    assert found.done["a", 0]["text"] == kept
    assert found.duplicates == 1


def test_of_two_answers_in_a_file_at_the_same_time_the_upper_one_holds(run: RunStore) -> None:
    write(run, record("a", "x"), record("a", "y"))
    assert run.read(KEYS).done["a", 0]["text"] == "x"


@pytest.mark.parametrize(("success", "error"), [(1.0, 2.0), (2.0, 1.0)])
def test_an_error_never_hides_a_success(success: float, error: float, run: RunStore) -> None:
    write(run, failure("a", at=error), record("a", at=success))
    found = run.read(KEYS)
    assert set(found.done) == {("a", 0)}
    assert found.failed == {}
    assert found.duplicates == 0


def test_an_answer_under_another_key_is_refused(run: RunStore) -> None:
    write(run, record("a", key="before"))
    with pytest.raises(ResumeError, match=r"0-of-1-000\.jsonl: a was answered with another image or prompt"):
        run.read(KEYS)


def test_a_failure_under_another_key_is_no_answer_and_no_obstacle(run: RunStore) -> None:
    """A missing image that was put in its place has another key than its failure."""
    write(run, failure("a", key="without image"))
    found = run.read(KEYS)
    assert (found.done, found.failed) == ({}, {})
    write(run, failure("a", key="without image"), record("a", at=2.0))
    assert set(run.read(KEYS).done) == {("a", 0)}
    assert set(run.read({("a", 0): None}).done) == {("a", 0)}


def test_without_keys_the_answers_to_a_sample_must_agree(run: RunStore) -> None:
    write(run, record("a"), record("b", key="l"))
    assert len(run.read(dict.fromkeys(KEYS)).done) == 2
    write(run, record("a", key="l"), name="1-of-1-000.jsonl")
    with pytest.raises(ResumeError, match="a was answered with another"):
        run.read(dict.fromkeys(KEYS))


def test_other_settings_in_the_same_directory_are_refused(run: RunStore) -> None:
    other = {"method": {"name": "var", "moved_fraction": 0.6}, "seed": 0}
    with pytest.raises(ResumeError, match=r"method\.moved_fraction: 0\.4, now 0\.6.*choose another --output"):
        begin(run.path, key=other)
    assert read_manifest(run.path)["key"] == KEY


def test_tuples_and_lists_are_the_same_key(tmp_path: Path) -> None:
    begin(tmp_path, key={"layers": (1, 2)})
    assert begin(tmp_path, key={"layers": [1, 2]}).manifest["key"] == {"layers": [1, 2]}


def test_a_change_of_environment_has_to_be_accepted(run: RunStore) -> None:
    newer = ENVIRONMENT | {"torch": "2.7"}
    with pytest.raises(ResumeError, match=r'torch: "2\.6", now "2\.7".*--allow-environment-change'):
        begin(run.path, environment=newer)
    assert begin(run.path, environment=newer, allow_change=True).manifest["environments"] == [
        ENVIRONMENT,
        newer,
    ]
    for known in (ENVIRONMENT, newer):
        assert begin(run.path, environment=known).manifest["environments"] == [ENVIRONMENT, newer]


def test_the_manifest_is_written_once(run: RunStore) -> None:
    before = (run.path / "manifest.json").read_bytes()
    begin(run.path, info={"command": "another one"})
    assert (run.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"key": 5, "digest": "x", "environments": [], "info": {}}', b"\xff"]
)
def test_a_damaged_manifest_is_named(content: str | bytes, run: RunStore) -> None:
    (run.path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used .*move the directory away"):
        begin(run.path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run directory: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_processes_of_the_same_name_write_files_of_their_own(run: RunStore) -> None:
    ids = [f"{number}/{index}" for number in range(4) for index in range(20)]

    def append(number: int) -> None:
        own = begin(run.path)
        for id in ids[20 * number : 20 * (number + 1)]:
            own.append([record(id)], "0-of-1")

    fork(4, append)
    assert len(list((run.path / "records").iterdir())) == 4
    found = run.read({(id, 0): "k" for id in ids})
    assert len(found.done) == 80
    assert (found.torn, found.duplicates) == ([], 0)


@pytest.mark.parametrize("attempt", range(5))
def test_one_manifest_wins_and_all_go_on_with_it(attempt: int, tmp_path: Path) -> None:
    def race(number: int) -> None:
        run = begin(tmp_path / "run", info={"process": number})
        (tmp_path / str(number)).write_text(str(run.manifest["info"]["process"]))

    fork(4, race)
    winner = read_manifest(tmp_path / "run")["info"]["process"]
    assert {(tmp_path / str(number)).read_text() for number in range(4)} == {str(winner)}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "records"]


def test_of_two_settings_that_race_one_is_refused(tmp_path: Path) -> None:
    def race(number: int) -> None:
        try:
            begin(tmp_path / "run", key={"seed": number})
        except ResumeError:
            (tmp_path / "refused").write_text(str(number))

    fork(2, race)
    assert read_manifest(tmp_path / "run")["key"] != {"seed": int((tmp_path / "refused").read_text())}


def test_processes_of_other_hosts_with_the_same_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def race(number: int) -> None:
        for index in range(30):
            create_json(tmp_path / f"{index}.json", {"by": number})
            write_json(tmp_path / "same.json", {"by": number})
            check_writable(tmp_path)

    fork(3, race)
    assert len(list(tmp_path.iterdir())) == 31


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert begin(tmp_path).manifest["key"] == KEY
    assert begin(tmp_path).manifest["key"] == KEY


def test_a_full_disk_is_said_in_one_line(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append([record("a")], "0-of-1")
    run.close()
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("vlmfix.evaluation.runner.run_store._open_new", lambda directory, shard: full)
        with pytest.raises(OSError, match=r"No space left on device\); what was answered before is safe"):
            run.append([record("b")], "0-of-1")
    run.close()  # says nothing any more
    assert set(run.read(KEYS).done) == {("a", 0)}


def test_a_disk_that_fails_to_sync_is_said_in_one_line(
    run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(
            OSError, match=r"Input/output error\); what was answered before is safe"
        ) as caught:
            run.append([record("a")], "0-of-1")
    assert "\n" not in str(caught.value)
    run.append([record("b")], "0-of-1")
    assert len(list((run.path / "records").iterdir())) == 2


def test_what_fits_before_the_disk_is_full_is_kept(run: RunStore) -> None:
    """A file that may not grow ends in the middle of a line; the lines before it hold."""

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for id in "ab":
            run.append([record(id)], "0-of-1")
        with pytest.raises(OSError, match="File too large"):
            run.append([record("c", "x" * 2000)], "0-of-1")
        run.append([record("c")], "0-of-1")

    assert jobs.in_child(fill) == 0
    found = run.read(KEYS)
    assert len(found.done) == 3
    assert found.torn == ["0-of-1-000.jsonl"]


def test_output_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot write to .*file.*; choose another --output"):
            check_writable(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    with pytest.raises(OSError, match=r"only 3 MB are free for .*, and 20 MB are needed; make room"):
        check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_on_a_disk_that_is_full_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"cannot write to .* \(No space left on device\)"):
        check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_json(path, {"a": "\ud800"})
    monkeypatch.setattr(atomic.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_differences_name_what_changed() -> None:
    old = {"a": {"b": 1, "same": [1, 2]}, "gone": True, "text": "x" * 100}
    new = {"a": {"b": 2, "same": (1, 2)}, "new": None, "text": "y" * 100}
    lines = differences(old, new)
    assert lines[:2] == ["a.b: 1, now 2", "gone: true, now null"]
    assert lines[2].startswith('text: "xxx')
    assert len(lines) == 3
    assert max(map(len, lines)) < 140
    assert differences(old, dict(old)) == []
    methods = [{"name": name, "parameters": {"layers": [1, 2]}} for name in ("var", "vhr")]
    changed = [methods[0], {"name": "vhr", "parameters": {"layers": [1, 3]}}]
    assert differences({"methods": methods}, {"methods": changed}) == [
        "methods[1].parameters.layers: [1, 2], now [1, 3]"
    ]
    assert differences(methods, [])[0].endswith("now []")
    assert differences(1, 2, "seed") == ["seed: 1, now 2"]


@pytest.mark.parametrize("change", ["id", "content", "image", "prompt", "seed", "repeat"])
def test_the_key_of_a_sample_depends_on_all_its_parts(change: str) -> None:
    sample = {"id": "a", "content": "h", "image": None, "prompt": "p", "seed": 0, "repeat": 0}
    assert sample_key(KEY, sample) == sample_key(dict(KEY), dict(sample))
    assert sample_key(KEY, sample | {change: "other"}) != sample_key(KEY, sample)
    assert sample_key(KEY | {"seed": 1}, sample) != sample_key(KEY, sample)
