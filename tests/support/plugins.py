"""Installed packages of others, made by hand."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "plugin" / "package"


def install_example(site: Path) -> None:
    """Put the example package into a folder of packages, as an installer does."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(EXAMPLE / "vlmfix_example", site / "vlmfix_example")
    add_distribution(site, project["name"], project["entry-points"], version=project["version"])


def add_distribution(
    site: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    sources: Mapping[str, str] | None = None,
    *,
    version: str = "1.0",
) -> None:
    """Put a distribution into a folder of packages.

    Args:
        site: on `sys.path`.
        name: of the distribution.
        entry_points: by group and name.
        sources: text of modules by their names.
        version: of the distribution.
    """
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    folder.joinpath("entry_points.txt").write_text("\n".join(lines))
    for module, text in (sources or {}).items():
        site.joinpath(f"{module}.py").write_text(text)
