"""What breaks around the engines: owners, Redis, and what stands in it. Answers stay right, and nothing hangs.

`a` and `b` are producers, `c` is a consumer: what c pulls can only come from them, and nothing comes from c. The tests
run in this order, and each leaves the fleet as it found it; the one that kills an owner comes last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from benchmarks.harness import run_concurrently
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.types import Location, Tier
from tests.e2e.fleet import BLOCK_TOKENS, DIRECTORY_S, FORGED_TTL_S, Fleet, running, until, warm_up

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCKS = 4
PROMPT_TOKENS = BLOCKS * BLOCK_TOKENS + 1
LEASE_S = 15.0
"""Outlasts the time for which an owner is silenced below."""

NUM_BLOCKS = 1500
"""Room for all that this module computes: nothing is withdrawn for want of space."""


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    roles = {"a": "kv_producer", "b": "kv_producer", "c": "kv_consumer"}
    engines = {name: {"role": role, "num_blocks": NUM_BLOCKS} for name, role in roles.items()}
    with running(model, engines, log_dir=log_dir, connector={"lease_ttl_s": LEASE_S}) as fleet:
        fleet.prime("c", "a")
        fleet.prime("c", "b")
        yield fleet


def ask(fleet: Fleet, prompt: list[int]) -> None:
    """Ask the consumer; assert that its answer is the one that it gives on its own."""
    fleet.assert_right("c", fleet.client("c").complete(prompt, max_tokens=8), prompt)


@contextmanager
def silenced(fleet: Fleet, name: str) -> Iterator[None]:
    """Stop an engine, so that it does not repair what a test writes to Redis. Its memory can still be read."""
    fleet.engines[name].pause()
    try:
        yield
    finally:
        fleet.engines[name].resume()


def test_consumer_publishes_nothing(fleet: Fleet) -> None:
    """What a consumer computes is in nobody's reach."""
    fleet.client("c").complete(fleet.document(PROMPT_TOKENS), max_tokens=2)
    assert fleet.record("c") is not None
    assert fleet.entries("c") == {}
    assert fleet.client("c").metrics().sum("gc_published_entries_total") == 0


def test_producer_pulls_nothing(fleet: Fleet) -> None:
    """A producer computes what another producer offers."""
    prompt = fleet.document(PROMPT_TOKENS)
    fleet.compute("a", prompt)
    before = fleet.entries("b")
    answer = fleet.client("b").complete(prompt, max_tokens=8)
    assert answer.cached_tokens in (0, None)
    fleet.wait_published("b", before, BLOCKS)
    assert fleet.client("b").metrics().sum("gc_rdma_transfers_total") == 0


# -- what stands in Redis ------------------------------------------------------------------------------------------


Poison = Callable[[dict[bytes, bytes], schema.Binding], dict[bytes, bytes]]


def _relocated(change: Callable[[Location], Location]) -> Poison:
    """Point entries elsewhere, under digests that fit: only the seal can tell."""

    def poison(entries: dict[bytes, bytes], binding: schema.Binding) -> dict[bytes, bytes]:
        return {
            block: binding.pack(block, change(*binding.unpack([block], packed))) for block, packed in entries.items()
        }

    return poison


def _of_the_next_block(entries: dict[bytes, bytes], _: schema.Binding) -> dict[bytes, bytes]:
    """Valid values of live slots, each under the hash of another block: only the digest can tell."""
    values = list(entries.values())
    return dict(zip(entries, values[1:] + values[:1], strict=True))


POISONS: dict[str, Poison] = {
    "entries of other blocks": _of_the_next_block,
    "a slot that another block is in": _relocated(lambda at: at._replace(slot=at.slot % 200 + 1)),
    "slots beyond the memory": _relocated(lambda at: at._replace(slot=at.slot + 100_000)),
    "a later generation": _relocated(lambda at: at._replace(generation=at.generation + 1)),
    "the greatest generation": _relocated(lambda at: at._replace(generation=(1 << 64) - 1)),
    "no generation at all": _relocated(lambda at: at._replace(generation=0)),
    "another tier": _relocated(lambda at: at._replace(tier=Tier.OBJECT)),
    "values too short": lambda entries, _: dict.fromkeys(entries, b"\x00\x01"),
    "values too long": lambda entries, _: dict.fromkeys(entries, b"\x00" * 64),
    "values of an unknown tier": lambda entries, _: dict.fromkeys(entries, b"\xff" * schema.ENTRY_BYTES),
    "values without a digest": lambda entries, _: {block: packed[:13] for block, packed in entries.items()},
}


