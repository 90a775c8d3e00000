"""Requests wait in the router while no worker has room: order, bounds, deadlines, who goes when something changes."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.flow.wishes import digest_of
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.virtual_time import virtual
from tests.unit.router.flow.support import Controlled, header, refused, report, settled


@virtual
async def test_request_waits_until_another_one_ends() -> None:
    """And no timer is set for that: it goes in the same moment."""
    rig = Controlled()
    first, second = await rig.send(rig.ask("a")), await rig.send(rig.ask("b"))
    assert (first.done(), second.done(), len(rig.flow.queue)) == (True, False, 1)
    now = asyncio.get_running_loop().time()
    await rig.end("a")
    assert second.done()
    assert asyncio.get_running_loop().time() == now
    await rig.finish()


@virtual
async def test_as_many_go_as_there_is_room_for() -> None:
    """Two workers of two places each; those that end make room for as many, and no worker gets a third one."""
    rig = Controlled(2, worker_requests_max=2)
    for name in "abcdefgh":
        await rig.send(rig.ask(name))
        assert all(rig.router.routing.state.queues.in_flight(worker.name) <= 2 for worker in rig.workers)
    assert rig.order == list("abcd")
    await rig.end("b")
    await rig.end("c")
    assert rig.order == list("abcdef")
    assert [rig.router.routing.state.queues.in_flight(worker.name) for worker in rig.workers] == [2, 2]
    await rig.finish()


@virtual
async def test_lower_priority_goes_first() -> None:
    rig = Controlled(priorities="client", priority_min=-5, priority_max=5)
    await rig.send(rig.ask("runs"))
    await rig.send(rig.ask("late", priority=5))
    await rig.send(rig.ask("plain"))
    await rig.send(rig.ask("urgent", header(b"x-gc-priority", -5)))
    await rig.send(rig.ask("both", header(b"x-gc-priority", -1), priority=4))
    await rig.finish()
    assert rig.order == ["runs", "urgent", "both", "plain", "late"]


@virtual
async def test_priority_of_a_body_counts_for_nothing_where_a_proxy_sets_it() -> None:
    """Nor does one out of range: an engine may know what it means."""
    rig = Controlled(priorities="header", priority_min=-5)
    await rig.send(rig.ask("runs"))
    await rig.send(rig.ask("first"))
    await rig.send(rig.ask("pushes", priority=-1_000_000))
    await rig.send(rig.ask("trusted", header(b"x-gc-priority", -5)))
    await rig.finish()
    assert rig.order == ["runs", "trusted", "first", "pushes"]


@virtual
async def test_tenants_share_turns_by_work() -> None:
    """One floods the queue before the other has sent anything; the weight of one is twice that of others."""
    rig = Controlled(tenants="cache_salt", tenant_weights=("paying=2",))
    await rig.send(rig.ask("runs"))
    for number in range(6):
        await rig.send(rig.ask(f"flood{number}", cache_salt="flood"))
    for number in range(4):
        await rig.send(rig.ask(f"paying{number}", cache_salt="paying"))
    assert rig.flow.report().tenants == {digest_of(b"flood"): 6, digest_of(b"paying"): 4}
    await rig.finish()
    assert [name.rstrip("0123456789") for name in rig.order[1:7]].count("paying") == 4


@virtual
async def test_tenant_is_named_by_a_header() -> None:
    rig = Controlled(tenants="X-Tenant")
    await rig.send(rig.ask("runs"))
    for name, tenant in (("a1", b"a"), ("a2", b"a"), ("b1", b"b")):
        await rig.send(rig.ask(name, (b"x-tenant", tenant)))
    await rig.finish()
    assert rig.order == ["runs", "a1", "b1", "a2"]


@virtual
async def test_client_that_leaves_frees_its_place() -> None:
    rig = Controlled(queue_max=1)
    await rig.send(rig.ask("runs"))
    leaves = await rig.send(rig.ask("leaves"))
    assert (await refused(await rig.send(rig.ask("too many")))).status == 429
    leaves.cancel()
    await settled()
    await rig.send(rig.ask("next"))
    await rig.finish()
    assert rig.order == ["runs", "next"]


@virtual
async def test_turn_of_a_client_that_leaves_in_that_moment_goes_to_the_next() -> None:
    """Nobody takes its task out of the queue any more: it has its turn, and does not come for it."""
    rig = Controlled()
    await rig.send(rig.ask("runs"))
    leaves = await rig.send(rig.ask("leaves"))
    await rig.send(rig.ask("next"))
    rig.running.pop("runs").ended(Outcome.DONE, 200)
    leaves.cancel()
    await settled()
    assert rig.order == ["runs", "next"]
    await rig.finish()


@virtual
async def test_place_of_a_client_that_leaves_in_that_moment_is_taken() -> None:
    """Who takes it is placed in its turn, and leaves nothing behind."""
    rig = Controlled(priorities="header", queue_max=1)
    await rig.send(rig.ask("runs"))
    leaves = await rig.send(rig.ask("leaves", header(b"x-gc-priority", 5)))
    rig.tasks["takes"] = asyncio.create_task(rig.place(rig.ask("takes")))
    leaves.cancel()
    await settled()
    await rig.finish()
    assert rig.order == ["runs", "takes"]


@virtual
async def test_request_that_a_worker_refused_goes_before_all_that_wait() -> None:
    """Even where the queue is full: it was accepted long ago. It does not go to the worker that refused it."""
    rig = Controlled(2, queue_max=1, priorities="client", priority_min=-9)
    again = rig.ask("again")
    refuser = (await rig.send(again)).result().worker
    await rig.send(rig.ask("runs"))
    waits = await rig.send(rig.ask("waits", priority=-9))
    rig.running.pop("again").ended(Outcome.DONE, 503)
    await settled()
    assert waits.result().worker == refuser
    await rig.send(rig.ask("urgent", priority=-9))
    retry = await rig.send(again._replace(exclude=frozenset({refuser})))
    assert rig.flow.report().by_priority == {"again": 1, "-9": 1}
    await rig.end("runs")
    assert retry.result().worker != refuser
    await rig.finish()
    assert rig.order == ["again", "runs", "waits", "again", "urgent"]


@virtual
async def test_retry_waits_for_a_worker_that_has_not_refused_it() -> None:
    """Room at the one that has is for others, which do not wait behind the retry for nothing."""
    rig = Controlled(2)
    again = rig.ask("again")
    refuser = (await rig.send(again)).result().worker
    await rig.send(rig.ask("runs"))
    rig.running.pop("again").ended(Outcome.DONE, 503)
    retry = await rig.send(again._replace(exclude=frozenset({refuser})))
    assert not retry.done()
    other = await rig.send(rig.ask("other"))
    assert other.result().worker == refuser
    await rig.end("runs")
    assert retry.result().worker != refuser
    await rig.finish()


@virtual
async def test_retry_that_every_worker_has_refused_waits_for_nothing() -> None:
    """Nobody is left: its client is to be told, not to wait."""
    rig = Controlled(2)
    await rig.send(rig.ask("runs"))
    refused_by_all = rig.ask("again", exclude=frozenset({"w0", "w1"}))
    assert refused_by_all.turn is not None
    refused_by_all.turn.passed = frozenset({"w0"})
    error = await refused(await rig.send(refused_by_all))
    assert (error.kind, error.status) == ("no_worker", 503)
    await rig.finish()


@virtual
async def test_room_that_is_gone_before_it_is_used_is_waited_for_again() -> None:
    """A worker breaks off its request and dies: its room was given away, and the other one must not be overloaded."""
    rig = Controlled(2)
    broken = (await rig.send(rig.ask("broken"))).result().worker
    await rig.send(rig.ask("runs"))
    waits = await rig.send(rig.ask("waits"))
    rig.running.pop("broken").ended(Outcome.BROKE, None)
    await settled()
    assert not waits.done()
    assert rig.flow.report().by_priority == {"again": 1}
    await rig.end("runs")
    assert waits.result().worker != broken
    await rig.finish()


@virtual
async def test_second_step_waits_for_nothing() -> None:
    """Its prompt is computed, and lies there for seconds only."""
    rig = Controlled()
    await rig.send(rig.ask("runs"))
    assert (await rig.send(rig.ask("second", step=PdRole.DECODE))).done()
    await rig.finish()


@pytest.mark.parametrize("more", [{"method": "GET"}, {"path": "/tokenize"}, {"turn": None}])
def test_what_computes_nothing_waits_for_nothing(more: dict[str, object]) -> None:
    """Nor does what the router sends itself, such as a prefetch."""

    @virtual
    async def run() -> None:
        rig = Controlled()
        await rig.send(rig.ask("runs"))
        assert (await rig.send(rig.ask("light", **more))).done()
        await rig.finish()

    run()


@virtual
async def test_worker_that_is_wanted_by_prefix_gets_no_more_than_it_has_room_for() -> None:
    """The others of a hot document go elsewhere while there is room, and wait then."""
    rig = Controlled(2, worker_requests_max=2)
    for name in "abcde":
        await rig.send(rig.ask(name, prompt=rig.ask("hot").shape.prompt))
    assert [rig.router.routing.state.queues.in_flight(worker.name) for worker in rig.workers] == [2, 2]
    assert len(rig.flow.queue) == 1
    await rig.finish()


@virtual
async def test_plain_workers_are_shared_out_among_routers() -> None:
    """Each of two routers sends half of what a worker may have, and one at least."""
    rig = Controlled(replicas=2, worker_requests_max=5)
    for name in "abcd":
        await rig.send(rig.ask(name))
    assert rig.order == ["a", "b"]
    await rig.finish()


@virtual
async def test_new_reports_and_workers_give_turns() -> None:
    """Nothing of this router has ended: what others have sent has, or a worker has come."""
    rig = Controlled(2, stores=Stores(pulls=False), worker_requests_max=4)
    now = asyncio.get_running_loop().time()
    for worker in rig.workers:
        report(worker, now, running=4)
    rig.flow.changed()
    await settled()
    assert rig.flow.report().saturated == ("w0", "w1")
    task = await rig.send(rig.ask("a"))
    assert not task.done()
    report(rig.workers[1], now + 0.1, running=3)
    rig.flow.changed()
    await asyncio.sleep(0.05)
    assert task.result().worker == "w1"
    await rig.finish()


@virtual
async def test_models_at_the_same_worker_share_its_room() -> None:
    """An adapter, or a request that names no model, gets no turn of its own where there is room for one request."""
    rig = Controlled(priorities="header")
    for name, model, priority in (("runs", "m", 0), ("first", "m", 0), ("a", "a", 9), ("b", "b", 9), ("c", None, 9)):
        ask = rig.ask(name, header(b"x-gc-priority", priority))
        await rig.send(ask._replace(shape=ask.shape._replace(model=model)))
    await rig.end("runs")
    assert rig.flow.report().by_priority == {"9": 3}
    await rig.send(rig.ask("urgent"))
    await rig.finish()
    assert rig.order == ["runs", "first", "urgent", "a", "b", "c"]


@virtual
async def test_nobody_overtakes_who_waits_before_a_new_worker_is_looked_at() -> None:
    """It has room from the moment in which it is there."""
    rig = Controlled(2)
    rig.router.fleet.probe_failed("w1")
    await rig.send(rig.ask("runs"))
    waits = await rig.send(rig.ask("waits"))
    rig.router.fleet.came_back(rig.workers[1])
    assert rig.flow.place_now(rig.ask("new")) is None
    rig.flow.changed()
    await settled()
    assert waits.result().worker == "w1"
    await rig.finish()


@virtual
async def test_model_that_nobody_serves_is_no_reason_to_wait() -> None:
    rig = Controlled()
    await rig.send(rig.ask("runs"))
    waits = await rig.send(rig.ask("waits"))
    rig.router.fleet.probe_failed("w0")
    rig.flow.changed()
    error = await refused(waits)
    assert (error.status, error.kind) == (503, "no_worker")
    await rig.finish()


@virtual
async def test_drained_requests_are_spread_anew_and_never_lost() -> None:
    """A thousand requests, a worker that dies in between: each is placed or refused, and nothing is held at the end."""
    rig = Controlled(3, queue_max=50, worker_requests_max=3)
    for number in range(40):
        await rig.send(rig.ask(f"r{number}"))
        if number % 3 == 2 and rig.running:
            await rig.end(next(iter(rig.running)))
    rig.router.fleet.probe_failed("w1")
    rig.flow.changed()
    await rig.finish()
    assert sorted(rig.order) == sorted(f"r{number}" for number in range(40))
