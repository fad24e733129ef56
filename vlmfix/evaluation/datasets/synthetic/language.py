"""Language about a scene: captions, and questions with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    PARTNERS,
    Scene,
    SceneObject,
)

AnswerType = Literal["yes/no", "number", "other"]
Group = tuple[str, list[SceneObject]]


@dataclass(frozen=True)
class Question:
    """A question about a scene; `question_type` is its first words, as in VQA v2."""

    text: str
    answer: str
    answer_type: AnswerType
    question_type: str


NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")

PRESENCE_FORMS = (
    ("is there", "Is there {a} in the image?"),
    ("is there", "Is there {a} in this image?"),
    ("is there", "Is there {a} in the picture?"),
    ("is there", "Is there {a}?"),
    ("can you", "Can you see {a}?"),
    ("can you", "Can you see {a} in the image?"),
    ("do you", "Do you see {a} in the image?"),
    ("does the", "Does the image contain {a}?"),
    ("does this", "Does this picture show {a}?"),
)
COLOR_FORMS = (
    ("what color is", "What color is the {name}?"),
    ("what color is", "What color is the {name} in the image?"),
    ("what is the color of", "What is the color of the {name}?"),
)
COUNT_FORMS = (
    ("how many", "How many {names} are there?"),
    ("how many", "How many {names} are in the image?"),
    ("how many", "How many {names} can you see?"),
)


def with_article(phrase: str) -> str:
    """`"umbrella"` -> `"an umbrella"`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def presence_question(category: str, present: bool, form: int) -> Question:
    """A yes/no question for a category in phrasing number `form` of `PRESENCE_FORMS`."""
    kind, text = PRESENCE_FORMS[form]
    return Question(text.format(a=with_article(category)), "yes" if present else "no", "yes/no", kind)


def color_question(item: SceneObject, form: int) -> Question:
    """The colour of an object that is the only one of its category, in phrasing `form` of `COLOR_FORMS`."""
    kind, text = COLOR_FORMS[form]
    return Question(text.format(name=item.category), item.color, "other", kind)


def count_question(category: str, count: int, form: int) -> Question:
    """The number of objects of a category, in phrasing number `form` of `COUNT_FORMS`."""
    kind, text = COUNT_FORMS[form]
    return Question(text.format(names=CATEGORIES[category].plural), str(count), "number", kind)


def absent_categories(scene: Scene) -> tuple[list[str], list[str]]:
    """Categories that are not in the scene: partners of present ones, and all others."""
    present = scene.categories()
    partners = [PARTNERS[name] for name in present if name in PARTNERS and PARTNERS[name] not in present]
    others = [name for name in CATEGORIES if name not in present and name not in partners]
    return partners, others


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Open questions about a scene: two answered yes, two answered no, up to two colours and two counts."""
    groups = scene.categories()
    names = [str(name) for name in rng.permutation(list(groups))]
    partners, others = absent_categories(scene)
    absent = [str(name) for name in partners[:1]] + [str(name) for name in rng.permutation(others)]
    result = []
    for name, present in [(name, True) for name in names[:2]] + [(name, False) for name in absent[:2]]:
        result.append(presence_question(name, present, int(rng.integers(len(PRESENCE_FORMS)))))
    single = [name for name in names if len(groups[name]) == 1]
    for name in single[:2]:
        result.append(color_question(groups[name][0], int(rng.integers(len(COLOR_FORMS)))))
    for name in sorted(names, key=lambda name: -len(groups[name]))[:2]:
        result.append(count_question(name, len(groups[name]), int(rng.integers(len(COUNT_FORMS)))))
    return result


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one to four English sentences; only objects that are present are named."""
    groups = _told_groups(scene, rng)
    phrases = [_phrase(scene, name, items, rng) for name, items in groups]
    place = 1 + int(rng.random() < 0.7)
    sentences = [_opening(scene, groups[:place], phrases[:place], rng)]
    while place < len(groups):
        full = len(sentences) == 3 or len(groups) - place <= 2
        end = len(groups) if full else place + int(rng.integers(1, 3))
        sentences.append(_follow_up(groups[place:end], phrases[place:end], rng))
        place = end
    return " ".join(sentences)


def position(scene: Scene, item: SceneObject) -> str:
    """Where an object is, e.g. `"on the left"` or `"in the top right corner"`."""
    x, y, width, height = item.box
    column = min(2, int(3 * (x + width / 2) / scene.width))
    row = min(2, int(3 * (y + height / 2) / scene.height))
    if row == 1:
        return ("on the left", "in the middle", "on the right")[column]
    edge = "top" if row == 0 else "bottom"
    return (f"in the {edge} left corner", f"at the {edge}", f"in the {edge} right corner")[column]


def _told_groups(scene: Scene, rng: np.random.Generator) -> list[Group]:
    """Groups of one category, large ones first, partners side by side; small ones are sometimes left out."""
    groups = scene.categories()
    area = {name: sum(o.box[2] * o.box[3] for o in items) for name, items in groups.items()}
    order: list[str] = []
    for name in sorted(groups, key=lambda name: -area[name]):
        for member in (name, PARTNERS.get(name)):
            if member in groups and member not in order:
                order.append(str(member))
    told = order[:2] + [name for name in order[2:] if rng.random() < 0.93]
    return [(name, groups[name]) for name in told]


def _phrase(scene: Scene, name: str, items: list[SceneObject], rng: np.random.Generator) -> str:
    if len(items) > 1:
        return f"{NUMBER_WORDS[len(items)]} {CATEGORIES[name].plural}"
    item = items[0]
    noun = with_article(f"{item.color} {name}" if rng.random() < 0.85 else name)
    return f"{noun} {position(scene, item)}" if rng.random() < 0.4 else noun


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _opening(scene: Scene, groups: list[Group], phrases: list[str], rng: np.random.Generator) -> str:
    style = int(rng.integers(4))
    if style == 0 and scene.cluster is not None:
        return f"This is a {scene.cluster} scene with {_joined(phrases)}."
    if style == 1 and len(groups[0][1]) == 1:
        return f"There is {_joined(phrases)}."
    if style == 2:
        return f"The picture shows {_joined(phrases)}."
    return f"The image shows {_joined(phrases)}."


def _follow_up(groups: list[Group], phrases: list[str], rng: np.random.Generator) -> str:
    style = int(rng.integers(3))
    if style == 0:
        things = _joined(phrases)
        return f"{things[0].upper()}{things[1:]} can be seen as well."
    verb = "is" if len(groups[0][1]) == 1 else "are"
    return f"There {verb} {_joined(phrases)}." if style == 1 else f"There {verb} also {_joined(phrases)}."
