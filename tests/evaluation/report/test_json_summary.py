"""What is written to metrics.json and costs.json."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import outcomes
from tests.support.paths import ROOT
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.files.atomic import write_json
from vlmfix.evaluation.report.json_summary import (
    costs,
    rounded,
    summarise,
)


def several() -> list[Outcome]:
    return [
        outcomes.yes_no(),
        outcomes.yes_no("var", yes_bias=0.5, failed=(4,)),
        outcomes.captions(),
        outcomes.captions("vcd", care=0.8),
    ]


def test_every_score_is_there(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", summarise(compare(several())))
    content = json.loads((tmp_path / "metrics.json").read_text())
    pope, chair = content["tasks"]
    assert (pope["task"], pope["protocol"], pope["first_method"]) == (
        "pope",
        "pope.llava/synthetic",
        "greedy",
    )
    greedy, var = pope["methods"]
    accuracy = var["metrics"][0]
    assert (accuracy["name"], accuracy["group"], accuracy["better"]) == ("accuracy", "", "higher")
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["difference"].keys() >= {"value", "low", "high", "standard_error", "excludes_zero"}
    assert accuracy["difference"]["samples"] == 215
    assert accuracy["undefined"] is False
    assert greedy["metrics"][0]["difference"] is None
    assert var["mcnemar"]["random"].keys() == {"better", "worse", "p"}
    assert var["parsers"].keys() == {"official", "strict"}
    assert var["objects"]["knife"].keys() == {"wrong", "of"}
    assert var["counts"]["failed"] == 1
    assert var["failures"] == {"OSError": 1}
    assert var["parameters"] == {"moved_fraction": 0.4, "layers": [1, 2]}
    assert chair["methods"][1]["unpaired"] is None
    assert "parsers differ" in pope["caveats"][-2]
    assert "Few images (12)" in pope["caveats"][-1]


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", summarise(compare(several())))
    changed = [
        dataclasses.replace(
            outcomes.shuffled(each),
            costs={"seconds per sample": 9.9},
            activity={},
            details={"host": "another"},
        )
        for each in several()
    ]
    write_json(tmp_path / "b.json", summarise(compare(changed)))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "seconds" not in (tmp_path / "a.json").read_text()


@pytest.mark.slow
def test_threads_do_not_show(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.support import outcomes; "
        "from vlmfix.evaluation.analysis.comparison import compare; "
        "from vlmfix.evaluation.files.atomic import write_json; "
        "from vlmfix.evaluation.report.json_summary import summarise; "
        "several = [outcomes.captions(images=300), outcomes.captions('vcd', care=0.8, images=300)]; "
        "write_json(Path(sys.argv[1]), summarise(compare(several)))"
    )
    for threads in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / threads)],
            env={
                "PYTHONPATH": str(ROOT),
                "OPENBLAS_NUM_THREADS": threads,
                "OMP_NUM_THREADS": threads,
            },
            check=True,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_costs_are_relative_to_the_first_method() -> None:
    content = costs(several())
    assert [each["method"] for each in content["methods"]] == ["greedy", "var", "greedy", "vcd"]
    var, vcd = content["methods"][1], content["methods"][3]
    assert var["relative"]["seconds per sample"] == pytest.approx(0.13 / 0.11)
    assert var["activity"]["site_share"] == 0.25
    assert var["inactive"] is False
    assert vcd["relative"]["peak memory"] is None
    assert rounded(content)


def test_numbers_have_eight_digits(tmp_path: Path) -> None:
    write_json(
        tmp_path / "x.json", rounded({"b": np.float64(1 / 3), "a": [2e-20 / 3, np.int64(3), True, None]})
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "b": 0.33333333,
        "a": [6.6666667e-21, 3, True, None],
    }
    assert (tmp_path / "x.json").read_text().startswith('{\n  "a"')
    assert (tmp_path / "x.json").read_text().endswith("}\n")


def test_whatever_parameters_hold_can_be_written() -> None:
    @dataclasses.dataclass
    class Box:
        size: tuple[int, ...]

    content = {"set": {3, 1, 2}, "mixed": frozenset({"b", 1, "a"}), "box": Box((1, 2)), 7: Path("a")}
    assert rounded(content) == {"set": [1, 2, 3], "mixed": [1, "a", "b"], "box": {"size": [1, 2]}, "7": "a"}
    assert rounded(np.array([1.5, 2.0])) == [1.5, 2.0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]
