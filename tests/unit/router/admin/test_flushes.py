"""What a request to /gc/flush makes routers forget, what workers are told, and what is said of their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.admin_api import Flushed, TierFlushed, WorkerFlushed
from ghostcacher_connector.core.coordination.base import Flush, PromptChain
from ghostcacher_connector.core.coordination.flushes import FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.sections import session_tag
from ghostcacher_connector.core.types import FlushScope, Tier
from ghostcacher_router.admin.actions import AdminActions
from ghostcacher_router.admin.parameters import CHAT, FlushTarget
from ghostcacher_router.admin.worker_flushes import WAIT_S, WorkerFlushes
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.prompt import parse_body
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Endpoint, RequestShape
from tests.support.index_parts import FakeClock, make_record
from tests.support.prompts import LONG, say

T = TypeVar("T")
SEED, NAMESPACE = 7, "ns"
REPORT = FlushReport((TierDropped(Tier.DEVICE, 2, 20), TierDropped(Tier.HOST, 1, 10)))
CONVERSATION = {
    "model": "m",
    "messages": [say("system", LONG), say("user", LONG), say("assistant", "a"), say("user", "b")],
}


def parse(path: str, body: bytes, headers: Any) -> RequestShape:
    return parse_body(path, body, headers, SEED)


class Bench:
    """A router's actions over a store in memory, and the workers that answer: "w1" and "w2", with a connector."""

    def __init__(self, *, redis: bool = True) -> None:
        self.clock, self.store = FakeClock(), MemoryCoordinationStore()
        self.answering = {"w1", "w2"}
        self.orders: list[FlushOrder] = []
        self.reports = [REPORT]
        self._cursor, _ = self.store.flush_orders(None)
        worker = SimpleNamespace(incarnation=b"i", namespace=NAMESPACE, takes_flushes=True)
        plain = SimpleNamespace(incarnation=None, namespace=None, takes_flushes=True)
        self.workers: dict[str, Any] = {"w2": worker, "w1": worker, "plain": plain}
        fleet: Any = SimpleNamespace(workers=self.workers, models=lambda: ["m"])
        self.text = PrefixMap("router-1")
        self.forgotten: list[Flush] = []
        routing: Any = SimpleNamespace(sync=SimpleNamespace(publish=self.forgotten.append))
        workers = WorkerFlushes(self.store if redis else None, self.offload, fleet, router="router-1", clock=self.clock)
        steps: Any = None  # Of what is explained.
        self.actions = AdminActions(
            fleet, self.text, routing, parse, steps=steps, workers=workers, router="router-1", seed=lambda: SEED
        )

    async def offload(self, call: Callable[[], T]) -> T:
        """Call the store; then the workers do what they are told, and time passes."""
        found = call()
        if self.store.reachable:
            self._cursor, orders = self.store.flush_orders(self._cursor)
            for order in orders:
                self.orders.append(order)
            for order in self.orders:
                report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
                for worker in self.answering:
                    self.store.put_flush_report(order.order, worker, report)
        self.clock.advance(0.5)
        return found

    def flush(self, target: FlushTarget) -> Flushed:
        return asyncio.run(self.actions.flush(target))

    def learn(self, tokens: int = 1024, block_tokens: int = 16) -> list[bytes]:
        """Have the router know which blocks the conversation became; return their hashes."""
        hashes = [b"%032d" % number for number in range(tokens // block_tokens)]
        prompt = parse(CHAT, json.dumps(CONVERSATION).encode(), {}).prompt
        assert prompt is not None
        chain = PromptChain("r", tokens, tuple(range(1, len(hashes) + 1)), tuple(hashes))
        assert self.text.learn(prompt, chain, NAMESPACE) is not None
        return hashes


def request(scope: FlushScope, **headers: Any) -> FlushTarget:
    return FlushTarget(scope, path=CHAT, request=json.dumps(CONVERSATION | headers).encode())


@pytest.mark.parametrize("scope", [FlushScope.ALL, FlushScope.TOOLS])
def test_every_worker_is_told_and_what_they_dropped_is_added_up(scope: FlushScope) -> None:
    """Those with a connector, by name."""
    bench = Bench()
    tiers = (TierFlushed("device", 2, 20), TierFlushed("host", 1, 10))
    workers = (WorkerFlushed("w1", True, tiers), WorkerFlushed("w2", True, tiers))
    assert bench.flush(FlushTarget(scope)) == Flushed(scope, 6, 60, workers)
    (order,) = bench.orders
    assert (order.scope, order.blocks, order.session, order.router) == (scope.value, (), b"", "router-1")
    assert bench.forgotten == ([Flush("all", b"", "router-1")] if scope is FlushScope.ALL else [])


def test_worker_that_does_not_answer_is_named_after_a_bounded_wait() -> None:
    """What the others have dropped is told all the same."""
    bench = Bench()
    bench.answering = {"w2"}
    began_at = bench.clock.now
    found = bench.flush(FlushTarget(FlushScope.ALL))
    assert [(worker.worker, worker.answered) for worker in found.workers] == [("w1", False), ("w2", True)]
    assert (found.blocks, found.error) == (3, None)
    assert WAIT_S <= bench.clock.now - began_at <= WAIT_S + 1


def test_worker_that_has_more_to_tell_is_waited_for() -> None:
    """What was dropped of objects is known later than the rest."""
    bench = Bench()
    early = TierDropped(Tier.OBJECT, 0, 0, complete=False)
    done = TierDropped(Tier.OBJECT, 4, 40)
    bench.reports = [FlushReport((*REPORT.dropped, early))] * 3 + [FlushReport((*REPORT.dropped, done))]
    found = bench.flush(FlushTarget(FlushScope.ALL))
    assert [worker.tiers[-1] for worker in found.workers] == [TierFlushed("object", 4, 40)] * 2
    assert (found.blocks, found.bytes) == (14, 140)


@pytest.mark.parametrize(
    ("dropped", "error"),
    [
        (TierDropped(Tier.OBJECT, 1, 10, complete=False), "not over yet"),
        (TierDropped(Tier.OBJECT, 1, 10, error="the store is away"), "the store is away"),
    ],
)
def test_what_is_left_of_a_tier_is_told_after_a_bounded_wait(dropped: TierDropped, error: str) -> None:
    bench = Bench()
    bench.reports = [FlushReport((*REPORT.dropped, dropped))]
    began_at = bench.clock.now
    found = bench.flush(FlushTarget(FlushScope.ALL))
    for worker in found.workers:
        assert (worker.answered, worker.tiers[-1].blocks) == (True, 1)
        assert error in (worker.tiers[-1].error or "")
    waited_s = bench.clock.now - began_at
    assert WAIT_S <= waited_s <= WAIT_S + 1 if not dropped.complete else waited_s < WAIT_S


@pytest.mark.parametrize("others", [True, False])
def test_worker_that_takes_no_orders_is_named_and_not_waited_for(others: bool) -> None:
    """Its record says so; the others are waited for as long as ever."""
    bench = Bench()
    if not others:
        bench.workers.clear()
    record = replace(make_record("s"), takes_flushes=False)
    bench.workers["s"] = Worker("s", Endpoint("127.0.0.1", 1, False, ""), record, bench.clock.now)
    began_at = bench.clock.now
    found = bench.flush(FlushTarget(FlushScope.ALL))
    assert [worker for worker in found.workers if worker.worker == "s"] == [
        WorkerFlushed("s", answered=False, supported=False)
    ]
    assert all(worker.answered and worker.supported for worker in found.workers if worker.worker != "s")
    assert (len(found.workers), found.error) == (3 if others else 1, None)
    assert bench.clock.now - began_at < WAIT_S


def test_store_that_is_away_is_told() -> None:
    """Nobody was told; the routers forget when they can."""
    bench = Bench()
    bench.store.reachable = False
    found = bench.flush(FlushTarget(FlushScope.ALL))
    assert not any(worker.answered for worker in found.workers)
    assert "unreachable" in (found.error or "")
    assert bench.forgotten


def test_without_redis_no_worker_is_told() -> None:
    """The router forgets."""
    found = Bench(redis=False).flush(FlushTarget(FlushScope.ALL))
    assert found.error == "without Redis no worker can be told"


def test_session_is_named_by_the_tag_that_its_requests_bear() -> None:
    """And forgotten under every model that there is."""
    bench = Bench()
    bench.flush(FlushTarget(FlushScope.SESSION, session="alice"))
    assert [order.session for order in bench.orders] == [session_tag("alice", SEED)]
    assert [flush.key for flush in bench.forgotten] == [session_key(None, "alice"), session_key("m", "alice")]


def test_prompt_is_named_by_its_last_known_block() -> None:
    """What comes before it is other prompts', too: the workers see what is."""
    bench = Bench()
    hashes = bench.learn()
    bench.flush(request(FlushScope.PREFIX))
    assert [order.blocks for order in bench.orders] == [(hashes[-1],)]
    assert len(bench.forgotten) > 1


def test_document_is_named_by_its_blocks_alone() -> None:
    """The system text before it is not in it."""
    bench = Bench()
    hashes = bench.learn()
    named = request(FlushScope.DOC, metadata={"gc_sections": "doc=1"})
    bench.flush(named)
    prompt = parse(CHAT, named.request or b"", {}).prompt
    assert prompt is not None
    (begin, end) = (prompt.ends[index] for section, index in prompt.section_ends if section in (1, 2))
    first, last = (place * 1024 // prompt.size // 16 for place in (begin, end))
    (order,) = bench.orders
    assert order.blocks
    assert set(order.blocks) <= set(hashes[first:last])
    assert order.blocks[-1] == hashes[last - 1]


def test_prompt_of_which_nothing_is_known_tells_no_worker() -> None:
    """There is nothing by which to name it."""
    bench = Bench()
    assert bench.flush(request(FlushScope.PREFIX)) == Flushed(FlushScope.PREFIX)
    assert not bench.orders
    assert bench.forgotten


def test_blocks_are_named_as_they_are() -> None:
    """By hashes that somebody has from an engine."""
    bench = Bench()
    bench.flush(FlushTarget(FlushScope.PREFIX, blocks=(b"h1", b"h2")))
    assert [order.blocks for order in bench.orders] == [(b"h1", b"h2")]
    assert not bench.forgotten


def test_prompt_without_documents_is_refused() -> None:
    """Rather than to flush nothing."""
    with pytest.raises(Refusal) as caught:
        Bench().flush(request(FlushScope.DOC))
    assert (caught.value.status, "documents" in cast(str, caught.value.message)) == (400, True)
