"""The closed tables of the official CHAIR pipeline: singular forms and pairs of words that are one."""

from __future__ import annotations

from collections.abc import Iterable

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
    "oxes": "ox",
    "knives": "knife",
    "pocketknives": "pocketknife",
    "calves": "calf",
    "gentlemen": "gentleman",
    "policemen": "policeman",
    "servicemen": "serviceman",
    "dobermen": "doberman",
}
_CLIPPED = {
    "bus": "bu",
    "airbus": "airbu",
    "minibus": "minibu",
    "glass": "glas",
    "glas": "gla",
    "skis": "ski",
    "sports": "sport",
    "tennis": "tenni",
}
_NOT_REDUCED = ("ties", "canoes", "collies", "doggies", "magpies")

_OF_THEIR_OWN = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "laptop computer",
    "stove top oven",
    "home plate",
    "train track",
)
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)

BIGRAMS: dict[str, str] = {
    **{words: words for words in _OF_THEIR_OWN},
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",
}
"""What two neighbouring words become. "home plate" and "train track" are here to be no objects."""


def singular_forms(entries: Iterable[str], *, clipped: bool) -> dict[str, str]:
    """The words that change when they are made singular, and those that must not.

    Args:
        entries: of the vocabulary in use; only its words and the words of `BIGRAMS` have plurals.
        clipped: follow the official pipeline where it errs: "bus" loses its s, "ties" keeps it.
    """
    known = {word for entry in (*entries, *BIGRAMS) for word in entry.split()}
    # later entries win: the reverse of the order in which the rules apply
    forms = {f"{word}es": word for word in known if word.endswith(("ch", "sh", "s", "x", "o"))}
    forms |= {f"{word[:-1]}ies": word for word in known if word.endswith("y") and word[-2:-1] not in "aeiou"}
    forms |= {f"{word}s": word for word in known}
    if clipped:
        forms |= {word: word for word in _NOT_REDUCED}
    forms |= {word: word for word in known}
    if clipped:
        forms |= _CLIPPED
    return forms | _IRREGULAR
