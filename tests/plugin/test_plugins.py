"""Packages with methods and benchmarks: used by name everywhere, and never at the cost of others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vlmfix
from tests.support import jobs
from tests.support.forks import Fork
from tests.support.forks import vlmfix as vlmfix_command
from tests.support.paths import ROOT
from tests.support.plugins import add_distribution, install_example
from vlmfix.evaluation.runner.run_key import method_identity
from vlmfix.methods import registry

COUNTS = {"cats": 4, "pope": 6}
SHORT = ("--max-new-tokens", "6")
PROMPT = "Is there a dog in the image?"
METHOD = textwrap.dedent(
    """
    from dataclasses import dataclass
    import vlmfix

    @vlmfix.register_method("{name}")
    @dataclass(frozen=True, kw_only=True)
    class {cls}(vlmfix.VHR):
        pass
    """
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages; what the test registers is forgotten after it."""
    vlmfix.list_methods()  # ours stay
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def example(site: Path) -> Path:
    install_example(site)
    return site


@pytest.fixture
def plugin(site: Path) -> Callable[..., None]:
    """Installs a distribution with methods."""

    def install(name: str, methods: Mapping[str, str], **sources: str) -> None:
        add_distribution(site, name, {registry.GROUP: methods}, sources)

    return install


@pytest.mark.usefixtures("example")
def test_a_method_of_another_package_in_python(loaded: tuple[Any, Any]) -> None:
    assert "second_best" in vlmfix.method_names()
    assert "vlmfix_example" not in sys.modules
    plain, other = (
        vlmfix.generate(*loaded, None, PROMPT, method, max_new_tokens=6)
        for method in ("greedy", "second_best")
    )
    assert plain != other
    method = vlmfix.make_method("second_best", penalty=0)
    assert vlmfix.generate(*loaded, None, PROMPT, method, max_new_tokens=6) == plain
    assert vlmfix.list_methods()["second_best"] is type(method)
    with pytest.raises(vlmfix.UnsupportedError, match="SecondBest defines the logits of this model already"):
        vlmfix.generate(*loaded, None, PROMPT, "second_best+vcd")


@pytest.mark.usefixtures("example")
def test_a_method_of_another_package_on_the_command_line() -> None:
    plain = jobs.cli("generate", *SHORT)
    methods = ("--method", "second_best+vhr", "--set", "second_best.penalty=3")
    result = jobs.cli("generate", *methods, "--json", *SHORT)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["parameters"]["second_best"] == {"penalty": 3}
    assert document["activity"]["second_best"]["steps_edited"]
    assert document["results"][0]["answers"]["second_best+vhr"] != plain.stdout.strip()
    assert "second_best" in jobs.cli("methods").stdout
    assert jobs.refused("generate", "--method", "second_bets").startswith(
        "error: unknown method 'second_bets' (did you mean 'second_best'?)"
    )
    # What a plugin refuses, it says itself.
    message = jobs.refused("generate", "--method", "second_best", "--set", "penalty=-1")
    assert message == "error: penalty is -1; it must be 0 or more"


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_a_method_on_a_benchmark_of_another_package(world: Path, tmp_path: Path) -> None:
    methods = ("--method", "greedy", "--method", "second_best", "--no-baselines")
    jobs.evaluate(tmp_path / "out", "cats", "pope", *methods, "--limit", "4", "--data", world)
    tasks = jobs.read(tmp_path / "out" / "metrics.json")["tasks"]
    assert [each["task"] for each in tasks] == ["cats", "pope"]
    for task in tasks:
        assert [each["method"] for each in task["methods"]] == ["greedy", "second_best"]
        assert {each["counts"]["answered"] for each in task["methods"]} == {COUNTS[task["task"]]}
        [run] = (tmp_path / "out" / task["task"]).glob("second_best-*")
        stock = next((tmp_path / "out" / task["task"]).glob("greedy-*"))
        assert answers(run) != answers(stock)


def answers(run: Path) -> list[str]:
    """What a run answered, in the order of the samples."""
    return [record["text"] for record in sorted(jobs.records(run), key=lambda record: record["id"])]


def test_answers_belong_to_the_code_of_the_method(example: Path, loaded: tuple[Any, Any]) -> None:
    method = vlmfix.make_method("second_best")
    before = method_identity(method, loaded[0])
    assert before == method_identity(vlmfix.make_method("second_best"), loaded[0])
    assert (before["name"], before["parameters"]) == ("second_best", {"penalty": 1000.0})
    with (example / "vlmfix_example" / "methods.py").open("a") as file:
        file.write("# changed")
    assert method_identity(method, loaded[0])["code"] != before["code"]
    assert "code" not in method_identity(vlmfix.VHR(), loaded[0])