@pytest.mark.parametrize("poison", POISONS)
def test_poisoned_entries_are_recomputed(fleet: Fleet, poison: str) -> None:
    """Whatever stands in the index instead of an entry, the reader computes, counts a miss and is right."""
    prompt = fleet.document(PROMPT_TOKENS)
    fleet.compute("a", prompt)
    key, entries, counters = fleet.blocks_key("a"), fleet.entries("a"), fleet.counters("c")
    record = fleet.record("a")
    assert record is not None
    poisoned = POISONS[poison](entries, schema.Binding(record.namespace, record.incarnation))

    with silenced(fleet, "a"):
        fleet.raw(lambda client: client.hset(key, mapping=poisoned))
        ask(fleet, prompt)
        fleet.raw(lambda client: client.hset(key, mapping=entries))

    assert counters.hits() == 0
    assert counters.misses() == BLOCKS


def test_entries_of_another_worker_are_recomputed(fleet: Fleet) -> None:
    """Entries of one worker that stand under another's name point at memory that does not hold them."""
    prompt = fleet.document(PROMPT_TOKENS)
    fleet.compute("b", prompt)
    own, keys = {name: fleet.entries(name) for name in "ab"}, {name: fleet.blocks_key(name) for name in "ab"}
    counters = fleet.counters("c")

    with silenced(fleet, "a"), silenced(fleet, "b"):
        fleet.raw(lambda client: client.hset(keys["a"], mapping=own["b"]))
        fleet.raw(lambda client: client.delete(keys["b"]))
        ask(fleet, prompt)

    assert counters.hits() == 0
    assert counters.misses() == BLOCKS
    until(lambda: fleet.entries("a") == own["a"], "a to find what it never entered, and repair")
    until(lambda: fleet.entries("b") == own["b"], "b to enter its blocks again")


def test_text_in_place_of_the_entries_is_a_miss_and_is_repaired(fleet: Fleet) -> None:
    """A key of the wrong type neither crashes nor hits; its owner replaces it."""
    prompt = fleet.document(PROMPT_TOKENS)
    fleet.compute("a", prompt)
    key, entries, counters = fleet.blocks_key("a"), fleet.entries("a"), fleet.counters("c")

    with silenced(fleet, "a"):
        fleet.raw(lambda client: client.set(key, "a text"))
        ask(fleet, prompt)

    assert counters.hits() == 0
    assert counters.misses() == BLOCKS
    until(lambda: fleet.raw(lambda client: client.type(key)) == b"hash", "a to replace the text")
    until(lambda: fleet.entries("a") == entries, "the entries of a, entered again")


RECORDS = {
    "garbage": lambda _: b"\x93garbage",
    "no ranks": lambda record: schema.pack_record(msgspec.structs.replace(record, ranks=())),
    "another life": lambda record: schema.pack_record(msgspec.structs.replace(record, incarnation=bytes(16))),
    "memory that is not there": lambda record: schema.pack_record(
        msgspec.structs.replace(record, ranks=tuple(msgspec.structs.replace(e, table=4096) for e in record.ranks))
    ),
    "an agent that is none": lambda record: schema.pack_record(
        msgspec.structs.replace(
            record, ranks=tuple(msgspec.structs.replace(e, agent_metadata=b"\x00" * 99) for e in record.ranks)
        )
    ),
}


@pytest.mark.parametrize("poison", RECORDS)
def test_poisoned_worker_record_is_a_miss_and_is_repaired(fleet: Fleet, poison: str) -> None:
    """Whatever a worker's record says, readers live and are right; the owner's next renewal puts it right."""
    prompts = [fleet.document(PROMPT_TOKENS) for _ in range(6)]
    for prompt in prompts:
        fleet.compute("a", prompt, max_tokens=1)
    record = fleet.record("a")
    assert record is not None
    key = schema.worker_key(record.namespace, "a")

    def refused() -> bool:
        time.sleep(DIRECTORY_S)
        counters = fleet.counters("c")
        ask(fleet, prompts.pop())
        return counters.hits() == 0 and counters.misses() == BLOCKS

    with silenced(fleet, "a"):
        fleet.raw(lambda client: client.set(key, RECORDS[poison](record), ex=FORGED_TTL_S))
        until(refused, "c to look at the directory")

    until(lambda: fleet.record("a") == record, "the owner's own record, put back by its renewal")
    fleet.prime("c", "a")


