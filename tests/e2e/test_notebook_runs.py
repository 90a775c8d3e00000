"""The notebooks run to their last cell in their short form, on one fleet of real engines that they share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.test_notebooks import FOLDER, NOTEBOOKS

pytestmark = pytest.mark.timeout(900)


def load(name: str) -> ModuleType:
    """Return a module of the notebooks' folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """The environment of notebooks that find a fleet of two engines: to start one costs more than to run them all."""
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of the extra [dev]")
    found: dict[str, str] = load("run").kernel_environment(short=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "GHOSTCACHER_NOTEBOOKS"):
            patch.setenv(name, found[name])
        learning = load("learning")
        with learning.open_fleet(workers=2) as fleet:
            yield {**found, learning.JOINED: f"{fleet.router_url} {fleet.redis_url}"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(notebook: Path, environ: dict[str, str]) -> None:
    """Each cell runs: notebooks check what they claim, and a check that fails ends them."""
    executed = load("run").execute(notebook, environ, cell_timeout_s=300)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert pictures or "plt." not in notebook.read_text(), "it draws, and nothing was to be seen"
