"""Failures as a script: what a text says, what is refused, what happens to a run. What does not hold is said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.index.base import Drop, Entry, WorkerRef
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.pool import KvPool
from ghostcacher_simulator.replay.failures import Failure, check_workers, parse_failure
from ghostcacher_simulator.replay.invariants import InvariantBroken
from ghostcacher_simulator.replay.policies import GhostCacher, entrants
from ghostcacher_simulator.replay.replay import SETTLE_S, Ending, Replay, Run
from ghostcacher_simulator.replay.routers import SimulatedRouter
from ghostcacher_simulator.replay.watched import watched_replay
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.simulator.replay.support import entrant, fleet, load

TEXTS = {
    "death:w1@20": Failure("death", 20.0, "w1"),
    "death:w12@2.5+10": Failure("death", 2.5, "w12", 10.0),
    "redis@0+3": Failure("redis", 0.0, None, 3.0),
    "flush@7": Failure("flush", 7.0),
    "link:w0@1+2/8": Failure("link", 1.0, "w0", 2.0, 8.0),
    "drain:w0@1": Failure("drain", 1.0, "w0"),
    "drain:w0@1+2": Failure("drain", 1.0, "w0", 2.0),
    "restart@4": Failure("restart", 4.0),
}


@pytest.mark.parametrize("text", TEXTS)
def test_failure_is_read_and_said_alike(text: str) -> None:
    assert parse_failure(text) == TEXTS[text]
    assert str(TEXTS[text]) == text


@pytest.mark.parametrize(
    "text",
    ["", "fire@1", "death@1", "death:1@1", "death:w1", "death:w1@-1", "redis@1", "redis:w1@1+1", "flush@1+1",
     "link:w1@1+1", "link:w1@1/2", "link:w1@1+1/0.5", "death:w1@1+1/2", "death:w1@1e3",
     "drain@1", "restart@1+1", "restart:w1@1"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"failure: expected death:WORKER@S, .*, got"):
        parse_failure(text)


def test_failure_of_a_worker_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="failure death:w2@1: expected a worker from w0 to w1, got w2"):
        check_workers([Failure("death", 1.0, "w2")], 2)


def run(key: str, requests: Load, spec: FleetSpec, *failures: str) -> Run:
    return run_virtual(watched_replay(entrant(key), requests, spec, [parse_failure(text) for text in failures]))


def test_worker_dies_and_lives_anew_with_an_empty_cache() -> None:
    found = run("ghostcacher", load((0, "a"), (4, "a"), (9, "a")), fleet(1), "death:w0@2+4")
    assert [each.ending for each in found.served] == [Ending.ANSWERED, Ending.UNPLACED, Ending.ANSWERED]
    assert found.served[-1].computed_tokens == 810


@pytest.mark.parametrize("failure", ["redis@3+4", "flush@3"])
def test_nothing_is_pulled_while_redis_has_nothing(failure: str) -> None:
    """And it is again once workers have entered it anew, also what they computed while Redis was away."""
    requests = load((0, "a"), (4, "a"), (5, "b"), (12, "x"), (13, "x"), (14, "b"))
    found = run("round-robin-pulls", requests, fleet(2, kv_blocks=40), failure)
    pulled = {each.request.request_id: each.pulled_tokens for each in found.served}
    assert pulled == {"q0": 0, "q1": 0, "q2": 0, "q3": 0, "q4": 800, "q5": 800}


def test_pull_over_a_narrow_link_takes_longer() -> None:
    requests = load((0, "a"), (5, "a"))
    wide, narrow = (run("round-robin-pulls", requests, fleet(2), *failures) for failures in ((), ("link:w0@1+30/4",)))
    assert (wide.served[-1].pulled_tokens, narrow.served[-1].pulled_tokens) == (800, 800)
    assert wide.served[-1].ttft_s is not None
    assert narrow.served[-1].ttft_s == pytest.approx(wide.served[-1].ttft_s + 3 * 0.8)


@pytest.mark.parametrize("key", [each.key for each in entrants(2)])
def test_worker_that_is_drained_ends_what_it_has_and_gets_nothing(key: str) -> None:
    """Both have long answers when w0 is drained: they end; what comes goes to w1, until w0 is taken back."""
    before, drained, after = [(0.01 * number, name) for number, name in enumerate("abcd")], "efg", "hijk"
    then = [*((4.0 + number, name) for number, name in enumerate(drained)), *((30.0, name) for name in after)]
    found = run(key, load(*before, *then, answer_tokens=500), fleet(2), "drain:w0@3.5+20")
    assert {each.ending for each in found.served} == {Ending.ANSWERED}
    served = sorted(found.served, key=lambda each: int(each.request.request_id[1:]))
    workers = [each.worker for each in served]
    assert set(workers[:4]) == set(workers[7:]) == {"w0", "w1"}
    assert workers[4:7] == ["w1"] * 3
    assert min(each.request.arrival_s + (each.ttft_s or 0) + 499 * (each.itl_s or 0) for each in served[:4]) > 3.5


def test_fleet_of_drained_workers_takes_nothing() -> None:
    found = run("ghostcacher", load((0, "a"), (4, "a")), fleet(1), "drain:w0@2")
    assert [each.ending for each in found.served] == [Ending.ANSWERED, Ending.UNPLACED]


def test_router_that_is_restarted_ends_what_it_has_and_the_new_one_finds_the_prompt() -> None:
    """The first answer goes on for 5 s after the restart; the same prompt is then found where it was computed."""
    found = run("ghostcacher", load((0, "a"), (1, "b"), (9, "b"), answer_tokens=800), fleet(3), "restart@2")
    assert [each.ending for each in found.served] == [Ending.ANSWERED] * 3
    first, again = (next(each for each in found.served if each.request.request_id == name) for name in ("q1", "q2"))
    assert (again.worker, again.local_tokens) == (first.worker, 800)


def test_router_that_is_restarted_stays_until_its_last_answer_has_ended() -> None:
    """That takes until 5.8 s; requests that come meanwhile go to the new one."""

    async def main() -> None:
        going = Replay(entrant("ghostcacher"), load((0, "a"), (3, "b"), answer_tokens=800), fleet(1))
        policy, loop, seen = going.policy, asyncio.get_running_loop(), []
        assert isinstance(policy, GhostCacher)
        old = policy.routers[0]

        def look() -> None:
            seen.append((list(policy.leaving), policy.routers[0].routing.state.queues.in_flight_total))

        loop.call_later(SETTLE_S + 2, going.restart, 0)
        loop.call_later(SETTLE_S + 4, look)
        loop.call_later(SETTLE_S + 6.5, look)
        await going.run()
        assert policy.routers[0] is not old
        assert seen == [([old], 1), ([], 1)]

    run_virtual(main())


def test_router_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay(_: SimulatedRouter) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(SimulatedRouter, "leave", stay)
    with pytest.raises(InvariantBroken, match="1 routers were to end and have not"):
        run("ghostcacher", load((0, "a"), (4, "a")), fleet(1), "restart@2")


def test_slot_that_is_lost_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not hold is said with the time and the step."""

    def lose(self: KvPool, block: BlockHash) -> None:
        self._blocks.pop(block)
        self._filled.discard(block)

    monkeypatch.setattr(KvPool, "_drop", lose)
    with pytest.raises(InvariantBroken, match=r"^at \d+\.\d+ s, after '.*': KvPool\(.*\): slots are lost"):
        run("round-robin", load(*((float(number), f"{number}") for number in range(9))), fleet(1, kv_blocks=30))


