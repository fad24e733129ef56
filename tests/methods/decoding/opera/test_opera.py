"""OPERA: the formulas on worked examples, the search against brute force, and what is refused."""

from __future__ import annotations

import json
import math
import warnings
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.generation import BaseStreamer

import vlmfix
from tests.support import families, opera_reference
from tests.support.names import UNLIKE
from vlmfix.engine.kernels import ATTRIBUTE
from vlmfix.engine.step_decoder import StepDecoder
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.methods.decoding.opera.beam import Beams, Continuation, Rules
from vlmfix.methods.decoding.opera.penalty import (
    Rollbacks,
    attention_rows,
    candidate_scores,
    column_scores,
    extend_columns,
    mode,
    penalties,
)
from vlmfix.methods.decoding.opera.search import on_host

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")

INF = math.inf


def close(got: Tensor, expected: list[float], atol: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.tensor(expected), atol=atol, rtol=0)


def test_row() -> None:
    weights = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]])[None, :, None]
    row = attention_rows(weights)[0, 0]
    close(row, [0.333333, 0.133333, 0.4, 0.066667, 0.066667])
    assert float(row[1:3].sum()) == pytest.approx(0.533333, abs=1e-6)


def scores_of(rows: list[list[float]], scale_factor: float = 50) -> Tensor:
    columns = torch.zeros(0)
    for row in rows:
        columns = extend_columns(columns, torch.tensor(row), scale_factor)
    return column_scores(columns)


def test_column_scores() -> None:
    scores = scores_of([[0.1], [0.06, 0.05], [0.08, 0.02, 0.04], [0.05, 0.04, 0.01, 0.03]])
    close(scores.exp() * 1e7, [150, 5, 1, 1.5], atol=1e-4)
    assert float(scores[0]) == pytest.approx(-11.107460, abs=1e-5)
    assert int(scores.argmax()) == 0


def test_anchor() -> None:
    scores = scores_of([[0.12 if j == 2 else 0.004 for j in range(i + 1)] for i in range(12)])
    close(scores.exp(), [0, 0, 6.046618, *[0] * 9], atol=1e-5)
    assert int(scores.argmax()) == 2
    assert float(penalties(scores, torch.tensor(0.3))) == pytest.approx(6.046618, abs=1e-5)
    assert float(penalties(scores[:10], torch.tensor(0.3))) == pytest.approx(-0.3)
    assert float(penalties(scores[:11], torch.tensor(0.3))) > 6
    assert float(penalties(scores + 200, torch.tensor(0.3))) == pytest.approx(math.exp(80), rel=1e-5)


def test_running_columns_equal_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(3, 14, 14, generator=generator).tril()
    matrix[:, 12, 3] = 0.0
    columns = torch.zeros(3, 0)
    for size in range(1, 15):
        columns = extend_columns(columns, matrix[:, size - 1, :size], 7.0)
        for beam in range(3):
            whole = [
                math.log(1e-7)
                + sum(math.log(7.0 * max(float(matrix[beam, i, j]), 1e-30)) for i in range(j, size))
                for j in range(size)
            ]
            close(column_scores(columns)[beam], whole, atol=1e-4)


def test_candidates() -> None:
    logits, tokens = torch.tensor([[4, 3.5, 1, 0.2, -1, -2]]).topk(3)
    scores = candidate_scores(logits, torch.tensor([[1.2, 0.1, 0.4]]))
    close(scores[0], [-1.075999, -0.475999, -3.275999])
    assert tokens[0, scores.argmax()] == 1


def report(rollbacks: Rollbacks, locations: list[int]) -> int | None:
    """Both beams report the location of each step, those that were taken back too, until a rollback."""
    for step in range(len(rollbacks.history), len(locations)):
        target = rollbacks.report([locations[step]] * 2)
        if target is not None:
            assert step == 13
            return target
    return None


