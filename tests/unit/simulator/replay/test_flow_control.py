"""Flow control in simulated routers: who waits, who goes first, who is refused, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_simulator.load.requests import Load, Row, make_requests
from ghostcacher_simulator.load.tenants import Tenant, parse_tenant, shared_out
from ghostcacher_simulator.replay.failures import Failure
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import Ending, Run
from ghostcacher_simulator.replay.watched import watched_replay
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.simulator.replay.support import BLOCK, fleet, load


def run(requests: Load, *failures: Failure, key: str = "ghostcacher", workers: int = 1, **given: Any) -> Run:
    """Run a load with flow control: settings without `flow_`, by default a place for one request at each worker."""
    chosen = {"queue_max": 100, "worker_requests_max": 1} | given
    flow = FlowSettings(**{f"flow_{name}": value for name, value in chosen.items()})
    entrant = next(each for each in entrants(2, flow) if each.key == key)
    return run_virtual(watched_replay(entrant, requests, fleet(workers), failures))


def burst(count: int, *, apart_s: float = 0.01, **of: dict[str, Any]) -> Load:
    """Return requests that come nearly at once, some of them with fields of their own."""
    made = load(*((apart_s * number, f"p{number}") for number in range(count)))
    return made._replace(requests=[each._replace(**of.get(each.request_id, {})) for each in made.requests])


def order(found: Run) -> list[str]:
    return [each.request.request_id for each in found.served]


@pytest.mark.parametrize("key", ["ghostcacher", "ghostcacher-routers", "plain"])
def test_what_has_no_place_waits_in_its_router(key: str) -> None:
    """One at a time is served, and the others wait for it there. Two routers share the one place as they can."""
    found = run(burst(4), key=key)
    assert {each.ending for each in found.served} == {Ending.ANSWERED}
    waits = sorted(each.queued_s for each in found.served)
    assert waits[0] == 0
    assert waits[-1] > 0.8
    assert all(each.ttft_s is not None and each.ttft_s >= each.queued_s for each in found.served)


def test_urgent_request_overtakes_those_that_wait() -> None:
    requests = burst(4, q3={"priority": -1})
    assert order(run(requests, priorities="client", priority_min=-1)) == ["q0", "q3", "q1", "q2"]
    assert order(run(requests)) == ["q0", "q1", "q2", "q3"]


def test_small_tenant_has_its_turn_beside_a_flood() -> None:
    requests = burst(5, **{f"q{number}": {"tenant": "flood"} for number in range(4)}, q4={"tenant": "small"})
    assert order(run(requests, tenants="cache_salt")) == ["q0", "q1", "q4", "q2", "q3"]


def test_requests_without_a_turn_end_by_what_refused_them() -> None:
    """A full queue, the longest wait, and a deadline: each is counted for itself, with how long it waited."""
    found = run(burst(4), queue_max=2)
    assert [each.ending for each in found.served].count(Ending.REFUSED) == 1
    late = run(burst(2, q1={"deadline_s": 0.3}), deadlines=True)
    assert next((each.ending, each.queued_s) for each in late.served) == (Ending.LATE, pytest.approx(0.3))
    tired = run(burst(2), queue_timeout_s=0.5)
    assert next((each.ending, each.queued_s) for each in tired.served) == (Ending.TIMED_OUT, pytest.approx(0.5))


@pytest.mark.parametrize(("places", "worker"), [(256, "w0"), (1, "w1")])
def test_worker_without_room_is_chosen_where_waiting_there_is_cheaper(places: int, worker: str) -> None:
    """It has the prompt, and half a second to do first; the idle one would take two. Not where it is full."""
    prompts = [(0.0, "long", 20), (3.0, "short", 3), (3.05, "other", 8), (3.5, "long", 20)]
    rows = [
        Row(at_s, blocks * BLOCK + 10, 2, [*(f"{name}/{place}" for place in range(blocks)), f"end {at_s}"])
        for at_s, name, blocks in prompts
    ]
    flow = FlowSettings(flow_queue_max=9, flow_worker_work_ms_max=100.0, flow_worker_requests_max=places)
    entrant = next(each for each in entrants(1, flow) if each.key == "ghostcacher")
    requests = Load("test", make_requests(rows, block_tokens=BLOCK), BLOCK)
    found = run_virtual(watched_replay(entrant, requests, fleet(2, kv_blocks=64)))
    of = {each.request.request_id: each for each in found.served}
    assert (of["q0"].worker, of["q1"].worker, of["q2"].worker) == ("w0", "w1", "w0")
    assert (of["q3"].worker, of["q3"].queued_s) == (worker, 0.0)


def test_request_of_a_dead_worker_goes_before_those_that_wait() -> None:
    """Whoever waits is bound to no worker: nobody is lost, and none waits for the dead one."""
    found = run(burst(5), Failure("death", 0.5, "w0"), workers=2)
    assert {each.ending for each in found.served} == {Ending.ANSWERED}
    assert {each.worker for each in found.served} == {"w1"}
    assert max(each.attempts for each in found.served) == 2


def test_router_that_ends_serves_those_that_wait_in_it() -> None:
    found = run(burst(5), Failure("restart", 0.3))
    assert [each.ending for each in found.served] == [Ending.ANSWERED] * 5


def test_tenants_have_their_shares_and_keep_their_conversations() -> None:
    """Alike for one seed."""
    talks = load(*((float(number), "a") for number in range(400)))
    talks = talks._replace(
        requests=[each._replace(session=f"s{number % 100}") for number, each in enumerate(talks.requests)]
    )
    tenants = [Tenant("many", 3.0), Tenant("few", priority=-2, deadline=1.5)]
    shared = shared_out(talks, tenants, seed=1)
    assert shared == shared_out(talks, tenants, seed=1) != shared_out(talks, tenants, seed=2)
    assert len({(each.session, each.tenant) for each in shared.requests}) == 100
    few = [each for each in shared.requests if each.tenant == "few"]
    assert 60 < len(few) < 140
    assert {(each.priority, each.deadline_s) for each in few} == {(-2, 1.5)}
    assert shared_out(talks, [], seed=1) is talks


def test_tenant_is_described_in_words() -> None:
    assert parse_tenant("a") == Tenant("a")
    assert parse_tenant("a:share=0.5,priority=-3,deadline=2") == Tenant("a", 0.5, -3, 2.0)


@pytest.mark.parametrize("text", ["", "a b", "a:share", "a:share=0", "a:name=b", "a:priority=x", "a:weight=1"])
def test_tenant_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tenant: expected NAME"):
        parse_tenant(text)
