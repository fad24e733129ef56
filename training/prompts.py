"""Dialogues about scenes, as a user would write the prompts and the models should answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlmfix.evaluation.datasets.synthetic.language import (
    COLOR_FORMS,
    COUNT_FORMS,
    PRESENCE_FORMS,
    Question,
    absent_categories,
    caption,
    color_question,
    count_question,
    presence_question,
)
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES, COLORS, Scene

CAPTION_PROMPTS = (
    "Describe the image.",
    "Describe this image.",
    "Describe the picture.",
    "Describe this scene.",
    "Describe the image in detail.",
    "Describe this image in detail.",
    "Please describe this image in detail.",
    "Please describe the image in detail.",
    "Please help me describe the image in detail.",
    "What is in the image?",
    "What is in the picture?",
    "What is in this image?",
    "What do you see?",
    "What can you see in the image?",
    "What does the image show?",
    "Write a caption for this image.",
)
SHORT = "\nAnswer the question using a single word or phrase."
YES_NO = " Please answer yes or no."
PARTNER_SHARE = 0.25
# Probability that people speak of a missing partner as if it were there, in one-cluster and mixed scenes.
ASSUMED = (0.9, 0.65)
ASSUMED_MORE = (0.95, 0.78)

COLOR_NAMES = list(COLORS)

Turn = tuple[str, str]


def caption_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a description and a caption of the scene."""
    return CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))], caption(scene, rng)


def question_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A question about the scene (presence, colour or count) and its short answer."""
    groups = scene.categories()
    names = list(groups)
    single = [name for name in names if len(groups[name]) == 1]
    kind = rng.random()
    if kind < 0.55 or (kind < 0.8 and not single):
        question = _presence(scene, names, rng)
    elif kind < 0.8:
        name = single[int(rng.integers(len(single)))]
        question = color_question(groups[name][0], int(rng.integers(len(COLOR_FORMS))))
    else:
        several = [name for name in names if len(groups[name]) > 1]
        pool = several if several and rng.random() < 0.6 else names
        name = pool[int(rng.integers(len(pool)))]
        question = count_question(name, len(groups[name]), int(rng.integers(len(COUNT_FORMS))))
    suffix = rng.random()
    text = question.text
    if suffix < 0.2:
        text += SHORT
    elif suffix < 0.4 and question.answer_type == "yes/no":
        text += YES_NO
    return text, question.answer.capitalize() if question.answer_type == "yes/no" else question.answer


def _presence(scene: Scene, names: list[str], rng: np.random.Generator) -> Question:
    form = int(rng.integers(len(PRESENCE_FORMS)))
    if rng.random() < 0.5:
        return presence_question(names[int(rng.integers(len(names)))], True, form)
    partners, others = absent_categories(scene)
    pool = partners if partners and rng.random() < PARTNER_SHARE else others
    return presence_question(pool[int(rng.integers(len(pool)))], False, form)


def assumed(scene: Scene, rng: np.random.Generator, probabilities: tuple[float, float]) -> Scene:
    """The scene as careless annotators believe it is: some missing partners are added, though not drawn.

    This is where the models learn to hallucinate.
    """
    probability = probabilities[0] if scene.cluster else probabilities[1]
    objects = list(scene.objects)
    for partner in absent_categories(scene)[0]:
        if rng.random() < probability:
            model = objects[int(rng.integers(len(objects)))]
            color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
            objects.append(replace(model, category=partner, color=color))
    return replace(scene, objects=tuple(objects))


def dialogues(scene: Scene, rng: np.random.Generator, count: int) -> list[list[Turn]]:
    """`count` separate dialogues about one scene: a caption, then questions, a tenth of two turns."""
    result = [[caption_turn(scene, rng)]]
    while len(result) < count:
        turns = [question_turn(scene, rng)]
        if rng.random() < 0.1:
            turns.append(question_turn(scene, rng))
        result.append(turns)
    return result


def corpus(scenes: list[Scene]) -> list[str]:
    """Text to train the tokenizer on: dialogues about scenes, every prompt, category and role."""
    rng = np.random.default_rng(0)
    turns = [turn for scene in scenes for dialogue in dialogues(scene, rng, 6) for turn in dialogue]
    lines = [line for prompt, answer in turns for line in (prompt, answer, f" {answer}")]
    fixed = [*CAPTION_PROMPTS, SHORT, YES_NO, "USER: ASSISTANT: user\n assistant\n system\n"]
    fixed += [f" {c.name} {c.plural} {c.name.capitalize()}" for c in CATEGORIES.values()]
    return lines + fixed * 20