def test_rollbacks() -> None:
    locations = [*range(11), *[10] * 20]
    rollbacks = Rollbacks(threshold=3, limit=2, window=512)
    for target, kept in ((11, 12), (11, 12), (10, 11), (10, 11)):
        assert report(rollbacks, locations) == target
        assert len(rollbacks.history) == kept
    assert report(rollbacks, locations) is None
    assert rollbacks.times == {11: 2, 10: 2}
    nine = Rollbacks(threshold=3, limit=2, window=512)
    assert report(nine, [*range(10), *[9] * 20]) is None


def test_rollbacks_of_beams_that_wait_and_within_the_window() -> None:
    rollbacks = Rollbacks(threshold=2, limit=2, window=3)
    for location in range(11):
        assert rollbacks.report([location, None, location]) is None
    for locations in ([10, None, 10], [10, 4, 10], [10, 10, 10], [10, 10, 10]):
        assert rollbacks.report(locations) is None, locations
    assert rollbacks.report([10, 10, 10]) == 12  # 15 tokens in front, and 3 that may be taken back
    assert len(rollbacks.history) == 13
    assert rollbacks.times == {11: 1}


def test_mode_is_the_lowest_of_the_most_frequent() -> None:
    assert mode([7, 3, 3, 7, 1]) == 3
    assert mode([5]) == 5


def test_numbers_come_from_the_device_as_they_are() -> None:
    tensors = (
        torch.tensor([[-1.5, -INF], [0.1, 2.0]]),
        torch.tensor([2**24 - 1, 3]),
        torch.tensor([True, False]),
        torch.zeros(0, 2),
    )
    assert on_host(*tensors) == [each.tolist() for each in tensors]


def test_beams_wait_and_finish() -> None:
    rules = Rules(beams=3, early_stopping=False, length_penalty=1.0, max_new_tokens=4, end_tokens=[2])
    assert rules.continuations == 6
    beams = Beams.start(rules)
    assert beams.scores == (0.0, -INF, -INF)
    beams, going = beams.advance(
        [Continuation(-0.5, 0, 7, False), Continuation(-1.0, 0, 2, True), Continuation(-1.5, 0, 8, False)]
    )
    assert beams.tokens == ((7,), (8,), (7,))
    assert beams.scores == (-0.5, -1.5, -INF)
    assert [each.source for each in going] == [0, 0, 0]
    assert beams.finished == ((-1.0, (2,)),)
    ending = [Continuation(-1.0 - 0.5 * token, 0, token, True) for token in range(4)]
    beams, going = beams.advance(ending)  # of four that end, three are good enough
    assert beams.done
    assert not going
    assert [tokens for _, tokens in beams.finished] == [(7, 0), (7, 1), (2,)]


def test_released_rank_of_finished_beams() -> None:
    """The prompt counts, the end token does not, by the rules of transformers 4.29: a short answer wins there
    that loses by the length of the answer alone."""
    short, long = Continuation(-1.1, 0, 2, True), Continuation(-2.0, 0, 2, True)
    found = {}
    for prompt in (None, 20):
        rules = Rules(
            beams=2,
            early_stopping=True,
            length_penalty=1.0,
            max_new_tokens=9,
            end_tokens=[2],
            prompt_tokens=prompt,
        )
        beams, _ = Beams.start(rules).advance([short, Continuation(-1.2, 0, 7, False)])
        beams, _ = beams.advance([long, Continuation(-2.5, 0, 8, False)])
        found[prompt] = beams.finished
    assert found[None] == ((-1.0, (7, 2)), (-1.1, (2,)))
    assert found[20] == ((-1.1 / 20, (2,)), (-2.0 / 21, (7, 2)))


def test_what_is_about_to_be_chosen_cannot_be_taken_back() -> None:
    """With a threshold below 2 the summary token goes, one more than the token after it."""
    rollbacks = Rollbacks(threshold=1, limit=2, window=512)
    for location in range(11):
        assert rollbacks.report([location]) is None
    assert rollbacks.report([10]) == 10  # token 11 is about to be chosen
    assert len(rollbacks.history) == 11


