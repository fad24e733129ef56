"""Jobs: settings from files and options, checked before anything is loaded."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

import vlmfix
from tests.support.paths import BENCHMARKS, ROOT
from vlmfix.evaluation.runner.config import (
    Variant,
    make_job,
    parse_protocol,
    read_job,
)

BASE = {"tasks": ["pope"], "output": "out"}


def test_all_that_is_not_said_has_a_default() -> None:
    job = make_job({"tasks": "pope"})
    assert job.tasks == ("pope",)
    assert [variant.label for variant in job.variants] == ["greedy"]
    assert (job.model, job.data, job.seed, job.batch_size) == ("tiny-llava", "synthetic", 0, 0)
    assert job.output == Path("runs/tiny-llava")
    assert (job.limit, job.max_errors, job.resume, job.retry_errors) == (None, None, "if_possible", True)
    assert not job.allow_environment_change
    assert job.baselines
    assert make_job({"tasks": "pope", "model": "org/some-model"}).output == Path("runs/some-model")


def test_what_is_null_is_not_said() -> None:
    nothing = dict.fromkeys(("model", "limit", "seed", "batch_size", "max_errors", "methods", "protocol"))
    job = make_job(BASE | nothing)
    assert (job.model, job.limit, job.seed, job.max_errors) == ("tiny-llava", None, 0, None)


def test_tasks_keep_their_order_and_come_once() -> None:
    assert make_job(BASE | {"tasks": ["vqa", "pope", "vqa"]}).tasks == ("vqa", "pope")


def test_output_in_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert make_job(BASE | {"output": "~/runs"}).output == Path("/somewhere/runs")


@pytest.mark.parametrize(
    ("entry", "label", "parameters"),
    [
        ("greedy", "greedy", []),
        ({"greedy": {}}, "greedy", []),
        ("var", "var", [{}]),
        ({"var": {}}, "var", [{}]),
        ({"var": {"moved_fraction": 0.6}}, "var(moved_fraction=0.6)", [{"moved_fraction": 0.6}]),
        ("var+vhr", "var+vhr", [{}, {}]),
        ({"var+vhr": {"vhr": {"head_scale": 2.0}}}, "var+vhr(head_scale=2.0)", [{}, {"head_scale": 2.0}]),
        ("carve+var", "carve+var", [{}, {}]),
    ],
    ids=str,
)
def test_methods_by_name_and_with_parameters(
    entry: Any, label: str, parameters: list[dict[str, Any]]
) -> None:
    [variant] = make_job(BASE | {"methods": [entry]}).variants
    assert variant.label == label
    names = [] if label == "greedy" else [name.split("(")[0] for name in label.split("+")]
    made = [vlmfix.make_method(name, **own) for name, own in zip(names, parameters, strict=True)]
    assert list(variant.methods) == made


def test_a_single_method_needs_no_list() -> None:
    assert make_job(BASE | {"methods": "var"}).variants == make_job(BASE | {"methods": ["var"]}).variants
    assert make_job(BASE | {"methods": {"var": {"moved_fraction": 0.6}}}).variants[0].label.startswith("var(")


@pytest.mark.parametrize(
    ("value", "limit"),
    [(5, 5), ("5", 5), (0.5, 0.5), ("0.5", 0.5), ("1e3", 1000), (7.0, 7), (1, 1), (1e-9, 1e-9)],
)
def test_limits_are_numbers_or_shares(value: Any, limit: float) -> None:
    found = make_job(BASE | {"limit": value}).limit
    assert found == limit
    assert type(found) is type(limit)


@pytest.mark.parametrize(
    ("max_errors", "samples", "allowed"),
    [(None, 100, 25), (None, 100_000, 1000), (0, 100, 0), (3, 100, 3), (0.1, 100, 10), ("0.5", 7, 3)],
)
def test_allowed_errors(max_errors: Any, samples: int, allowed: int) -> None:
    assert make_job(BASE | {"max_errors": max_errors}).allowed_errors(samples) == allowed


@pytest.mark.parametrize(("value", "size"), [("auto", 0), (1, 1), ("64", 64), (10**30, 10**30)])
def test_batch_sizes(value: Any, size: int) -> None:
    assert make_job(BASE | {"batch_size": value}).batch_size == size


WRONG: list[tuple[str, Any, str]] = [
    ("nope", 1, "a job has no nope; it has allow_environment_change, allow_missing, baselines, batch_size"),
    (1, 2, "a job has no 1"),
    ("tasks", [], f"no task to evaluate; name one or more of {', '.join(BENCHMARKS)}"),
    ("tasks", None, "no task to evaluate"),
    ("tasks", "birds", f"unknown task 'birds'; tasks are {', '.join(BENCHMARKS)}"),
    ("tasks", ["POPE"], "unknown task 'POPE'"),
    ("tasks", [None], "unknown task None"),
    ("tasks", [["pope"]], r"unknown task \['pope'\]"),
    ("tasks", {"pope": 1}, "unknown task"),
    ("tasks", 5, "tasks is 5; it must be a name, or a list of them"),
    ("tasks", True, "tasks is True"),
    ("methods", 5, "methods is 5; it must be a name, or a list of them"),
    ("methods", [5], "method 5 must be a name, or one name with its parameters"),
    ("methods", [None], "method None must be a name"),
    ("methods", [["var"]], r"method \['var'\] must be a name"),
    ("methods", {"var": {}, "vhr": {}}, "must be a name, or one name with its parameters"),
    ("methods", [{}], r"method \{\} must be a name"),
    ("methods", [{5: {}}], "method 5 must be a name, such as var"),
    ("methods", "varr", r"unknown method 'varr' \(did you mean 'var'\?\)"),
    ("methods", "var+", r"method 'var\+' lacks a name beside '\+'; write 'var' or name a method there"),
    ("methods", "", "method '' names none; write 'greedy' or name a method there"),
    ("methods", "greedy+var", r"greedy\+var: greedy is decoding without a method; write var"),
    ("methods", ["var", "var"], "method var is named twice with the same settings"),
    ("methods", ["greedy", {"greedy": {}}], "method greedy is named twice"),
    ("methods", "var+var", r"var\+var names a method twice"),
    ("methods", "carve+carve", r"carve\+carve names a method twice"),
    ("methods", {"greedy": {"x": 1}}, "greedy has no parameters; name a method"),
    ("methods", {"var": None}, "the parameters of var are None; they must be a mapping"),
    ("methods", {"var": [1]}, r"the parameters of var are \[1\]"),
    ("methods", {"var": {1: 2}}, r"the parameters of var are \{1: 2\}"),
    ("methods", {"var": {"moved": 1}}, "var has no parameter 'moved'"),
    ("methods", {"var": {"moved_fraction": 2}}, "moved_fraction is 2; it must be a number from 0 to 1"),
    ("methods", {"var": {"moved_fraction": float("nan")}}, "moved_fraction is nan"),
    ("methods", {"var": {"moved_fraction": "much"}}, "moved_fraction is 'much'"),
    ("methods", {"var+vhr": 5}, r"the parameters of var\+vhr are 5; they must be a mapping by method"),
    ("methods", {"var+vhr": {"var": 5}}, "the parameters of var are 5"),
    ("methods", {"var+vhr": {"gift": {}}}, r"there are settings for gift, which is not in var\+vhr"),
    ("model", 5, "model is 5; it must be a name or path"),
    ("model", ["a"], r"model is \['a'\]"),
    ("model", "", "model is ''"),
    ("revision", 5, "revision is 5; it must be a branch, tag or commit, in quotes"),
    ("revision", datetime.date(2024, 1, 1), "revision is datetime"),
    ("protocol", 5, "protocol is 5; it must be a name, or a list of them"),
    ("protocol", [5], "protocol is 5; it must be an id such as pope.llava"),
    ("protocol", {"pope": "pope.llava"}, "it must be an id such as pope.llava"),
    ("protocol", "pope.lava", r"unknown protocol 'pope.lava' \(did you mean 'pope.llava'\?\)"),
    ("protocol", "", "unknown protocol ''"),
    ("protocol", "pope.llava/cocoa", r"has no data set 'cocoa' \(did you mean 'coco'\?\)"),
    ("protocol", "chair.512", "protocol chair.512 is for chair, which is not among the tasks"),
    ("protocol", ["pope.tiny", "pope.llava"], "two protocols for pope"),
    ("protocol", "pope.tiny+x", "'x' is not KEY=VALUE"),
    ("protocol", "pope.tiny+", "'' is not KEY=VALUE"),
    ("protocol", "pope.tiny+max_new_tokens=[", "the value of max_new_tokens is not readable"),
    ("protocol", "pope.tiny+max_new_tokens=0", "max_new_tokens of pope.tiny must be a whole number of 1"),
    ("protocol", "pope.tiny+seeds=[1, 2]", "has 2 seeds but decodes greedily"),
    ("protocol", "pope.tiny+scorer=official", "pope.tiny has no setting 'scorer'"),
    ("protocol", "nope.yaml", "no protocol file 'nope.yaml'"),
    ("limit", 0, "limit is 0; it must be a whole number from 1 on, or a share such as 0.1"),
    ("limit", -1, "limit is -1"),
    ("limit", 1.5, "limit is 1.5"),
    ("limit", 1.0, "limit is 1.0"),
    ("limit", float("nan"), "limit is nan"),
    ("limit", float("inf"), "limit is inf"),
    ("limit", 10**400, "limit is 1000"),
    ("limit", "x", "limit is 'x'"),
    ("limit", "", "limit is ''"),
    ("limit", [5], r"limit is \[5\]"),
    ("limit", True, "limit is True"),
    ("max_errors", -1, "max_errors is -1; it must be a whole number from 0 on"),
    ("max_errors", "many", "max_errors is 'many'"),
    ("max_errors", True, "max_errors is True"),
    ("batch_size", 0, "batch_size is 0; it must be 1 or more, or auto"),
    ("batch_size", 2.5, "batch_size is 2.5"),
    ("batch_size", "big", "batch_size is 'big'"),
    ("batch_size", True, "batch_size is True"),
    ("batch_size", [1], r"batch_size is \[1\]"),
    ("output", 5, "output is 5; it must be the path of a folder"),
    ("output", "", "output is ''"),
    ("output", ["a"], r"output is \['a'\]"),
    ("seed", "1", "seed is '1'; it must be a whole number"),
    ("seed", 1.5, "seed is 1.5"),
    ("seed", True, "seed is True"),
    ("device", 0, "device is 0; it must be a text such as cpu or cuda:1"),
    ("dtype", 16, "dtype is 16; it must be a text such as bfloat16"),
    ("resume", "maybe", "resume is 'maybe'; it must be one of if_possible, always, never"),
    ("resume", True, "resume is True"),
    ("resume", ["always"], r"resume is \['always'\]"),
    ("retry_errors", "no", "retry_errors is 'no'; it must be true or false"),
    ("baselines", "no", "baselines is 'no'; it must be true or false"),
    ("allow_environment_change", 1, "allow_environment_change is 1; it must be true or false"),
    ("data", 5, "data must be 'synthetic', a path, or a mapping of paths"),
    ("data", ["a"], "data must be 'synthetic', a path, or a mapping"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=str)
def test_wrong_settings_are_named_with_what_they_must_be(key: Any, value: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make_job(BASE | {key: value})
    assert "\n" not in str(caught.value)


def test_a_protocol_with_deviations() -> None:
    protocol = parse_protocol("chair.512/coco+max_new_tokens=64+drop_incomplete=true+prompt='What is it?'")
    assert protocol.id == 'chair.512/coco+drop_incomplete=true+max_new_tokens=64+prompt="What is it?"'
    assert (protocol.max_new_tokens, protocol.own["drop_incomplete"]) == (64, True)
    assert parse_protocol("pope.llava").id == "pope.llava"


def test_protocols_by_task(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "task: vqa\nprotocols: {mine: {max_new_tokens: 3, scorer: official}}", encoding="utf-8"
    )
    given = ["pope.llava+parser=strict", f"{tmp_path / 'own.yaml'}+max_new_tokens=5"]
    job = make_job({"tasks": ["pope", "chair", "vqa"], "protocol": given})
    assert {task: protocol.id for task, protocol in job.protocols.items()} == {
        "pope": "pope.llava+parser=strict",
        "vqa": "mine+max_new_tokens=5",
    }


def test_the_settings_make_the_same_job_again() -> None:
    settings = BASE | {
        "methods": ["greedy", {"var": {"moved_fraction": 0.6}}],
        "protocol": "pope.tiny",
        "limit": "0.5",
        "data": {"synthetic": {"count": 3}},
    }
    job = make_job(settings)
    assert make_job(job.settings) == job
    assert job.settings == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no job file; it needs keys such as tasks"),
        (b"- pope", "is no job file"),
        (b"pope", "is no job file"),
        (b"tasks: [pope", r"is no YAML \(expected ',' or '\]'"),
        (b"tasks: pope\n\tmodel: x", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b'!!python/object/apply:os.system ["false"]', "is no YAML .*could not determine a constructor"),
        (b"a: 1\n---\nb: 2", "is no YAML"),
    ],
)
def test_files_that_hold_no_job(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_job(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(FileNotFoundError, match="no job file"):
            read_job(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "jobs").glob("*.yaml")))
def test_shipped_jobs_are_jobs(path: Path) -> None:
    job = make_job(read_job(path) | {"output": "out"})
    assert job.tasks
    assert job.variants[0] == Variant.of("greedy", {})


def test_the_old_name_of_a_setting_is_taken_with_a_line() -> None:
    with pytest.warns(UserWarning, match="controls is now called baselines; use that name"):
        job = make_job({"tasks": "pope", "controls": False})
    assert not job.baselines
    assert job.settings == {"tasks": "pope", "baselines": False}
    with pytest.raises(ValueError, match="a job has both controls and baselines"):
        make_job({"tasks": "pope", "controls": False, "baselines": True})
