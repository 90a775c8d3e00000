"""A browser, a Redis, and a fleet that serves traffic behind a real router, for the tests of one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from tests.support.browser import Window, chromium
from tests.support.shown_fleet import ShownFleet

WIDE = {"width": 1440, "height": 900}
NAMES = ("a", "b")

Open = Callable[..., Window]
"""Shows the dashboard of a router in a window of its own, which is closed, and checked, at the end of the test."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def show(browser: Any) -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(url: str, **options: Any) -> Window:
            window = Window(browser, **{"viewport": WIDE, **options})
            stack.callback(window.close, url)
            window.open(url)
            return window

        yield opened


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def router(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """A router before two simulated engines with connectors."""
    folder: Path = tmp_path_factory.mktemp("router")
    with ShownFleet(redis.url, NAMES), RouterProcess(redis_url=redis.url, log_dir=folder) as running:
        yield running.wait_workers(len(NAMES))
