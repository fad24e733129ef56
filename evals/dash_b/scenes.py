"""Synthetic scenes as DASH-B has pictures: without an object, but with what usually comes with it."""

from __future__ import annotations

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.scenes import PARTNERS

from .lists import LABELS, Item


def scene_items(folder: DataFolder) -> list[Item]:
    """For each object that has a partner, scenes with the partner alone and as many with the object.

    The embedded models have learned from scenes in which partners come together.

    Raises:
        FileNotFoundError: the folder has no instances or no pictures.
        ValueError: the file of instances is broken.
    """
    instances = folder.read_instances("dash_b")
    items = []
    for name, partner in sorted(PARTNERS.items()):
        scenes = {
            "neg": [id for id, there in instances.objects.items() if partner in there and name not in there],
            "pos": [id for id, there in instances.objects.items() if name in there],
        }
        count = min(map(len, scenes.values()))
        for sign, label in LABELS.items():
            for id in sorted(scenes[sign])[:count]:
                file = instances.file_names[id]
                image = folder.image(file, "dash_b")
                items.append(Item(f"dash_b/{sign}/scenes/{name}/{file}", "scenes", name, label, image))
    return items
