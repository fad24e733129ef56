"""The synthetic world: what can appear in a scene, what appears together, and how a scene is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Category:
    """A COCO category with its official id, its drawing's width over height and its length in pixels."""

    name: str
    coco_id: int
    supercategory: str
    plural: str
    aspect: float
    sizes: tuple[int, int]


@dataclass(frozen=True)
class SceneObject:
    """One drawn object: its box `(x, y, width, height)` in pixels and how well it can be seen.

    `opacity` is below 1 for faded objects; `visibility` is the share of the box that no later object covers.
    """

    category: str
    color: str
    box: tuple[int, int, int, int]
    opacity: float
    visibility: float


@dataclass(frozen=True)
class Scene:
    """A sampled scene; `objects` are ordered from back to front, `cluster` is None for a mixed scene."""

    seed: int
    id: int
    split: Split
    width: int
    height: int
    cluster: str | None
    objects: tuple[SceneObject, ...]

    def categories(self) -> dict[str, list[SceneObject]]:
        """The objects of the scene by category name, in drawing order."""
        groups: dict[str, list[SceneObject]] = {}
        for item in self.objects:
            groups.setdefault(item.category, []).append(item)
        return groups


CATEGORIES = {
    category.name: category
    for category in (
        Category("bicycle", 2, "vehicle", "bicycles", 1.4, (24, 40)),
        Category("car", 3, "vehicle", "cars", 1.7, (26, 44)),
        Category("boat", 9, "vehicle", "boats", 1.0, (24, 42)),
        Category("traffic light", 10, "outdoor", "traffic lights", 0.45, (26, 42)),
        Category("stop sign", 13, "outdoor", "stop signs", 0.7, (26, 42)),
        Category("bird", 16, "animal", "birds", 1.3, (20, 34)),
        Category("cat", 17, "animal", "cats", 0.9, (22, 40)),
        Category("dog", 18, "animal", "dogs", 1.3, (24, 42)),
        Category("umbrella", 28, "accessory", "umbrellas", 0.9, (24, 42)),
        Category("frisbee", 34, "sports", "frisbees", 1.9, (20, 32)),
        Category("kite", 38, "sports", "kites", 0.7, (26, 42)),
        Category("surfboard", 42, "sports", "surfboards", 0.4, (30, 46)),
        Category("bottle", 44, "kitchen", "bottles", 0.4, (26, 42)),
        Category("cup", 47, "kitchen", "cups", 1.1, (18, 32)),
        Category("fork", 48, "kitchen", "forks", 0.4, (28, 44)),
        Category("knife", 49, "kitchen", "knives", 0.3, (28, 44)),
        Category("pizza", 59, "food", "pizzas", 1.0, (24, 42)),
        Category("couch", 63, "furniture", "couches", 1.8, (30, 46)),
        Category("potted plant", 64, "furniture", "potted plants", 0.75, (26, 44)),
        Category("toilet", 70, "furniture", "toilets", 0.8, (26, 42)),
        Category("tv", 72, "electronic", "tvs", 1.3, (26, 44)),
        Category("laptop", 73, "electronic", "laptops", 1.2, (26, 42)),
        Category("mouse", 74, "electronic", "mice", 0.7, (18, 28)),
        Category("remote", 75, "electronic", "remotes", 0.35, (26, 40)),
        Category("keyboard", 76, "electronic", "keyboards", 2.4, (28, 46)),
        Category("sink", 81, "appliance", "sinks", 1.4, (26, 42)),
        Category("book", 84, "indoor", "books", 0.8, (22, 36)),
        Category("toothbrush", 90, "indoor", "toothbrushes", 0.3, (26, 40)),
    )
}

CLUSTERS = {
    "kitchen": ("fork", "knife", "pizza", "cup", "bottle"),
    "street": ("car", "traffic light", "bicycle", "stop sign"),
    "living room": ("tv", "remote", "couch", "potted plant", "cat"),
    "office": ("keyboard", "mouse", "laptop", "book"),
    "park": ("dog", "frisbee", "bird", "kite"),
    "bathroom": ("toilet", "sink", "toothbrush"),
    "beach": ("umbrella", "surfboard", "boat"),
}

PAIRS = (
    ("fork", "knife"),
    ("car", "traffic light"),
    ("tv", "remote"),
    ("keyboard", "mouse"),
    ("dog", "frisbee"),
    ("toilet", "sink"),
    ("umbrella", "surfboard"),
)
PARTNERS = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}

COLORS = {
    "red": (208, 38, 40),
    "orange": (240, 134, 24),
    "yellow": (240, 216, 44),
    "green": (44, 160, 62),
    "blue": (42, 82, 206),
    "purple": (136, 52, 172),
    "white": (246, 246, 246),
    "black": (26, 26, 28),
}

SIZE = (112, 112)
VARIED_SIZES = ((112, 112), (144, 112), (112, 144), (128, 96))

# Probability that the partner of a present object is added, and of a scene that mixes all clusters.
PARTNER_PROBABILITY = {"train": 0.9, "test": 0.4}
MIXED_PROBABILITY = {"train": 0.2, "test": 0.4}
STRANGER_PROBABILITY = {"train": 0.12, "test": 0.3}


