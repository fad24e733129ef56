"""Methods together, what they report, and what is left of a run when it has ended."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from contextlib import ExitStack
from itertools import cycle, permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

import vlmfix
from tests.support import families
from tests.support.methods import UNLIKE, acting, attached, plain, under, values
from tests.support.paths import ROOT
from vlmfix.engine.stats import EditStats

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

METHODS = [name for name, cls in vlmfix.list_methods().items() if cls.attaches]
NEED_IMAGE = [name for name in METHODS if acting(name).needs_image]
PRUNING = [name for name in METHODS if acting(name).prunes]
LOGITS = [name for name in METHODS if acting(name).owns_logits]
NO_LOOPS = [name for name in METHODS if not acting(name).decodes]
LOOPS = [name for name in METHODS if acting(name).decodes]
ATTENTION = [name for name in METHODS if name not in PRUNING + LOGITS + LOOPS]

PAIRS = [
    *permutations(ATTENTION, 2),
    *((attention, pruning) for attention in ATTENTION for pruning in PRUNING),
    *(("vhr", logit) for logit in LOGITS),
    *((logit, "var") for logit in LOGITS),
    *((logit, "fastv") for logit in LOGITS),
    *(("m3id", other) for other in ATTENTION + PRUNING if other not in ("var", "vhr", "fastv")),
    *((loop, other) for loop in LOOPS for other in ATTENTION + PRUNING),
]

KEEPS_ALL: dict[str, dict[str, Any]] = {
    "adaptinfer": {"prune_layers": (1,), "kept_tokens": (10_000,)},
    "divprune": {"keep_ratio": 0.9999},
    "fastv": {"prune_ratio": 1e-6},
    "kmeans": {"kept_tokens": 10_000},
    "random_tokens": {"kept_tokens": 10_000},
    "sparsevlm": {"prune_layers": (1, 2), "kept_tokens": (10_000, 10_000)},
    "uniform_grid": {"kept_tokens": 10_000},
    "visionzip": {"dominant_tokens": 10_000},
}


def logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], names: tuple[str, ...], **kwargs: Any
) -> Tensor:
    """What the generated positions come from under the methods, see `values`."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(attached(name, model))
        return values(model, inputs, max_new_tokens=4, **kwargs)


def near(first: Tensor, second: Tensor) -> bool:
    """Whether all logits are alike, those of tokens that both rule out, too."""
    return torch.allclose(first, second, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "family"), zip(PAIRS, cycle(UNLIKE), strict=False))
def test_two_methods_keep_the_promises(pair: tuple[str, str], family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    before = families.fingerprint(model)
    together = logits(model, inputs, pair)
    # An attention method may find nothing to edit among the tokens that a pruning left.
    for alone in pair[:1] if pair[1] in PRUNING else pair:
        assert not near(together, logits(model, inputs, (alone,), **plain(*pair)))
    for row, single in enumerate(families.split(family, model, inputs)):
        torch.testing.assert_close(together[:, row], logits(model, single, pair)[:, 0], atol=1e-4, rtol=1e-4)
    if pair[0] not in LOOPS:
        uncached = logits(model, inputs, pair, use_cache=False)
        torch.testing.assert_close(together, uncached, atol=1e-4, rtol=1e-4)
    assert families.fingerprint(model) == before


@pytest.mark.parametrize("pair", list(permutations(PRUNING, 2))[:: len(PRUNING)])
def test_two_prunings_are_refused(pair: tuple[str, str], llava: PreTrainedModel) -> None:
    with (
        attached(pair[0], llava),
        pytest.raises(vlmfix.UnsupportedError, match="one pruning method at a time"),
    ):
        attached(pair[1], llava).__enter__()


@pytest.mark.parametrize("name", sorted(KEEPS_ALL))  # PyramidDrop has ratios alone: all 1 attaches nothing
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_keeping_every_token_is_the_stock_model(
    name: str, family: str, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (1, 2))
    method = vlmfix.make_method(name, **KEEPS_ALL[name])
    stock = logits(model, inputs, ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vlmfix.InactiveMethodWarning)
        with method(model):
            output = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
    if method.edit_stats().site_share == 0:  # newline tokens leave with some methods, whatever the budget
        torch.testing.assert_close(torch.stack(output.logits), stock, atol=2e-5, rtol=1e-4)
    else:
        assert family == "llava_next"


@pytest.mark.parametrize(
    "name",
    ["random_tokens", "fastv", "sparsevlm", "pyramid_drop", "adaptinfer", "kmeans", "divprune", "visionzip"],
)
def test_renumbered_positions(name: str, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2, 0))
    parameters = acting(name).parameters | {"position_scheme": "renumber"}
    method = vlmfix.make_method(name, **parameters)

    def context(inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        with method(llava):
            output = llava.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **kwargs,
            )
        return torch.stack(output.logits)

    batch = context(inputs)
    torch.testing.assert_close(batch, context(inputs, use_cache=False), atol=1e-4, rtol=1e-4)
    for row, single in enumerate(families.split("llava", llava, inputs)):
        torch.testing.assert_close(batch[:, row], context(single)[:, 0], atol=1e-4, rtol=1e-4)
    assert (batch[:, 0] - logits(llava, inputs, (name,))[:, 0]).abs().max() > 1e-4


