"""Registry of benchmarks: folders of the user, installed packages, broken ones and two of one name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import jobs
from tests.support.benchmarks import SHAPES, write_task
from tests.support.paths import BENCHMARKS, ROOT
from vlmfix.evaluation.tasks.protocol_files import default_protocol, load_protocol, protocols
from vlmfix.evaluation.tasks.registry import get_task, task_module, task_names


def broken(folder: Path, name: str) -> str:
    """The one line that says why a benchmark cannot be used."""
    with pytest.raises(ValueError, match=f"^the task {name} cannot be used: ") as caught:
        get_task(name, [folder])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_are_known_without_torch() -> None:
    program = (
        "import sys; from vlmfix.evaluation.tasks.registry import task_names; print(task_names()); "
        "sys.exit('vlmfix.evaluation.tasks.base' in sys.modules or 'vlmfix.evals.pope' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stdout.strip()) == (0, str(BENCHMARKS)), found.stderr


def test_a_folder_of_the_user(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "mine", "dogs", SHAPES)
    (folder / "helper.py").write_text("COUNT = 3")
    assert task_names() == BENCHMARKS
    assert task_names([tmp_path / "mine"]) == sorted([*BENCHMARKS, "dogs"])
    task = get_task("dogs", [tmp_path / "mine"])
    assert task is get_task("dogs", [tmp_path / "mine"])
    assert task.name == "dogs"
    assert default_protocol("dogs", directories=[tmp_path / "mine"]).id == "dogs.bare"
    short = load_protocol("dogs.short", [tmp_path / "mine"])
    assert short.ask("A dog?") == "A dog?\nYes or no?"
    helper = task_module("dogs", "helper", [tmp_path / "mine"])
    assert helper is not None
    assert helper.COUNT == 3
    assert task_module("dogs", "score_command", [tmp_path / "mine"]) is None
    with pytest.raises(ValueError, match="unknown task 'dogs'"):
        get_task("dogs")


def test_neighbours_are_imported(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "dogs", SHAPES + "\n\nfrom .words import WORD\nfrom . import MARK\n")
    (folder / "words.py").write_text("WORD = 'dog'")
    (folder / "__init__.py").write_text("MARK = 1")
    module = sys.modules[get_task("dogs", [tmp_path]).__module__]
    assert (module.WORD, module.MARK) == ("dog", 1)  # type: ignore[attr-defined]


def test_protocols_may_lie_beside_the_task(tmp_path: Path) -> None:
    start, end = SHAPES.index("    protocols"), SHAPES.index("    def samples")
    folder = write_task(tmp_path, "dogs", SHAPES[:start] + SHAPES[end:])
    with pytest.raises(FileNotFoundError, match=r"no protocol file .*dogs/protocols\.yaml"):
        default_protocol("dogs", directories=[tmp_path])
    assert "dogs.one" not in protocols([tmp_path])
    text = "task: dogs\nprotocols: {dogs.one: {max_new_tokens: 1, parser: strict}}"
    (folder / "protocols.yaml").write_text(text)
    assert default_protocol("dogs", "synthetic", [tmp_path]) == protocols([tmp_path])["dogs.one"]
    (folder / "protocols.yaml").write_text(f"default: dogs.on\n{text}")
    with pytest.raises(ValueError, match=r"no protocol 'dogs.on' \(did you mean 'dogs.one'\?\), the default"):
        default_protocol("dogs", directories=[tmp_path])
    (folder / "protocols.yaml").write_text(text.replace("task: dogs", "task: pope"))
    with pytest.raises(ValueError, match=r"protocols.yaml: task is 'pope'; it must be 'dogs'"):
        default_protocol("dogs", directories=[tmp_path])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("class Dogs(", "SyntaxError: "),
        ("raise SystemExit('stop')", "SystemExit: stop"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "it defines 0 subclasses of Task; it must define one"),
        (SHAPES + "\n\nclass Cats(Dogs):\n    pass\n", "it defines 2 subclasses of Task"),
        (SHAPES.replace("def samples", "def others"), "Dogs lacks samples"),
        (SHAPES.replace('= "dogs"', '= "cats"'), "Dogs.name is 'cats'; it must be 'dogs'"),
    ],
)
def test_a_broken_folder_breaks_only_itself(tmp_path: Path, source: str, reason: str) -> None:
    write_task(tmp_path, "dogs", source)
    write_task(tmp_path, "fine", SHAPES.replace('= "dogs"', '= "fine"').replace("dogs.", "fine."))
    assert f"{tmp_path / 'dogs' / 'task.py'}: {reason}" in broken(tmp_path, "dogs")
    assert get_task("fine", [tmp_path]).name == "fine"
    assert get_task("pope", [tmp_path]).name == "pope"
    assert load_protocol("fine.bare", [tmp_path]).task == "fine"
    with pytest.raises(ValueError, match=r"unknown protocol 'dogs.bare'.*the task dogs cannot be used"):
        load_protocol("dogs.bare", [tmp_path])


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    mine = write_task(tmp_path, "pope", SHAPES.replace('= "dogs"', '= "pope"'))
    with pytest.raises(ValueError, match="there are several tasks called pope: ") as caught:
        get_task("pope", [tmp_path])
    assert str(mine / "task.py") in str(caught.value)
    assert str(ROOT / "evals" / "pope" / "task.py") in str(caught.value)
    assert get_task("vqa", [tmp_path]).name == "vqa"
    assert get_task("pope").name == "pope"


def test_two_protocols_of_one_name_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, "dogs", SHAPES.replace('"dogs.bare"', '"pope.llava"'))
    with pytest.raises(ValueError, match=r"the tasks .* and .* both have a protocol pope\.llava; rename one"):
        load_protocol("pope.llava", [tmp_path])


@pytest.mark.parametrize(
    ("name", "message"), [("", "holds no benchmark .no NAME/task.py"), ("dogs", "name its parent")]
)
def test_directories_without_benchmarks_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    directory = write_task(tmp_path / "mine", name, SHAPES) if name else tmp_path / "empty"
    with pytest.raises(FileNotFoundError, match=message):
        task_names([directory])


def install(site: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str = "dogs") -> None:
    """A package with a benchmark, as an installer leaves it."""
    write_task(site, package, SHAPES.replace('= "dogs"', f'= "{name}"'))
    (site / package / "__init__.py").write_text("")
    (site / package / "numbers.py").write_text("SEVEN = 7")
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vlmfix.tasks]\n{name} = {package}.task:Dogs\n")
    monkeypatch.syspath_prepend(site)


def test_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "some_dogs")
    assert task_names() == sorted([*BENCHMARKS, "dogs"])
    assert get_task("dogs").__module__ == "some_dogs.task"
    assert default_protocol("dogs").id == "dogs.bare"
    numbers = task_module("dogs", "numbers")
    assert numbers is not None
    assert numbers.SEVEN == 7
    assert task_module("dogs", "score_command") is None
    install(tmp_path / "more", monkeypatch, "more_dogs")
    with pytest.raises(
        ValueError, match=r"called dogs: .*(some|more)_dogs.task:Dogs of .* and .*; rename or remove one"
    ):
        get_task("dogs")


def test_a_broken_package_breaks_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "broken_dogs")
    (tmp_path / "broken_dogs" / "task.py").write_text("import nothing_like_this")
    with pytest.raises(ValueError, match=r"broken_dogs.task:Dogs of broken_dogs: ModuleNotFoundError: .*"):
        get_task("dogs")
    another_version = (tmp_path / "broken_dogs-1.0.dist-info").rename(tmp_path / "broken_dogs-2.0.dist-info")
    (another_version / "entry_points.txt").write_text("[vlmfix.tasks]\ncats = json:dumps\n")
    with pytest.raises(ValueError, match="json:dumps of broken_dogs: it is no subclass of Task"):
        get_task("cats")
    assert get_task("pope").name == "pope"


def test_a_job_on_a_benchmark_of_the_user(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.load_once(loaded, monkeypatch)
    write_task(tmp_path / "mine", "dogs", SHAPES)
    write_task(tmp_path / "mine", "broken", "1 / 0")
    options = ("dogs", "--tasks", tmp_path / "mine", "--data", world, "--method", "greedy", "--method", "var")
    jobs.evaluate(tmp_path / "out", *options)
    [found] = jobs.read(tmp_path / "out" / "metrics.json")["tasks"]
    assert (found["task"], found["protocol"]) == ("dogs", "dogs.bare/synthetic")
    assert [each["method"] for each in found["methods"]][-1] == "var"
    assert {each["counts"]["answered"] for each in found["methods"]} == {6}
    file = jobs.job_file(
        tmp_path / "job.yaml", tasks="dogs", tasks_from=str(tmp_path / "mine"), data=str(world)
    )
    before = jobs.metrics(tmp_path / "out")
    assert jobs.cli("report", tmp_path / "out").exit_code == 0
    assert jobs.metrics(tmp_path / "out") == before
    jobs.evaluate(tmp_path / "file", "--config", file)
    assert jobs.results(tmp_path / "file")["metrics"][0]["name"] == "accuracy"
    line = jobs.refused("eval", "broken", *options[1:], "--output", tmp_path / "none")
    assert "mine/broken/task.py: ZeroDivisionError: division by zero" in line
    line = jobs.refused("eval", "dogs", "--tasks", tmp_path / "nowhere")
    assert "there is no folder" in line
