"""Two real engines behind a real router, for clients that other people wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import ensure_model
from benchmarks.harness.router import RouterProcess
from tests.clients.hosted import Hosted, hosting
from tests.clients.served import Served
from tests.e2e.fleet import running
from tests.support.providers.server import make_authority


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    logs: Path = tmp_path_factory.mktemp("clients")
    with (
        running(ensure_model("tiny"), {"a": {}, "b": {}}, log_dir=logs) as fleet,
        RouterProcess(redis_url=fleet.redis.url, log_dir=logs) as router,
    ):
        router.wait_workers(2)
        yield Served(router, fleet.engines["a"].url)


@pytest.fixture(scope="session")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with hosting(make_authority(tmp_path_factory.mktemp("authority"))) as hosted:
        yield hosted
