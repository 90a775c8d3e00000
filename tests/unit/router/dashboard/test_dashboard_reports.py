"""Prefixes with their holders, links and ghost locks, as people see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest

from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import DEPTHS_MAX, ref_of
from ghostcacher_connector.core.index.link_report import LinkReport, links_report
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.admin.dashboard.link_reports import KEPT_S, LINKS_MAX, READERS_MAX, LinkReports
from ghostcacher_router.admin.dashboard.lock_reports import LOCKS_SHOWN, lock_reports
from ghostcacher_router.admin.dashboard.prefix_reports import CHECKS_MAX, PrefixReports
from ghostcacher_router.admin.dashboard.prefix_reports import KEPT_S as PREFIXES_KEPT_S
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.types import Endpoint
from ghostcacher_simulator.text import BLOCK_TOKENS, block_hashes
from ghostcacher_simulator.virtual_time import virtual
from tests.support.index_parts import FakeClock, make_record
from tests.support.routing_sim import Sim, make_sim

T = TypeVar("T")
SYSTEM = b"You answer briefly. " * 200


async def at_once(call: Callable[[], T]) -> T:
    return call()


def workers_of(*names: str) -> dict[str, Worker]:
    return {name: Worker(name, Endpoint("h", 1, False, ""), make_record(name), 0.0) for name in names}


class CountingIndex(MemoryIndex):
    """Counts what it is asked; away when told."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[int] = []
        self.read: list[str] = []
        self.away = False

    def depths(self, candidates: Any, chains: Any) -> list[list[int]]:
        if self.away:
            raise IndexUnavailable("away")
        self.checks.append(len(candidates) * len(chains))
        return super().depths(candidates, chains)

    def reports(self, namespace: str, worker: str, name: str) -> dict[str, bytes]:
        if self.away:
            raise IndexUnavailable("away")
        self.read.append(worker)
        return super().reports(namespace, worker, name)


# Prefixes


def reports_of(sim: Sim, index: Any) -> PrefixReports:
    router = sim.routers[0]
    return PrefixReports(router.routing.state, router.text, router.fleet.workers, index, offload=at_once, clock=sim.now)


SYSTEM_END = [(SectionType.SYS, len(SYSTEM))]


@virtual
async def test_holders_are_those_that_the_index_names() -> None:
    """Also such as this router never sent the prefix to; and one that has evicted it is none any more."""
    sim = await make_sim(3)
    for number in range(3):
        await sim.routers[0].send(SYSTEM + b"question %d" % number, ends=SYSTEM_END)
    await sim.settle()
    reports = reports_of(sim, sim.index)
    (first,) = [one for one in (await reports.report()).prefixes if one.section == "sys"]
    holders = [name for name, engine in sim.engines.items() if engine.pool.match(block_hashes(SYSTEM))]
    assert list(first.holders) == holders != []
    assert (first.holder_count, first.bytes, first.uses > 2.5) == (len(holders), len(SYSTEM), True)
    assert first.blocks is not None
    assert first.tokens == first.blocks * BLOCK_TOKENS > 0
    sim.evict()
    assert (await reports.report()).prefixes[0].holders == tuple(holders), "an answer is given again for a while"
    await sim.settle(PREFIXES_KEPT_S + 1.0)
    (gone,) = [one for one in (await reports.report()).prefixes if one.section == "sys"]
    assert (gone.holders, gone.holder_count) == ((), 0)


@virtual
async def test_holders_are_guessed_where_the_index_cannot_be_asked() -> None:
    """Of plain engines: where prompts were sent; while Redis is away: what it said last."""
    sim = await make_sim(2, plain=True)
    served = await sim.routers[0].send(SYSTEM + b"question", ends=SYSTEM_END)
    (first,) = [one for one in (await reports_of(sim, None).report()).prefixes if one.section == "sys"]
    assert (first.holders, first.blocks, first.tokens) == ((served.worker,), None, None)
    sim = await make_sim(2)
    served = await sim.routers[0].send(SYSTEM + b"question", ends=SYSTEM_END)
    await sim.settle()
    away = CountingIndex()
    away.away = True
    (first,) = [one for one in (await reports_of(sim, away).report()).prefixes if one.section == "sys"]
    assert first.holders == (served.worker,)


@virtual
async def test_index_is_asked_about_so_many_pairs_only() -> None:
    """In a large fleet about likely holders first; once for all who look at the same time."""
    sim = await make_sim(2)
    for number in range(12):
        await sim.routers[0].send(b"%d. " % number + SYSTEM, ends=[(SectionType.SYS, len(SYSTEM))])
    await sim.settle()
    index = CountingIndex()
    reports = reports_of(sim, index)
    holder = next(iter(reports._workers))
    crowd = {
        f"aa{number:04}": Worker(f"aa{number:04}", Endpoint("h", 1, False, ""), make_record(f"aa{number:04}"), 0.0)
        for number in range(500)
    }
    reports._workers = {**crowd, **reports._workers}
    asked: list[Any] = []
    index.depths = lambda candidates, chains: (
        asked.append((candidates, chains)) or [[0] * len(candidates)] * len(chains)
    )  # type: ignore[assignment,func-returns-value,method-assign]
    await asyncio.gather(*(reports.report() for _ in range(5)))
    ((candidates, chains),) = asked
    assert len(candidates) * len(chains) <= CHECKS_MAX < DEPTHS_MAX
    assert len(candidates) > 2
    assert holder in {ref.worker for ref in candidates[:2]}