def test_renumbered_tokens_are_a_shorter_prompt(llava: PreTrainedModel) -> None:
    """Before the first layer, dropping and renumbering is the stock model on the tokens that are left."""
    inputs = families.prompt("llava", llava)
    kept = []

    class Watched(vlmfix.RandomTokens):
        def choose(self, context: Any, layer: int, hidden_states: Tensor) -> Any:
            mask = super().choose(context, layer, hidden_states)
            if mask is not None:
                kept.append(hidden_states[0, mask[0]])
            return mask

    with Watched(kept_tokens=3, position_scheme="renumber")(llava):
        tokens = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
    shorter = llava.get_decoder()
    states = kept[0][None]
    new = []
    with torch.no_grad():
        for _ in range(6):
            new.append(int(llava.lm_head(shorter(inputs_embeds=states).last_hidden_state[:, -1]).argmax()))
            states = torch.cat([states, llava.get_input_embeddings()(torch.tensor([new[-1:]]))], dim=1)
    assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == new


def test_renumbering_is_refused_for_positions_in_three_axes(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="M-RoPE"):
        vlmfix.FastV(position_scheme="renumber")(models["qwen2_5_vl"]).__enter__()


def activity_of(name: str, model: PreTrainedModel, *runs: dict[str, Tensor], **kwargs: Any) -> EditStats:
    method = acting(name)
    with method(model, families.PROCESSOR):
        for inputs in runs:
            model.generate(**inputs, **under(model, **{"max_new_tokens": 4, **kwargs}))
    return method.edit_stats()


