"""Samples: what their content hash depends on."""

import dataclasses
import hashlib
from pathlib import Path
from types import MappingProxyType

import pytest

from vlmfix.evaluation.sample import Sample, content_hash

SAMPLE = Sample("pope/coco/random/17", "a.jpg", Path("a.jpg"), "Is there a cat?", "yes", {"split": "random"})


@pytest.mark.parametrize(
    "change",
    [
        {"id": "pope/coco/random/18"},
        {"prompt": "Is there a dog?"},
        {"target": "no"},
        {"meta": {"split": "popular"}},
    ],
)
def test_the_hash_is_of_what_is_asked_and_right(change):
    assert content_hash(dataclasses.replace(SAMPLE, **change)) != content_hash(SAMPLE)


@pytest.mark.parametrize(
    "change", [{"image": None}, {"cluster": "b"}, {"meta": MappingProxyType({"split": "random"})}]
)
def test_the_hash_is_not_of_where_the_image_lies(change):
    assert content_hash(dataclasses.replace(SAMPLE, **change)) == content_hash(SAMPLE)


def test_the_hash_is_the_same_on_all_machines():
    text = '{"id":"pope/coco/random/17","meta":{"split":"random"},"prompt":"Is there a cat?","target":"yes"}'
    assert content_hash(SAMPLE) == hashlib.sha256(text.encode()).hexdigest()


def test_target_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        content_hash(dataclasses.replace(SAMPLE, target=float("nan")))