# Scale of the attention and seed of the prompts with which random models take tokens back.
ROLLING = {
    "llava": (20.0, 6),
    "qwen2_5_vl": (20.0, 8),
}


def sharp(family: str, **kwargs: Any) -> PreTrainedModel:
    """A random model whose last layer attends to single tokens, and which never says an image token."""
    model = families.build(family, **kwargs)
    with torch.no_grad():
        model.get_decoder().layers[-1].self_attn.q_proj.weight.mul_(8.0)
        model.get_output_embeddings().weight[families.IMAGE_TOKEN] = 0.0
    return model


def rolling(family: str, **kwargs: Any) -> vlmfix.OPERA:
    settings = {"threshold": 1, "num_attn_candidates": 2, "scale_factor": ROLLING[family][0], **kwargs}
    return vlmfix.OPERA(**settings)


def decode(model: PreTrainedModel, inputs: dict[str, Tensor], opera: vlmfix.OPERA, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": 20, "num_beams": 2, "num_return_sequences": 2, **kwargs}
    with opera(model):
        return model.generate(
            **inputs,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            custom_generate=opera.decode,
            **kwargs,
        )


def tokens_of(output: Any, inputs: dict[str, Tensor], row: int) -> list[int]:
    return output.sequences[row, inputs["input_ids"].shape[1] :].tolist()


class Forced(LogitsProcessor):
    """Allows one token alone in some places."""

    def __init__(self, prompt: int, tokens: dict[int, int]) -> None:
        self.prompt, self.tokens = prompt, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens.get(input_ids.shape[1] - self.prompt)
        if token is None:
            return scores
        scores = torch.full_like(scores, -INF)
        scores[:, token] = 0.0
        return scores


@pytest.mark.parametrize("family", ROLLING)
def test_search_equals_brute_force(family: str) -> None:
    """Both samples of a padded batch are taken back, like each of them alone without a cache."""
    model, eager = sharp(family), sharp(family, attn_implementation="eager")
    inputs = families.prompt(family, model, (1, 1), seed=ROLLING[family][1])
    opera = rolling(family)
    output = decode(model, inputs, opera)
    rollbacks = taken_back = 0
    for sample, single in enumerate(families.split(family, model, inputs)):
        expected = opera_reference.answer(eager, single, opera, beams=2, tokens=20)
        for rank, (score, tokens) in enumerate(expected.finished):
            assert tokens_of(output, inputs, 2 * sample + rank) == list(tokens)
            assert float(output.sequences_scores[2 * sample + rank]) == pytest.approx(score, abs=1e-5)
        assert expected.rollbacks
        rollbacks += len(expected.rollbacks)
        taken_back += sum(step - target for step, target in expected.rollbacks)
    details = opera.edit_stats().details
    assert details["rollbacks"] == rollbacks / 2
    assert details["tokens taken back"] == taken_back / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "asked", "rolls"),
    [
        pytest.param(
            {"num_attn_candidates": 3, "scale_factor": 50.0}, {"beams": 3}, True, marks=pytest.mark.slow
        ),
        ({"window_size": 2, "num_attn_candidates": 3}, {}, True),
        ({"penalty_weights": 0.0}, {"forced": {4: 9, 12: 70}}, True),
        ({"num_attn_candidates": 3}, {"ends": (84,), "length_penalty": 0.3}, True),
        ({"num_attn_candidates": 3}, {"ends": (65, 36), "early_stopping": True}, True),
        ({"num_attn_candidates": 3, "ranked_length": "answer"}, {"ends": (65, 36)}, True),
        ({"num_attn_candidates": 1, "threshold": 2}, {"beams": 3}, True),
        ({"threshold": None, "num_attn_candidates": 4}, {"beams": 3, "tokens": 12, "forced": {0: 9}}, False),
    ],
)
def test_variants_equal_brute_force(settings: dict[str, Any], asked: dict[str, Any], rolls: bool) -> None:
    """Settings and ways of asking, with a processor that allows tokens that were not tried."""
    model, eager = sharp("llava"), sharp("llava", attn_implementation="eager")
    inputs = families.prompt("llava", model, (1,), seed=0)
    opera, asked = rolling("llava", **settings), {"beams": 2, "tokens": 20, **asked}
    expected = opera_reference.answer(eager, inputs, opera, **asked)
    assert bool(expected.rollbacks) == rolls
    prompt, beams, ends = inputs["input_ids"].shape[1], asked["beams"], list(asked.get("ends", ()))
    output = decode(
        model,
        inputs,
        opera,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=asked["tokens"],
        eos_token_id=ends or None,
        early_stopping=asked.get("early_stopping", False),
        length_penalty=asked.get("length_penalty", 1.0),
        logits_processor=[Forced(prompt, asked.get("forced", {}))],
    )
    assert len(expected.finished) == beams
    for rank, (score, tokens) in enumerate(expected.finished):
        got = tokens_of(output, inputs, rank)
        assert got == [*tokens, *[0] * (len(got) - len(tokens))]
        assert float(output.sequences_scores[rank]) == pytest.approx(score, abs=1e-5)
    lengths = {len(tokens) for _, tokens in expected.finished}
    assert (lengths == {asked["tokens"]}) == (not ends)