# -- Redis and owners come and go ----------------------------------------------------------------------------------


def test_owner_that_is_stopped_holds_nobody_up(fleet: Fleet) -> None:
    """Requests for blocks of a stopped owner are answered rightly, while its lease lasts and after; then it is back."""
    prompts = [fleet.document(PROMPT_TOKENS) for _ in range(3)]
    for prompt in prompts:
        fleet.compute("a", prompt)
    counters = fleet.counters("c")

    with silenced(fleet, "a"):
        for prompt in prompts[:2]:
            ask(fleet, prompt)
        until(lambda: fleet.record("a") is None, "the lease of a to run out")
        until(lambda: counters.grown("gc_peers_live") == -1, "c to see that a is gone")
        seen = fleet.counters("c")
        ask(fleet, prompts[2])
        assert seen.hits() == 0

    until(lambda: fleet.record("a"), "a to join again")
    fleet.prime("c", "a")


@pytest.mark.parametrize("event", ["flush", "restart", "pause"])
def test_redis_that_fails_under_load_changes_no_answer(fleet: Fleet, event: str) -> None:
    """Through a flush, a kill and a silence of Redis every answer is right; afterwards all is published and pulled."""
    prompts = [fleet.document(PROMPT_TOKENS) for _ in range(24)]
    for prompt in prompts[:16]:
        fleet.compute("a", prompt, max_tokens=1)
    held, asked = fleet.entries("a"), threading.Semaphore(0)
    counters = fleet.counters("c")

    def work(number: int) -> None:
        ask(fleet, prompts[number])
        asked.release()

    def disturb(_: int) -> None:
        for _ in range(3):
            assert asked.acquire(timeout=60)
        {"flush": fleet.redis.flush, "restart": fleet.redis.kill, "pause": fleet.redis.pause}[event]()
        for _ in range(8):
            assert asked.acquire(timeout=60)
        {"flush": lambda: None, "restart": fleet.redis.start, "pause": fleet.redis.resume}[event]()

    jobs = [(disturb, 0)] + [(work, number) for number in range(len(prompts))]
    run_concurrently(lambda job: job[0](job[1]), jobs, concurrency=3)

    assert counters.hits() > 0
    assert counters.misses() > 0
    until(lambda: fleet.entries("a").keys() >= held.keys(), "everything that a held, in the index again")
    fleet.prime("c", "a")


def test_owner_that_is_killed_changes_no_answer_and_works_again_after_restart(fleet: Fleet) -> None:
    """An owner killed while its blocks are pulled costs time only; its next life is pulled from again."""
    prompts = [fleet.document(PROMPT_TOKENS) for _ in range(16)]
    for prompt in prompts:
        fleet.compute("a", prompt, max_tokens=1)
    shared = fleet.document(PROMPT_TOKENS)
    fleet.compute("b", shared)
    old, asked, counters = fleet.record("a"), threading.Semaphore(0), fleet.counters("c")
    killed = threading.Event()
    assert old is not None

    def work(number: int) -> None:
        if number >= len(prompts) // 2:  # on a fast machine, the killing would come after the last one
            assert killed.wait(timeout=60)
        ask(fleet, prompts[number])
        asked.release()

    def kill(_: int) -> None:
        for _ in range(3):
            assert asked.acquire(timeout=60)
        fleet.engines["a"].kill()
        killed.set()

    jobs = [(kill, 0)] + [(work, number) for number in range(len(prompts))]
    run_concurrently(lambda job: job[0](job[1]), jobs, concurrency=3)
    ask(fleet, shared)  # of an owner that lives

    assert counters.hits() >= 3 * BLOCKS
    reasons = counters.reasons()
    assert sum(reasons.values()) > 0
    assert set(reasons) <= {"peer_unreachable", "transfer_failed", "not_indexed", "timeout"}
    fleet.engines["a"].restart()
    fleet.engines["a"].wait_ready()
    warm_up(fleet, ["a"])
    new = until(lambda: fleet.record("a"), "the record of a's next life")
    assert new.incarnation != old.incarnation
    fleet.prime("c", "a")
