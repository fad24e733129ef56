"""POPE about drawn scenes, in the forms of other harnesses, and what `vlmfix eval` answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import jobs
from tests.support.paths import ROOT

METHOD = "var+vcd"
SETTING = "vcd.alpha=0.7"


def expected(world: Path, output: Path) -> dict[str, dict[str, str]]:
    """By id: what `vlmfix eval` asks of POPE about which image, the right answer, and the model's."""
    command = ("pope", "--data", world, "--method", METHOD, "--set", SETTING, "--no-baselines")
    jobs.evaluate(output, *command)
    other = {"yes": "no", "no": "yes"}
    return {
        record["id"]: {
            "image": record["image"],
            "question": record["prompt"],
            "target": record["parsed"] if record["score"] else other[record["parsed"]],
            "answer": record["text"],
        }
        for record in jobs.records(output)
    }


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command of this environment, in a folder."""
    own = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=folder, env=own, capture_output=True, text=True
    )