NEUTRAL = {"penalty_weights": 0, "threshold": None}


ASKED: list[dict[str, Any]] = [
    {},
    {"eos_token_id": [7, 9, 20]},
    {"eos_token_id": list(range(5, 30)), "early_stopping": True, "length_penalty": 0.5},
    {"eos_token_id": list(range(5, 40)), "early_stopping": "never", "length_penalty": 2.0},
    {"eos_token_id": 117, "min_new_tokens": 5, "no_repeat_ngram_size": 2, "suppress_tokens": [41]},
    {"num_beams": 1, "num_return_sequences": 1},
    {"repetition_penalty": 1.3, "exponential_decay_length_penalty": (1, 1.5), "eos_token_id": 117},
]


@pytest.mark.parametrize(("asked", "family"), list(zip(ASKED, cycle((*UNLIKE, "qwen3_vl")), strict=False)))
def test_strength_zero_is_beam_search(model: PreTrainedModel, family: str, asked: dict[str, Any]) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    asked = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 10, "pad_token_id": 3, **asked}
    zero = vlmfix.OPERA(**NEUTRAL)
    output = decode(model, inputs, zero, **asked)
    stock = model.generate(
        **inputs, do_sample=False, return_dict_in_generate=True, output_scores=True, **asked
    )
    assert torch.equal(output.sequences, stock.sequences)
    if asked["num_beams"] > 1:
        torch.testing.assert_close(output.sequences_scores, stock.sequences_scores, atol=1e-5, rtol=1e-5)
    with zero(model), vlmfix.VHR()(model):  # another method goes on acting
        edited = model.generate(**inputs, do_sample=False, custom_generate=zero.decode, **asked)
        assert torch.equal(edited, model.generate(**inputs, do_sample=False, **asked))


def passes(
    model: PreTrainedModel, inputs: dict[str, Tensor], opera: vlmfix.OPERA, **kwargs: Any
) -> list[Any]:
    """Rows and tokens of every pass through the decoder."""
    shapes = []
    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append((args[0] if args else kwargs["hidden_states"]).shape[:2]),
            with_kwargs=True,
        )
    )
    decode(model, inputs, opera, **kwargs)
    handle.remove()
    return [tuple(shape) for shape in shapes]