@pytest.mark.parametrize("name", NO_LOOPS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_counts_of_a_batch_are_those_of_its_samples(
    name: str, family: str, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (1, 2, 0))
    batch = activity_of(name, model, inputs)
    skips = int(name in NEED_IMAGE)
    assert batch.site_share
    assert batch.rows_touched == 3 - skips
    assert batch.rows_skipped == ({"no_image": 1} if skips else {})
    assert batch.steps == 3 * 4
    singles = [activity_of(name, model, single) for single in families.split(family, model, inputs)]
    together = activity_of(name, model, *families.split(family, model, inputs))
    assert (batch.rows, batch.steps, batch.steps_edited) == (
        together.rows,
        together.steps,
        together.steps_edited,
    )
    assert batch.site_share == pytest.approx(together.site_share)
    assert batch.layers_edited == sorted({layer for single in singles for layer in single.layers_edited})
    assert sum(single.rows_touched for single in singles) == 3 - skips
    if batch.size is not None:
        assert batch.size == pytest.approx(together.size, rel=1e-4)
    if name in LOGITS:
        assert batch.layers_edited == []
        assert batch.kl_steps == together.kl_steps == 4 * batch.rows_touched
        assert 0 < batch.kl_mean <= batch.kl_max
        for figure in ("kl_mean", "kl_max", "kl_cut", "argmax_changed"):
            expected = getattr(together, figure)
            assert getattr(batch, figure) == (expected and pytest.approx(expected, rel=1e-3, abs=1e-6)), (
                figure
            )
    else:
        assert (batch.kl_mean, batch.kl_steps, batch.argmax_changed) == (None, None, None)
    beams = activity_of(name, model, inputs, num_beams=2)
    assert beams.rows == 6
    assert beams.rows_skipped == ({"no_image": 2} if skips else {})


@pytest.mark.parametrize("name", NEED_IMAGE)
def test_a_method_that_never_acts_warns_once(name: str, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (0,))
    method = acting(name)
    with method(llava, families.PROCESSOR):
        with pytest.warns(vlmfix.InactiveMethodWarning, match="edited 0 of 0 sites in 2 steps .*no image"):
            llava.generate(**inputs, max_new_tokens=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llava.generate(**inputs, max_new_tokens=2)
    assert method.edit_stats().rows_skipped == {"no_image": 2}
    assert method.edit_stats().site_share is None
    method.reset_edit_stats()
    assert method.edit_stats().rows == 0
    with method(llava, families.PROCESSOR), pytest.warns(vlmfix.InactiveMethodWarning):
        llava.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_said_and_no_warning(name: str, llava: PreTrainedModel) -> None:
    cls = vlmfix.list_methods()[name]
    method = cls(**cls.identity_parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with method(llava):
            llava.generate(**families.prompt("llava", llava), max_new_tokens=2)
    assert method.edit_stats().details == {"strength zero": True}
    assert method.edit_stats().rows == 0


def test_reasons_of_methods_that_find_nothing(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    for method, reason in (
        (vlmfix.VAR(sink_dimensions=(3,), sink_threshold=5.6), "no image token has a sink score above 5.6"),
        (
            vlmfix.VAR(sink_dimensions=(3,), sink_threshold=2.5, min_image_mass=1.0),
            "no head with visual sinks puts 1 of its attention on the image",
        ),
        (vlmfix.RandomTokens(kept_tokens=500), "the budget is not below the number of image tokens"),
    ):
        with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match=reason):
            llava.generate(**inputs, max_new_tokens=2)


def test_finished_sequences_do_not_count(llava: PreTrainedModel) -> None:
    """Row 1 ends early, row 0 goes on; the token that ends a sequence still had its step."""
    for seed in range(20):
        inputs = families.prompt("llava", llava, (1, 1), seed=seed)
        with vlmfix.VHR()(llava):
            output = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        ends = [int(token) for token in tokens[1, :4] if token not in tokens[0]]
        if ends:
            break
    end = ends[-1]
    alive = int((tokens[1] == end).nonzero()[0]) + 1
    assert alive < 6
    method = vlmfix.VHR()
    with method(llava):
        llava.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=end)
    assert method.edit_stats().steps == 6 + alive
    assert method.edit_stats().steps_edited == 6 + alive


def test_a_failed_call_counts_nothing(llava: PreTrainedModel) -> None:
    class Failing(BaseStreamer):
        calls = 0

        def put(self, value: Tensor) -> None:
            self.calls += 1
            if self.calls == 3:
                raise ZeroDivisionError

        def end(self) -> None:
            pass

    method = vlmfix.VHR()
    with method(llava), pytest.raises(ZeroDivisionError):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=3, streamer=Failing())
    assert method.edit_stats().rows == 0


PROGRAM = """
import json, sys, torch
from tests.support.methods import attached, under
from tests.support import families
torch.set_num_threads(1)
model = families.build("llava")
tokens = {}
for name in sys.argv[1:]:
    inputs = families.prompt("llava", model, (1, 2), seed=5)
    with attached(name, model):
        tokens[name] = model.generate(**inputs, **under(model, max_new_tokens=6)).tolist()
print(json.dumps(tokens))
"""


@pytest.mark.slow
def test_two_runs_in_one_process_equal_two_processes(llava: PreTrainedModel) -> None:
    path = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *METHODS], capture_output=True, text=True, check=True, env=path
    )
    alone = json.loads(done.stdout.splitlines()[-1])
    for name in METHODS:
        with attached(name, llava):
            kwargs = under(llava, max_new_tokens=6)
            llava.generate(**families.prompt("llava", llava, (2, 1), seed=4), **kwargs)
            second = llava.generate(**families.prompt("llava", llava, (1, 2), seed=5), **kwargs)
        assert second.tolist() == alone[name], name
