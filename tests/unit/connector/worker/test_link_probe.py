"""Probe requests: answered once, soon, and whatever a peer or the index does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import PeerUnreachable, ProtocolError
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.link_report import MESSAGE_BYTES_MAX, LinkReport, links_report, unpack
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.transfer.base import Probe
from ghostcacher_connector.worker.link_probe import (
    PEERS_MAX,
    REQUEST_FIELD,
    REQUEST_REPORT,
    REQUEST_TTL_S,
    ProbeRequest,
    ProbeResponder,
    SelfCheckReport,
    request_probes,
    self_check_report,
)
from tests.support.index_parts import NAMESPACE, FakeClock, make_record, wait_until

LEASE_S = 1000.0


def seen(current: bool = True) -> Probe:
    return Probe("nixl", 12e-6, current, np.zeros(1, dtype=np.uint64), b"x" * 1000, 1e-3)


class Fleet:
    """A responder of worker w1 with peers, in memory, on one clock."""

    def __init__(self, *peers: str, probe: Callable[[WorkerRecord], Probe] | None = None, rank: int = 0) -> None:
        self.clock = FakeClock()
        self.index = MemoryIndex(clock=self.clock)
        self.record = make_record("w1")
        self.probed: list[str] = []
        for record in (self.record, *map(make_record, peers)):
            self.index.join(record, lease_ttl_s=LEASE_S)
        self.self_check: SelfCheckReport | None = None
        self.responder = ProbeResponder(
            self.index,
            self.record,
            probe or self.probe,
            rank=rank,
            self_check=lambda: self.self_check,
            refresh_s=60.0,
            clock=self.clock,
            wall_clock=lambda: 77.0,
        )

    def probe(self, peer: WorkerRecord) -> Probe:
        self.probed.append(peer.worker)
        return seen()

    def links(self, rank: int = 0) -> dict[str, LinkReport]:
        stored = self.index.reports(NAMESPACE, "w1", links_report(rank))
        return {field: unpack(packed, LinkReport) for field, packed in stored.items()}


def test_first_step_measures_without_a_request() -> None:
    """A rank times its links at its start, so that a doctor finds something at once."""
    fleet = Fleet("w2", "w3")
    assert fleet.responder.step()
    assert fleet.links()["0:w2"] == LinkReport(
        ok=True, transport="nixl", bytes_per_s=1e6, rtt_us=pytest.approx(12.0), error="", at=77.0, request=""
    )
    assert fleet.probed == ["w2", "w3"]


def test_request_answered_once_under_its_id() -> None:
    """Every link carries the id of the request that it answers, and one request is answered once."""
    fleet = Fleet("w2")
    fleet.responder.step()
    request = request_probes(fleet.index, fleet.record, at=1.0)
    assert fleet.responder.step()
    assert fleet.links()["0:w2"].request == request.id
    assert not fleet.responder.step()
    assert fleet.probed == ["w2", "w2"]


def test_time_passed_refreshes() -> None:
    """Without requests the links are measured again after a while, and not before."""
    fleet = Fleet("w2")
    fleet.responder.step()
    fleet.clock.advance(59.0)
    assert not fleet.responder.step()
    fleet.clock.advance(1.0)
    assert fleet.responder.step()


def test_request_expired_not_answered() -> None:
    """A request that nobody waits for any more is gone."""
    fleet = Fleet("w2")
    request_probes(fleet.index, fleet.record, at=1.0)
    fleet.clock.advance(REQUEST_TTL_S + 1)
    fleet.responder.step()
    assert fleet.links()["0:w2"].request == ""


def test_peer_unreachable_hides_no_other() -> None:
    """A peer that cannot be read is reported with its error, and the others are measured all the same."""

    def probe(peer: WorkerRecord) -> Probe:
        if peer.worker == "w2":
            raise PeerUnreachable("no way " + "x" * 9999)
        return seen(current=peer.worker != "w4")

    fleet = Fleet("w2", "w3", "w4", probe=probe)
    fleet.responder.step()
    links = fleet.links()
    assert not links["0:w2"].ok
    assert links["0:w2"].error.startswith("PeerUnreachable: no way")
    assert links["0:w3"].ok
    assert not links["0:w4"].ok
    assert "another incarnation" in links["0:w4"].error


def test_index_away_answered_when_it_is_back() -> None:
    """A request that the index cut short is answered when the index is there again; nothing is raised meanwhile."""
    fleet = Fleet("w2")
    fleet.responder.step()
    request = request_probes(fleet.index, fleet.record, at=1.0)

    def unplug(peer: WorkerRecord) -> Probe:
        fleet.index.reachable = False
        return seen()

    fleet.responder._probe = unplug
    assert not fleet.responder.step()
    assert not fleet.responder.step()
    fleet.index.reachable = True
    fleet.responder._probe = fleet.probe
    assert fleet.responder.step()
    assert fleet.links()["0:w2"].request == request.id


def test_ranks_keep_their_own_reports() -> None:
    """Two ranks of one worker do not overwrite each other's links."""
    fleet = Fleet("w2")
    second = ProbeResponder(fleet.index, fleet.record, fleet.probe, rank=1, clock=fleet.clock)
    fleet.responder.step()
    second.step()
    assert list(fleet.links(0)) == ["0:w2"]
    assert list(fleet.links(1)) == ["1:w2"]


