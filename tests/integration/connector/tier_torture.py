"""The torture of the host tier: slots are reused at full speed while they are copied down, loaded up, or read by peers.

    python -m tests.integration.connector.tier_torture {down|up|nixl|relay} --rounds 10000
                                        [--mutate seal-first|bump-last|bump-skipped|no-generation|swapped]

down: the engine reuses slots while the copier copies them. up: host slots are reused while they are loaded. nixl,
relay: an owner in a process of its own copies engine slots into host slots that a reader READs. As in torture.py, the
content of a slot tells which (slot, generation) wrote it, so that a block is recognised that was accepted though it is
torn or stale. `--mutate` breaks an order, or a comparison, on purpose: the run must then find such blocks.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ghostcacher_connector.core.types import Segment, SlotMemory
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.base import PullRequest, PullResult, Validity
from ghostcacher_connector.transfer.copier import Copier
from ghostcacher_connector.transfer.jobs import CopyJob
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from tests.integration.connector.torture import BLOCKS_PER_PULL, SLOT_BYTES, SLOTS, Tally, run
from tests.support.kv_memory import KvMemory

MUTATIONS = ("seal-first", "bump-last", "bump-skipped", "no-generation", "swapped")
LATE_S = 0.0002
"""How early the broken order reads the seal, and how late the other one bumps."""

WAIT_S = 20.0


class SealFirstCopier(Copier):
    """The broken copier: reads the seal before the rows."""

    early: Validity | None = None

    def _current(self, job: CopyJob, incarnation: bytes) -> Validity:
        if self.early is None:
            self.early = super()._current(job, incarnation)
            time.sleep(LATE_S)
            return self.early
        early, self.early = self.early, None
        return early


class TrustingCopier(Copier):
    """The broken copier: compares no generation."""

    def _current(self, job: CopyJob, incarnation: bytes) -> Validity:  # noqa: ARG002 - what it compares elsewhere
        return np.ones(len(job.engine_slots), dtype=np.bool_)


class SealFirstLoads(LocalTransport):
    """The broken reader: checks a seal that was read before the rows."""

    def pull(self, request: PullRequest) -> PullResult:
        self._early = super()._check_seal(request)
        time.sleep(LATE_S)
        return super().pull(request)

    def _check_seal(self, _request: PullRequest) -> Validity:
        return self._early


class TrustingLoads(LocalTransport):
    """The broken reader: compares no generation."""

    def _check_seal(self, request: PullRequest) -> Validity:
        return np.ones(len(request.local_slots), dtype=np.bool_)


def swapped(memory: SlotMemory) -> SlotMemory:
    """The host's slots with the wrong base: each is the next one."""
    moved = tuple(Segment(s.base + s.stride_bytes, s.stride_bytes, s.slot_bytes) for s in memory.segments)
    return SlotMemory(memory.tier, memory.slot_count - 1, moved)


class Writer:
    """Reuses the slots `[first, first + SLOTS)` of a memory at full speed, in a thread, until it is left."""

    def __init__(self, memory: KvMemory, first: int, mutate: str | None) -> None:
        self.published = np.zeros(SLOTS, dtype=np.uint64)
        self.rounds = 0
        self._memory, self._first, self._mutate = memory, first, mutate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def __enter__(self) -> Writer:
        self._thread.start()
        until = time.monotonic() + WAIT_S
        while not self.published.all():
            assert time.monotonic() < until
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        rng = np.random.default_rng(7)
        generations = np.zeros(SLOTS, dtype=np.uint64)
        while not self._stop.is_set():
            slots = rng.choice(SLOTS, size=4, replace=False).astype(np.int64)
            generations[slots] += np.uint64(1)
            where, what = slots + self._first, generations[slots]
            if self._mutate == "bump-skipped" and self.rounds % 2 and self.published.all():
                self._memory.overwrite(where, what)  # and nobody is told
                self.rounds += 1
                continue
            if self._mutate == "bump-last":
                self._memory.overwrite(where, what)
                time.sleep(LATE_S)
                self._memory.table.bump(where, what)
            else:
                self._memory.write(where, what)
            self.published[slots] = what
            self.rounds += 1


def tally(rounds: int, writer: Writer, move: Callable[[Slots, Generations], tuple[Any, Any]]) -> Tally:
    """Have random groups of slots moved as published at the moment, and check what is called valid.

    move: given slots, from 0, and generations, returns which are valid and which hold the right bytes.
    """
    rng = np.random.default_rng(1)
    accepted = stale = bad = 0
    started = time.monotonic()
    for _ in range(rounds):
        slots = rng.choice(SLOTS, size=BLOCKS_PER_PULL, replace=False).astype(np.int64)
        valid, good = move(slots, writer.published[slots].copy())
        accepted += int(valid.sum())
        stale += int((~valid).sum())
        bad += int((valid & ~good).sum())
    assert writer.rounds > 0
    return Tally(rounds, accepted, stale, bad, 0, time.monotonic() - started)


def run_down(rounds: int, mutate: str | None = None) -> Tally:
    """Copy engine slots down while the engine reuses them."""
    memory = KvMemory(SLOTS, 1, SLOT_BYTES, host_slots=SLOTS + 1)
    engine, host = memory.memories
    made = {"seal-first": SealFirstCopier, "no-generation": TrustingCopier}.get(mutate or "", Copier)
    copier = made((engine, swapped(host) if mutate == "swapped" else host), memory.table)
    places = np.arange(BLOCKS_PER_PULL, dtype=np.int64) + SLOTS

    def move(slots: Slots, generations: Generations) -> tuple[Any, Any]:
        copier.submit(CopyJob(1, slots, generations, places))
        (result,) = copier.poll(wait_s=WAIT_S)
        return result.valid, memory.holds(places, slots, generations)

    with Writer(memory, 0, mutate) as writer:
        counted = tally(rounds, writer, move)
    assert copier.close()
    return counted


def run_up(rounds: int, mutate: str | None = None) -> Tally:
    """Load host slots into the engine while they are given to other blocks."""
    memory = KvMemory(SLOTS, 1, SLOT_BYTES, host_slots=SLOTS + 1)
    engine, host = memory.memories
    peer = MemoryTransport(Fabric(), memory.memories, memory.table, name="me").endpoint(rank=0)
    made = {"seal-first": SealFirstLoads, "no-generation": TrustingLoads}.get(mutate or "", LocalTransport)
    source = swapped(host) if mutate == "swapped" else host
    local = made((engine, source), memory.table, agent_name=peer.agent_name)
    places = np.arange(BLOCKS_PER_PULL, dtype=np.int64)

    def move(slots: Slots, generations: Generations) -> tuple[Any, Any]:
        remote = slots + SLOTS
        result = local.pull(PullRequest(peer, remote, places, generations, time.monotonic() + WAIT_S))
        return result.valid, memory.holds(places, remote, generations)

    with Writer(memory, SLOTS, mutate) as writer:
        return tally(rounds, writer, move)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("down", "up", "nixl", "relay"))
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--mutate", choices=MUTATIONS)
    chosen = parser.parse_args()
    if chosen.way in {"down", "up"}:
        counted = (run_down if chosen.way == "down" else run_up)(chosen.rounds, chosen.mutate)
    else:
        counted = run(chosen.rounds, kind=chosen.way, mutate=chosen.mutate, host=True)
    print(counted)
    return 1 if counted.bad or not counted.stale or not counted.accepted else 0


if __name__ == "__main__":
    sys.exit(main())
