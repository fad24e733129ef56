"""What is seen in one pass, against the weights that transformers gives out and formulas written as loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vlmfix
from vlmfix.calibration.results import with_answer
from vlmfix.explanation.forcing import force, write
from vlmfix.explanation.knockout import RULES, cut, cut_paths, windows
from vlmfix.explanation.reading import Reader, band_of
from vlmfix.models.structure import text_decoder

LAYERS = 8


@pytest.fixture(scope="module")
def reader(embedded: tuple[Any, Any], scene: Image.Image) -> Reader:
    return Reader(*embedded, scene, "Describe the image.")


@pytest.fixture(scope="module")
def answer(reader: Reader) -> tuple[int, ...]:
    return write(reader, [], 24).token_ids


@pytest.fixture(scope="module")
def stock(embedded: tuple[Any, Any]) -> Any:
    """The same model, which gives its weights out."""
    kind = "tiny-llava" if embedded[0].config.model_type == "llava" else "tiny-qwen2.5-vl"
    model = vlmfix.load(kind, dtype="float32")[0]
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def weights(stock: Any, reader: Reader, answer: tuple[int, ...]) -> list[Tensor]:
    """Of each layer, `(heads, tokens, tokens)`."""
    with torch.no_grad():
        output = stock(**with_answer(reader.inputs, answer), output_attentions=True)
    return [each[0] for each in output.attentions]


def image_columns(reader: Reader) -> Tensor:
    config = reader.model.config
    return reader.inputs["input_ids"][0] == (
        getattr(config, "image_token_id", None) or config.image_token_index
    )


def test_attention_of_the_rows_that_predict(
    reader: Reader, answer: tuple[int, ...], weights: list[Tensor]
) -> None:
    seen, streams = reader.observe(answer).seen, reader.observe(answer).streams
    image = image_columns(reader).nonzero()[:, 0]
    end = int(image.max())
    for layer, whole in enumerate(weights):
        sinks = image[streams[layer].scores > reader.sink_rule.threshold]
        assert len(sinks) > 0
        for place in range(len(answer)):
            row = whole[:, reader.length - 1 + place]
            expected = {
                0: row[:, 0],
                1: row[:, 1 : image[0]].sum(dim=1),
                2: row[:, image].sum(dim=1) - row[:, sinks].sum(dim=1),
                3: row[:, sinks].sum(dim=1),
                4: row[:, end + 1 : reader.length].sum(dim=1),
                5: row[:, reader.length :].sum(dim=1),
            }
            for group, mass in expected.items():
                torch.testing.assert_close(seen[layer].sums[:, place, group], mass, atol=1e-5, rtol=0)
            on_image = row[:, image]
            torch.testing.assert_close(seen[layer].image[place], on_image.mean(dim=0), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            seen[layer].sums.sum(dim=-1), torch.ones(6, len(answer)), atol=1e-5, rtol=0
        )


def test_rollout_against_matrices(reader: Reader, answer: tuple[int, ...], weights: list[Tensor]) -> None:
    image, prompt = image_columns(reader), reader.length
    whole = torch.eye(len(weights[0][0]))
    for layer in range(LAYERS // 2, LAYERS):
        looks = [
            float(head[row, : len(image)][image].max()) for head in weights[layer] for row in range(prompt)
        ]
        by_head = torch.tensor(looks).view(-1, prompt).mean(dim=1)
        by_head = by_head / by_head.max()
        merged = sum(share * head for share, head in zip(by_head, weights[layer], strict=True)) / len(by_head)
        whole = (0.5 * merged + 0.5 * torch.eye(len(whole))) @ whole
    rows = whole[prompt - 1 : prompt - 1 + len(answer), : len(image)][:, image]
    found = reader.observe(answer).rollout
    assert found is not None
    torch.testing.assert_close(found, rows, atol=1e-5, rtol=0)


def test_heads_of_words(reader: Reader, answer: tuple[int, ...], weights: list[Tensor]) -> None:
    image = image_columns(reader).nonzero()[:, 0]
    for word, found in zip(([3, 4], [1]), reader.heads_at(answer, [[3, 4], [1]]), strict=True):
        rows = torch.tensor(word) + reader.length - 1
        for layer, whole in enumerate(weights):
            expected = whole[:, rows][..., image].mean(dim=1)
            torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=0)


def test_heads_that_the_image_moves(reader: Reader, stock: Any) -> None:
    """The outputs of heads at the last prompt row, in two passes of the stock model."""
    outputs: list[Tensor] = []
    attention = [layer.self_attn.o_proj for layer in text_decoder(stock).layers]
    hooks = [
        each.register_forward_pre_hook(lambda _, args: outputs.append(args[0][0, -1])) for each in attention
    ]
    text = {"input_ids": reader.inputs["input_ids"][:, ~image_columns(reader)]}
    try:
        with torch.no_grad():
            stock(**reader.inputs)
            stock(**text)
    finally:
        for hook in hooks:
            hook.remove()
    with_image, without = (
        torch.stack(each).view(LAYERS, 6, -1) for each in (outputs[:LAYERS], outputs[LAYERS:])
    )
    expected = (with_image - without).norm(dim=-1)
    torch.testing.assert_close(reader.head_divergence(), expected, atol=1e-4, rtol=1e-4)


@contextmanager
def masked(stock: Any, layers: frozenset[int], rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within the block, some layers of the stock model get another mask."""

    def change(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tokens = len(rows)
        given = torch.full((tokens, tokens), -1e9).triu(1)
        given[rows[:, None] & columns] = -1e9
        return args, kwargs | {"attention_mask": given[None, None]}

    own = [text_decoder(stock).layers[layer].self_attn for layer in layers]
    hooks = [each.register_forward_pre_hook(change, with_kwargs=True) for each in own]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def expected_paths(reader: Reader, rule: str, length: int) -> tuple[Tensor, Tensor]:
    image = image_columns(reader)
    end, places = int(image.nonzero()[-1]), torch.arange(length)
    whole = torch.cat([image, torch.zeros(length - len(image), dtype=torch.bool)])
    query = (places > end) & (places < reader.length)
    generated = places >= reader.length - 1
    return {
        "image_to_generated": (generated, whole),
        "image_to_query": (query, whole),
        "image_to_all_text": (query | generated, whole),
        "query_to_generated": (generated, query),
    }[rule]


@pytest.mark.parametrize("layers", [frozenset(range(LAYERS)), frozenset({2, 3})], ids=["all", "two"])
@pytest.mark.parametrize("rule", RULES)
def test_cut_paths(
    reader: Reader, answer: tuple[int, ...], stock: Any, rule: str, layers: frozenset[int]
) -> None:
    inputs = with_answer(reader.inputs, answer)
    rows, columns = expected_paths(reader, rule, inputs["input_ids"].shape[1])
    with torch.no_grad(), masked(stock, layers, rows, columns):
        logits = stock(**inputs).logits[0, reader.length - 1 : -1]
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    found = reader.without_paths(answer, rule, None if len(layers) == LAYERS else layers)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - reader.observe(answer).scores.log_p).abs().max() > 1e-3


