"""A chat that goes on from its cache: equal to the same prompt given at once, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached
from vlmfix.engine.caches import with_cache

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
KWARGS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
GREEDY: dict[str, Any] = {**KWARGS, "return_dict_in_generate": True, "output_logits": True}
VAR = acting("var")


def turns(family: str, model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """The prompts of four turns, each a beginning of the next; the first three bring a picture each."""
    whole = families.prompt(family, model, (3,))
    image = whole["input_ids"][0] == families.IMAGE_TOKEN
    ends = (image[:-1] & ~image[1:]).nonzero().flatten().tolist()
    found = []
    for place in [ends[0] + 3, ends[1] + 3, ends[2] + 3, len(image)]:
        mask = torch.zeros_like(whole["attention_mask"])
        mask[:, :place] = 1
        [part] = families.split(family, model, {**whole, "attention_mask": mask})
        found.append(families.continued(part, [20 + place % 7, 21, 22, 23]))
    return found


@pytest.mark.parametrize("name", ["var", "vcd", "gift", "adaptinfer"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_each_turn_equals_its_prompt_at_once(name: str, family: str, models: dict[str, Any]) -> None:
    model, cache = models[family], DynamicCache()
    for prompt in turns(family, model):
        with attached(name, model):
            torch.manual_seed(0)
            at_once = model.generate(**prompt, **GREEDY)
            torch.manual_seed(0)
            goes_on = model.generate(**with_cache(model, prompt, cache), **GREEDY)
        assert torch.equal(goes_on.sequences, at_once.sequences)
        assert torch.equal(torch.stack(goes_on.logits), torch.stack(at_once.logits))
        assert cache.get_seq_length() == prompt["input_ids"].shape[1] + 2


def test_the_cache_is_that_of_the_prompt_at_once(llava: PreTrainedModel) -> None:
    cache = DynamicCache()
    first, *_, last = turns("llava", llava)
    llava.generate(**with_cache(llava, first, cache), **KWARGS)  # plainly
    fresh = DynamicCache()
    with VAR(llava):
        llava.generate(**with_cache(llava, last, cache), **KWARGS)
        llava.generate(**with_cache(llava, last, fresh), **KWARGS)
    for one, other in zip(cache.layers, fresh.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_batches_and_beams_go_on(llava: PreTrainedModel) -> None:
    """After a search the cache has a row for each beam."""
    prompts = families.prompt("llava", llava, (1, 2))
    longer = {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"], torch.full((2, 6), 20)], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], torch.ones(2, 6).long()], dim=1),
    }
    cache = DynamicCache()
    with VAR(llava):
        llava.generate(**with_cache(llava, prompts, cache), **KWARGS, num_beams=2)
        assert len(cache.layers[0].keys) == 4
        goes_on = llava.generate(**with_cache(llava, longer, cache), **KWARGS)
        assert torch.equal(goes_on, llava.generate(**longer, **KWARGS))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_is_not_the_whole_conversation_is_refused(family: str, models: dict[str, Any]) -> None:
    model, cache = models[family], DynamicCache()
    first, second, *_ = turns(family, model)
    pixels = {name: second[name] for name in families.IMAGE_INPUTS if name in second}
    text = {name: value for name, value in second.items() if name not in pixels}
    new = {name: value[:, -4:] for name, value in text.items()}
    earlier = {**text, **{name: first[name] for name in pixels}}
    embedded = {"inputs_embeds": torch.zeros(1, 90, families.HIDDEN)}
    twice = {name: torch.cat([value] * 2) for name, value in second.items()}
    with VAR(model):
        model.generate(**with_cache(model, first, cache), **KWARGS)
        held = cache.get_seq_length()
        for inputs, message in (
            (new, "new ones alone, or the cache is that of another conversation"),
            ({**new, "attention_mask": text["attention_mask"]}, "are the 4 new ones alone"),
            (text, "for which there are no pixels"),
            (earlier, "pictures"),
            (embedded, "there are embeddings"),
            (twice, "holds 1 sequences, and input_ids 2"),
        ):
            with pytest.raises(vlmfix.UnsupportedError, match=message) as caught:
                model.generate(**with_cache(model, inputs, cache), **KWARGS)
            assert "whole conversation, or a new cache" in str(caught.value)
            assert cache.get_seq_length() == held
        model.generate(**with_cache(model, second, cache), **KWARGS)
