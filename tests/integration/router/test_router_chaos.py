"""Workers, Redis and routers killed, stopped and restarted under load: what clients of the real programs notice.

After each test nothing may be left over in any router: see ChaosFleet.under_load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from random import Random

import pytest

from tests.conftest import SOAK
from tests.support.chaos_fleet import ChaosFleet
from tests.support.steady_load import SteadyLoad, Wrong

pytestmark = pytest.mark.timeout(600)

NAMES = ("a", "b", "c")
ROUNDS = 8 if SOAK else 1


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosFleet]:
    with ExitStack() as stack:
        yield ChaosFleet(stack, tmp_path_factory.mktemp("chaos"), NAMES)


def check_broken(load: SteadyLoad, killed: list[str]) -> None:
    """Assert that nothing failed but answers that had begun in one of these lives."""
    assert [failure for failure in load.failures if failure.wrong is not Wrong.BROKEN] == []
    assert [failure for failure in load.failures if failure.incarnation not in killed] == []


def test_rolling_restart_fails_no_request(fleet: ChaosFleet) -> None:
    """Each worker drained by one router, restarted when both have nothing in flight there, is used again by both."""
    with fleet.under_load() as load:
        for number, name in enumerate(NAMES * ROUNDS):
            fleet.restart_gently(name, router=number % 2)
            fleet.wait_used(load, name)
    assert load.failures == []


def test_stopped_worker_holds_up_only_what_it_has(fleet: ChaosFleet) -> None:
    """A worker that hangs is soon sent nothing more, and answers what it had when it goes on: no request fails."""
    with fleet.under_load() as load:
        for name in NAMES[:ROUNDS]:
            stop_for_a_while(fleet, name)
            fleet.resume(name)
            fleet.wait_whole()
            load.go_on(20)
    assert load.failures == []


def test_killed_worker_breaks_only_begun_answers(fleet: ChaosFleet) -> None:
    """Answers that had begun at a worker when it was killed break off; every other request is answered, also what
    waited for a worker that hung."""
    killed = []
    with fleet.under_load() as load:
        for number, name in enumerate(NAMES[:2] * ROUNDS):
            killed.append(fleet.incarnation[name])
            if number % 2:
                stop_for_a_while(fleet, name)
            fleet.kill(name)
            fleet.start(name)
            load.go_on(20)
            fleet.wait_used(load, name)
    check_broken(load, killed)


def stop_for_a_while(fleet: ChaosFleet, name: str) -> None:
    """Have a worker hang, until both routers leave it out and requests of fresh clients go by it."""
    fleet.pause(name)
    fleet.wait(lambda pods: name not in pods, f"{name} is out")
    # All clients of the load may be waiting for it by now.
    with fleet.more_load() as fresh:
        fresh.go_on(20)
    assert fresh.failures == []
    assert not fresh.answered(incarnation=fleet.incarnation[name])


@pytest.mark.parametrize("event", ["restart", "flush"])
def test_redis_that_forgets_fails_no_request(fleet: ChaosFleet, event: str) -> None:
    """Redis away, back empty, or flushed: all requests are answered, a drained worker gets none of them until it is
    taken back, and both routers agree on the workers again."""
    with fleet.under_load() as load:
        for name in NAMES * ROUNDS if SOAK else NAMES[:1]:
            fleet.drain(name)
            load.go_on(20)  # Clients count an answer a moment after its router has passed it on.
            before = load.answered(incarnation=fleet.incarnation[name])
            forget(fleet, load, event)
            fleet.wait(lambda pods: {pod.lease for pod in pods.values()} == {"held"}, "the workers are back")
            load.go_on(100)
            assert load.answered(incarnation=fleet.incarnation[name]) == before
            fleet.take_back(name, router=1)
            fleet.wait_whole()
    assert load.failures == []


def forget(fleet: ChaosFleet, load: SteadyLoad, event: str) -> None:
    """Have Redis lose everything, and both routers see it empty."""
    if event == "flush":
        for name in NAMES:
            fleet.pause(name)  # Else some would be back before a router looks.
        fleet.redis.flush()
    else:
        fleet.redis.kill()
    fleet.wait(lambda pods: [pod.lease for pod in pods.values()] == ["kept"] * len(NAMES), "Redis has no leases")
    if event == "flush":
        for name in NAMES:
            fleet.resume(name)
    else:
        load.go_on(20)
        fleet.redis.start()


def test_killed_router_is_nothing_to_the_other(fleet: ChaosFleet) -> None:
    """The other router's clients see no failure, and a new one in its place knows what was learned before it came."""
    here, other = fleet.routers
    with fleet.under_load() as load:
        for _ in range(ROUNDS):
            load.until(lambda: fleet.knows(other, load.first_body), "the first prompt is learned")
            load.leave(here.url, Wrong.LOST, Wrong.BROKEN)
            here.process.kill()
            load.go_on(30, routers=[other.url])
            here.start()
            fleet.wait_whole()
            # Nobody asks for it again: it is read from the store, which a start waits for no longer than a while.
            load.until(lambda: fleet.knows(here, load.first_body), "what was learned before is known to the new one")
            load.come_back(here.url)
            load.go_on(20)
    assert load.failures == []


def test_stopped_router_ends_what_it_has_begun(fleet: ChaosFleet) -> None:
    """A router that is asked to end answers what it has taken, and ends well."""
    here, other = fleet.routers
    with fleet.under_load() as load:
        for _ in range(ROUNDS):
            load.leave(here.url, Wrong.LOST)
            here.process.request_stop()
            load.go_on(20, routers=[other.url])
            here.stop()
            assert here.process.poll() == 0
            here.start()
            load.come_back(here.url)
            load.go_on(20)
    assert load.failures == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_any_mix_breaks_only_begun_answers(fleet: ChaosFleet, seed: int) -> None:
    """Workers and Redis ill-treated at the same time, in any order."""
    rng, killed = Random(seed), list[str]()
    with fleet.under_load() as load:
        for _ in range(25):
            name, redis = rng.choice(NAMES), rng.choice(("there", "away", "forgets"))
            if redis == "there" and rng.random() < 0.5:
                fleet.restart_gently(name, router=rng.randrange(2))
            else:
                killed += ill_treat(fleet, load, name, redis, stopped=rng.random() < 0.5, dies=rng.random() < 0.5)
            fleet.wait_whole()
            load.go_on(5)
    check_broken(load, killed)


def ill_treat(
    fleet: ChaosFleet, load: SteadyLoad, name: str, redis: str, *, stopped: bool, dies: bool
) -> Iterator[str]:
    """Do something to Redis and to a worker; yield the incarnation of it that was ended."""
    if redis == "away":
        fleet.redis.kill()
    if stopped:
        fleet.pause(name)
    if redis == "forgets":
        fleet.redis.flush()
    if dies:
        yield fleet.incarnation[name]
        fleet.kill(name)
        load.go_on(10)
        fleet.start(name)
    elif stopped:
        fleet.resume(name)
    load.go_on(10)
    if redis == "away":
        fleet.redis.start()
