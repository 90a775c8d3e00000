"""Fixtures of the connector's integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.harness.redis_server import RedisServer
from tests.support.redis_proxy import Proxy

if TYPE_CHECKING:
    from tests.integration.connector.enginesim import SimEngine

INDEX_LAG_S = 0.06
"""By when an engine has reused slots that the index still offers."""

Make = Callable[..., "SimEngine"]
"""Makes an engine of the test's fleet: see `make`."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that engine simulations are configured for."""
    from tests.integration.connector.enginesim import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture
def lagging_url(redis_server: RedisServer) -> Iterator[str]:
    """The URL of the fleet's Redis, where what engines publish arrives late."""
    with Proxy(redis_server.port, apply_lag_s=INDEX_LAG_S) as proxy:
        yield proxy.url


@pytest.fixture
def make(model: Path, redis_server: RedisServer) -> Iterator[Make]:
    """Makes simulated engines of one fleet, which are closed at the end."""
    from tests.integration.connector.enginesim import SimEngine

    engines: list[SimEngine] = []

    def factory(
        name: str = "a",
        *,
        settings: dict[str, Any] | None = None,
        kind: type[SimEngine] = SimEngine,
        **options: Any,
    ) -> SimEngine:
        chosen = {
            "redis_url": redis_server.url,
            "pull": "always",
            # Generous: a busy machine must not turn a hit into a miss.
            "redis_timeout_s": 10.0,
            "lookup_deadline_ms": 30_000.0,
            "pull_timeout_s": 60.0,
            "lease_ttl_s": 60.0,
            **(settings or {}),
        }
        engines.append(kind(name, model, chosen, **options))
        return engines[-1]

    yield factory
    for engine in engines:
        engine.close()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Options of NixlTransport under which UCX emulates READs: they need the owner's CPU, and hang when it stops.

    So does an RDMA device that cannot READ by itself. Here it is shared memory which sees only what was made for
    sharing; the emulation, which is off on hosts without a network, is forced on in this process and the owner's.
    """
    monkeypatch.setenv("UCX_PROTO_EMULATION_ENABLE", "y")
    return {"ucx_tls": "posix,sysv,self"}