def test_without_the_image_any_picture_does(
    embedded: tuple[Any, Any], reader: Reader, answer: tuple[int, ...]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    other = Reader(*embedded, Image.fromarray(noise), reader.prompt)
    assert other.length == reader.length
    one, same = (each.without_paths(answer, "image_to_all_text") for each in (reader, other))
    assert torch.equal(one, same)
    assert not torch.equal(reader.observe(answer).scores.log_p, other.observe(answer).scores.log_p)


def test_cut_scores() -> None:
    """The numbers of the specification: prefix, two image tokens, question, generated."""
    scores = torch.tensor([[0, 1, 1, 0, -torch.inf], [0, 2, 1, 0, 1]])
    image = torch.tensor([False, True, True, False, False])

    def rows(*targets: bool) -> list[list[float]]:
        return [each.tolist() for each in cut(scores, torch.tensor(targets), image).softmax(dim=-1)]

    plain = rows(False, False)
    assert plain[0] == pytest.approx([0.134471, 0.365529, 0.365529, 0.134471, 0], abs=1e-6)
    assert plain[1] == pytest.approx([0.067451, 0.498398, 0.183350, 0.067451, 0.183350], abs=1e-6)
    generated = rows(False, True)
    assert generated[0] == plain[0]
    assert generated[1] == pytest.approx([0.211942, 0, 0, 0.211942, 0.576117], abs=1e-6)
    query = rows(True, False)
    assert query[0] == pytest.approx([0.5, 0, 0, 0.5, 0])
    assert query[1] == plain[1]


def test_paths_by_name() -> None:
    layout = vlmfix.PromptLayout.from_image_tokens(torch.tensor([[True, True, False, False]]), None)
    rows, columns = cut_paths("image_to_query", layout, 3)
    assert rows.tolist() == [False, False, True, False]
    assert columns.tolist() == [True, True, False, False]
    rows, columns = cut_paths("query_to_generated", layout, 3)
    assert rows.tolist() == [False, False, True, True]
    assert columns.tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="rule is 'image_to_image'"):
        cut_paths("image_to_image", layout, 3)


def test_forcing_the_plain_answer_gives_its_own_probabilities(
    reader: Reader, answer: tuple[int, ...]
) -> None:
    forced, read = force(reader, [], answer), reader.observe(answer)
    torch.testing.assert_close(forced.scores.log_p, read.scores.log_p, atol=1e-4, rtol=0)
    assert forced.seen is not None
    for layer, own in read.seen.items():
        torch.testing.assert_close(forced.seen[layer].sums, own.sums, atol=1e-5, rtol=0)
        torch.testing.assert_close(forced.seen[layer].image, own.image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["var", "fastv", "gift", "vcd"])
def test_a_method_takes_its_own_answer_as_the_likeliest(reader: Reader, method: str) -> None:
    own = [vlmfix.make_method(method)]
    answer = write(reader, own, 12).token_ids
    forced = force(reader, own, answer)
    assert forced.scores.log_probabilities is not None
    assert forced.scores.log_probabilities.argmax(dim=-1).tolist() == list(answer)
    assert forced.seen is not None
    assert {each.image.shape for each in forced.seen.values()} == {(len(answer), reader.cells)}


def test_layers_of_the_band() -> None:
    assert [(band_of(layers).start, band_of(layers).stop - 1) for layers in (8, 28, 32, 80)] == [
        (2, 3),
        (7, 13),
        (8, 15),
        (20, 39),
    ]
    assert list(band_of(1)) == [0]
    assert [sorted(each) for each in windows(4, 2)] == [[0, 1], [1, 2], [2, 3]]


def test_nothing_is_left_on_the_model(reader: Reader, answer: tuple[int, ...]) -> None:
    before = reader.logits(answer, [])
    reader.observe(answer)
    reader.head_divergence()
    reader.without_paths(answer, "image_to_query")
    assert torch.equal(reader.logits(answer, []), before)
