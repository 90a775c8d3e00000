"""Several simulated engines at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ghostcacher_connector.slots import Generations, Slots
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import expected_output, tokens_of
from tests.integration.connector.simranks import SimRank

OUTPUT_TOKENS = 6
SETTLE_S = 60.0
LATE_STEPS = 25
ROUNDS = 8


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {SETTLE_S} s: {what}"
        time.sleep(0.01)


def meet(*engines: SimEngine) -> None:
    """Wait until each engine sees and reaches the others."""
    for engine in engines:
        wait_for(lambda e=engine: e.peers_ready(len(engines) - 1), f"{engine.name} reaches its peers")


def settled(engine: SimEngine) -> None:
    """Wait until the index holds what the engine has published."""
    wait_for(engine.all_published, f"{engine.name} has published")


def cached_tokens(engine: SimEngine, request_id: str, prompt: list[int], **options: Any) -> int:
    """Serve a prompt; return how many of its tokens were not computed, and check the answer.

    options: see `SimEngine.add`.
    """
    found = found_tokens(engine, request_id, prompt, **options)
    request = engine.requests[request_id]
    assert engine.outputs(request_id) == expected_output(prompt, request.max_tokens)
    return found


def found_tokens(engine: SimEngine, request_id: str, prompt: list[int], **options: Any) -> int:
    """Serve a prompt, rightly or not; return how many of its tokens were not computed."""
    schedule, found = engine.scheduler.schedule, list[int]()

    def watched() -> Any:
        output = schedule()
        found.extend(new.num_computed_tokens for new in output.scheduled_new_reqs if new.req_id == request_id)
        return output

    engine.scheduler.schedule = watched
    engine.add(request_id, prompt, **options)
    engine.run()
    engine.scheduler.schedule = schedule
    return found[0]


class Gate:
    """Stands before the reading of an engine's rank: pulls begin when it is opened."""

    def __init__(self, engine: SimEngine) -> None:
        (transport, *_) = engine.worker._worker._runtime.puller._transports
        self._open = threading.Event()
        self._pull = transport.pull
        transport.pull = self._wait_and_pull

    def _wait_and_pull(self, request: Any) -> Any:
        assert self._open.wait(SETTLE_S)
        return self._pull(request)

    def open(self) -> None:
        self._open.set()


def drive(engines: list[SimEngine], requests: int, source: Iterator[list[int]], *, abort_every: int = 0) -> int:
    """Run requests over all engines until all have ended; return how many outputs were wrong."""
    live: list[dict[str, list[int]]] = [{} for _ in engines]
    started = wrong = 0
    deadline = time.monotonic() + 600
    while started < requests or any(live):
        assert time.monotonic() < deadline, f"stuck: {[list(requests) for requests in live]}"
        for engine, running in zip(engines, live, strict=True):
            while len(running) < 6 and started < requests:
                prompt, request_id = next(source), f"r{started}"
                engine.add(request_id, prompt, max_tokens=OUTPUT_TOKENS)
                running[request_id] = prompt
                started += 1
            engine.step()
            for request_id in [r for r in running if engine.requests[r].is_finished()]:
                prompt = running.pop(request_id)
                wrong += engine.outputs(request_id) != expected_output(prompt, OUTPUT_TOKENS)
            if abort_every and running and started % abort_every == 0:
                request_id, _ = running.popitem()
                engine.abort(request_id)
    return wrong


def drive_until_wrong(engines: list[SimEngine], requests: int, source: Iterator[list[int]]) -> None:
    """Run requests, so many in each of several rounds, until a step has read something wrong, as it must.

    Raises AssertionError when none has: then the torture proves nothing.
    """
    for _ in range(ROUNDS):
        drive(engines, requests, source)
        if any(engine.wrong for engine in engines):
            return
    raise AssertionError("no stale block was used; the torture proves nothing")


def resume_after_preemption(owner: SimEngine, engine: SimEngine) -> None:
    """Have an engine preempt requests for want of room whose prompts another one has; all that comes of them is right.

    Where pulls are slow beside steps, few requests run at once: then more are asked for.
    """
    for turn in range(1, ROUNDS + 1):
        texts = {f"r{turn}-{number}": tokens_of(100 * turn + number, 60) for number in range(6 * turn)}
        for name, text in texts.items():
            owner.add(name, text, max_tokens=2)
            owner.run()
            settled(owner)
        for name, text in texts.items():
            engine.add(name, text, max_tokens=60)
        engine.run()
        assert (owner.wrong, engine.wrong) == ([], [])
        for each, tokens in (owner, 2), (engine, 60):
            assert {name: each.outputs(name) for name in texts} == {
                name: expected_output(text, tokens) for name, text in texts.items()
            }
        if any(request.num_preemptions for request in engine.requests.values()):
            return
    raise AssertionError(f"not within {ROUNDS} rounds: {engine.name} preempts a request")


def bump_late(rank: SimRank) -> None:
    """Break the first ordering: each step's slots are bumped when some more steps have overwritten them."""
    table, held = rank.connector._worker._table, []
    bump = table.bump

    def late(slots: Slots, generations: Generations) -> None:
        held.append((slots, generations))
        if len(held) > LATE_STEPS:
            bump(*held.pop(0))

    table.bump = late