@pytest.mark.usefixtures("example")
def test_a_benchmark_of_another_package_scores_files(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("Yes, a cat.\nNo.\nyes\n")
    result = jobs.cli("score", "cats", "--answers", file, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"answers": 3, "yes": 2}
    assert "cats" in jobs.cli("score", "--help").stdout


def test_a_class_that_was_imported_has_its_name(site: Path) -> None:
    site.mkdir()
    (site / "of_mine.py").write_text(METHOD.format(name="mine", cls="Mine"))
    with pytest.raises(ValueError, match="unknown method 'mine'"):
        vlmfix.make_method("mine")
    __import__("of_mine")
    method = vlmfix.make_method("mine", head_scale=3.0)
    assert (method.name, type(method).__name__) == ("mine", "Mine")
    assert "mine" in vlmfix.method_names()
    assert "mine" in vlmfix.list_methods()


def test_two_plugins_with_one_name(plugin: Callable[..., None]) -> None:
    plugin("first-one", {"both": "first_one:One"}, first_one=METHOD.format(name="both", cls="One"))
    plugin("second-one", {"both": "second_one:Two"}, second_one=METHOD.format(name="both", cls="Two"))
    with pytest.raises(ValueError, match="two methods are called 'both'") as caught:
        vlmfix.make_method("both")
    assert "first_one:One of first-one 1.0" in str(caught.value)
    assert "second_one:Two of second-one 1.0" in str(caught.value)
    assert "both" not in _listed_with_a_warning("two methods are called 'both'")


def test_a_plugin_with_a_name_of_ours(plugin: Callable[..., None]) -> None:
    plugin("a-plugin", {"vhr": "a_plugin:Other"}, a_plugin=METHOD.format(name="vhr", cls="Other"))
    with pytest.raises(ValueError, match="two methods are called 'vhr'") as caught:
        vlmfix.make_method("vhr")
    assert "vlmfix.methods.attention.vhr of vlmfix and a_plugin:Other of a-plugin 1.0" in str(caught.value)
    assert vlmfix.make_method("var") == vlmfix.VAR()
    with pytest.raises(ValueError, match=r"attention\.vhr.* and a_plugin\.Other; rename one"):
        __import__("a_plugin")


def test_a_plugin_and_an_imported_class_with_one_name(plugin: Callable[..., None], site: Path) -> None:
    plugin("a-plugin", {"both": "a_plugin:One"}, a_plugin=METHOD.format(name="both", cls="One"))
    (site / "of_mine.py").write_text(METHOD.format(name="both", cls="Two"))
    __import__("of_mine")
    with pytest.raises(ValueError, match=r"two methods are called 'both': of_mine\.Two and a_plugin\.One"):
        vlmfix.make_method("both")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("One = 1", "put @register_method('broken') above that class"),
        (METHOD.format(name="other", cls="One"), "put @register_method('broken') above that class"),
        (METHOD.format(name="broken", cls="Two"), "has no attribute 'One'"),
    ],
)
def test_a_broken_plugin_breaks_only_itself(plugin: Callable[..., None], text: str, reason: str) -> None:
    plugin("a-plugin", {"broken": "a_plugin:One"}, a_plugin=text)
    assert "broken" in vlmfix.method_names()
    message = jobs.refused("generate", "--method", "broken")
    assert "a_plugin:One of a-plugin 1.0" in message
    assert reason in message
    listed = _listed_with_a_warning(reason)
    assert "broken" not in listed
    assert "var" in listed
    assert jobs.cli("methods").exit_code == 0
    assert vlmfix.make_method("var") == vlmfix.VAR()


def test_a_broken_plugin_is_one_line_of_the_list_of_methods(
    plugin: Callable[..., None], site: Path, tmp_path: Path
) -> None:
    plugin("a-plugin", {"broken": "a_plugin:One"}, a_plugin="1 / 0")
    fork = Fork(lambda: vlmfix_command("methods"), tmp_path / "log", tmp_path / "errors")
    assert fork.wait() == 0
    assert "var" in (tmp_path / "log").read_text()
    [line] = (tmp_path / "errors").read_text().splitlines()
    assert line == (
        "warning: left out: method 'broken' cannot be loaded from a_plugin:One of a-plugin 1.0 "
        "(ZeroDivisionError: division by zero); repair or uninstall that package"
    )


def _listed_with_a_warning(message: str) -> dict[str, type[vlmfix.Method]]:
    with pytest.warns(UserWarning, match=f"left out: .*{re.escape(message)}") as caught:
        listed = vlmfix.list_methods()
    assert len(caught) == 1
    return listed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Loud", "(vlmfix.VHR): pass", "cannot be called 'Loud'; use small letters"),
        ("a+b", "(vlmfix.VHR): pass", "cannot be called 'a+b'"),
        ("greedy", "(vlmfix.VHR): pass", "cannot be called 'greedy'"),
        ("auto", "(vlmfix.VHR): pass", "cannot be called 'auto'"),
        ("loud", ": pass", "is no method; derive it from vlmfix.Method"),
        ("loud", "(vlmfix.Method): pass", "lacks a description"),
        ("loud", "(vlmfix.Contrastive): pass", "lacks combine; define them"),
        ("loud", "(vlmfix.VHR): size: int", "has no default for size; give it one"),
    ],
)
def test_classes_that_cannot_be_registered(site: Path, name: str, text: str, message: str) -> None:
    cls: dict[str, Any] = {"vlmfix": vlmfix, "__name__": __name__}
    exec(f"class Loud{text}", cls)
    with pytest.raises((TypeError, ValueError)) as caught:
        vlmfix.register_method(name)(dataclass(frozen=True, kw_only=True)(cls["Loud"]))
    assert message in str(caught.value)
    assert name not in vlmfix.method_names()


def test_a_cell_of_a_notebook_may_run_again(site: Path) -> None:
    for size in (1, 2):
        cell = METHOD.format(name="mine", cls="Mine") + f"    size: int = {size}\n"
        exec(cell, {"__name__": "__main__"})
    assert vlmfix.make_method("mine").parameters["size"] == 2


def test_names_cost_no_torch(example: Path) -> None:
    code = (
        "import sys, vlmfix\n"
        "print(vlmfix.method_names())\n"
        "print({'torch', 'transformers', 'vlmfix_example'} & set(sys.modules))"
    )
    names, heavy = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{example}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert heavy == "set()"
    assert names == str(vlmfix.method_names())
    assert set(vlmfix.list_methods()) == set(vlmfix.method_names())
