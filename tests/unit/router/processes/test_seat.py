"""What each process gets of the limits of its router."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_router.config import MIB, RouterSettings
from ghostcacher_router.processes.seat import Seat, Start, share_of


def settings(processes: int, **given: object) -> RouterSettings:
    return RouterSettings(processes=processes, **given)  # type: ignore[arg-type]


def test_all_shares_together_are_what_the_router_has() -> None:
    """Rounded up, so that no process has none."""
    share = share_of(settings(4, connections_max=10, connections_per_address_max=5, buffered_bytes_max=1024 * MIB))
    assert (share.connections_max, share.connections_per_address_max) == (3, 2)
    assert share.buffered_bytes_max == 256 * MIB
    assert share_of(settings(4)).connections_per_address_max is None
    queue = share_of(settings(4, flow_queue_max=6, flow_queue_bytes_max=512 * MIB))
    assert (queue.flow_queue_max, queue.flow_queue_bytes_max) == (2, 128 * MIB)
    assert share_of(settings(4)).flow_queue_max == 0


def test_each_process_can_hold_the_longest_body() -> None:
    """A share that is less would refuse what the router takes."""
    same = {"body_bytes_max": 64 * MIB, "buffered_bytes_max": 64 * MIB, "flow_queue_bytes_max": 64 * MIB}
    share = share_of(settings(8, flow_queue_max=8, **same))
    assert (share.buffered_bytes_max, share.flow_queue_bytes_max) == (64 * MIB, 64 * MIB)


def test_processes_are_replicas_of_each_other() -> None:
    """Without Redis they agree by hash, also with other routers that are several processes."""
    assert share_of(settings(4)).replicas == 4
    assert share_of(settings(4, replicas=3)).replicas == 12


@pytest.mark.parametrize(("processes", "interval_s"), [(2, 5.0), (4, 5.0), (8, 10.0), (64, 80.0)])
def test_probes_of_a_worker_are_bounded(processes: int, interval_s: float) -> None:
    """Four in each interval, however many processes there are."""
    assert share_of(settings(processes, health_interval_s=5.0)).health_interval_s == interval_s
    assert share_of(settings(64, health_interval_s=600.0)).health_interval_s == 600.0


def test_settings_reach_a_child_as_they_are() -> None:
    """Secrets, too, which a repr of what is sent does not show."""
    given = settings(2, admin_token="0123456789abcdef", workers=("http://a:1",), connections_per_address_max=7)
    start = Start(Seat(1, 7, 2, "r", "/tmp/x", ((3,), (4,)), locks=5), given)
    assert msgspec.json.decode(msgspec.json.encode(start), type=Start) == start
    assert start.seat.name == "1.7"
    assert start.files == [5, 3, 4]
    assert "0123456789abcdef" not in repr(start)
