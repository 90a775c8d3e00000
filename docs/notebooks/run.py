"""Runs notebooks from their first cell to their last, and writes them with their results into build/notebooks.

    python docs/notebooks/run.py [--short] [01 02 ...]

What is in docs/notebooks stays as it is, without results. --short: a tiny model and few requests, as in tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "build" / "notebooks"
SOURCES = (ROOT, ROOT / "router" / "src", ROOT / "sdk" / "python" / "src")
FORM = "GHOSTCACHER_NOTEBOOKS"
"""Variable that says "short" to notebooks: see learning.py."""
CELL_TIMEOUT_S = 1200


def notebooks(*names: str) -> list[Path]:
    """Return all notebooks in their order, or those whose file names begin with one of `names`."""
    return [path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(names or ("",))]


def kernel_environment(*, short: bool) -> dict[str, str]:
    """Return the environment of a notebook that uses the sources of this folder, whatever else is installed."""
    path = os.pathsep.join([*map(str, SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, FORM: "short" if short else ""}


def execute(path: Path, environ: dict[str, str], *, cell_timeout_s: float = CELL_TIMEOUT_S) -> Any:
    """Return a notebook with the results of its cells. Raises nbclient's CellExecutionError, which shows the cell."""
    import nbformat  # noqa: PLC0415 - of the extra [dev]
    from nbclient import NotebookClient  # noqa: PLC0415

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=cell_timeout_s, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env=environ)
    return notebook


def main() -> int:
    import nbformat  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="how file names begin, such as 01; default: all")
    parser.add_argument("--short", action="store_true", help="a tiny model and few requests")
    chosen = parser.parse_args()
    if not (found := notebooks(*chosen.names)):
        parser.error(f"NAME: expected how one of {', '.join(path.name for path in notebooks())} begins")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in found:
        print(f"== {path.name}", flush=True)
        nbformat.write(execute(path, kernel_environment(short=chosen.short)), RESULTS / path.name)
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
