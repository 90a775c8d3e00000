"""Fixtures of the end-to-end tests: real vLLM servers, a real Redis, real NIXL, a tiny random model."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from benchmarks.harness import ensure_model
from tests.e2e.fleet import Fleet


@pytest.fixture(scope="session")
def model() -> Path:
    return ensure_model("tiny")


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each engine's log with a test that failed."""
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.when == "call" and report.failed and isinstance(fleet, Fleet):
        report.sections += [(f"log of engine {name}", tail) for name, tail in fleet.log_tails()]
    return report
