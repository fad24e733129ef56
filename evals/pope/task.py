"""POPE: is an object in the image, yes or no (arXiv 2305.10355)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData, hub_items
from vlmfix.evaluation.datasets.items import pope_items
from vlmfix.evaluation.tasks.base import (
    Item,
    Judgement,
    Scores,
    Task,
)
from vlmfix.evaluation.tasks.lengths import length_metrics

from .parsers import (
    PARSERS,
    Verdict,
    object_errors,
    parser_named,
)


class Pope(Task):
    """Yes/no questions about objects, in splits that are reported one by one and as their mean."""

    name: ClassVar = "pope"
    running: ClassVar = "accuracy"
    yes_no: ClassVar = True
    controls: ClassVar = ("baseline.prompt_bias", "baseline.output_shift")
    tradeoff: ClassVar = ("false-yes rate", "recall")

    def items(self, built: Path) -> list[Item]:
        if isinstance(self.data, HubData):
            return hub_items(self.data, self.protocol, built / "pictures")
        return pope_items(self.data, self.protocol, built=built)

    def judge(self, item: Item, text: str, *, cut: bool) -> Judgement:
        verdict = parser_named(self.protocol.parser)(text, item.gold)
        return Judgement(verdict, verdict or "unparsed", float(verdict == item.gold))

    def scores(self, items: Sequence[Item], texts: Sequence[str | None], cut: Sequence[bool]) -> Scores:
        splits = np.array([item.meta["split"] for item in items])
        lengths = length_metrics(texts, cut)
        metrics, unparsed = {}, 0
        for name in dict.fromkeys([self.protocol.parser, *PARSERS]):
            verdicts = [
                None if text is None else PARSERS[name](text, item.gold)
                for item, text in zip(items, texts, strict=True)
            ]
            metrics[name] = _metrics(name, items, texts, verdicts, splits)
            if name == self.protocol.parser:
                unparsed = sum(v is None and t is not None for v, t in zip(verdicts, texts, strict=True))
        judged = [
            (str(item.meta["object"]), self.judge(item, text, cut=False).score == 1)
            for item, text in zip(items, texts, strict=True)
            if text is not None and item.meta.get("object")
        ]
        headline = metrics[self.protocol.parser]
        return Scores(
            metrics=[*headline, *lengths], parsers=metrics, objects=object_errors(judged), unparsed=unparsed
        )


def _metrics(
    parser: str,
    items: Sequence[Item],
    texts: Sequence[str | None],
    verdicts: Sequence[Verdict | None],
    splits: np.ndarray,
) -> list[Metric]:
    """The figures of one parser: the unweighted mean over the splits, then each split."""
    answered = np.array([text is not None for text in texts], dtype=float)
    is_yes = np.array([item.gold == "yes" for item in items]) * answered
    is_no = answered - is_yes
    says_yes, says_no = (
        np.array([verdict == word for verdict in verdicts], dtype=float) for word in ("yes", "no")
    )
    unparsed = answered - says_yes - says_no
    tp, fp = says_yes * is_yes, says_yes * is_no
    # lmms-eval leaves answers that it cannot read out of the recall.
    positives = is_yes - unparsed * is_yes if parser == "lmms_eval" else is_yes
    terms = {
        "accuracy": (tp + says_no * is_no, answered, "higher"),
        "F1": (2 * tp, tp + fp + positives, "higher"),
        "precision": (tp, says_yes, "higher"),
        "recall": (tp, positives, "higher"),
        "false-yes rate": (fp, is_no, "lower"),
        "yes ratio": (says_yes, answered, ""),
        "unparsed": (unparsed, answered, ""),
    }
    names = list(dict.fromkeys(splits.tolist()))
    groups: dict[str, list[str]] = {"": names} | ({name: [name] for name in names} if len(names) > 1 else {})
    found = []
    for group, members in groups.items():
        masks = np.array([splits == member for member in members], dtype=float)
        for name, (parts, wholes, better) in terms.items():
            found.append(Metric(name, masks * parts, masks * wholes, group, better))  # type: ignore[arg-type]
    if parser == "vlmevalkit":
        parts, wholes, _ = terms["F1"]
        distinct = _first_times(items)
        found.append(Metric("Overall", (parts * distinct)[None], (wholes * distinct)[None], "", "higher"))
    return found


def _first_times(items: Sequence[Item]) -> np.ndarray:
    """1.0 where a question about an image comes for the first time in its sample; splits share some."""
    samples: Counter[str] = Counter()
    seen: set[tuple[str, str, int]] = set()
    first = []
    for item in items:
        question = (item.cluster, item.prompt, samples[item.id])
        samples[item.id] += 1
        first.append(question not in seen)
        seen.add(question)
    return np.array(first, dtype=float)
