"""Questions about cats in synthetic scenes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.yes_no import YesNoTask


class Cats(YesNoTask):
    """Whether there is a cat in each picture."""

    name: ClassVar = "cats"
    protocols: ClassVar = {"cats.bare": {"max_new_tokens": 4, "parser": "strict"}}

    def samples(self, built: Path) -> list[Sample]:
        instances = self.folder.read_instances("cats")
        return in_order(
            Sample(
                id=f"cats/{image_id:012d}",
                cluster=str(image_id),
                image=self.folder.image(name, "cats"),
                prompt=self.protocol.ask("Is there a cat in the image?"),
                target="yes" if "cat" in instances.objects[image_id] else "no",
                meta={"object": "cat"},
            )
            for image_id, name in instances.file_names.items()
        )
