"""Self-tests on types that differ in what they are made of, and on models with faults."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

import vlmfix
from docs import make_support_matrix
from tests.support import matrix, zoo
from tests.support.paths import ROOT
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.probe.check import check
from vlmfix.probe.self_tests import Probe, SelfTest, self_tests
from vlmfix.probe.verdicts import verdicts

# One of each kind: what differs, and a type in which it does.
KINDS = {
    "softcap": "llava+gemma2",
    "sinks": "llava+gpt_oss",
    "images see each other": "gemma3",
    "all prompt tokens see each other": "paligemma",
    "a further embedding for each layer": "gemma4",
    "states": "qwen3_5",
    "convolutions": "lfm2_vl",
    "rows with breaks": "mistral3",
    "named tiles": "idefics3",
    "numbered tiles": "aya_vision",
    "tiles with separators": "ovis2",
    "learned queries": "aria",
    "two sizes of pixels": "deepseek_vl_hybrid",
    "a merge size for each image": "video_llama_3",
    "latent keys": "kimi_k25",
    "positions without rows": "exaone4_5",
    "kinds of tokens": "ernie4_5_vl_moe",
    "layers without positions": "muse_spark",
    "sizes among the markers": "emu3",
    "markers of the template": "got_ocr2",
    "an inner language model": "cosmos3_omni",
}
REFUSED = {
    "gemma4": {"second prompt": "reads more of each token than its embedding"},
    "qwen3_5": {"pruning of nothing": "keep a state", "second prompt": "keep a state"},
    "lfm2_vl": {
        "pruning of nothing": "keep a state",
        "second prompt": "keep a state",
        "no image": "attach with its processor",
    },
    "mistral3": {"no image": "attach with its processor"},
    "muse_spark": {"no image": "attach with its processor"},
}


@cache
def outcome(name: str) -> dict[str, SelfTest]:
    return {test.name: test for test in self_tests(matrix.probe(name))}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_what_is_not_refused_equals_the_stock_model(name: str) -> None:
    if name not in KNOWN and zoo.TYPES[name].base not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    refused = REFUSED.get(name, {})
    try:
        tests = outcome(name)
    except ImportError as error:  # versions differ in what needs torchvision
        pytest.skip(str(error).splitlines()[0])
    for test in tests.values():
        if test.refused and "the stock model" in test.reason:
            continue  # old versions mix up the images of beams, and PaliGemma's prompt without a cache
        if test.name in refused:
            assert test.refused
            assert refused[test.name] in test.reason
        else:
            assert test.passed, test


def test_a_model_that_is_blind() -> None:
    probe = matrix.probe("llava")
    probe.inputs.other_images.update(probe.inputs.batch)  # type: ignore[attr-defined]  # a dictionary here
    assert self_tests(probe)[0].reason.startswith("they do not")


def test_a_fault_of_the_engine_is_told_and_no_method_relies_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = matrix.probe("llava")
    select = PromptLayout.select

    def shifted(layout: PromptLayout, kept: torch.Tensor) -> Any:
        narrower, index = select(layout, kept)
        return narrower, index.roll(1, dims=1)

    monkeypatch.setattr(PromptLayout, "select", shifted)
    tests = self_tests(probe)
    wrong = {test.name for test in tests if not test.passed}
    assert wrong == {"no image", "pruning of nothing"}
    assert all(not test.refused and "logits differ by" in test.reason for test in tests if test.name in wrong)
    found = {
        each.method: each for each in verdicts(probe, tests, matrix.methods(["fastv", "devils", "m3id"]))
    }
    assert {name: each.state for name, each in found.items()} == {
        "fastv": "fails",
        "devils": "works",
        "m3id": "fails",
    }
    assert found["fastv"].reason.startswith("self-test 'pruning of nothing': logits differ by")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mllama", "reads images by cross-attention"),
        ("florence2", "is an encoder-decoder model"),
        ("chameleon", "puts images into its prompt inside of its text decoder"),
        ("diffusion_gemma", "generates by a loop of its own"),
        ("qwen4_exp", "keeps prompts in a DynamicIndexedLayer"),
        ("kosmos-2", "names no image_token_id"),
    ],
)
@pytest.mark.slow
def test_types_that_no_method_supports(name: str, reason: str) -> None:
    if name not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    assert reason in matrix.row(name, ()).refused


@pytest.mark.slow
def test_layers_that_do_not_attend() -> None:
    """A method whose layers all keep a state says which ones attend; one of several is enough."""
    probe = matrix.probe("qwen3_5")
    tests = list(outcome("qwen3_5").values())
    methods = matrix.methods(["var", "vaf", "sid", "fastv", "vhr"])
    found = {each.method: each for each in verdicts(probe, tests, methods)}
    assert found["var"].state == "works"
    assert found["vaf"].reason.endswith("of this model, layers 3 attend; choose among these")
    assert "from which a branch cannot leave some out" in found["sid"].reason
    assert {found[name].state for name in ("vaf", "sid", "fastv", "vhr")} == {"refused"}


def test_probe_keeps_the_model(llava: Any) -> None:
    from tests.support import families

    batch = families.prompt("llava", llava, (1, 2))
    before = families.fingerprint(llava)
    inputs = matrix.ProbeInputs(batch, families.split("llava", llava, batch), None, dict(batch))
    tests = self_tests(Probe(llava, None, inputs))
    assert families.fingerprint(llava) == before
    assert {test.name: test.reason for test in tests if test.refused} == {
        "no image": "what the prompt is without its images is not known"
    }


@pytest.mark.slow
def test_the_page_says_what_is_so() -> None:
    """The committed support matrix, for a type in which much is missing; `make support` writes all of it."""
    page = (ROOT / "docs" / "guide" / "support.md").read_text(encoding="utf-8")
    if f"\n{transformers.__version__} is built" not in page:
        pytest.skip("the page is of another version of transformers")
    found = matrix.row("lfm2_vl")
    groups = matrix.stages()
    line = ["`lfm2_vl`", *make_support_matrix.cells(found, groups), make_support_matrix.tests(found)]
    assert f"| {' | '.join(line)} |" in page
    section = page.partition("### `lfm2_vl`\n\n")[2].partition("\n\n#")[0]
    assert section.strip().splitlines() == make_support_matrix.reasons(found)


@pytest.mark.slow
def test_a_method_that_fails_is_refused_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = zoo.build("llava"), zoo.processor("llava")
    assert processor is not None
    methods = matrix.methods(["fastv", "devils"])
    select = PromptLayout.select

    def shifted(layout: PromptLayout, kept: torch.Tensor) -> Any:
        narrower, index = select(layout, kept)
        return narrower, index.roll(1, dims=1)

    with monkeypatch.context() as patch:
        patch.setattr(PromptLayout, "select", shifted)
        found = check(model, processor, methods)
    assert {each.method: each.state for each in found.verdicts} == {"fastv": "fails", "devils": "works"}
    with (
        pytest.raises(
            vlmfix.UnsupportedError, match=r"FastV cannot be relied on with this .*: self-test 'pruning"
        ),
        methods["fastv"](model),
    ):
        pass
    with methods["devils"](model):
        pass
    assert check(model, processor, methods).verdicts[0].state == "works"
    with methods["fastv"](model):
        pass


@pytest.mark.slow
def test_without_a_processor_the_lines_around_an_image_are_not_known() -> None:
    """Gemma's configuration names the markers, and not the line breaks around them."""
    probe = matrix.probe("gemma3")
    alone = Probe(probe.model, None, probe.inputs)
    test = next(test for test in self_tests(alone) if test.name == "no image")
    assert test.refused
    assert "attach with its processor" in test.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5", "gemma4", "kimi_k25", "ovis2", "gemma3"])
def test_questions_about_one_picture_share_what_can_be_shared(name: str) -> None:
    """Two at once, and beams, are answered as they are alone."""
    if name not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    model = zoo.build(name)
    batch = zoo.prompt(name, model, (1, 1))
    row = zoo.split(name, model, batch)[0]
    twice = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in row.items()}
    wanted = model.generate(**row, max_new_tokens=3, do_sample=False)
    found = model.generate(**row, max_new_tokens=3, num_beams=2, do_sample=False)
    with cached_vision(model), shared_prefix(model):
        both = model.generate(**twice, max_new_tokens=3, do_sample=False)
        assert torch.equal(both, wanted.repeat(2, 1))
        assert torch.equal(model.generate(**row, max_new_tokens=3, num_beams=2, do_sample=False), found)
