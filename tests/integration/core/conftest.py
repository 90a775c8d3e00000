"""One real Redis for each file of tests, empty for each test that looks at it past all our code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from benchmarks.harness.redis_server import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client
