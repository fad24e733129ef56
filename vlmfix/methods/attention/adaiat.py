"""AdaIAT: attention to the text that was generated so far, raised where hallucinated objects have less."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.iat import GeneratedTextEdit
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_choice, check_range
from vlmfix.models.profiles import Profile

Table = tuple[tuple[float, ...], ...]
"""A number for each head of each layer."""


@register_method("adaiat")
@dataclass(frozen=True, kw_only=True)
class AdaIAT(GeneratedTextEdit):
    """Adaptively increased attention to generated text (arXiv 2603.04908).

    In new rows and in layers where a generated token gets less attention than a threshold between that of
    real and of hallucinated objects, each head's weights of generated tokens are multiplied as the two differ
    in it, and every row is divided by its sum. The first token is never edited.

    Formulas of the paper are known from a secondary source. Reconstructed: heads that give hallucinated
    objects more attention are damped to 0 at most, where the released code makes weights negative; each
    sequence has a mean of its own, where the code sums over the batch.

    Args:
        alpha: strength, in [0, 100]; 0 leaves the model as it is; published are 6, and 9 for Qwen2.5-VL.
        beta: where the threshold lies between the attention of hallucinated objects, 0, and of real ones, 1;
            0.25 for Qwen2.5-VL.
        form: "released" multiplies by `1 + alpha * (ratio - 1)`, "paper" by `1 + alpha * ratio`.
        layers: see `LayerRange`; published are layers 5 to 17 of 32.
        real: mean attention to a generated token in the row that predicts a real object, a number for each
            head of each layer; None: from the checkpoint's profile.
        hallucinated: the same of hallucinated objects.
    """

    alpha: float = 6.0
    beta: float = 0.5
    form: str = "released"
    # Not hashed, which would take longer than a step: a method is a key of its state.
    real: Table | None = field(default=None, hash=False)
    hallucinated: Table | None = field(default=None, hash=False)

    info = MethodInfo(
        stage="attention",
        changes="weights of generated tokens, multiplied by a factor of each head",
        where="new rows; layers 5 to 17 of 32",
        forwards=1.0,
        provenance="reconstruction",
        paper="2603.04908",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    search_space: ClassVar = {"alpha": Between(1, 12), "beta": Between(0, 1)}
    published_layers: ClassVar = (5, 18)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)
        check_range("beta", self.beta, 0, 1)
        check_choice("form", self.form, ("released", "paper"))
        for name in ("real", "hallucinated"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _table(name, getattr(self, name)))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        resolved, tables = super().resolve(config, profile), {}
        text = config.get_text_config()
        shape = text.num_hidden_layers, text.num_attention_heads
        for name in ("real", "hallucinated"):
            values = getattr(self, name)
            if values is None and profile is not None:
                values = profile.get(f"adaiat_{name}")
            if values is None:
                raise ValueError(
                    f"the attention of {name} objects to generated text (adaiat_{name}) is not known for "
                    "this checkpoint; find it with 'vlmfix calibrate --model MODEL --method adaiat --images "
                    "FOLDER', or pass real and hallucinated"
                )
            tables[name] = _table(name, values)
            found = len(tables[name]), len(tables[name][0])
            if found != shape:
                raise ValueError(
                    f"{name} is for {found[0]} layers of {found[1]} heads; this model has {shape[0]} of "
                    f"{shape[1]}"
                )
        return dataclasses.replace(resolved, real=tables["real"], hallucinated=tables["hallucinated"])

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        key = (self, layer, weights.device)
        if key not in context.state:
            assert self.real is not None
            assert self.hallucinated is not None
            real, hallucinated = torch.tensor([self.real[layer], self.hallucinated[layer]])
            factors = head_factors(real, hallucinated, alpha=self.alpha, form=self.form)
            threshold = torch.lerp(hallucinated.sum(), real.sum(), self.beta)
            context.state[key] = tuple(each.to(weights.device)[None] for each in (factors, threshold))
        factors, threshold = context.state[key]
        generated, positions = self.generated(context, layer, weights), context.row_positions
        length = context.layout_at(layer).length
        if positions is None:
            counts = torch.full((), weights.shape[-1] - length, device=weights.device)
        else:
            counts = positions + 1 - length
        edited, attention = raise_generated(weights, generated, counts, factors[0], threshold[0])
        if context.has_newest_row:
            context.measure(self, size=attention[:, :, -1])
        return edited

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {
                "size": "mean attention to a generated token, summed over the heads of an edited layer"
            }

    @property
    def idle_reason(self) -> str:
        return (
            "generated tokens get as much attention in the edited layers as the threshold asks, or the "
            "factors of all heads are 1; raise beta or alpha"
        )


def head_factors(real: Tensor, hallucinated: Tensor, *, alpha: float, form: str = "released") -> Tensor:
    """Factors on the weights of generated tokens (arXiv 2603.04908), 0 or more.

    Args:
        real: attention to a generated token at real objects, `(heads,)`.
        hallucinated: the same at hallucinated ones; where it is 0, the ratio is taken for 1.
        alpha: strength.
        form: "released" or "paper".
    """
    ratios = torch.where(hallucinated > 0, real / hallucinated.clamp_min(1e-30), 1.0)
    return (1 + alpha * (ratios - 1 if form == "released" else ratios)).clamp_min(0)


def raise_generated(
    weights: Tensor, generated: Tensor, counts: Tensor, factors: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Multiply weights of generated tokens where all heads together give them little (arXiv 2603.04908).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        generated: which keys are generated, `(batch, 1, 1, keys)` bool.
        counts: generated tokens that each row sees, `(rows,)`, or one number for all.
        factors: of the heads, `(heads,)`.
        threshold: of the mean attention to a generated token, summed over the heads.

    Returns:
        The weights with the same sums, unchanged to the bit in rows at or above the threshold, and the mean
        attention to a generated token, summed over the heads, `(batch, 1, rows)`.
    """
    shares = (weights * generated).sum(dim=-1)
    attention = shares.sum(dim=1, keepdim=True) / counts.clamp_min(1)
    edited = torch.addcmul(weights, weights * generated, (factors - 1)[:, None, None])
    before, after = (each.sum(dim=-1, keepdim=True) for each in (weights, edited))
    acts = ((attention < threshold) & (counts > 0))[..., None] & generated.any(dim=-1, keepdim=True)
    return torch.where(acts & (after > 0), edited * (before / after), weights), attention


def _table(name: str, values: Any) -> Table:
    """Numbers of 0 or more by layer and head.

    Raises:
        ValueError: they are something else.
    """
    rows = list(values) if isinstance(values, list | tuple) else []
    table = tuple(tuple(row) if isinstance(row, list | tuple) else () for row in rows)
    numbers = [each for row in table for each in row]
    if (
        not numbers
        or len({len(row) for row in table}) != 1
        or any(type(each) not in (int, float) or not 0 <= each <= 1 for each in numbers)
    ):
        raise ValueError(
            f"{name} must hold a number from 0 to 1 for each head of each layer, as 'vlmfix calibrate' "
            "writes them"
        )
    return table
