"""What a worker shows of itself while it has nothing to do."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing

import msgspec
import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.types import OwnerProcess
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.membership import Membership, _open_page
from tests.support.coordination_parts import make_load
from tests.support.index_parts import chain, make_record, wait_until

WAIT_S = 60.0


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


def test_second_engine_of_one_name_is_refused_until_the_first_leaves(url: str) -> None:
    """Its gauge says so, `ghostcacher doctor` fails and names both, and then it joins by itself."""
    settings = Settings(redis_url=url, redis_timeout_s=2.0)
    with ExitStack() as stack:
        one, two = (Membership(settings, make_record("same", token=token), Recorder()) for token in ("one", "two"))
        for member in (one, two):
            stack.callback(member.stop)
        one.start()
        wait_until(lambda: one.publisher.available, WAIT_S, "the first to join")
        two.start()
        wait_until(lambda: two.gauges()["gc_worker_name_taken"] == {"": 1.0}, WAIT_S, "the second to be refused")
        two.record_metrics()
        assert two._recorder.drain()["gc_worker_name_taken"] == {"": 1.0}
        assert one.gauges()["gc_worker_name_taken"] == {"": 0.0}
        assert one.index.workers() == [one.record]
        one.reporter.submit_load(make_load(1))
        two.reporter.submit_load(make_load(2))

        def loads() -> list[int | None]:
            _, found = one._coordination.loads([ref_of(one.record), ref_of(two.record)])
            return [load.load.running if load is not None else None for load in found]

        wait_until(lambda: loads() == [1, None], WAIT_S, "the load of the first")
        two.reporter._load_at = 0.0  # as if its time had come
        two.reporter.step()
        assert loads() == [1, None]
        command = [sys.executable, "-m", "ghostcacher_cli.main", "doctor", "--redis-url", url, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        names = [check["text"] for check in json.loads(done.stdout)["checks"] if check["name"] == "worker same"]
        assert done.returncode == 1
        assert any("refused this name" in text and "m-one" in text and "m-two" in text for text in names)
        one.leave()
        wait_until(lambda: two.publisher.available, WAIT_S, "the second to join")
        assert two.gauges()["gc_worker_name_taken"] == {"": 0.0}
        assert two.index.workers() == [two.record]


def test_engine_that_crashed_has_its_name_back_at_once(url: str) -> None:
    """Though the lease of its earlier process lasts for an hour: that process is seen to have ended."""
    program = (
        "import sys, msgspec; from ghostcacher_connector.worker.owner import this_process;"
        "sys.stdout.buffer.write(msgspec.msgpack.encode(this_process()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    earlier = msgspec.structs.replace(
        make_record("again"), owner=msgspec.msgpack.decode(done.stdout, type=OwnerProcess)
    )
    member = Membership(Settings(redis_url=url, redis_timeout_s=2.0), make_record("again", token="two"), Recorder())
    member.index.join(earlier, lease_ttl_s=3600.0)
    member.start()
    try:
        wait_until(lambda: member.publisher.available, WAIT_S, "it to join")
        assert [record for record in member.index.workers() if record.worker == "again"] == [member.record]
    finally:
        member.stop()


def test_loopback_address_is_warned_of_once_a_worker_is_on_another_machine(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On one machine it is fine; the warning names the setting, and comes once."""
    settings = Settings(redis_url=url, redis_timeout_s=2.0)
    far = make_record("far")
    far = msgspec.structs.replace(far, ranks=(msgspec.structs.replace(far.ranks[0], host="another"),))
    with ExitStack() as stack:
        one, near, away, late = (
            Membership(settings, record, Recorder())
            for record in (make_record("one"), make_record("near"), far, msgspec.structs.replace(far, worker="late"))
        )
        for member in (one, near, away, late):
            stack.callback(member.stop)
        one.start()
        near.start()
        wait_until(lambda: one.gauges()["gc_peers_live"] == {"": 1.0}, WAIT_S, "the near one")
        assert "http_url" not in caplog.text
        away.publisher.start()
        wait_until(lambda: one.gauges()["gc_peers_live"] == {"": 2.0}, WAIT_S, "the far one")
        late.publisher.start()
        wait_until(lambda: one.gauges()["gc_peers_live"] == {"": 3.0}, WAIT_S, "the late one")
    warned = [record for record in caplog.records if record.getMessage().startswith("http_url: ")]
    assert len(warned) == 2  # the near one has a loopback address, too


def test_self_check_that_is_off_is_not_shown(url: str) -> None:
    settings = Settings(redis_url=url, redis_timeout_s=2.0, self_check=False)
    member = Membership(settings, make_record("g3"), Recorder())
    assert member.gauges()["gc_self_check_ok"] == {}
    member.stop()


def served_at(host: str, port: int) -> bool:
    """Say whether a metrics page is at an address."""
    try:
        with closing(urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10)) as reply:
            return b"gc_peers_live" in reply.read()
    except urllib.error.URLError:
        return False


@pytest.mark.parametrize(
    ("host", "there", "not_there"),
    [
        (None, ["127.0.0.1"], ["127.0.0.2"]),
        ("127.0.0.2", ["127.0.0.2"], ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], []),
    ],
)
def test_own_page_is_where_it_is_said_to_be(url: str, host: str | None, there: list[str], not_there: list[str]) -> None:
    """At loopback alone by default; every address of the machine is for a Prometheus on another one."""
    given = {} if host is None else {"metrics_host": host}
    settings = Settings(redis_url=url, redis_timeout_s=2.0, metrics_port=0, **given)
    member = Membership(settings, make_record("g6"), Recorder())
    try:
        assert member._page is not None
        port = member._page.port
        found = [address for address in (*there, *not_there) if served_at(address, port)]
        with pytest.raises(ConfigError, match=rf"^metrics_port, metrics_host: .* got {port} at "):
            _open_page(settings.metrics_host, port, 0)
    finally:
        member.stop()
    assert found == there


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
