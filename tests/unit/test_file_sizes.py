"""No file outgrows what one idea takes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.unit.architecture import PACKAGES, ROOT, name_of

FOLDERS = (*PACKAGES.values(), ROOT / "tests", ROOT / "benchmarks", ROOT / "engine_patches", ROOT / "sdk")
LINES_WANTED = 300
LINES_MAX = 400


def python_files() -> list[Path]:
    found = {path for folder in FOLDERS for path in folder.rglob("*.py")}
    return sorted(path for path in found if "node_modules" not in path.parts)


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_file_size(path: Path) -> None:
    """A file that outgrows 300 lines usually holds two ideas: a warning; beyond 400 it fails."""
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX, f"{name_of(path)}: {lines} lines"
    if lines > LINES_WANTED:
        warnings.warn(UserWarning(f"{name_of(path)}: {lines} lines, expected at most {LINES_WANTED}"), stacklevel=1)
