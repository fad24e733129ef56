"""Methods together, and what is left of a run when it has ended."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import (
    ATTACHED,
    acting,
    attached,
    plain,
    representatives,
    under,
    unlike,
    values,
)
from tests.support.names import UNLIKE
from tests.support.paths import ROOT
from vlmfix.engine.capabilities import (
    ChoosesTokens,
    PrunesTokens,
    RemembersSequences,
    edits_encoder,
    reads_encoder,
)

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]

REPRESENTATIVES = representatives(ATTACHED)
PRUNING = [name for name in REPRESENTATIVES if isinstance(acting(name), PrunesTokens)]
LOGITS = [name for name in REPRESENTATIVES if acting(name).owns_logits]
LOOPS = [name for name in REPRESENTATIVES if isinstance(acting(name), ChoosesTokens)]
ATTENTION = [name for name in REPRESENTATIVES if name not in PRUNING + LOGITS + LOOPS]


def go_together(pair: tuple[str, str]) -> bool:
    """Whether two methods are not refused at these settings."""
    methods = [acting(name) for name in pair]
    tries = isinstance(methods[0], ChoosesTokens) and isinstance(methods[1], RemembersSequences)
    works = [edits_encoder(each) or reads_encoder(each) for each in methods]
    both_at_the_encoder = all(works) and any(map(edits_encoder, methods))
    both_change_layer_0 = set(pair) == {"eah", "farsight"}
    return not (tries or both_at_the_encoder or both_change_layer_0)


def in_circles(names: list[str], others: list[str], steps: Sequence[int]) -> list[tuple[str, str]]:
    """Each method with the one of the others that stands a step further, for each step."""
    found = ((name, others[(at + step) % len(others)]) for step in steps for at, name in enumerate(names))
    return [(one, other) for one, other in found if one != other]


ALL_PAIRS = [
    *in_circles(ATTENTION, ATTENTION, (1,)),
    *in_circles(ATTENTION, PRUNING, (0,)),
    *in_circles(LOGITS, ["vhr", "var", "sparsevlm", "nullu", "pai"], (0,)),
    *in_circles(["crops"], ATTENTION + PRUNING, range(0, len(ATTENTION + PRUNING), 3)),
    *in_circles(LOOPS, ATTENTION + PRUNING, range(0, len(ATTENTION + PRUNING), 3)),
]
PAIRS = [pair for pair in ALL_PAIRS if go_together(pair)]
"""Methods of two hook signatures each."""


def logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], names: tuple[str, ...], **kwargs: Any
) -> Tensor:
    """What the generated positions come from under the methods, see `values`."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(attached(name, model))
        return values(model, inputs, max_new_tokens=3, **kwargs)


@functools.cache
def logits_of_one(model: PreTrainedModel, family: str, name: str, **kwargs: Any) -> Tensor:
    """The same under one method."""
    return logits(model, prompts(family, model), (name,), **kwargs)


def prompts(family: str, model: PreTrainedModel) -> dict[str, Tensor]:
    return families.prompt(family, model, (1, 2, 0))


def near(first: Tensor, second: Tensor) -> bool:
    """Whether all logits are alike, those of tokens that both rule out, too."""
    return torch.allclose(first, second, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "family"), [(pair, unlike(number, *pair)) for number, pair in enumerate(PAIRS)]
)
def test_two_methods_keep_the_promises(pair: tuple[str, str], family: str, model: PreTrainedModel) -> None:
    inputs = prompts(family, model)
    before = families.fingerprint(model)
    together = logits(model, inputs, pair)
    # An attention method may find nothing to edit among the tokens that a pruning left.
    for alone in pair[:1] if pair[1] in PRUNING else pair:
        assert not near(together, logits_of_one(model, family, alone, **plain(*pair)))
    for row, single in list(enumerate(families.split(family, model, inputs)))[1:]:
        torch.testing.assert_close(together[:, row], logits(model, single, pair)[:, 0], atol=1e-4, rtol=1e-4)
    if pair[0] not in LOOPS:
        uncached = logits(model, inputs, pair, use_cache=False)
        torch.testing.assert_close(together, uncached, atol=1e-4, rtol=1e-4)
    assert families.fingerprint(model) == before


@pytest.mark.parametrize("pair", list(permutations(PRUNING, 2))[:: len(PRUNING)])
def test_two_prunings_are_refused(pair: tuple[str, str], llava: PreTrainedModel) -> None:
    with (
        attached(pair[0], llava),
        pytest.raises(vlmfix.UnsupportedError, match="one method that drops or merges tokens at a time"),
    ):
        attached(pair[1], llava).__enter__()


def test_what_is_remembered_does_not_go_with_tokens_that_are_taken_back(llava: PreTrainedModel) -> None:
    with (
        attached("opera", llava),
        pytest.raises(vlmfix.UnsupportedError, match="AdaVBoost would remember them"),
    ):
        attached("adavboost", llava).__enter__()


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
        tokens[name] = model.generate(**inputs, **under(model, max_new_tokens=2)).tolist()
print(json.dumps(tokens))
"""


@pytest.mark.slow
def test_two_runs_in_one_process_equal_two_processes(llava: PreTrainedModel) -> None:
    path = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *ATTACHED], capture_output=True, text=True, check=True, env=path
    )
    alone = json.loads(done.stdout.splitlines()[-1])
    for name in ATTACHED:
        with attached(name, llava):
            kwargs = under(llava, max_new_tokens=2)
            llava.generate(
                **families.prompt("llava", llava, (2, 1), seed=4), **kwargs | {"max_new_tokens": 1}
            )
            second = llava.generate(**families.prompt("llava", llava, (1, 2), seed=5), **kwargs)
        assert second.tolist() == alone[name], name


@pytest.mark.parametrize("family", UNLIKE)
def test_images_encoded_for_a_branch_are_not_those_that_a_pruning_looks_at(
    family: str, models: dict[str, PreTrainedModel]
) -> None:
    """VisionZip chooses by what the encoder attends to in the prompt's own images, not in noised ones."""
    model = models[family]
    inputs = prompts(family, model)
    zipped = acting("visionzip")
    with zipped(model):
        alone = values(model, inputs, max_new_tokens=3)
    with zipped(model), vlmfix.VCD(alpha=1e-6, beta=0)(model):
        torch.testing.assert_close(values(model, inputs, max_new_tokens=3), alone, atol=1e-3, rtol=1e-4)
