"""AdaVBoost: scores of image tokens raised by the risk of the token written last (arXiv 2602.13600)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import ReadsFinalStates, RemembersSequences, SeesLogits
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gate_formulas import entropy
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.errors import UnsupportedError
from vlmfix.methods.attention.base import KeyScoreEdit
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.image_states import gathered, grounding
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range

# A factor that is nearer to 1 leaves the row as it is.
_NO_BOOST = 1e-6


@register_method("adavboost")
@dataclass(frozen=True, kw_only=True)
class AdaVBoost(KeyScoreEdit, ReadsFinalStates, SeesLogits, RemembersSequences):
    """AdaVBoost, renamed SAVAA in its second version (arXiv 2602.13600): the riskier the token that was just
    predicted, the more the scores of image tokens grow in the next step.

    The risk is the entropy of the prediction, and the lack of an image token at which the output head would
    give its likeliest token a high probability. In the rows of new tokens, scores of image tokens are
    multiplied by up to `image_max`; as soon as there is any risk, all other scores of the prompt are divided
    by `text_max`. Products keep the sign, so that negative scores of image tokens fall further. The row that
    predicts the first token is never edited. The risk is that of the model's own logits, before processors of
    `generate`; the released code looks after those that come before it.

    The defaults are those of the released code for LLaVA-NeXT-7B. It has, for Qwen3-VL-8B, mix 0.6,
    risk_scale 0.6, image_max 1.3, text_max 1.3; for InternVL3.5-8B 0.8, 0.7, 1.3, 1.6; both in layers 4 to 14
    of 36. Other depths than 32 get the layers at the same depth, which is not published.

    Args:
        image_max: factor on scores of image tokens at full risk, in [1, 100]; 1 leaves the model as it is.
        text_max: what scores of other prompt tokens are divided by, in [1, 100].
        mix: share of the entropy in the risk, in [0, 1].
        risk_scale: what counts as full risk, in [0.01, 1].
        layers: see `ScoreEdit`.
    """

    image_max: float = 1.1
    text_max: float = 1.7
    mix: float = 0.5
    risk_scale: float = 0.5

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="scores of image tokens, multiplied by the risk of the last token; of other prompt tokens, "
        "divided",
        where="new rows; layers 0 to 14 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2602.13600",
    )
    identity_parameters: ClassVar = {"image_max": 1}
    search_space: ClassVar = {"image_max": Between(1, 2), "text_max": Between(1, 2.5)}
    keeps_prefix: ClassVar = False
    last_row_only: ClassVar = False
    published_layers: ClassVar = (0, 15)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_max", "text_max"):
            check_range(name, getattr(self, name), 1, 100)
        check_range("mix", self.mix, 0, 1)
        check_range("risk_scale", self.risk_scale, 0.01, 1)

    def see_final_states(self, context: DecodeContext, hidden_states: Tensor) -> None:
        layout = context.layout_at(context.num_layers - 1)
        if self.mix == 1 or not layout.has_image:
            return
        assert context.modules is not None
        states, known = gathered(hidden_states, layout.image_tokens)
        context.state[self] = grounding(context.modules.output_logits, states, known)

    def see_logits(self, context: DecodeContext, logits: Tensor) -> None:
        if not context.layout.has_image:
            return
        grounded = context.state.get(self)
        grounded = torch.zeros_like(logits) if grounded is None else grounded.to(logits.device)
        now = risk(logits, grounded, mix=self.mix, scale=self.risk_scale)[:, None]
        context.measure(self, risk=now)
        before = context.memory.get(self)
        context.memory[self] = now if before is None else torch.cat([before, now.to(before)], dim=1)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if context.step == 0 or not context.layout.has_image or not self.edits_layer(layer):
            return None
        if (self, "rows") not in context.state:  # of the prompt none; generated rows belong to it anyway
            last = context.layout.last_row
            context.state[self, "rows"] = Rows(last.index[:0], last.mask[:, :0])
        rows: Rows = context.state[self, "rows"]
        return rows

    def key_values(self, context: DecodeContext, layout: PromptLayout, keys: int) -> tuple[Tensor, ...]:
        takes = self.takes(context)[:, None]
        text = layout.real_tokens & ~layout.image_tokens & takes
        image = layout.over_keys(layout.image_tokens & takes, keys).float()
        return layout.over_keys(text, keys).float(), image

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        text, image = self.columns(context, layer, scores)
        risks = self._risks(context, scores)
        return boost(scores, risks, image, text, image_max=self.image_max, text_max=self.text_max)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        super().report(context, sums)
        if sums.size_count:
            sums.details["size"] += "; 'risk': of the predicted tokens"

    def inactive_reason(self, context: DecodeContext) -> str:
        if context.step == 0:
            return "it acts from the second new token on, and there was one alone"
        return super().inactive_reason(context)

    def _risks(self, context: DecodeContext, scores: Tensor) -> Tensor:
        """Of the token that each row reads, 0 in rows of the prompt, `(batch, rows)`."""
        seen: Tensor = context.memory[self].to(scores.device)
        rows = scores.shape[2]
        if rows == 1:
            return seen[:, -1:]
        if not context.has_newest_row:
            raise UnsupportedError(
                "AdaVBoost has a risk for each row, and these are so many without a cache that they come in "
                "blocks; use use_cache=True"
            )
        known = seen[:, -rows:]
        return nn.functional.pad(known, (rows - known.shape[1], 0))


def risk(logits: Tensor, grounded: Tensor, *, mix: float, scale: float) -> Tensor:
    """How risky the likeliest token is, `(batch,)` in [0, 1] (arXiv 2602.13600, released code).

    Args:
        logits: `(batch, vocabulary)`.
        grounded: how likely each token is at the image token where it is likeliest, in the same form.
        mix: share of the entropy; the rest is that of the lack of grounding.
        scale: what counts as 1.
    """
    chosen = grounded.gather(1, logits.argmax(dim=-1, keepdim=True))[:, 0]
    return ((mix * entropy(logits) + (1 - mix) * (1 - chosen)) / scale).clamp(0, 1)


def boost(
    scores: Tensor, risks: Tensor, image: Tensor, text: Tensor, *, image_max: float, text_max: float
) -> Tensor:
    """Scores under a risk (arXiv 2602.13600, released code).

    Args:
        scores: before mask and softmax, `(batch, heads, rows, keys)`.
        risks: of the rows, `(batch, rows)` in [0, 1]; rows of no risk are not edited.
        image: 1 at image tokens, `(batch, 1, 1, keys)`.
        text: 1 at other tokens of the prompt, in the same form.
        image_max: factor at image tokens at full risk.
        text_max: divisor at the others.
    """
    more = ((image_max - 1) * risks)[:, None, :, None]
    less = torch.where(more > _NO_BOOST, 1 / text_max - 1, 0.0)
    return scores * (1 + image * more + text * less)
