"""Weights that change under a running engine: never shared under the old ones' name, and the worker rejoins by itself.

Real scheduler, real executor interface of vLLM, real connector, NIXL and Redis; only the forward pass is ours.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.output import SchedulerOutput

from ghostcacher_connector.engines.common.weight_watch import READ_AGAIN_MAX_S
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, tokens_of
from tests.integration.connector.simfleet import settled, wait_for

pytestmark = pytest.mark.engine

BLOCKS = 12
OUTPUT_TOKENS = 4
POOL = 256


def compute(engine: SimEngine, seed: int, *, blocks: int = BLOCKS) -> float:
    """Complete a prompt rightly for the weights of now; return how many of its blocks came from peers."""
    tokens = tokens_of(seed, blocks * BLOCK_TOKENS + 3)
    before = engine.counted("gc_cache_hits_total")
    name = f"p{seed}-{len(engine.requests)}"
    engine.add(name, tokens, max_tokens=OUTPUT_TOKENS)
    engine.run()
    assert engine.outputs(name) == expected_output(tokens, OUTPUT_TOKENS, engine.rank.weight)
    assert engine.wrong == []
    return engine.counted("gc_cache_hits_total") - before


def reset(engine: SimEngine) -> None:
    """Reset the prefix cache alone, as RL stacks do."""
    assert engine.scheduler.reset_prefix_cache()


def namespace(engine: SimEngine) -> str:
    return str(engine.connector._scheduler._fleet.record.namespace)


def in_fleet(engine: SimEngine) -> Callable[[], bool]:
    """Say whether the directory has the engine's present record, and no other under its name."""

    def there() -> bool:
        fleet = engine.connector._scheduler._fleet
        found = [record for record in fleet.index.workers() if record.worker == engine.name]
        return found == [fleet.record]

    return there


def knows(engine: SimEngine, other: SimEngine) -> bool:
    """Say whether an engine's two halves know another one as it is now, and reach it."""
    record = other.connector._scheduler._fleet.record
    puller = engine.worker._worker._runtime.puller
    peer, link = puller.peers.find(other.name), puller.links().get(other.name)
    if peer is None or link is None or engine.connector._scheduler._fleet.live_workers.get(other.name) != record:
        return False
    return bool(peer.incarnation == record.incarnation and link.connected)


def meet(a: SimEngine, b: SimEngine) -> None:
    """Wait until both engines know each other as they are now."""
    wait_for(lambda: knows(a, b) and knows(b, a), f"{a.name} and {b.name} meet")


def pair(make: Make, **options: Any) -> tuple[SimEngine, SimEngine]:
    engines = make("a", blocks=POOL, **options), make("b", blocks=POOL, **options)
    meet(*engines)
    return engines


UPDATES = [
    pytest.param(lambda e, w: e.rpc("update_weights", w), id="method"),
    pytest.param(lambda e, w: e.rpc(lambda rank: rank.model.weight.fill_(w)), id="function"),
    pytest.param(lambda e, w: e.rank.update_weights(w), id="past-the-executor"),
]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("update", UPDATES)
def test_changed_weights_share_nothing_with_the_old_ones(make: Make, update: Any, in_flight: int) -> None:
    """In both directions; and whoever is given the same weights shares again, in a namespace of these weights."""
    a, b = pair(make, in_flight=in_flight)
    old = namespace(a)
    compute(a, 1)
    settled(a)
    assert compute(b, 1) == BLOCKS

    update(a, 7)
    reset(a)
    assert compute(a, 1) == 0
    settled(a)
    assert namespace(a) != old
    assert compute(a, 2) == 0
    settled(a)
    reset(b)
    assert compute(b, 2) == 0
    assert compute(b, 3) == 0
    settled(b)
    assert compute(a, 3) == 0
    assert a.counted("gc_weight_changes_total") == 1
    assert b.counted("gc_weight_changes_total") == 0
    assert a.connector._scheduler._fleet.record.fingerprint["weights_epoch"] != WEIGHTS_AS_STARTED

    update(b, 7)
    reset(b)
    compute(b, 4)
    assert namespace(b) == namespace(a)
    meet(a, b)
    settled(a)
    assert compute(b, 1) == BLOCKS
    compute(b, 5)
    settled(b)
    assert compute(a, 5) == BLOCKS