def sample_scene(seed: int, index: int, *, split: Split = "test", size: tuple[int, int] = SIZE) -> Scene:
    """Sample scene number `index` of the world `seed`; it does not depend on how many scenes are drawn.

    Args:
        seed: world seed, 0 or more. Scenes of different splits never share random numbers.
        index: number of the scene, 0 or more.
        split: `"train"` draws partners together with probability 0.9, `"test"` often leaves one out.
        size: width and height in pixels, each at least 64.

    Raises:
        ValueError: for a negative seed or index, an unknown split or a size below 64 pixels.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, got seed={seed}, index={index}")
    if split not in PARTNER_PROBABILITY:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    width, height = size
    if min(width, height) < 64:
        raise ValueError(f"size must be at least 64 x 64 pixels, got {width} x {height}")
    rng = np.random.default_rng([seed, index, 0 if split == "train" else 1])
    cluster = None if rng.random() < MIXED_PROBABILITY[split] else str(rng.choice(list(CLUSTERS)))
    categories = _sample_categories(rng, cluster, split)
    objects = _place(rng, _with_copies(rng, categories), width, height)
    return Scene(seed, index, split, width, height, cluster, objects)


def _sample_categories(rng: np.random.Generator, cluster: str | None, split: Split) -> list[str]:
    wanted = int(rng.integers(2, 6))
    pool = list(CATEGORIES if cluster is None else CLUSTERS[cluster])
    partner_probability = PARTNER_PROBABILITY[split] if cluster else 0.15
    chosen: list[str] = []
    left_out: set[str] = set()
    for name in rng.permutation(pool):
        if len(chosen) >= wanted:
            break
        if name in chosen or name in left_out:
            continue
        chosen.append(str(name))
        partner = PARTNERS.get(name)
        if partner is None:
            continue
        if rng.random() < partner_probability:
            chosen.append(partner)
        else:
            left_out.add(partner)
    others = [name for name in CATEGORIES if name not in chosen and name not in left_out and name not in pool]
    while others and (len(chosen) < 2 or rng.random() < STRANGER_PROBABILITY[split]):
        chosen.append(others.pop(int(rng.integers(len(others)))))
    return chosen[:6]


def _with_copies(rng: np.random.Generator, categories: list[str]) -> list[str]:
    names = list(categories)
    for name in categories:
        copies = int(rng.choice([0, 1, 2], p=[0.76, 0.15, 0.09]))
        names += [name] * min(copies, 6 - len(names))
    return [str(name) for name in rng.permutation(names)]


def _place(rng: np.random.Generator, names: list[str], width: int, height: int) -> tuple[SceneObject, ...]:
    scale = 1.0 if len(names) < 5 else 0.9
    boxes: list[tuple[int, int, int, int]] = []
    for name in names:
        category = CATEGORIES[name]
        length = scale * rng.uniform(*category.sizes) * (0.65 if rng.random() < 0.1 else 1.0)
        box_width = round(length * min(1.0, category.aspect))
        box_height = round(length / max(1.0, category.aspect))
        allowed = 0.35 if rng.random() < 0.15 else 0.02
        boxes.append(free_box(rng, boxes, max(box_width, 7), max(box_height, 7), width, height, allowed))
    color_names = list(COLORS)
    objects = []
    for order, (name, box) in enumerate(zip(names, boxes, strict=True)):
        opacity = rng.uniform(0.12, 0.4) if rng.random() < 0.14 else rng.uniform(0.85, 1.0)
        objects.append(
            SceneObject(
                category=name,
                color=color_names[int(rng.integers(len(color_names)))],
                box=box,
                opacity=round(float(opacity), 3),
                visibility=visible_share(box, boxes[order + 1 :]),
            )
        )
    return tuple(objects)


def visible_share(box: tuple[int, int, int, int], later: Sequence[tuple[int, int, int, int]]) -> float:
    """The share of a box that boxes of later objects leave free; where these overlap, they count each."""
    covered = sum(_overlap(box, other) for other in later)
    return round(max(0.0, 1 - covered / (box[2] * box[3])), 3)


def free_box(
    rng: np.random.Generator,
    boxes: Sequence[tuple[int, int, int, int]],
    box_width: int,
    box_height: int,
    width: int,
    height: int,
    allowed: float,
) -> tuple[int, int, int, int]:
    """A box in a picture of `width` x `height` that overlaps others by no more than `allowed`, as a share of
    the smaller one; the best of 40 tries, if none does."""
    best, best_overlap = (0, 0, box_width, box_height), float("inf")
    for _ in range(40):
        x = int(rng.integers(1, width - box_width))
        y = int(rng.integers(1, height - box_height))
        box = (x, y, box_width, box_height)
        overlap = max(
            (_overlap(box, o) / min(box_width * box_height, o[2] * o[3]) for o in boxes), default=0.0
        )
        if overlap < best_overlap:
            best, best_overlap = box, overlap
        if overlap <= allowed:
            break
    return best


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


DEMO_SEED, DEMO_INDEX = 7, 853


def demo_scene() -> Scene:
    """The scene of the demo, chosen because the plain caption of tiny-llava names a tv that is not there."""
    return sample_scene(DEMO_SEED, DEMO_INDEX, split="test")
