"""The engine ray: on a cluster of two nodes it answers to the byte what one process does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import jobs

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="Ray is not installed; make test-integrations has it")
from ray.cluster_utils import Cluster  # noqa: E402

from vlmfix.evaluation.runner import ray_host  # noqa: E402

pytestmark = pytest.mark.slow
COMMAND = ("pope", "chair", "--method", "var", "--method", "vcd", "--batch-size", 4)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain")
    jobs.evaluate(output, *COMMAND, "--data", world)
    return output


def on_sending(act: Callable[[int, Any], None], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The actor of each part that is sent; `act` is told its number, after it was sent."""
    send, actors = ray_host.RayHost._send, []

    def sent(host: Any, actor: Any, *given: Any) -> Any:
        actors.append(actor)
        part = send(host, actor, *given)
        act(len(actors), actor)
        return part

    monkeypatch.setattr(ray_host.RayHost, "_send", sent)
    return actors


def test_two_nodes_give_the_metrics_of_one_process_to_the_byte(
    plain: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors = on_sending(lambda number, actor: None, monkeypatch)
    jobs.evaluate(tmp_path, *COMMAND, "--data", world, "--engine", "ray")
    assert len({actor._actor_id for actor in actors}) == 2
    assert jobs.metrics(tmp_path) == jobs.metrics(plain)
    ran = {path.relative_to(plain) for path in plain.glob("*/*/manifest.json")}
    assert {path.relative_to(tmp_path) for path in tmp_path.glob("*/*/manifest.json")} == ran
    assert {each["image"] for each in jobs.records(tmp_path)} == {
        each["image"] for each in jobs.records(plain)
    }


def test_killed_actors_lose_nothing(
    plain: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(number: int, actor: Any) -> None:
        if number in (2, 9, 20):
            ray.kill(actor)

    on_sending(kill, monkeypatch)
    result = jobs.evaluate(tmp_path, *COMMAND, "--data", world, "--engine", "ray")
    assert result.stderr.count("an actor died, and another takes its place") == 3
    assert jobs.metrics(tmp_path) == jobs.metrics(plain)


def test_a_node_that_leaves_takes_no_answers_along(
    cluster: Any, plain: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.add_node(num_cpus=1)

    used, left = set(), []

    def leave(number: int, actor: Any) -> None:
        used.add(actor._actor_id)
        if len(used) == 3 and not left:  # the one of the node is among them
            left.append(number)
            cluster.remove_node(node)

    on_sending(leave, monkeypatch)
    result = jobs.evaluate(tmp_path, *COMMAND, "--data", world, "--engine", "ray")
    assert left
    assert "an actor died" in result.stderr
    assert jobs.metrics(tmp_path) == jobs.metrics(plain)


def test_a_stopped_job_goes_on_without_a_cluster(
    plain: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(number: int, actor: Any) -> None:
        if number == 7:
            raise KeyboardInterrupt

    on_sending(stop, monkeypatch)
    command = ("eval", *COMMAND, "--data", world, "--output", tmp_path)
    assert jobs.cli(*command, "--engine", "ray").exit_code == 130
    before = jobs.records(tmp_path)
    assert before
    assert jobs.cli(*command).exit_code == 0
    assert jobs.metrics(tmp_path) == jobs.metrics(plain)
    assert len(jobs.records(tmp_path)) == len(jobs.records(plain))


def test_actors_that_always_die_end_the_job(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sending(lambda number, actor: ray.kill(actor), monkeypatch)
    result = jobs.cli("eval", "pope", "--data", world, "--output", tmp_path, "--engine", "ray")
    assert result.exit_code == 2
    assert "error: 3 actors died without an answer in between" in result.stderr.splitlines()[-1]


def test_refusals(world: Path, tmp_path: Path) -> None:
    command = ("eval", "pope", "--data", world, "--output", tmp_path)
    said = {
        ("--engine", "ray", "--device", "cuda"): "the cluster has no GPU; use --device cpu or auto",
        ("--engine", "ray", "--device", "cuda:1"): "use auto, cuda or cpu",
        ("--engine", "ray", "--model", "no/such/model"): "no model 'no/such/model'",
        ("--engine", "ray", "--shard", "0/2"): "divides all the work by itself",
        ("--engine", "ray", "--steal"): "without --steal",
        ("--engine", "ray", "--address", "ray://a:10001"): "Ray Client, which is not supported",
        ("--engine", "slurm"): "it must be local or ray",
        ("--address", "auto"): "add --engine ray",
    }
    for options, message in said.items():
        assert message in jobs.refused(*command, *options)


def test_an_address_where_nobody_is() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        ray_host._knock(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("device", "nodes", "actors"),
    [
        ("auto", [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 2}, {"CPU": 64}], ("cuda:0", 6)),
        ("cuda", [{"CPU": 8, "GPU": 1}], ("cuda:0", 1)),
        ("cpu", [{"CPU": 8, "GPU": 4}, {"CPU": 17}, {}], ("cpu", 3)),
        ("auto", [{"CPU": 2}], ("cpu", 1)),
    ],
)
def test_an_actor_a_gpu_or_a_node(
    device: str, nodes: list[dict[str, float]], actors: tuple[str, int]
) -> None:
    found, takes, count = ray_host._actors(device, nodes)
    assert (found, count) == actors
    assert takes == ({"num_gpus": 1, "num_cpus": 1} if found == "cuda:0" else {"num_cpus": nodes[0]["CPU"]})
