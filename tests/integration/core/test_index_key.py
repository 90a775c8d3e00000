"""The setting `index_key`, where a worker uses it: in the process that schedules, and in each rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import PrefixHit
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.membership import Membership
from tests.support.fleet_worker import FleetWorker
from tests.support.index_parts import chain, make_record, wait_until

KEY = "the secret of this fleet"
OTHER_KEY = "the secret of another one"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a real Redis."""
    with RedisServer(tcp=True) as server:
        yield server.url


def peers_of(fleet: Membership) -> set[str]:
    return {ref.worker for ref in fleet.live_workers.candidates(exclude_worker=fleet.record.worker)}


def hits_of(fleet: Membership, blocks: list[bytes]) -> list[PrefixHit]:
    return fleet.index.lookup(fleet.live_workers.candidates(), blocks)


def test_fleets_of_two_keys_on_one_redis_do_not_meet(url: str) -> None:
    """Workers of one key find each other's blocks; one of another key finds neither the workers nor the blocks."""
    keys = {"w1": KEY, "w2": KEY, "stranger": OTHER_KEY, "open": None}
    with ExitStack() as stack:
        fleets = {}
        for name, key in keys.items():
            settings = Settings(redis_url=url, redis_timeout_s=2.0, index_key=key)
            fleets[name] = Membership(settings, make_record(name), Recorder())
            stack.callback(fleets[name].stop)
            fleets[name].start()
        blocks = chain(3)
        for slot, block in enumerate(blocks):
            fleets["w1"].publisher.publish(slot, block, blocks[0], 1)
        wait_until(lambda: peers_of(fleets["w2"]) == {"w1"}, PATIENCE_S, "w2 to see w1")
        wait_until(lambda: len(hits_of(fleets["w2"], blocks)) == 1, PATIENCE_S, "w2 to find the blocks of w1")
        for name in ("stranger", "open"):
            wait_until(lambda name=name: fleets[name].index.unverified_records >= 2, PATIENCE_S, f"{name} to look")
            assert peers_of(fleets[name]) == set()
            assert hits_of(fleets[name], blocks) == []


def test_ranks_know_the_peers_of_their_key_alone(url: str) -> None:
    """A rank pulls from those whose records its own key verifies."""
    workers = [("r1", KEY), ("r2", KEY), ("stranger", OTHER_KEY)]
    with ExitStack() as stack:
        one, two, stranger = (stack.enter_context(FleetWorker(url, name, index_key=key)) for name, key in workers)
        wait_until(lambda: one.peers() == {"r2"} and two.peers() == {"r1"}, PATIENCE_S, "ranks to see each other")
        assert stranger.peers() == set()
