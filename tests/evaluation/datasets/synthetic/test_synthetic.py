"""Scenes drawn once: whole or not at all, whoever asks at the same time."""

import threading

import pytest

from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.synthetic import synthetic
from vlmfix.evaluation.datasets.synthetic.synthetic import synthetic_folder


def test_scenes_are_drawn_once(tmp_path):
    steps = []
    first = synthetic_folder(tmp_path / "new", count=4, seed=2, progress=steps.append)
    assert sum(steps) == 4
    assert synthetic_folder(tmp_path / "new", count=4, seed=2, progress=steps.append) == first
    assert sum(steps) == 4
    assert first.is_synthetic
    assert len(list(first.images[0].iterdir())) == 4
    assert synthetic_folder(tmp_path / "new", count=3, seed=2).root != first.root
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_of_several_at_once_one_wins(tmp_path, monkeypatch):
    barrier = threading.Barrier(3)

    def slow(*args, **kwargs):
        drawn = write_coco(*args, **kwargs)
        barrier.wait()
        return drawn

    monkeypatch.setattr(synthetic, "write_coco", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(synthetic_folder(tmp_path, count=2, seed=1)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]
    assert [path.name for path in tmp_path.iterdir()] == [found[0].root.name]


def test_a_drawing_that_breaks_off_leaves_nothing(tmp_path):
    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic_folder(tmp_path, count=2, progress=stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="count must be at least 1"):
        synthetic_folder(tmp_path, count=0)
    with pytest.raises(ValueError, match="seed of synthetic scenes is '1'"):
        synthetic_folder(tmp_path, seed="1")
    with pytest.raises(OSError, match="full"):
        synthetic_folder(tmp_path, count=2, progress=fail)


def fail(count):
    raise OSError("full")