def test_one_pass_a_token(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    prompt = inputs["input_ids"].shape[1]
    asked = {"num_beams": 3, "max_new_tokens": 5}
    tried = passes(llava, inputs, vlmfix.OPERA(num_attn_candidates=4), **asked)
    assert tried == [(3, prompt), *[(3, 4)] * 5]
    untried = passes(llava, inputs, vlmfix.OPERA(num_attn_candidates=4, **NEUTRAL), **asked)
    assert untried == [(3, prompt), *[(3, 1)] * 4]


def test_a_rollback_is_one_pass_over_what_is_left() -> None:
    model = sharp("llava")
    inputs = families.prompt("llava", model, (1,), seed=0)
    opera = rolling("llava")
    lengths = [tokens for _, tokens in passes(model, inputs, opera)]
    again = [length for length in lengths[1:] if length > 2]
    details = opera.edit_stats().details
    assert len(again) == details["rollbacks"] > 0
    # Each token that was taken back is tried a second time; the one chosen anew is read, not tried.
    assert lengths.count(2) == 20 + details["tokens taken back"]
    assert lengths.count(1) == len(again)


@pytest.mark.parametrize("beams", [1, 5])
def test_one_candidate_is_greedy_until_the_first_rollback(llava: PreTrainedModel, beams: int) -> None:
    inputs = families.prompt("llava", llava, (1, 1, 0))
    greedy = llava.generate(**inputs, max_new_tokens=16, do_sample=False)
    fast = vlmfix.OPERA.fast()
    assert (fast.num_attn_candidates, fast.threshold) == (1, 25)
    output = decode(llava, inputs, fast, max_new_tokens=16, num_beams=beams, num_return_sequences=beams)
    assert torch.equal(output.sequences[::beams], greedy)
    if beams > 1:  # no other sequence was found
        assert bool((output.sequences[1::beams, inputs["input_ids"].shape[1] :] == 0).all())
        assert output.sequences_scores.view(3, 5)[:, 1:].eq(-INF).all()
        assert output.sequences_scores.view(3, 5)[:, 0].isfinite().all()


def test_processors_may_rule_out_all_that_was_tried(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 1, 0))
    asked: dict[str, Any] = {
        "max_new_tokens": 8,
        "eos_token_id": [106, 1],
        "min_new_tokens": 5,
        "suppress_tokens": [41],
        "pad_token_id": 3,
    }
    greedy = llava.generate(**inputs, do_sample=False, **asked)
    fast = decode(llava, inputs, vlmfix.OPERA.fast(), num_beams=1, num_return_sequences=1, **asked)
    assert torch.equal(fast.sequences, greedy)
    single = families.prompt("llava", llava, (1,))
    allowed = {"prefix_allowed_tokens_fn": lambda *_: [5, 6], "max_new_tokens": 4}
    for opera in (vlmfix.OPERA(num_attn_candidates=2), vlmfix.OPERA(num_attn_candidates=2, **NEUTRAL)):
        assert set(tokens_of(decode(llava, single, opera, **allowed), single, 0)) <= {5, 6}


def test_criteria_end_sequences(llava: PreTrainedModel) -> None:
    class Says(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return input_ids[:, -1] == 117

    inputs = families.prompt("llava", llava, (1, 2))
    opera = vlmfix.OPERA(num_attn_candidates=3, ranked_length="answer")
    expected = decode(llava, inputs, opera, eos_token_id=117, pad_token_id=0)
    output = decode(llava, inputs, opera, stopping_criteria=[Says()], pad_token_id=0)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.sequences_scores, expected.sequences_scores)
    ends = (output.sequences[:, inputs["input_ids"].shape[1] :] == 117).any(dim=1)
    assert ends.any()


def test_forms_of_the_result(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    opera = vlmfix.OPERA(num_attn_candidates=2)
    asked = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "custom_generate": opera.decode}
    with opera(llava):
        plain = llava.generate(**inputs, **asked)
        output = llava.generate(**inputs, **asked, return_dict_in_generate=True)
        embeddings = llava.generate(
            **inputs, **asked, inputs_embeds=llava.get_input_embeddings()(inputs["input_ids"])
        )
    assert torch.equal(output.sequences, plain)
    assert output.sequences_scores is None
    assert torch.equal(embeddings[:, -3:], plain[:, -3:])