def test_self_check_stored() -> None:
    """The result of the self-check is stored with the links, once there is one."""
    fleet = Fleet()
    fleet.responder.step()
    assert fleet.index.reports(NAMESPACE, "w1", self_check_report(0)) == {}
    fleet.self_check = SelfCheckReport(ok=True, transport="nixl", error="", at=1.0)
    fleet.clock.advance(60)
    fleet.responder.step()
    stored = fleet.index.reports(NAMESPACE, "w1", self_check_report(0))
    assert unpack(stored["0"], SelfCheckReport) == fleet.self_check


@pytest.mark.parametrize("packed", [b"", b"\xff", b"x" * (MESSAGE_BYTES_MAX + 1), msgspec.msgpack.encode({"id": 3})])
def test_request_malformed_ignored(packed: bytes) -> None:
    """A request that is none is ignored; the rank goes on."""
    fleet = Fleet("w2")
    fleet.responder.step()
    fleet.index.put_report(ref_of(fleet.record), REQUEST_REPORT, {REQUEST_FIELD: packed}, ttl_s=60)
    assert not fleet.responder.step()


@given(st.binary(max_size=64), st.sampled_from([ProbeRequest, LinkReport, SelfCheckReport]))
def test_unpack_any_bytes_message_or_protocol_error(packed: bytes, kind: type) -> None:
    """Any bytes from the index are a message or a ProtocolError, nothing else."""
    with contextlib.suppress(ProtocolError):
        assert isinstance(unpack(packed, kind), kind)


def test_many_peers_bounded() -> None:
    """One answer times at most PEERS_MAX links."""
    fleet = Fleet(*(f"p{number:04}" for number in range(PEERS_MAX + 5)))
    fleet.responder.step()
    assert len(fleet.probed) == PEERS_MAX


def test_thread_answers_and_stops() -> None:
    """The thread answers by itself and ends when told to."""
    index, record = MemoryIndex(), make_record("w1")
    for joining in (record, make_record("w2")):
        index.join(joining, lease_ttl_s=LEASE_S)
    responder = ProbeResponder(index, record, lambda _: seen(), interval_s=0.01)
    responder.start()
    request = request_probes(index, record, at=1.0)

    def answered() -> bool:
        stored = index.reports(NAMESPACE, "w1", links_report(0))
        return "0:w2" in stored and unpack(stored["0:w2"], LinkReport).request == request.id

    wait_until(answered, what="request is answered")
    responder.stop()
    assert not responder._thread.alive


def test_move_answers_for_the_new_record() -> None:
    """A worker in another namespace times its peers there, at once, and a doctor finds it there."""
    fleet = Fleet("w2")
    fleet.responder.step()
    moved = make_record("w1", namespace="other")
    for record in (moved, make_record("w3", namespace="other")):
        fleet.index.join(record, lease_ttl_s=LEASE_S)
    fleet.responder.move(moved)
    assert fleet.responder.step()
    stored = fleet.index.reports("other", "w1", links_report(0))
    assert stored.keys() == {"0:w3"}
    fleet.responder.move(moved)
    assert not fleet.responder.step()
