"""A benchmark as a user writes it: one file in a folder of its own."""

from __future__ import annotations

from pathlib import Path

SHAPES = '''"""Questions about dogs in synthetic scenes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.yes_no import YesNoTask


class Dogs(YesNoTask):
    name: ClassVar = "dogs"
    protocols: ClassVar = {
        "dogs.bare": {"max_new_tokens": 4, "parser": "strict"},
        "dogs.short": {"max_new_tokens": 2, "parser": "strict", "suffix": "Yes or no?"},
    }

    def samples(self, built: Path) -> list[Sample]:
        instances = self.folder.read_instances("dogs")
        question = "Is there a dog in the image?"
        return in_order(
            Sample(
                id=f"dogs/{image_id:012d}",
                cluster=str(image_id),
                image=self.folder.image(name, "dogs"),
                prompt=self.protocol.ask(question),
                target="yes" if "dog" in instances.objects[image_id] else "no",
                meta={"object": "dog"},
            )
            for image_id, name in instances.file_names.items()
        )
'''


def write_task(directory: Path, name: str, source: str) -> Path:
    """The folder of a benchmark, whose only file is `task.py`."""
    folder = directory / name
    folder.mkdir(parents=True)
    (folder / "task.py").write_text(source, encoding="utf-8")
    return folder