@pytest.mark.slow
def test_activity() -> None:
    """Counts of a batch are those of its samples; rollbacks and sizes are means over prompts and tries."""
    model = sharp("llava")
    inputs = families.prompt("llava", model, (1, 1, 0), seed=6)
    batch, together = rolling("llava"), rolling("llava")
    decode(model, inputs, batch)
    singles = []
    for single in families.split("llava", model, inputs):
        alone = rolling("llava")
        decode(model, single, alone)
        decode(model, single, together)
        singles.append(alone.edit_stats())
    edit_stats, sums = batch.edit_stats(), together.edit_stats()
    for name in ("rows", "rows_touched", "rows_skipped", "steps", "steps_edited", "site_share"):
        assert getattr(edit_stats, name) == getattr(sums, name), name
    assert edit_stats.rows == 6
    assert edit_stats.rows_skipped == {}
    assert edit_stats.head_share is None
    assert edit_stats.layers_edited == [0]
    assert not edit_stats.prefill_only
    assert 0 < edit_stats.site_share < 1
    assert edit_stats.size == pytest.approx(sums.size, rel=1e-4)
    assert edit_stats.size > 0
    assert json.loads(json.dumps(edit_stats.details)) == edit_stats.details
    for name in ("rollbacks", "tokens taken back"):
        mean = sum(single.details[name] for single in singles) / 3
        assert edit_stats.details[name] == pytest.approx(mean)
    assert singles[2].details["image_attention"] == 0
    assert 0 < singles[0].details["image_attention"] < 1
    # A beam has a step for each token that was tried, and for each that was chosen anew.
    tries = sum(20 + single.details["tokens taken back"] + single.details["rollbacks"] for single in singles)
    assert edit_stats.steps == 2 * tries - 3  # of the first token, one beam alone
    assert edit_stats.steps == sum(row.steps for row in batch.latest_edit_stats())