@pytest.mark.parametrize("in_flight", [1, 2])
def test_weights_of_the_start_are_the_start_again(make: Make, in_flight: int) -> None:
    """A worker that gets back what it was started with shares with those that were never touched."""
    a, b = pair(make, in_flight=in_flight)
    old = namespace(a)
    for weight in (3, 0):
        a.rpc("update_weights", weight)
        reset(a)
        compute(a, 1)
    assert namespace(a) == old
    meet(a, b)
    settled(a)
    assert compute(b, 1) == BLOCKS


def test_harmless_call_changes_nothing(make: Make) -> None:
    """A method that nobody knows is looked into, and the worker goes on sharing what it has."""
    a, b = pair(make)
    compute(a, 1)
    settled(a)
    incarnation = a.worker._worker._table.incarnation
    assert a.rpc("ping") == ["pong"]
    a.rpc("update_weights", 0)
    compute(a, 2)
    settled(a)
    assert a.worker._worker._table.incarnation == incarnation
    assert compute(b, 1) == BLOCKS
    assert compute(b, 2) == BLOCKS
    assert a.counted("gc_weight_changes_total") == 0


def test_steps_are_no_reason_to_read_the_weights(make: Make) -> None:
    """What vLLM calls by itself costs nothing."""
    a = make("a")
    reads: list[int] = []
    watch = a.connector._scheduler._epochs._weights
    read = watch._read
    watch._read = lambda: reads.append(1) or read()
    compute(a, 1)
    assert reads == []
    a.rpc("ping")
    a.rpc("ping")
    compute(a, 2)
    assert reads == [1]


@pytest.mark.parametrize("reset_first", [False, True])
def test_reset_of_the_connectors_cache_goes_on_sharing(make: Make, reset_first: bool) -> None:
    """`pause(clear_cache=True)` of unchanged weights: what was there is withdrawn, what comes is shared."""
    a, b = pair(make)
    compute(a, 1)
    settled(a)
    if reset_first:
        assert a.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    else:
        a.connector.reset_cache()
    compute(a, 2)
    settled(a)
    assert compute(b, 1) == 0
    assert compute(b, 2) == BLOCKS


@pytest.mark.parametrize("in_flight", [1, 2])
def test_weights_changed_in_the_midst_of_requests(make: Make, in_flight: int) -> None:
    """Without any reset, vLLM goes on with KV of the old weights: none of it, or built on it, is ever shared."""
    a, b = pair(make, in_flight=in_flight)
    b.rpc("update_weights", 7)
    reset(b)
    compute(b, 100)
    compute(a, 1)
    running = tokens_of(2, 8 * BLOCK_TOKENS)
    a.add("running", running, max_tokens=40)
    for _ in range(4):
        a.step()
    a.rpc("update_weights", 7)
    a.add("hits-old-blocks", tokens_of(1, BLOCKS * BLOCK_TOKENS) + tokens_of(9, 4 * BLOCK_TOKENS), max_tokens=4)
    a.run()
    a.add("again", tokens_of(1, BLOCKS * BLOCK_TOKENS) + tokens_of(9, 4 * BLOCK_TOKENS), max_tokens=4)
    a.run()
    assert namespace(a) == namespace(b)
    meet(a, b)
    settled(a)
    assert len(a.connector._scheduler._fleet.publisher.held_blocks) == 0
    for prompt in (running, tokens_of(1, BLOCKS * BLOCK_TOKENS) + tokens_of(9, 4 * BLOCK_TOKENS)):
        before = b.counted("gc_cache_hits_total")
        b.add(f"r{len(b.requests)}", prompt, max_tokens=4)
        b.run()
        assert b.wrong == []
        assert b.counted("gc_cache_hits_total") == before
    a.rank.wrong.clear()
    assert not a.scheduler.has_requests()
    reset(a)
    compute(a, 3)
    settled(a)
    assert compute(b, 3) == BLOCKS