# Ghost locks


def lock(worker: str, taken_at: float, *, ours: bool = True, keys: tuple[bytes, ...] = (b"\x01", b"\xab")) -> GhostLock:
    return GhostLock([b"a", b"b", b"c"], keys, worker, taken_at=taken_at, ready_at=12.0, ours=ours)


def test_locks_that_are_held_oldest_first() -> None:
    """Those that are over, or have run out, are not shown; late ones are negative."""
    released, expired, foreign = lock("r", 1.0), lock("e", 1.0), lock("f", 8.0, ours=False)
    released.released, expired.expires_at = True, 9.0
    found = lock_reports([lock("new", 9.0), released, expired, foreign], 14.0)
    assert [(one.worker, one.ours, one.confirmed, one.age_s) for one in found.locks] == [
        ("f", False, True, 6.0),
        ("new", True, False, 5.0),
    ]
    assert {(one.key, one.boundaries, one.ready_s) for one in found.locks} == {("ab", 3, -2.0)}
    many = lock_reports([lock("w", float(number)) for number in range(LOCKS_SHOWN + 9)], 500.0)
    assert (len(many.locks), many.total, many.locks[0].age_s) == (LOCKS_SHOWN, LOCKS_SHOWN + 9, 500.0)


# Links


def put_links(index: MemoryIndex, worker: Worker, reports: dict[str, LinkReport | bytes]) -> None:
    fields = {
        f"0:{owner}": report if isinstance(report, bytes) else msgspec.msgpack.encode(report)
        for owner, report in reports.items()
    }
    assert worker.record is not None
    index.put_report(ref_of(worker.record), links_report(0), fields, ttl_s=1000.0)


def link(bytes_per_s: float | None = 1e9, error: str = "") -> LinkReport:
    return LinkReport(ok=not error, transport="nixl", bytes_per_s=bytes_per_s, rtt_us=9.0, error=error, at=990.0)


def test_links_are_those_that_workers_have_timed() -> None:
    """By reader and owner; what is no report is left out; a plain engine has none."""
    index, clock, workers = CountingIndex(), FakeClock(), workers_of("a", "b")
    workers["plain"] = Worker("plain", Endpoint("h", 1, False, ""), None, 0.0)
    put_links(index, workers["a"], {"c": link(), "b": link(None, "no way"), "bad": b"\xc1"})
    reports = LinkReports(index, workers, at_once, clock, wall_clock=clock)
    found = asyncio.run(reports.report(None))
    assert [(one.reader, one.owner, one.ok, one.bytes_per_s, one.error, one.age_s) for one in found.links] == [
        ("a", "b", False, None, "no way", 10.0),
        ("a", "c", True, 1e9, "", 10.0),
    ]
    assert found.readers == 2
    assert asyncio.run(reports.report("plain")).links == ()
    with pytest.raises(Refusal, match="no such worker"):
        asyncio.run(reports.report("nobody"))


def test_links_are_read_seldom_and_kept_while_redis_is_away() -> None:
    """However many look at them; a worker that has left is forgotten."""
    index, clock, workers = CountingIndex(), FakeClock(), workers_of("a", "b")
    put_links(index, workers["a"], {"b": link()})
    reports = LinkReports(index, workers, at_once, clock, wall_clock=clock)
    for _ in range(3):
        assert len(asyncio.run(reports.report(None)).links) == 1
    assert index.read == ["a", "b"]
    index.away = True
    clock.advance(KEPT_S + 1.0)
    assert len(asyncio.run(reports.report(None)).links) == 1
    index.away = False
    asyncio.run(reports.report("a"))
    assert index.read == ["a", "b", "a"]
    del workers["a"]
    assert asyncio.run(reports.report(None)).links == ()
    assert asyncio.run(LinkReports(None, workers, at_once, clock).report(None)).links == ()


def test_links_are_bounded() -> None:
    """In readers, and in links of each."""
    names = [f"w{number:03}" for number in range(READERS_MAX + 10)]
    index, clock, workers = CountingIndex(), FakeClock(), workers_of(*names)
    put_links(index, workers["w000"], {f"p{number:03}": link() for number in range(LINKS_MAX + 10)})
    found = asyncio.run(LinkReports(index, workers, at_once, clock).report(None))
    assert (len(found.links), found.readers, len(index.read)) == (LINKS_MAX, READERS_MAX, READERS_MAX)
