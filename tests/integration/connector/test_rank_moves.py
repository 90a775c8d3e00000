"""A rank that moves to another namespace knows the workers there, whatever its threads do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.harness.redis_server import RedisServer
from tests.support.fleet_worker import FleetWorker

OLD, NEW = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a real Redis."""
    with RedisServer(tcp=True) as server:
        yield server.url


def test_peers_that_the_index_names_in_the_midst_of_a_move_are_kept(url: str) -> None:
    """The thread that asks the index may have its answer before the move is over, and hands on only what changes."""
    with (
        FleetWorker(url, "mover", namespace=OLD, start=False) as mover,
        FleetWorker(url, "left", namespace=OLD, start=False),
        FleetWorker(url, "met", namespace=NEW, start=False),
    ):
        runtime = mover._runtime
        live, follow = runtime._live_workers, runtime._live_workers.move
        live.refresh()
        assert mover.peers() == {"left"}
        live.move = lambda namespace: (follow(namespace), live.refresh())
        runtime.move(NEW)
        assert mover.peers() == {"met"}