def test_block_that_is_never_withdrawn_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one behind a gap, which no lookup comes to: of a prompt's end only the part next to its beginning goes."""
    withdrawn = Connector.withdrawn

    def forget(self: Connector, blocks: Sequence[BlockHash]) -> None:
        withdrawn(self, blocks[-1:])

    monkeypatch.setattr(Connector, "withdrawn", forget)
    with pytest.raises(InvariantBroken, match=r"after 'the end': w0 has never withdrawn [0-9a-f]{8}$"):
        run("prefix", load((0, "a"), (5, "b"), (10, "c")), fleet(1, kv_blocks=20))


def test_entry_that_the_index_keeps_for_itself_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a gap, again: five blocks of the first prompt go, and the index takes out one of them."""
    apply = MemoryIndex.apply

    def keep(
        self: MemoryIndex, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float
    ) -> None:
        apply(self, ref, entries, drops[-1:], lease_ttl_s=lease_ttl_s)

    monkeypatch.setattr(MemoryIndex, "apply", keep)
    with pytest.raises(InvariantBroken, match=r"after 'the end': index: 23 entries of w0, expected 19$"):
        run("prefix", load((0, "a"), (5, "b"), (10, "c")), fleet(1, kv_blocks=20))


def test_error_in_a_callback_ends_the_run() -> None:
    """A loop only logs what a callback raises: that would hide a fault."""

    async def main() -> None:
        def fail() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_later(3.0, fail)
        await watched_replay(entrant("round-robin"), load((0, "a"), (5, "b")), fleet(1))

    with pytest.raises(InvariantBroken, match="an error that nobody has taken: ValueError"):
        run_virtual(main())
