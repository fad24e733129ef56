"""vlmfix as a model of lmms-eval, by its own command line: what `vlmfix eval` answers, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.support import harnesses, jobs

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; make test-integrations has it")
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

pytestmark = pytest.mark.slow
TASK = """
task: drawn_pope
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: target
process_results: !function utils.results
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def results(doc, results):
    return {"accuracy": float(results[0].strip().lower().startswith(doc["target"]))}
"""


@pytest.fixture(scope="module")
def asked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    return harnesses.expected(world, tmp_path_factory.mktemp("expected"))


def task_folder(folder: Path, asked: dict[str, dict[str, str]]) -> Path:
    docs = folder / "docs.jsonl"
    rows = [
        {"id": id} | {key: own[key] for key in ("image", "question", "target")} for id, own in asked.items()
    ]
    docs.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "drawn_pope.yaml").write_text(TASK.format(docs=docs, tokens=jobs.PROTOCOL.max_new_tokens))
    (tasks / "utils.py").write_text(UTILS)
    return tasks


def test_one_task_by_its_command_line(asked: dict[str, dict[str, str]], tmp_path: Path) -> None:
    tasks = task_folder(tmp_path, asked)
    arguments = f"pretrained=tiny-llava,method={harnesses.METHOD},set={harnesses.SETTING}"
    command = ["--model", "vlmfix", "--model_args", arguments, "--tasks", "drawn_pope", "--batch_size", 5]
    command += ["--include_path", tasks, "--log_samples", "--output_path", tmp_path / "out"]
    result = harnesses.run(tmp_path, "lmms_eval", *command)
    assert result.returncode == 0, result.stderr
    [samples] = (tmp_path / "out").rglob("*_samples_drawn_pope.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    found = {list(asked)[each["doc_id"]]: each["resps"] for each in logged}
    assert found == {id: each["answer"] for id, each in asked.items()}
    [page] = (tmp_path / "out").rglob("*_results.json")
    right = [each["answer"].strip().lower().startswith(each["target"]) for each in asked.values()]
    assert json.loads(page.read_text())["results"]["drawn_pope"]["accuracy,none"] == pytest.approx(
        sum(right) / len(right)
    )


def model(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any], batch_size: int | str = 4, **options: Any
) -> Any:
    monkeypatch.setattr("vlmfix.adapters.hosted.load_model", lambda *_, **__: loaded)
    made = get_model("vlmfix").create_from_arg_string(
        ",".join(f"{name}={value}" for name, value in options.items()), {"batch_size": batch_size}
    )
    made.task_dict = {"task": {"test": range(100)}}
    return made


def request(doc: int, content: Any, **kwargs: Any) -> Instance:
    messages = [{"role": "user", "content": content}]
    arguments = ("", lambda _: messages, kwargs, doc, "task", "test")
    return Instance("generate_until", arguments, 0, {"task": "task", "doc_id": doc, "repeats": 1})


def question(text: str) -> list[dict[str, Any]]:
    return [{"type": "image", "url": Image.open("docs/scene.png")}, {"type": "text", "text": text}]


def test_other_decoding(monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]) -> None:
    hosted = model(monkeypatch, loaded)
    describe = question("Describe the image.")
    whole, cut, short = hosted.generate_until(
        [
            request(0, describe, max_new_tokens=24),
            request(1, describe, max_new_tokens=24, until=["is a", " is"]),
            request(2, describe, max_new_tokens=3),
        ]
    )
    assert " is" in whole.text
    assert cut.text == whole.text[: whole.text.index(" is")]
    assert whole.text.startswith(short.text)
    assert short.token_counts.output_tokens == 3
    sampled = {"max_new_tokens": 8, "temperature": 2.0, "do_sample": True}
    draws = [request(number, describe, **sampled) for number in (0, 1, 2, 2, 3, 4)]
    texts = [each.text for each in hosted.generate_until(draws)]
    assert len(set(texts)) > 4
    hosted.batch_size = 1
    assert [each.text for each in hosted.generate_until(draws)] == texts
    greedy = hosted.generate_until([request(0, describe, max_new_tokens=3, temperature=0.5, do_sample=False)])
    assert greedy[0].text == short.text


def test_methods_of_several_passes_sample_alone(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]
) -> None:
    hosted = model(monkeypatch, loaded, method="carve")
    asked = [request(number, question("What is it?"), max_new_tokens=4, temperature=2.0) for number in (0, 1)]
    together = [each.text for each in hosted.generate_until(asked)]
    assert together == [hosted.generate_until([each])[0].text for each in asked]


def test_refusals(monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]) -> None:
    hosted = model(monkeypatch, loaded, method="baseline.beam")
    refused: dict[str, tuple[Any, dict[str, Any]]] = {
        "task sets repetition_penalty in generation_kwargs": (question("?"), {"repetition_penalty": 1.2}),
        "max_new_tokens is 0": (question("?"), {"max_new_tokens": 0}),
        "beams, and they do not sample": (question("?"), {"temperature": 1.0}),
        "document 0 of task: item 1 of message 1": ([{"type": "audio", "url": "a.wav"}], {}),
        "is a URL, and nothing is downloaded": ([{"type": "image", "url": "https://a/b.png"}], {}),
    }
    for message, (content, kwargs) in refused.items():
        with pytest.raises(ValueError, match=message):
            hosted.generate_until([request(0, content, **kwargs)])
    with pytest.raises(NotImplementedError, match="no loglikelihood"):
        hosted.loglikelihood([SimpleNamespace()])
    with pytest.raises(NotImplementedError, match="none of several rounds"):
        hosted.generate_until_multi_round([SimpleNamespace()])
    for options, message in (
        ({"method": "nothing"}, "nothing"),
        ({"method": "var", "set": "moved_fraction=7"}, "moved_fraction is 7"),
        ({"recipe": "r", "method": "var"}, "recipe r has methods"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
    ):
        with pytest.raises(ValueError, match=message):
            model(monkeypatch, loaded, **options)
