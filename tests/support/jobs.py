"""Jobs of tests: commands in this process, samples about drawn pictures, and what jobs leave."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from typer.testing import CliRunner

from vlmfix.cli.app import app
from vlmfix.cli.loading import load_model
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.evaluation.report import html
from vlmfix.evaluation.runner.records import Draw, Judge
from vlmfix.evaluation.runner.run_store import RunStore
from vlmfix.evaluation.runner.worker import Worker
from vlmfix.evaluation.runner.writing import write_down
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import default_protocol
from vlmfix.evaluation.tasks.protocols import Protocol

QUESTIONS = ("Is there a dog in the image?", "What color is the car?", "Describe the image.")
PROTOCOL = default_protocol("pope", "synthetic").on("synthetic")
SAMPLED = PROTOCOL.with_(temperature=1.5, seeds=[0, 1, 2], max_new_tokens=6)


def cli(*arguments: object, draws: bool = False) -> Any:
    """The result of a command, run in this process.

    Args:
        arguments: of the command line.
        draws: whether reports have plots; drawing them takes longer than all the rest of a small job.
    """
    with nullcontext() if draws else patch.object(html, "_plots", return_value=[]):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


def load_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands take the embedded model that is there already, unless they ask for another."""

    def load(name: str, device: str, dtype: str, **options: Any) -> Any:
        if (name, device, dtype, options["revision"]) == ("tiny-llava", "auto", "auto", None):
            return loaded
        return load_model(name, device, dtype, **options)

    monkeypatch.setattr("vlmfix.cli.jobs.load_model", load)


def evaluate(output: Path, *arguments: object, exit_code: int = 0, draws: bool = False) -> Any:
    """The result of `vlmfix eval`, which has to be a success; 3 is one in which samples failed."""
    result = cli("eval", *arguments, "--output", output, draws=draws)
    assert result.exit_code == exit_code, result.stderr
    return result


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    result = cli(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def job_file(path: Path, **settings: Any) -> Path:
    """A job file with these settings."""
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def metrics(output: Path) -> bytes:
    """The metrics of a job to the byte."""
    return (output / "metrics.json").read_bytes()


def results(output: Path, task: str = "") -> dict[str, Any]:
    """What `metrics.json` has of a job's first method on a task."""
    [found] = [each for each in read(output / "metrics.json")["tasks"] if task in ("", each["task"])]
    return found["methods"][0]


def records(output: Path) -> list[dict[str, Any]]:
    """All records of all runs below a folder, file by file."""
    return [
        json.loads(line)
        for path in sorted(output.glob("**/records/*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def samples(folder: Path, images: int = 3, questions: Sequence[str] = QUESTIONS) -> list[Sample]:
    """Questions about each of several drawn pictures."""
    folder.mkdir(exist_ok=True)
    made = []
    for index in range(images):
        picture = folder / f"{index}.png"
        render(sample_scene(7, index)).save(picture)
        for number, question in enumerate(questions):
            meta = {"split": "random", "object": "", "question": question}
            made.append(Sample(f"pope/{index}/{number}", f"{index}.png", picture, question, "yes", meta))
    return made


def draws(asked: Sequence[Sample], protocol: Protocol = PROTOCOL) -> list[Draw]:
    """All repeats of samples."""
    return [
        Draw(sample, repeat, seed, f"key of {sample.id}")
        for sample in asked
        for repeat, seed in enumerate(protocol.seeds)
    ]


class Writer(Worker):
    """A worker that writes down what it answers."""

    shard = "0-of-1"

    def work(self, run: RunStore, asked: Sequence[Draw], **options: Any) -> None:
        """Answer draws, with the options of `write_down`."""
        write_down(run, self.shard, self.answers(asked), **options)


def worker(
    loaded: tuple[Any, Any],
    methods: Sequence[Any] = (),
    *,
    protocol: Protocol = PROTOCOL,
    batch_size: int = 8,
    shard: str = "0-of-1",
    judge: Judge = lambda *_: {"parsed": None},
) -> Writer:
    """A worker on the embedded model."""
    made = Writer(*loaded, methods, protocol, judge, batch_size)
    made.shard = shard
    return made


def start(path: Path, key: Mapping[str, Any] | None = None) -> RunStore:
    """A run directory."""
    return RunStore.start(path, key or {}, {"torch": "2"}, info={})


def answered(run: RunStore, asked: Sequence[Draw]) -> dict[tuple[str, int], dict[str, Any]]:
    """The records of draws that were answered."""
    return run.read({draw.identity: draw.key for draw in asked}).done


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a fork of this process that does some work: 0, 1 for an exception, or minus a signal."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
