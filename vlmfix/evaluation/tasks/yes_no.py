"""Yes/no questions: labels, a parser, and the figures that all such benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric, SampleResult
from vlmfix.evaluation.files.readers import shown
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.lmms import KnownToLmms
from vlmfix.evaluation.tasks.protocols import JOIN, TEXT, Setting, one_of
from vlmfix.evaluation.tasks.ratios import object_errors
from vlmfix.evaluation.tasks.yes_no_parsers import Parser, Verdict, exactly, strict


def yes_or_no(label: Any, where: str) -> Verdict:
    """A label in lower case; 1 is yes and 0 no, as numbers or as text.

    Raises:
        ValueError: it is none of these.
    """
    text = str(label).strip().lower() if type(label) in (str, int) else ""
    word = exactly({"1": "yes", "0": "no"}.get(text, text))
    if word is None:
        raise ValueError(f"{where}: the label is {shown(label)}; it must be yes or no, or 1 or 0")
    return word


def yes_no_settings(parsers: Mapping[str, Parser]) -> dict[str, Setting]:
    """The settings of a benchmark of yes/no questions, whose protocols name one of some parsers."""
    return {"suffix": TEXT, "join": JOIN, "parser": one_of(parsers, required=True)}


class YesNoTask(KnownToLmms, Task):
    """Questions with the target "yes" or "no", in splits that are reported one by one and as their mean.

    A question's split is `meta["split"]`; without one there is a single split. Wrong answers are counted by
    `meta["object"]`, where there is one.
    """

    running: ClassVar = "right so far"
    yes_no: ClassVar = True
    baselines: ClassVar = ("baseline.prompt_bias", "baseline.output_shift")
    tradeoff: ClassVar = ("false-yes rate", "recall")
    parsers: ClassVar[Mapping[str, Parser]] = {"strict": strict}
    """Ways to read an answer, by name."""
    settings: ClassVar = yes_no_settings({"strict": strict})

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        verdict = self.parsers[self.protocol.parser](text, sample.target)
        return Score(verdict, verdict or "unparsed", float(verdict == sample.target))

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        own = self.protocol.parser
        verdicts = {own: [None if score is None else score.parsed for score in scores]}
        for name in self.parsers.keys() - {own}:
            verdicts[name] = [
                None if text is None else self.parsers[name](text, sample.target)
                for sample, text in zip(samples, texts, strict=True)
            ]
        found = {
            name: self.parser_metrics(name, samples, texts, verdicts[name])
            for name in dict.fromkeys([own, *self.parsers])
        }
        judged = [
            (str(sample.meta["object"]), score.value == 1)
            for sample, score in zip(samples, scores, strict=True)
            if score is not None and sample.meta.get("object")
        ]
        return TaskMetrics(
            metrics=[*found[own], *length_metrics(texts, truncated)],
            parsers=found,
            objects=object_errors(judged),
            unparsed=sum(score is not None and score.parsed is None for score in scores),
        )

    def lmms_fields(self, sample: Sample, result: SampleResult) -> dict[str, Any]:
        own = {"question_id": sample.id.rpartition("/")[2], "score": result.score}
        said = (result.answer or "").lower().strip()
        return {f"{self.name}_accuracy": {**own, "prediction": said, "ground_truth": sample.target}}

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        """The figures of one parser: the unweighted mean over the splits, then each split.

        Args:
            parser: its name.
            samples: what was asked.
            texts: raw answers; None: the sample failed.
            verdicts: what the parser made of each answer.
        """
        return yes_no_metrics(samples, texts, verdicts)


def yes_no_metrics(
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    verdicts: Sequence[Verdict | None],
    *,
    recall_of_parsed: bool = False,
) -> list[Metric]:
    """Accuracy, F1, precision, recall, false-yes rate and more: the mean over the splits, then each split.

    Args:
        samples: what was asked.
        texts: raw answers; None: the sample failed.
        verdicts: what a parser made of each answer.
        recall_of_parsed: whether answers that it could not read are left out of the recall.
    """
    splits = np.array([sample.meta.get("split", "all") for sample in samples])
    answered = np.array([text is not None for text in texts], dtype=float)
    is_yes = np.array([sample.target == "yes" for sample in samples]) * answered
    is_no = answered - is_yes
    says_yes, says_no = (
        np.array([verdict == word for verdict in verdicts], dtype=float) for word in ("yes", "no")
    )
    unparsed = answered - says_yes - says_no
    tp, fp = says_yes * is_yes, says_yes * is_no
    positives = is_yes - unparsed * is_yes if recall_of_parsed else is_yes
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
    return found
