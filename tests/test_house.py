"""The layout of the package: what import-linter's contracts (in `pyproject.toml`) do not say."""

from __future__ import annotations

import grimp


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports for type checkers count, too."""
    graph = grimp.build_graph("vlmfix", "evals")
    circles = {
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if graph.find_shortest_chain(importer=imported, imported=importer) is not None
    }
    assert circles == set()
