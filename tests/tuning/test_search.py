"""The search for candidates."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import vlmfix.tuning.search as search_module
from vlmfix.methods.search_space import Between, LayersBetween, OneOf
from vlmfix.tuning.candidates import Candidate, Space
from vlmfix.tuning.search import ROUND, Measured, Search, Trial

SPACE = Space(
    slots={"attention": ("adhh", "pai", "vhr"), "logits": ("dola", "vcd"), "decoding": ("baseline.beam",)},
    ranges={
        "adhh": {"threshold": Between(0.1, 0.6)},
        "pai": {"alpha": Between(0.05, 1, log=True)},
        "vhr": {"num_last_layers": LayersBetween(1, 6)},
        "dola": {"exits": OneOf(("low", "high"))},
        "vcd": {"alpha": Between(0.2, 2)},
        "baseline.beam": {"num_beams": OneOf((5, 3))},
    },
    defaults={
        "adhh": {"threshold": 0.4},
        "pai": {"alpha": 0.2},
        "vhr": {"num_last_layers": 4},
        "dola": {"exits": "low"},
        "vcd": {"alpha": 1.0},
        "baseline.beam": {"num_beams": 5},
    },
    left_out={},
    max_cost=20,
)
_WORTH = {"adhh": 0.08, "pai": 0.02, "baseline.beam": 0.04, "vhr": -0.05, "dola": -0.02, "vcd": -0.03}


def measure(candidate: Candidate, images: int) -> Measured:
    """Worth of the parts, with noise that more images make smaller."""
    noise = int(hashlib.sha256(f"{candidate.label} {images}".encode()).hexdigest()[:8], 16) / 2**32 - 0.5
    value = sum(_WORTH[name] for name, _ in candidate.parts) + 0.05 * noise / images**0.5
    return Measured(value, (value,), (value,), {"data": {"CHAIRi": 0.2 - value}}, ())


def searched(
    folder: Path, trials: int, *, takes: Callable[[int], bool] = lambda number: True, seed: int = 0
) -> list[Trial]:
    folder.mkdir(exist_ok=True)
    search = Search(folder, SPACE, images=36, seed=seed)
    search.run(trials, measure, budget=None, takes=takes)
    return search.trials()


def told(trials: list[Trial]) -> list[tuple[int, str, int, float]]:
    return [(each.number, each.candidate.label, each.images, each.measured.value) for each in trials]


def test_greedy_decoding_and_every_method_at_its_published_values_come_first(tmp_path: Path) -> None:
    found = [trial.candidate.label for trial in searched(tmp_path, 7)]
    assert found == [
        "greedy",
        "adhh(threshold=0.4)",
        "pai(alpha=0.2)",
        "vhr(num_last_layers=4)",
        "dola(exits=low)",
        "vcd(alpha=1.0)",
        "baseline.beam(num_beams=5)",
    ]


@pytest.mark.slow
def test_parts_that_help_are_put_together_and_bad_trials_are_given_up(tmp_path: Path) -> None:
    found = searched(tmp_path, 36)
    best = max((trial for trial in found if trial.is_complete), key=lambda trial: trial.measured.value)
    assert {name for name, _ in best.candidate.parts} >= {"adhh", "baseline.beam"}
    assert best.measured.value > _WORTH["adhh"] + 0.02
    given_up = [trial for trial in found if not trial.is_complete]
    assert given_up
    assert {trial.images for trial in given_up} == {12}


def test_most_later_trials_look_for_strengths_of_the_best_methods(tmp_path: Path) -> None:
    def methods(trial: Trial) -> list[str]:
        return [name for name, _ in trial.candidate.parts]

    found = searched(tmp_path, 36)
    later = [trial for trial in found if trial.number >= 24]
    for start in range(24, 36, ROUND):
        known = [each for each in found if each.number < start and each.is_complete]
        ranked = sorted(known, key=lambda each: -each.measured.value)
        best = list(dict.fromkeys(frozenset(methods(each)) for each in ranked))
        ranks = [best.index(frozenset(methods(trial))) for trial in found[start + 1 : start + ROUND]]
        assert ranks == [0, 1, 0, 1, 2]
    assert len({trial.candidate for trial in later}) > len({tuple(methods(trial)) for trial in later}) + 3


@pytest.mark.slow
def test_killed_and_resumed_by_other_numbers_of_workers_it_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told(searched(tmp_path / "whole", 24))
    folder = tmp_path / "parts"

    class Killed(Exception):
        pass

    def killed_at(number: int) -> Callable[[int], bool]:
        def takes(each: int) -> bool:
            if each == number:
                raise Killed
            return True

        return takes

    for number in (5, 11, 14):
        with pytest.raises(Killed):
            searched(folder, 24, takes=killed_at(number))
    monkeypatch.setattr(search_module, "_POLL_SECONDS", 0.01)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda own: searched(folder, 24, takes=lambda each: each % 2 == own), range(2)))
    assert told(searched(folder, 24)) == whole


def test_another_seed_tries_others(tmp_path: Path) -> None:
    one, other = (told(searched(tmp_path / str(seed), 12, seed=seed)) for seed in (0, 1))
    assert one[:7] == other[:7]
    assert one[7:] != other[7:]


def test_a_method_that_does_not_go_with_another_gives_up_its_place() -> None:
    class Fixed:
        def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
            return low

        def suggest_int(self, name: str, low: int, high: int) -> int:
            return low

        def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> str:
            return choices[1] if name in ("attention", "second attention") else choices[-1]

    chosen = SPACE.suggest(Fixed())
    assert [name for name, _ in chosen.parts] == ["adhh", "vcd", "baseline.beam"]
    assert chosen.cost == 2 * 3
