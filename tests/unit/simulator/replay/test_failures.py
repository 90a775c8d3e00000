"""Failures as a script: what a text says, what is refused, what happens to a run. What does not hold is said."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.pool import KvPool
from ghostcacher_simulator.replay.failures import Failure, check_workers, parse_failure
from ghostcacher_simulator.replay.invariants import InvariantBroken
from ghostcacher_simulator.replay.replay import Ending, Run
from ghostcacher_simulator.replay.watched import watched_replay
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.simulator.replay.support import entrant, fleet, load

TEXTS = {
    "death:w1@20": Failure("death", 20.0, "w1"),
    "death:w12@2.5+10": Failure("death", 2.5, "w12", 10.0),
    "redis@0+3": Failure("redis", 0.0, None, 3.0),
    "flush@7": Failure("flush", 7.0),
    "link:w0@1+2/8": Failure("link", 1.0, "w0", 2.0, 8.0),
}


@pytest.mark.parametrize("text", TEXTS)
def test_failure_is_read_and_said_alike(text: str) -> None:
    assert parse_failure(text) == TEXTS[text]
    assert str(TEXTS[text]) == text


@pytest.mark.parametrize(
    "text",
    ["", "fire@1", "death@1", "death:1@1", "death:w1", "death:w1@-1", "redis@1", "redis:w1@1+1", "flush@1+1",
     "link:w1@1+1", "link:w1@1/2", "link:w1@1+1/0.5", "death:w1@1+1/2", "death:w1@1e3"],
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


def test_slot_that_is_lost_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not hold is said with the time and the step."""

    def lose(self: KvPool, block: BlockHash) -> None:
        self._blocks.pop(block)
        self._filled.discard(block)

    monkeypatch.setattr(KvPool, "_drop", lose)
    with pytest.raises(InvariantBroken, match=r"^at \d+\.\d+ s, after '.*': KvPool\(.*\): slots are lost"):
        run("round-robin", load(*((float(number), f"{number}") for number in range(9))), fleet(1, kv_blocks=30))


def test_error_in_a_callback_ends_the_run() -> None:
    """A loop only logs what a callback raises: that would hide a fault."""

    async def main() -> None:
        def fail() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_later(3.0, fail)
        await watched_replay(entrant("round-robin"), load((0, "a"), (5, "b")), fleet(1))

    with pytest.raises(InvariantBroken, match="an error that nobody has taken: ValueError"):
        run_virtual(main())
