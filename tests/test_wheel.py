"""The wheel: what it holds, and that it works beside other packages called `evals` and `cli`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import vlmfix
from tests.support.paths import ROOT
from vlmfix.evaluation.reproduction import tables
from vlmfix.models.embedded import EMBEDDED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel and another distribution that owns the name `evals`."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--target", str(folder), str(wheel)], check=True)
    (folder / "evals").mkdir()
    (folder / "evals" / "__init__.py").write_text("OWNER = 'another distribution'")
    (folder / "evals-3.0.1.dist-info").mkdir()
    (folder / "evals-3.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: evals\nVersion: 3.0.1"
    )
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a `cli.py` and a folder `evals` of its own."""
    (tmp_path / "cli.py").write_text("raise SystemExit('the cli of the project')")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "__init__.py").write_text("raise SystemExit('the evals of the project')")
    return tmp_path


def run(project: Path, site: Path, *command: str | Path) -> str:
    """What a command prints that is run in the project, whose folder comes first on the path."""
    path = os.pathsep.join([str(project), str(site)])
    done = subprocess.run(
        list(map(str, command)),
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_what_it_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"vlmfix/py.typed", "vlmfix/evals/pope/task.py", "vlmfix/configs/models/llava-1.5-7b.yaml"}
    expected |= {f"vlmfix/configs/reproductions/{name}.yaml" for name in tables()}
    expected |= {f"vlmfix/configs/recipes/{name}.yaml" for name in EMBEDDED}
    expected |= {f"vlmfix/models/{name}/model.safetensors" for name in EMBEDDED}
    assert expected <= names
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"vlmfix"}
    assert {
        f"vlmfix-{vlmfix.__version__}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")
    } <= names


def test_its_description_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"vlmfix-{vlmfix.__version__}.dist-info/METADATA").decode()
    readme = message_from_string(text).get_payload()
    assert isinstance(readme, str)
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", readme)
    assert len(links) > 10
    assert [link for pair in links for link in pair if link and not link.startswith(("https://", "#"))] == []
    assert "](https://raw.githubusercontent.com/vlmfix/vlmfix/main/docs/recipe.png)" in readme
    assert "](https://github.com/vlmfix/vlmfix/blob/main/benchmarks/EFFECTS.md" in readme


def test_it_works_beside_other_packages_of_the_same_names(site: Path, project: Path) -> None:
    script = site / "bin" / "vlmfix"
    for start in ([script], [sys.executable, "-m", "vlmfix"]):
        assert run(project, site, *start, "--version") == f"vlmfix {vlmfix.__version__}\n"
    run(project, site, script, "scenes", "--count", "2", "--output", "world")
    # VAR acts by a profile, which the wheel carries.
    options = ("--limit", "2", "--method", "var", "--no-baselines", "--data", "world", "--output", "out")
    done = run(project, site, script, "eval", "pope", *options)
    assert "report.html" in done
    [task] = json.loads((project / "out" / "metrics.json").read_text())["tasks"]
    assert task["task"] == "pope"
    assert {each["counts"]["answered"] for each in task["methods"]} == {18}  # of one image
    (project / "labels").write_text(json.dumps([{"question_id": 1, "label": "yes"}]))
    (project / "answers").write_text(json.dumps([{"question_id": 1, "answer": "Yes"}]))
    files = ("--answers", "answers", "--labels", "labels")
    scores = run(project, site, sys.executable, "-m", "vlmfix", "score", "pope", *files)
    assert "100.00" in scores
    other = run(
        project, site, sys.executable, "-P", "-c", "import importlib.metadata as m; print(m.version('evals'))"
    )
    assert other == "3.0.1\n"
