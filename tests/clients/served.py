"""Runs a client's program against an engine, and against the router in front of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.harness.router import RouterProcess

HERE = Path(__file__).parent
CLIENTS_PYTHON = os.environ.get("GHOSTCACHER_CLIENTS_PYTHON", "")
with_clients = pytest.mark.skipif(not CLIENTS_PYTHON, reason="needs the clients' environment: run make test-clients")
with_node = pytest.mark.skipif(
    not (HERE / "node" / "node_modules").is_dir() or shutil.which("node") is None,
    reason="needs Node and its packages: run make test-clients",
)
MODEL = "m"
PROGRAM_TIMEOUT_S = 300.0
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


class Served(NamedTuple):
    """A router, and one of the engines behind it: the others answer alike."""

    router: RouterProcess
    engine_url: str

    def compared(self, command: Sequence[str]) -> tuple[Any, Any]:
        """Return the reports of a program that talks to the engine itself, and to the router."""
        return report_of([*command, self.engine_url, MODEL]), report_of([*command, self.router.url, MODEL])


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """Return what a program prints. Raises AssertionError with what it said when it fails."""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "HF_HUB_OFFLINE": "1"}
    # Ours is for this environment's Python, theirs is another one.
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def report_of(command: Sequence[str]) -> Any:
    """Return the report that a program prints as its last line."""
    return json.loads(run(command).splitlines()[-1])