def test_other_methods_count_live_beams(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    opera, vhr = vlmfix.OPERA(num_attn_candidates=2), vlmfix.VHR()
    with vhr(llava):
        decode(llava, inputs, opera, max_new_tokens=6, num_beams=3)
    edit_stats = vhr.edit_stats()
    assert edit_stats.rows == edit_stats.rows_touched == 6
    # The prefill; candidates of 1, 2, 3, ... live beams of each prompt.
    assert edit_stats.steps == edit_stats.steps_edited == 6 + 2 * (1 + 2 + 3 * 4)


def test_a_search_that_changes_nothing_warns_once(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (0,))
    opera = vlmfix.OPERA(penalty_weights=0)
    with pytest.warns(vlmfix.InactiveMethodWarning, match="OPERA edited 0 of 7 sites .* lower threshold"):
        decode(llava, inputs, opera, max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(llava, inputs, opera, max_new_tokens=4)
    with (
        pytest.warns(vlmfix.InactiveMethodWarning, match="OPERA edited 0 of 0 sites .* without its decode"),
        vlmfix.OPERA()(llava),
        torch.no_grad(),
    ):
        llava(**inputs)


def test_text_in_text_out(loaded: tuple[Any, Any]) -> None:
    pictures, prompt = [render(sample_scene(3, index)) for index in range(2)], "Describe the image."

    def said(images: Any, prompts: Any, method: Any = None, **kwargs: Any) -> Any:
        return vlmfix.generate(*loaded, images, prompts, method, max_new_tokens=6, **kwargs)

    texts = said(pictures, prompt, vlmfix.OPERA())
    assert texts == said(pictures, prompt, "opera", batch_size=1)
    assert said(pictures[0], [prompt, prompt], vlmfix.OPERA()) == texts[:1] * 2  # which share a prefix
    assert said(pictures, prompt, vlmfix.OPERA(**NEUTRAL)) == said(pictures, prompt, num_beams=5)
    assert said(pictures, prompt, vlmfix.OPERA.fast()) == said(pictures, prompt)
    with pytest.raises(vlmfix.UnsupportedError, match="without a method that asks several times"):
        said(pictures[0], prompt, "carve+opera")


def test_what_is_refused(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    opera = vlmfix.OPERA()
    asked: dict[str, Any] = {"max_new_tokens": 2, "num_beams": 5, "do_sample": False}
    looped = asked | {"custom_generate": opera.decode}
    with pytest.raises(vlmfix.UnsupportedError, match=r"must be attached: 'opera = OPERA\(\); with opera"):
        llava.generate(**inputs, **looped)
    with opera(llava):
        for kwargs, error, message in (
            (asked, vlmfix.UnsupportedError, "would decode without it: .*custom_generate=opera.decode"),
            (
                looped | {"custom_generate": vlmfix.OPERA(threshold=9).decode},
                vlmfix.UnsupportedError,
                "without it",
            ),
            (looped | {"streamer": BaseStreamer()}, vlmfix.UnsupportedError, "a streamer cannot"),
            (looped | {"do_sample": True}, vlmfix.UnsupportedError, "pass do_sample=False"),
            (
                looped | {"num_beams": 1},
                vlmfix.UnsupportedError,
                r"num_beams=5 to generate, or use OPERA.fast\(\)",
            ),
            (looped | {"num_return_sequences": 6}, ValueError, "num_return_sequences"),
            (looped | {"output_logits": True}, vlmfix.UnsupportedError, "output_logits has no place"),
            (looped | {"output_attentions": True}, vlmfix.UnsupportedError, "output_attentions has no place"),
            (
                looped | {"prefix_allowed_tokens_fn": lambda *_: [5, 6]},
                vlmfix.UnsupportedError,
                "generate for one prompt at a time",
            ),
        ):
            with pytest.raises(error, match=message):
                llava.generate(**inputs, return_dict_in_generate=True, **kwargs)
        single = families.prompt("llava", llava, (1,))
        equal = llava.generate(**single, **asked, custom_generate=vlmfix.OPERA().decode)
        assert torch.equal(equal, llava.generate(**single, **looped))
    for pair in ((opera, vlmfix.VCD()), (vlmfix.FLB(), opera)):
        with (
            pytest.raises(vlmfix.UnsupportedError, match="OPERA tries tokens and takes them back, which"),
            pair[0](llava),
            pair[1](llava),
        ):
            pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attn_candidates", 0),
        ("num_attn_candidates", 2.5),
        ("window_size", True),
        ("threshold", 0.5),
        ("scale_factor", 0),
        ("penalty_weights", -1),
        ("penalty_weights", "much"),
    ],
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be"):
        vlmfix.OPERA(**{name: value})


def test_errors_are_raised_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the middle of a rollback is no rollback that failed."""
    model = sharp("llava")
    inputs = families.prompt("llava", model, (1,), seed=0)
    expected = decode(model, inputs, rolling("llava"))
    opera = rolling("llava")

    def fail(step_decoder: StepDecoder, tokens: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(StepDecoder, "again", fail)
        with pytest.raises(torch.OutOfMemoryError):
            decode(model, inputs, opera)
    assert ATTRIBUTE not in vars(model.get_decoder())
    assert opera.edit_stats().rows == 0
    output = decode(model, inputs, opera)
    assert torch.equal(output.sequences_scores, expected.sequences_scores)


def test_processors_of_the_batch_serve_its_prompts(llava: PreTrainedModel) -> None:
    """`repetition_penalty` knows the padding of every prompt."""
    inputs = families.prompt("llava", llava, (1, 2))
    asked = {"repetition_penalty": 1.3, "pad_token_id": 3}
    together = decode(llava, inputs, vlmfix.OPERA(), **asked)
    for row, single in enumerate(families.split("llava", llava, inputs)):
        alone = decode(llava, single, vlmfix.OPERA(), **asked)
        beams = len(together.sequences) // 2
        assert torch.equal(
            together.sequences[row * beams, inputs["input_ids"].shape[1] :],
            alone.sequences[0, single["input_ids"].shape[1] :],
        )


def test_stop_strings_are_refused(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="which stop_strings needs; pass stopping_criteria"):
        decode(llava, families.prompt("llava", llava), vlmfix.OPERA(), stop_strings=["x"], tokenizer=object())
