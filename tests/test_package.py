"""What the package promises of itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlmfix
from tests.support.paths import ROOT
from vlmfix.cli.display import methods_markdown


def test_every_method_is_exported_and_described() -> None:
    for cls in vlmfix.list_methods().values():
        assert getattr(vlmfix, cls.__name__) is cls
        assert cls.__name__ in vlmfix.__all__
        assert cls.info.paper, f"{cls.name} is published, so it needs its paper"
        assert cls.info.paper in "".join((cls.__doc__ or "").split())
        assert cls.identity_parameters or not cls.attaches
    # 'vlmfix methods --markdown' prints it.
    assert methods_markdown() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_public_name_is_there_and_seen_by_type_checkers() -> None:
    source = ast.parse(Path(vlmfix.__file__).read_text(encoding="utf-8"))
    checked = next(each for each in source.body if isinstance(each, ast.If))
    imports = [each for each in checked.body if isinstance(each, ast.ImportFrom)]
    assert {name.name: each.module for each in imports for name in each.names} == vlmfix._MODULES
    assert sorted(vlmfix._MODULES) == sorted(vlmfix.__all__)
    assert set(vlmfix.__all__) <= set(dir(vlmfix))
    for name in vlmfix.__all__:
        assert getattr(vlmfix, name) is getattr(importlib.import_module(vlmfix._MODULES[name]), name)
    with pytest.raises(AttributeError, match="module 'vlmfix' has no attribute 'nothing'"):
        _ = vlmfix.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from vlmfix import nothing")


def test_names_are_imported_when_they_are_wanted() -> None:
    code = (
        "import sys, vlmfix\n"
        "print(vlmfix.__version__, {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))\n"
        "from vlmfix import method_names\n"
        "print(method_names.__module__, {'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [
        f"{vlmfix.__version__} set()",
        "vlmfix.methods.registry set()",
    ]


def test_version_is_in_the_changelog() -> None:
    assert f"## {vlmfix.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_of_the_citation() -> None:
    assert f"\nversion: {vlmfix.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