def test_pull_on_its_way_is_not_used_for_other_weights(make: Make) -> None:
    """Blocks that had arrived, unheard of, when the weights changed: the request computes them itself."""
    a, b = pair(make)
    tokens = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    compute(a, 1)
    settled(a)
    puller = b.worker._worker._runtime.puller
    go, run = threading.Event(), puller._run
    pulled: list[int] = []

    def run_and_wait(job: Any) -> Any:
        result, over = run(job)
        pulled.append(int(result.valid.sum()))
        go.wait(60)
        return result, over

    puller._run = run_and_wait
    b.add("pulled", tokens, max_tokens=OUTPUT_TOKENS)
    wait_for(lambda: (b.step(), pulled == [BLOCKS])[1], "b has pulled")
    b.rpc("update_weights", 7)
    b.step()
    go.set()
    b.run()
    assert b.wrong == []
    assert b.outputs("pulled") == expected_output(tokens, OUTPUT_TOKENS, 7)
    assert b.counted("gc_cache_hits_total") == 0


def test_unreadable_weights_are_shared_with_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model cannot be read, a call that may have changed it gives a namespace that nobody else has, until a
    later step reads it, without another call."""
    a, b = pair(make)
    old = namespace(a)
    with monkeypatch.context() as broken:
        broken.setattr(a.rank, "get_model", lambda: 1 / 0)
        broken.setattr(b.rank.model, "named_parameters", lambda: 1 / 0)
        for engine in (a, b):
            engine.rpc("ping")
            reset(engine)
            compute(engine, 1)
        assert len({old, namespace(a), namespace(b)}) == 3
    for engine in (a, b):
        engine.connector._scheduler._epochs._weights._clock = lambda: time.monotonic() + READ_AGAIN_MAX_S
        compute(engine, 2)
        assert namespace(engine) == old
    meet(a, b)
    compute(a, 3)
    settled(a)
    assert compute(b, 3) == BLOCKS


@pytest.mark.parametrize("in_flight", [1, 2])
def test_rank_that_lost_a_step_shares_again(make: Make, in_flight: int) -> None:
    """All ranks begin anew once, with every generation, and what was published before is refused."""
    a, b = pair(make, in_flight=in_flight)
    moves, move = [], a.connector._scheduler._fleet.move
    a.connector._scheduler._fleet.move = lambda record: (moves.append(record), move(record))
    compute(a, 1)
    settled(a)
    reset(a)
    a.connector._scheduler.build_metadata(SchedulerOutput.make_empty())  # takes the bumps, and never arrives
    compute(a, 2)
    compute(a, 3)
    settled(a)
    meet(a, b)
    assert compute(b, 1) == 0
    assert compute(b, 3) == BLOCKS
    table, watch = a.worker._worker._table, a.connector._scheduler._watch
    assert [table.generation(slot) for slot in range(table.slot_count)] == watch._generations
    assert a.counted("gc_weight_changes_total") == 0
    assert len(moves) == 1


def test_many_changes_leave_nothing_behind(make: Make) -> None:
    """No thread, descriptor or record is left of earlier namespaces."""
    a, b = pair(make)

    def change(weight: int) -> None:
        for engine in (a, b):
            engine.rpc("update_weights", weight)
            reset(engine)
            compute(engine, weight)
        meet(a, b)

    change(1)
    wait_for(lambda: [thread.name for thread in threading.enumerate()].count("gc-probe-0") == 2, "all threads")
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for weight in range(2, 8):
        change(weight)
    wait_for(in_fleet(a), "one record of a")
    wait_for(in_fleet(b), "one record of b")
    assert threading.active_count() <= threads
    # Six changes of two engines: fewer than one of each. A pool of connections to Redis grows now and then by one, when
    # two threads happen to need one at once.
    assert len(os.listdir("/proc/self/fd")) < files + 12
    settled(a)
    assert a.counted("gc_weight_changes_total") == 7
