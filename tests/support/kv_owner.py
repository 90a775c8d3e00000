"""A process that owns KV memory and is driven by lines of JSON: the peer in tests with real NIXL and real processes.

Run as ``python -m tests.support.kv_owner OPTIONS`` with OPTIONS a JSON object: ``memory``, ``transport`` and ``relay``
are keyword arguments of theirs, ``published`` is a file, ``progress`` lets emulated READs end. The first line of output
is the endpoint. Commands: ``write`` (bump and fill slots), ``overwrite`` (fill without a bump), ``bump``, ``ping``,
``renew``, ``torture`` and ``torture_bump_last`` (rewrite slots at full speed until the next command arrives), ``quit``.
"""

from __future__ import annotations

import base64
import json
import select
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np

from ghostcacher_connector.transfer.copier import Copier
from ghostcacher_connector.transfer.jobs import CopyJob
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from tests.support.kv_memory import KvMemory, make_memory

COPY_S = 60.0
LATE_BUMP_S = 0.0002
"""How late the broken order bumps: in an engine it would be a forward pass."""


def torture(memory: KvMemory, published: np.ndarray, first: int, bump_last: bool) -> int:
    """Rewrite random groups of slots, each with its next generation, until a command arrives; return the rounds.

    published: shared with the readers, shape (slot_count,); plays the index. As in an engine, a generation is published
    only when its content is complete, and withdrawn late or never.
    """
    slot_count = memory.rank.slot_count
    generations = np.full(slot_count, first, dtype=np.uint64)
    rng = np.random.default_rng(7)
    rounds = 0
    while rounds % 16 or not select.select([sys.stdin], [], [], 0)[0]:
        slots = rng.choice(slot_count, size=4, replace=False).astype(np.int64)
        generations[slots] += np.uint64(1)
        if bump_last:
            memory.overwrite(slots, generations[slots])
            time.sleep(LATE_BUMP_S)
            memory.table.bump(slots, generations[slots])
        else:
            memory.write(slots, generations[slots])
        published[slots] = generations[slots]
        rounds += 1
    return rounds


def torture_host(memory: KvMemory, published: np.ndarray, first: int, bump_last: bool) -> int:
    """As `torture`, with host slots: each is bumped, and filled by a copy from an engine slot, as often as possible."""
    engine, host = memory.memories
    copier = Copier((engine, host), memory.table)
    generations = np.full(host.slot_count, first, dtype=np.uint64)
    sources = np.arange(4, dtype=np.int64)
    rng = np.random.default_rng(7)
    rounds = 0
    while rounds % 16 or not select.select([sys.stdin], [], [], 0)[0]:
        slots = rng.choice(host.slot_count, size=4, replace=False).astype(np.int64)
        generations[slots] += np.uint64(1)
        places, what = slots + engine.slot_count, generations[slots]
        memory.table.bump(sources, np.full(4, rounds, dtype=np.uint64))
        memory.fill(sources, places, what)
        if not bump_last:
            memory.table.bump(places, what)
        copier.submit(CopyJob(rounds, sources, np.full(4, rounds, dtype=np.uint64), places))
        (result,) = copier.poll(wait_s=COPY_S)
        assert result.valid.all()
        if bump_last:
            time.sleep(LATE_BUMP_S)
            memory.table.bump(places, what)
        published[slots] = what
        rounds += 1
    assert copier.close()
    return rounds


class Owner:
    """Executes commands; each answers one JSON object."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.memory = make_memory(options.get("memory", {}))
        self.transport = NixlTransport(
            self.memory.memories, self.memory.table, name="owner", **options.get("transport", {})
        )
        if options.get("progress"):
            threading.Thread(target=self._progress, daemon=True).start()
        self.published = np.zeros(0, dtype=np.uint64)
        if "published" in options:
            self.published = np.memmap(options["published"], dtype=np.uint64, mode="r+")
        self.relay = None
        self.address = None
        if "relay" in options:
            from ghostcacher_connector.transfer.relay.process import RelayProcess

            self.relay = RelayProcess(self.transport.endpoint(rank=0), **options["relay"])
            self.address = self.relay.start()

    def _progress(self) -> None:
        """Do what emulated READs need from the owner's CPU; without RDMA its agent has no thread for it."""
        while True:
            self.transport._serving._agent.get_new_notifs()
            time.sleep(0.001)

    def endpoint(self) -> dict[str, Any]:
        packed = msgspec.msgpack.encode(self.transport.endpoint(rank=0, relay=self.address))
        return {"endpoint": base64.b64encode(packed).decode(), "relay_pid": self.relay.pid if self.relay else None}

    def run(self, command: str, slots: list[int], generations: list[int]) -> dict[str, Any]:
        where, what = np.array(slots, dtype=np.int64), np.array(generations, dtype=np.uint64)
        if command == "write":
            self.memory.write(where, what)
        elif command == "overwrite":
            self.memory.overwrite(where, what)
        elif command == "bump":
            self.memory.table.bump(where, what)
        elif command == "renew":
            self.memory.table.renew_incarnation()
            return self.endpoint()
        elif command in {"torture", "torture_bump_last"}:
            run = torture if len(self.memory.memories) == 1 else torture_host
            return {"rounds": run(self.memory, self.published, generations[0], command == "torture_bump_last")}
        return {"ok": command}


def main() -> None:
    owner = Owner(json.loads(sys.argv[1]))
    # NIXL logs to standard output, too: what is ours carries a mark.
    print("@" + json.dumps(owner.endpoint()), flush=True)
    while line := sys.stdin.readline():
        message = json.loads(line)
        if message["command"] == "quit":
            break
        reply = owner.run(message["command"], message.get("slots", []), message.get("generations", []))
        print("@" + json.dumps(reply), flush=True)
    if owner.relay is not None:
        owner.relay.close()


if __name__ == "__main__":
    main()
