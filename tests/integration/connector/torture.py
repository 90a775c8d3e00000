"""The torture of the seal: a writer reuses slots at full speed while a reader pulls them.

    python -m tests.integration.connector.torture --pulls 100000 [--transport nixl|relay] [--threads 2]
                                        [--mutate seal-first|bump-last] [--device 0]

No torn or stale block may pass. The content of a slot tells which (slot, generation) wrote it, in every word, so that
a block that was accepted though it is torn or stale is recognised. `--mutate` breaks one of the two orderings on
purpose: the run must then find such blocks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport, Validity
from ghostcacher_connector.transfer.nixl.reader import Loan, NixlReader
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from tests.support.kv_memory import KvMemory, make_memory
from tests.support.owner_client import OwnerProcess

SLOTS = 16
SLOT_BYTES = 64 << 10
BLOCKS_PER_PULL = 4
MUTATIONS = ("seal-first", "bump-last")
TOKEN = "torture"
CONNECT_TIMEOUT_S = 10.0


class Tally(NamedTuple):
    """Counts of blocks. bad: accepted though torn or stale."""

    pulls: int = 0
    accepted: int = 0
    stale: int = 0
    bad: int = 0
    failed_pulls: int = 0
    seconds: float = 0.0

    def plus(self, other: Tally) -> Tally:
        return Tally(
            self.pulls + other.pulls,
            self.accepted + other.accepted,
            self.stale + other.stale,
            self.bad + other.bad,
            self.failed_pulls + other.failed_pulls,
            max(self.seconds, other.seconds),
        )


EARLY_SEAL_S = 0.0002
"""How early the broken order reads the seal: over a network it would be a round trip."""


class SealFirst(NixlTransport):
    """The broken reader: checks a seal that was read before the rows."""

    def _read_rows(self, request: PullRequest, reader: NixlReader, loan: Loan) -> Iterator[int]:
        self._early = super()._check_seal(request, reader, loan)
        time.sleep(EARLY_SEAL_S)
        yield from super()._read_rows(request, reader, loan)

    def _check_seal(self, _request: PullRequest, _reader: NixlReader, _loan: Loan) -> Validity:
        return self._early


def make_transport(kind: str, mutate: str | None, memory: KvMemory, threads: int) -> Transport:
    """Return the reader's transport, broken if asked for."""
    if kind == "relay":
        return RelayTransport(memory.rank, token=TOKEN)
    make = SealFirst if mutate == "seal-first" else NixlTransport
    # Never fewer than the default: see the note on workers in transfer/nixl/agent.py.
    return make(memory.memories, memory.table, name="reader", threads=max(2, threads))


def pull_many(
    transport: Transport,
    peer: RankEndpoint,
    published: np.ndarray,
    memory: KvMemory,
    *,
    lane: int,
    pulls: int,
    first: int = 0,
) -> Tally:
    """Pull random groups of slots as published at the moment into the lane's own local slots; check the content.

    first: the number of the first of the SLOTS slots that the writer reuses.
    """
    rng = np.random.default_rng(lane)
    local = np.arange(BLOCKS_PER_PULL, dtype=np.int64) + lane * BLOCKS_PER_PULL
    accepted = stale = bad = failed_pulls = 0
    started = time.monotonic()
    for _ in range(pulls):
        remote = rng.choice(SLOTS, size=BLOCKS_PER_PULL, replace=False).astype(np.int64)
        generations = published[remote].copy()
        remote += first
        result = transport.pull(PullRequest(peer, remote, local, generations, time.monotonic() + 10.0))
        failed_pulls += result.outcome is PullOutcome.FAILED
        good = memory.holds(local, remote, generations)
        accepted += int(result.valid.sum())
        stale += int((~result.valid).sum())
        bad += int((result.valid & ~good).sum())
    return Tally(pulls, accepted, stale, bad, failed_pulls, time.monotonic() - started)


def swapped(peer: RankEndpoint) -> RankEndpoint:
    """The broken record: each memory has the other one's addresses."""
    engine, host = peer.memories
    memories = (replace(engine, segments=host.segments), replace(host, segments=engine.segments))
    return replace(peer, memories=memories)


def run(
    pulls: int,
    *,
    kind: str = "nixl",
    threads: int = 1,
    mutate: str | None = None,
    device: int | None = None,
    host: bool = False,
) -> Tally:
    """Carry out a torture with a writer process of its own; return the counts over all threads.

    host: the writer fills host slots, by copies from its engine slots, and those are pulled. device: both memories lie
    on this CUDA device; None: in host memory.
    """
    shape = {"slot_count": SLOTS, "segment_count": 1, "slot_bytes": SLOT_BYTES}
    place = {} if device is None else {"device": device}
    memory = make_memory({**shape, **place})
    with tempfile.NamedTemporaryFile() as shared:
        Path(shared.name).write_bytes(bytes(8 * SLOTS))
        published = np.memmap(shared.name, dtype=np.uint64, mode="r")
        options: dict[str, Any] = {
            "memory": {**shape, **place, **({"host_slots": SLOTS} if host else {})},
            "published": shared.name,
        }
        if kind == "relay":
            options["relay"] = {"listen": "127.0.0.1:0", "token": TOKEN}
        with OwnerProcess(options) as owner:
            transport = make_transport(kind, mutate, memory, threads)
            transport.probe(owner.endpoint, np.zeros(0, dtype=np.int64), timeout_s=CONNECT_TIMEOUT_S)
            peer = swapped(owner.endpoint) if mutate == "swapped" else owner.endpoint
            owner.send("torture_bump_last" if mutate == "bump-last" else "torture", generations=[0])
            while not published.all():
                time.sleep(0.001)  # until every slot has been published once
            tallies: list[Tally] = []

            def work(lane: int) -> None:
                count = pulls // threads
                first = SLOTS if host else 0
                tallies.append(pull_many(transport, peer, published, memory, lane=lane, pulls=count, first=first))

            workers = [threading.Thread(target=work, args=(lane,)) for lane in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert owner.call("ping")["rounds"] > 0
            transport.close()
    total = Tally()
    for tally in tallies:
        total = total.plus(tally)
    assert len(tallies) == threads, "a reader thread died"
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pulls", type=int, default=100_000)
    parser.add_argument("--transport", choices=("nixl", "relay"), default="nixl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mutate", choices=MUTATIONS)
    parser.add_argument("--device", type=int, help="a CUDA device; default: host memory")
    chosen = parser.parse_args()
    tally = run(chosen.pulls, kind=chosen.transport, threads=chosen.threads, mutate=chosen.mutate, device=chosen.device)
    print(tally)
    return 1 if tally.bad or not tally.stale or not tally.accepted else 0


if __name__ == "__main__":
    sys.exit(main())
