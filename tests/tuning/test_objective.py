"""What a search improves and keeps."""

import pytest

from vlmfix.tuning.objective import Guard, Objective

METRICS = {"CHAIRi": "lower", "recall": "higher", "words": "", "cost": "lower", "false-yes rate": "lower"}


def figures(chair: float, recall: float, cost: float = 1.0) -> dict[str, float]:
    return {"CHAIRi": chair, "recall": recall, "words": 20.0, "cost": cost}


@pytest.mark.parametrize("name", ["chair_i", "CHAIRi", "ChairI"])
def test_metrics_are_known_by_any_spelling(name: str) -> None:
    assert Objective.parse([name], [], METRICS).metrics == ("CHAIRi",)


@pytest.mark.parametrize(
    ("names", "guards", "message"),
    [
        (["chair_x"], [], "there is no metric 'chair_x' here; there are CHAIRi, recall"),
        (["words"], [], "words has no better direction; --objective takes CHAIRi, recall"),
        (["chair_i", "CHAIRi"], [], "name each metric once"),
        (["cost", "chair_i"], [], "cost cannot be the first --objective"),
        (["chair_i"], ["recall > -0.01"], "is not METRIC >= NUMBER"),
        (["chair_i"], ["recal >= -0.01"], "there is no metric 'recal' here"),
    ],
)
def test_other_forms_are_refused(names: list[str], guards: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective.parse(names, guards, METRICS)


def test_a_guard_bounds_the_difference_to_greedy_decoding_and_the_cost_itself() -> None:
    floor = Guard.parse("recall >= -0.01", METRICS)
    assert floor.violation(figures(0.1, 0.895), figures(0.2, 0.9)) == 0
    assert floor.violation(figures(0.1, 0.86), figures(0.2, 0.9)) == pytest.approx(0.03)
    ceiling = Guard.parse("cost <= 4", METRICS)
    assert ceiling.violation(figures(0.1, 0.9, cost=5), figures(0.2, 0.9)) == 1
    assert str(floor) == "recall >= -0.01"


def test_guards_hold_on_every_data_set_and_what_breaks_them_counts_against_a_candidate() -> None:
    objective = Objective.parse(["chair_i"], ["recall >= -0.01"], METRICS)
    greedy = {"a": figures(0.2, 0.9), "b": figures(0.1, 0.95)}
    own = {"a": figures(0.1, 0.92), "b": figures(0.04, 0.92)}
    assert objective.gains(own, greedy) == pytest.approx((0.08,))
    assert objective.value(own, greedy) == pytest.approx(0.08 - 0.02 / 2)
    assert objective.front(own, greedy) == pytest.approx((0.08, -0.02))
    assert objective.broken(own, greedy) == ["recall >= -0.01 on b"]
    assert not objective.keeps(own, greedy)
    assert objective.keeps(greedy, greedy)
