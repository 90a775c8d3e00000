"""The notebooks as they are committed: without results, with links that lead somewhere, and on the list."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.architecture import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
METADATA = {"kernelspec", "language_info"}
"""What a notebook says of itself; more than that is of whoever had it open last."""

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@each_notebook
def test_no_results_are_committed(notebook: Path) -> None:
    """Results are of one machine and one day, and make every run a change."""
    for cell in cells_of(notebook, "code"):
        assert not cell["outputs"], cell["id"]
        assert cell["execution_count"] is None, cell["id"]
        assert not cell["metadata"], cell["id"]
    assert set(json.loads(notebook.read_text())["metadata"]) <= METADATA


@each_notebook
def test_text_links_to_what_exists(notebook: Path) -> None:
    """Links of its text lead to files of the repository."""
    text = "\n".join("".join(cell["source"]) for cell in cells_of(notebook, "markdown"))
    assert text.startswith("# ")
    wrong = [link for link in LINK.findall(text) if not (FOLDER / link).exists()]
    assert not wrong, wrong


@each_notebook
def test_cells_are_python_alone(notebook: Path) -> None:
    """No shell and no magic: what runs is what the linter reads."""
    for cell in cells_of(notebook, "code"):
        compile("".join(cell["source"]), cell["id"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_notebook_is_on_the_list() -> None:
    """The page about the notebooks links each of them, in their order."""
    linked = re.findall(r"\]\(([^)]+\.ipynb)\)", (FOLDER / "index.md").read_text())
    assert list(dict.fromkeys(linked)) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) > 1
