"""What a worker shows of itself while it has nothing to do."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.config import Settings
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.membership import Membership
from tests.support.index_parts import chain, make_record, wait_until

WAIT_S = 30.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a real Redis."""
    with RedisServer(tcp=True) as server:
        yield server.url


def test_gauges_are_true_without_traffic(url: str) -> None:
    """Peers that come and go, blocks and the self-check are shown though no engine takes a step."""
    settings = Settings(redis_url=url, redis_timeout_s=2.0)
    with ExitStack() as stack:
        one, two = (Membership(settings, make_record(name), Recorder()) for name in ("g1", "g2"))
        for member in (one, two):
            stack.callback(member.stop)
        one.start()
        wait_until(lambda: one.publisher.available, WAIT_S, "g1 to join")
        assert one.gauges()["gc_peers_live"] == {"": 0.0}
        two.start()
        wait_until(lambda: one.gauges()["gc_peers_live"] == {"": 1.0}, WAIT_S, "g1 to count g2")
        one.publisher.publish(0, *chain(1), chain(1)[0], 1)
        assert one.gauges()["gc_active_cache_entries"] == {"": 1.0}
        assert one.gauges()["gc_self_check_ok"] == {str(rank.rank): 1.0 for rank in one.record.ranks} != {}
        two.leave()
        wait_until(lambda: one.gauges()["gc_peers_live"] == {"": 0.0}, WAIT_S, "g1 to miss g2")


def test_self_check_that_is_off_is_not_shown(url: str) -> None:
    settings = Settings(redis_url=url, redis_timeout_s=2.0, self_check=False)
    member = Membership(settings, make_record("g3"), Recorder())
    assert member.gauges()["gc_self_check_ok"] == {}
    member.stop()


def test_own_page_is_true_without_traffic(url: str) -> None:
    """With `metrics_port`, too: nothing but time passes."""
    settings = Settings(redis_url=url, redis_timeout_s=2.0)
    paged = Settings(redis_url=url, redis_timeout_s=2.0, metrics_port=0)
    with ExitStack() as stack:
        one, two = Membership(paged, make_record("g4"), Recorder()), Membership(settings, make_record("g5"), Recorder())
        for member in (one, two):
            stack.callback(member.stop)
            member.start()
        assert one._page is not None
        address = f"http://127.0.0.1:{one._page.port}/metrics"

        def page() -> str:
            with closing(urllib.request.urlopen(address, timeout=10)) as reply:
                return str(reply.read().decode())

        wait_until(lambda: "gc_peers_live 1.0" in page(), WAIT_S, "the page to count g5")
        wait_until(lambda: 'gc_self_check_ok{rank="0"} 1.0' in page(), WAIT_S, "the page to show the self-check")
