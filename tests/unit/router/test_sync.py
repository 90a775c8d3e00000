"""What a router hears of workers and other routers, and what it makes of it."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, Batch, Cursor, Flush, PrefixMapUpdate
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.coordination_parts import make_update
from tests.support.routing_sim import all_of, make_sim

TEXT = text_of("text", 4000)
SMALL = text_of("small", 200)


@pytest.mark.parametrize("scope", ["all", "doc", "session"])
@virtual
async def test_flush_reaches_every_router(scope: str) -> None:
    """What one router is told to forget, all forget: sessions by their key, texts with everything about them."""
    sim = await make_sim(3, routers=2)
    one, two = sim.routers
    await one.send(SMALL, session="s")
    await two.send(SMALL, session="s")
    key = session_key("m", "s")
    assert one.routing.sync is not None
    one.routing.sync.publish(Flush(scope, b"" if scope == "all" else key, "r0"))
    await sim.settle(0.1)
    for router in sim.routers:
        assert (router.routing.state.sessions.get(key) is None) is (scope != "doc")
        assert ("boundaries=0" in repr(router.routing.state.history)) is (scope != "session")
        assert ("prefixes=0" in repr(router.routing.state.locations)) is (scope != "session")


@virtual
async def test_sync_survives_a_store_that_goes_and_comes() -> None:
    """While the store is away requests are served; what was learned meanwhile reaches the others after."""
    sim = await make_sim(3, routers=2)
    one, two = sim.routers
    assert one.store is not None
    one.store.reachable = False
    await sim.settle(1)
    assert len(await all_of([one.send(text_of(f"t{number}", 500)) for number in range(4)])) == 4
    one.store.reachable = True
    await sim.settle(5)
    await one.send(TEXT)
    await sim.settle(1)
    assert len(two.text) == len(one.text) > 0


@pytest.mark.interpreted
@virtual
async def test_item_that_cannot_be_applied_costs_that_item_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted and passed over: what comes with it and after it is applied, each once."""
    sim = await make_sim()
    router, applied = sim.routers[0], []

    def apply(text: PrefixMapUpdate) -> None:
        applied.append(text.router)
        if text.router == "bad":
            raise ValueError("a bug")

    monkeypatch.setattr(router.text, "apply", apply)
    for batch in (["one", "bad", "two"], ["three"]):
        sim.store.append_updates([make_update(name) for name in batch])
        await sim.settle(5)
    assert applied == ["one", "bad", "two", "three"]
    assert router.metrics.bad_items.total == 1


@pytest.mark.interpreted
@virtual
async def test_greatest_items_let_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the loop handles more than some 1,024 boundaries, however many one update has; none is lost."""
    sim = await make_sim()
    router, most = sim.routers[0], BOUNDARIES_MAX
    turns: list[int] = []
    handled = 0

    async def count_turns() -> None:
        nonlocal handled
        while True:
            turns.append(handled)
            handled = 0
            await asyncio.sleep(0)

    apply = router.text.apply

    def counted_apply(update: PrefixMapUpdate) -> None:
        nonlocal handled
        handled += len(update.digests)
        apply(update)

    assert router.routing.sync is not None
    monkeypatch.setattr(router.text, "apply", counted_apply)
    batch = Batch(Cursor("0-0", "0-0"), (), (make_update(count=most), make_update(seed=1, count=most)))
    ticker = asyncio.create_task(count_turns())
    await router.routing.sync._handle(batch)
    ticker.cancel()
    assert sum(turns) + handled == 2 * most == len(router.text)
    assert max(*turns, handled) <= 1024


@virtual
async def test_stop_deregisters() -> None:
    """A router that stops frees its locks, writes its sessions, and is counted no more."""
    sim = await make_sim(3)
    router = sim.routers[0]
    sim.store.heartbeat("another", ttl_s=60.0)
    await sim.settle()
    placed = await router.picker.place(router.ask(TEXT, session="s"))
    assert placed.lock is not None
    assert placed.lock.token is not None
    await router.routing.stop()
    assert sim.store.locks(placed.lock.keys) == [None] * len(placed.lock.keys)
    assert sim.store.sessions([session_key("m", "s")]) == [placed.worker]
    assert sim.store.heartbeat("another", ttl_s=1.0).routers == 1


@pytest.mark.parametrize("id_comes_first", [True, False])
@virtual
async def test_prompt_is_learned_under_the_answers_id(id_comes_first: bool) -> None:
    """Engines name some requests by the id of the answer: of a stream it comes before they have computed anything, else
    after all else. What was learned is known to every router, and the prompt counts as computed at that worker."""
    sim = await make_sim(3, routers=2)
    one, two = sim.routers
    ask = one.ask(TEXT)
    placed = await one.picker.place(ask._replace(shape=ask.shape._replace(makes_id=True)))
    engine = sim.engines[placed.worker]
    placed.sent()
    if id_comes_first:
        placed.answer_id("resp_1")
    prefilled = await engine.prefill("resp_1", TEXT)
    await sim.settle(0.2)
    assert (len(one.text) > 0, placed.reservation.prefilling) == (id_comes_first, not id_comes_first)
    if not id_comes_first:
        placed.answer_id("resp_1")
    engine.release(prefilled)
    placed.ended(Outcome.DONE, 200)
    await sim.settle(0.2)
    assert len(one.text) == len(two.text) > 0
    rows = await two.picker.explain(two.ask(TEXT))
    assert max(row["local_tokens"] for row in rows) > 0  # type: ignore[type-var]
    assert "open=0" in repr(one.routing.tracker)
