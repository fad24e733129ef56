"""Actors of a cluster: what they say of files that only the driver has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import jobs
from vlmfix.evaluation.runner.host import Assignment, LocalHost, Request
from vlmfix.evaluation.runner.ray_actor import Actor
from vlmfix.evaluation.runner.variants import Variant


def test_pictures_come_from_the_driver(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    asked = jobs.draws(jobs.samples(tmp_path / "images", images=2))
    how = Assignment(Variant.of("var", {}), jobs.PROTOCOL, 4, None)
    answers = LocalHost(*loaded).answers([Request(how, asked, lambda *_: {})])
    here = [records for _, records in answers]
    elsewhere = Path("/of/the/driver")
    pictures = {
        elsewhere / each.name: each.read_bytes() for each in {draw.sample.image for draw in asked} if each
    }
    gone, bare = elsewhere / "gone.png", replace(asked[0].sample, id="bare", image=None)
    moved = [
        replace(draw, sample=replace(draw.sample, image=elsewhere / draw.sample.image.name))
        for draw in asked
        if draw.sample.image
    ]
    moved += jobs.draws([replace(asked[0].sample, id="gone", image=gone), bare])
    actor = Actor()
    about = actor.load(lambda device: loaded, "cpu", "tiny-llava")
    assert about["environment"]["device"] == "cpu"
    there = {
        record["id"]: record
        for batch in actor.answers(how, moved, pictures | {gone: None})
        for record in batch
    }
    for record in (each for batch in here for each in batch):
        assert there[record["id"]]["text"] == record["text"]
        assert there[record["id"]]["image"] == str(elsewhere / Path(record["image"]).name)
    assert there["bare"]["image"] is None
    assert there["gone"]["error"] == f"no image file '{gone}'; check the path"
