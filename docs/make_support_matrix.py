"""Write the support matrix: self-tests and every method, on a tiny random model of each type of transformers.

python -m docs.make_support_matrix
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from tests.support import zoo
from tests.support.matrix import Row, row, stages
from vlmfix.probe.verdicts import Verdict

PAGE = Path(__file__).parent / "guide" / "support.md"
README = Path(__file__).parent.parent / "README.md"
STAGES = ("attention", "steering", "logits", "pruning", "vision")
"""Of the table of the README; the others go with all types or with what these do."""
BEGIN, END = "<!-- support -->\n", "<!-- end of support -->"
HEAD = """# Support matrix

What acts on which type of model. A tiny random model of each image-text-to-text type of transformers
{version} is built from its configuration; the self-tests of the engine run on it, and so does every method,
on a batch of two prompts with one and two pictures (one where the type takes one) and on each prompt alone.
`vlmfix check --model M` does the same with a model of yours. This page is written by
`python -m docs.make_support_matrix`.

A cell counts the methods of a stage that edited something and gave the same logits for the batch as for
single prompts, of those that there are. What is missing, and why, stands below the table. A random model has
no profile and no habits: which methods help on a real one, no table of this kind can say.

"""


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    names = sorted(name for name in zoo.TYPES if not name.endswith("+window"))
    rows = []
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        rows.append(row(name))
    PAGE.write_text(page(rows), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    README.write_text(before + BEGIN + summary(rows) + END + rest.partition(END)[2], encoding="utf-8")


def summary(rows: Sequence[Row]) -> str:
    """The table of the README: types by how much acts on them."""
    groups = stages()
    kinds: dict[str, list[str]] = {}
    for each in rows:
        if "+" in each.name:
            continue  # a variant of a type that is there
        works = {verdict.method for verdict in each.verdicts if verdict.state == "works"}
        acting = [stage for stage in STAGES if works & set(groups[stage])]
        kinds.setdefault(", ".join(acting) or "nothing, with the reason", []).append(each.name)
    lines = [["methods act at the stages", "types"], ["---", "---"]]
    for kind in sorted(kinds, key=lambda kind: -len(kinds[kind])):
        lines.append([kind, f"{len(kinds[kind])}: {_names(kinds[kind])}"])
    head = f"Tiny models of all types of transformers {transformers.__version__} that can be built so:\n\n"
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    groups = stages()
    text = HEAD.format(version=transformers.__version__)
    head = ["type", *groups, "self-tests"]
    lines = [head, ["---"] * len(head)]
    supported = [each for each in rows if not each.refused]
    for each in supported:
        lines.append([f"`{each.name}`", *cells(each, groups), tests(each)])
    text += "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += "\n\n## Not supported\n\n"
    text += "\n".join(f"- `{each.name}`: {each.refused}." for each in rows if each.refused)
    unbuilt = [f"- `{name}`: not built tiny here ({reason})." for name, reason in zoo.UNBUILT.items()]
    text += "\n" + "\n".join(unbuilt)
    text += "\n\n## What is missing\n"
    for each in supported:
        missing = reasons(each)
        if missing:
            text += f"\n### `{each.name}`\n\n" + "\n".join(missing) + "\n"
    return text


def cells(found: Row, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """How many methods of each stage work on a type."""
    works = {verdict.method for verdict in found.verdicts if verdict.state == "works"}
    return [
        "all" if len(works & set(names)) == len(names) else f"{len(works & set(names))} of {len(names)}"
        for names in groups.values()
    ]


def tests(found: Row) -> str:
    """How many self-tests hold on a type, of those that the engine does not refuse."""
    tried = [test for test in found.tests if not test.refused]
    passed = sum(test.passed for test in tried)
    return "all" if passed == len(tried) else f"{passed} of {len(tried)}"


def reasons(found: Row) -> list[str]:
    """Why methods do not work on a type, those with one reason together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for verdict in found.verdicts:
        if verdict.state != "works":
            grouped.setdefault((verdict.state, plain(verdict)), []).append(verdict.method)
    lines = [f"- {_names(names)} {state}: {reason}." for (state, reason), names in grouped.items()]
    failed = [test for test in found.tests if not test.passed and not test.refused]
    return lines + [f"- self-test '{test.name}': {test.reason}." for test in failed]


def plain(verdict: Verdict) -> str:
    """A reason without the name of the method, with which most begin."""
    words = verdict.reason.rstrip(".")
    first, _, rest = words.partition(" ")
    is_name = first.lower().replace("_", "") == verdict.method.replace("_", "").rpartition(".")[2]
    return rest if is_name else words


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
