"""What the fleet sees of a vLLM engine that is asked to end (enginesim.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks.harness.redis_server import RedisServer

pytest.importorskip("vllm")

from ghostcacher_connector.core.index.redis import RedisIndex
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine


@pytest.fixture
def asked() -> Iterator[list[int]]:
    """The handler of vLLM's engine core: it notes that an end is wanted, and the engine goes on for now."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


def test_engine_that_is_asked_to_end_leaves_the_fleet_at_once(
    make: Make, redis_server: RedisServer, asked: list[int]
) -> None:
    """Its lease ends while its last request still runs, and that one is computed to its end."""
    engine = make("a")
    with closing(RedisIndex(redis_server.url, timeout_s=10.0)) as index:
        wait_until(lambda: [record.worker for record in index.workers(None)] == ["a"], what="the worker has joined")
        engine.add("last", list(range(5 * BLOCK_TOKENS)), max_tokens=BLOCK_TOKENS)
        engine.step()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: index.workers(None) == [], what="the lease has ended")
        engine.run()
        assert len(engine.outputs("last")) == BLOCK_TOKENS
        assert asked == [signal.SIGTERM]
