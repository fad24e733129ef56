"""Items of HallusionBench (arXiv 2310.14566), as its file and files of answers have them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmfix.evaluation.files.readers import Record, field_of, shown
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What names an item."""

ITEMS, WITH_IMAGE = 1129, 951
"""Items of the published file, and those of them that have a picture."""

_ALLOWED = {"category": ("VD", "VS"), "visual_input": ("0", "1", "2")}


@dataclass(frozen=True)
class Item:
    """One question on one figure, or on none.

    Args:
        category: "VD", the answer depends on the figure; "VS", the figure adds to what is known without it.
        subcategory: such as "chart".
        set_id: of the figures that are edits of each other.
        figure_id: "0" is the original of VD, and no figure at all of VS.
        question_id: the same for the same question on several figures.
        visual_input: "0" no figure, "1" the original, "2" an edited one.
        question: without suffix.
        target: "yes" or "no".
        filename: of the picture; None without one.
        where: place in the file, in words.
    """

    category: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str
    visual_input: str
    question: str
    target: Verdict
    filename: str | None
    where: str

    @property
    def name(self) -> str:
        """What names it, such as "VD/chart/0/1/2"."""
        return f"{self.set}/{self.figure_id}/{self.question_id}"

    @property
    def set(self) -> str:
        """Its set, such as "VD/chart/0"."""
        return f"{self.category}/{self.subcategory}/{self.set_id}"

    @property
    def group(self) -> tuple[str, str]:
        """The question that it asks, of all figures of the set."""
        return self.set, self.question_id

    @property
    def has_image(self) -> bool:
        """Whether there is a figure."""
        return self.visual_input != "0"


def read_items(records: Iterable[Record]) -> list[Item]:
    """The items of a file, whose numbers may be texts or not.

    Raises:
        ValueError: a field is missing or wrong, an item comes twice, or a question of category VD lacks the
            item on figure 0, which the answers on its edits are compared with.
    """
    items: dict[str, Item] = {}
    for record in records:
        item = _item(record)
        if item.name in items:
            raise ValueError(f"{item.where}: the item {item.name} comes twice; items must be unique")
        items[item.name] = item
    references = {item.group for item in items.values() if item.figure_id == "0"}
    for item in items.values():
        if item.category == "VD" and item.group not in references:
            raise ValueError(
                f"{item.where}: {item.name} has no item of the same question on figure 0, which its answer "
                "is compared with; complete the file"
            )
    return list(items.values())


def name_of(record: Record) -> str:
    """What names the item of a record, see `Item.name`.

    Raises:
        ValueError: a field is missing or wrong.
    """
    return "/".join(_text(record, name) for name in KEYS)


def _item(record: Record) -> Item:
    category, subcategory, set_id, figure_id, question_id = (_text(record, name) for name in KEYS)
    visual_input = _text(record, "visual_input")
    without = (category, figure_id) == ("VS", "0")
    if (visual_input == "0") != without:
        wanted = "0, as it is" if without else "1 or 2, as it is not"
        raise ValueError(
            f"{record.where}: visual_input of {name_of(record)} is {visual_input}; it must be {wanted} "
            "figure 0 of category VS, which alone is asked without a picture"
        )
    return Item(
        category=category,
        subcategory=subcategory,
        set_id=set_id,
        figure_id=figure_id,
        question_id=question_id,
        visual_input=visual_input,
        question=_text(record, "question"),
        target=yes_or_no(field_of(record, ("gt_answer",), "right answer"), record.where),
        filename=None if without else _text(record, "filename"),
        where=record.where,
    )


def _text(record: Record, name: str) -> str:
    """A field as text, which may be written as a whole number."""
    value = field_of(record, (name,), name)
    text = str(value).strip() if type(value) in (str, int) else ""
    allowed = _ALLOWED.get(name)
    if not text or (allowed and text not in allowed):
        wanted = " or ".join(allowed) if allowed else "a text or a whole number"
        raise ValueError(f"{record.where}: {name} is {shown(value)}; it must be {wanted}")
    return text
