"""The object tier of a simulated fleet: what is kept, what goes, what one worker writes, and who reads it."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.machines.workers import FleetSpec, HostTier, ObjectTier
from ghostcacher_simulator.replay.objects import Objects, ObjectWriter
from ghostcacher_simulator.replay.replay import Ending, Run
from ghostcacher_simulator.virtual_time import virtual
from tests.unit.simulator.replay.support import fleet, load
from tests.unit.simulator.replay.test_failures import run

A, B, C = (name.encode() for name in "abc")


def test_what_was_used_longest_ago_goes_first() -> None:
    objects = Objects(ObjectTier(1e3, blocks=2), 100)
    objects.put(A)
    objects.put(B)
    objects.use([A])
    objects.put(C)
    assert [block in objects for block in (A, B, C)] == [True, False, True]
    assert (len(objects), objects.bytes) == (2, 200)
    assert objects.prefix([C, A, B, A], 0) == 2
    assert objects.prefix([B, C, A], 1) == 3
    assert objects.read_s(3) == pytest.approx(0.02 + 0.3)


@virtual
async def test_writes_come_one_after_the_other_and_are_dropped_where_too_much_waits() -> None:
    """A block takes 0.1 s; two may wait. What is there is not written again, and the dead write nothing."""
    objects, dead = Objects(ObjectTier(1e3, queue_bytes=250), 100), False
    writer = ObjectWriter(objects, lambda: dead)
    for number in range(5):
        writer.offer(b"%d" % number)
    assert (len(objects), objects.dropped) == (0, 2)
    await asyncio.sleep(0.11)
    assert (b"0" in objects, len(objects)) == (True, 1)
    await asyncio.sleep(0.2)
    assert len(objects) == 3
    writer.offer(b"0")
    writer.offer(A)
    await asyncio.sleep(0.11)
    assert A in objects
    writer.offer(B)
    dead = True
    await asyncio.sleep(1)
    assert (len(objects), B in objects) == (4, False)


def with_objects(spec: FleetSpec, **given: float) -> FleetSpec:
    return spec._replace(objects=ObjectTier(**{"bytes_per_s": 50_000.0, "fixed_s": 0.1} | given))  # type: ignore[arg-type]


def last(requests: Load, spec: FleetSpec, *failures: str) -> Run:
    return run("prefix", requests, spec, *failures)


SPEC = fleet(1, kv_blocks=12, host=HostTier(40, 100_000.0))
REQUESTS = load((0, "a"), (5, "b"), (10, "c"), (30, "a"))


def test_worker_that_lives_anew_reads_what_it_had_kept() -> None:
    """Its cache and its host tier are empty; 8 kB are read at 50 kB/s, and ten computed."""
    (*_, again) = last(REQUESTS, with_objects(SPEC), "death:w0@20+1").served
    assert (again.ending, again.stored_tokens, again.computed_tokens) == (Ending.ANSWERED, 800, 10)
    assert again.ttft_s == pytest.approx(0.1 + 8_000 / 50_000 + 0.01 + 0.006)
    (*_, without) = last(REQUESTS, SPEC, "death:w0@20+1").served
    assert without.computed_tokens == 810


def test_host_tier_goes_before_the_object_tier() -> None:
    (*_, again) = last(REQUESTS, with_objects(SPEC)).served
    assert (again.loaded_tokens, again.stored_tokens) == (800, 0)


def test_store_that_is_slower_than_computing_is_not_read() -> None:
    (*_, again) = last(REQUESTS, with_objects(SPEC, fixed_s=0.9), "death:w0@20+1").served
    assert (again.stored_tokens, again.computed_tokens) == (0, 810)


def test_what_does_not_fit_the_store_is_computed() -> None:
    """It holds two blocks, of prompts that came later."""
    (*_, again) = last(REQUESTS, with_objects(SPEC, blocks=2), "death:w0@20+1").served
    assert again.stored_tokens == 0


def test_peer_that_has_as_much_goes_before_the_object_tier() -> None:
    """The third prompt has driven the first one to the host tier of w0, and to the store; w1 asks for it."""
    two = with_objects(fleet(2, kv_blocks=12, host=HostTier(40, 100_000.0)))
    found = run("round-robin-pulls", load((0, "a"), (5, "b"), (10, "c"), (30, "a")), two)
    (*_, again) = found.served
    assert (again.worker, again.pulled_tokens, again.stored_tokens) == ("w1", 800, 0)
    assert found.stored_bytes >= 8_000
