"""The ranges in which recipes are searched."""

import pytest
from transformers import PreTrainedModel

from vlmfix.methods.registry import list_methods, make_method
from vlmfix.methods.search_space import Between, LayersBetween, OneOf

SEARCHED = {name: cls for name, cls in list_methods().items() if cls.search_space is not None}


def test_every_method_of_attention_and_logits_has_one() -> None:
    for name, cls in list_methods().items():
        if cls.info.stage in ("attention", "logits") and cls.__module__.startswith("vlmfix."):
            assert name in SEARCHED


@pytest.mark.parametrize("name", SEARCHED)
def test_the_ends_of_each_range_are_allowed_and_published_values_lie_within(name: str) -> None:
    default = make_method(name).parameters
    for parameter, dimension in (SEARCHED[name].search_space or {}).items():
        if isinstance(dimension, OneOf):
            ends = list(dimension.values)
        elif isinstance(dimension, LayersBetween):
            ends = list(dimension.at(32))
            assert dimension.at(32)[1] <= 32
        else:
            assert isinstance(dimension, Between)
            ends = [dimension.low, dimension.high]
        # A search takes any number between.
        middle = [(ends[0] + ends[1]) / 2.003] if isinstance(dimension, Between) else []
        for value in (*ends, *middle):
            make_method(name, **{parameter: value})
        published = default[parameter]
        if isinstance(dimension, OneOf):
            assert published in dimension.values
        elif published is not None:
            assert ends[0] <= published <= ends[1]


def test_shares_of_the_depth_become_layers() -> None:
    assert LayersBetween(1 / 16, 3 / 4).at(32) == (2, 24)
    assert LayersBetween(0, 3 / 4).at(8) == (0, 6)
    assert LayersBetween(1 / 16, 1).at(1) == (0, 1)


def test_spaces_fit_a_model(llava: PreTrainedModel) -> None:
    depth = llava.config.get_text_config().num_hidden_layers
    for cls in SEARCHED.values():
        for dimension in (cls.search_space or {}).values():
            if isinstance(dimension, LayersBetween):
                low, high = dimension.at(depth)
                assert 0 <= low <= high <= depth
