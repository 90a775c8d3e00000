"""Owners and readers that stop, die and come back: nobody is harmed, nothing lands late, and it works again."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, Transport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from tests.support.emulated_reads import BIG, nixl, pull, wait_until
from tests.support.kv_memory import KvMemory
from tests.support.open_files import wait_readable
from tests.support.owner_client import ROOT, OwnerProcess, stop_process

RELAY = {"listen": "127.0.0.1:0", "token": "secret"}
READERS_KILLED = int(os.environ.get("GHOSTCACHER_TEST_READERS_KILLED", "16"))
"""Per transport; hundreds in the long form."""

pytestmark = pytest.mark.timeout(300 + 6 * READERS_KILLED)


class Readers:
    """Forks readers that pull without end. Use as a context manager."""

    def __init__(self, kind: str, peer: RankEndpoint) -> None:
        packed = base64.b64encode(msgspec.msgpack.encode(peer)).decode()
        command = [sys.executable, "-m", "tests.support.kv_reader", kind, packed]
        self._parent = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._text = b""
        self._pids: list[int] = []

    def fork(self) -> int:
        """Return the pid of a new reader which has pulled at least once."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(b"\n")
        self._parent.stdin.flush()
        until = time.monotonic() + 120
        while (found := re.search(rb"pulling (\d+)\n", self._text)) is None:
            ready = wait_readable(self._parent.stdout, until - time.monotonic())
            assert ready, self._text
            data = os.read(self._parent.stdout.fileno(), 4096)
            assert data, f"the readers' parent ended: {self._text!r}"
            self._text += data
        self._text = b""
        self._pids.append(int(found[1]))
        return self._pids[-1]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._parent.kill()
        self._parent.wait(60)
        for stream in (self._parent.stdin, self._parent.stdout):
            if stream is not None:
                stream.close()


def test_stopped_owner_still_serves_by_shared_memory() -> None:
    """A READ over shared memory asks nothing of the owner, so a stopped one is as good as a running one."""
    memory = KvMemory()
    with OwnerProcess() as owner:
        transport = nixl(memory)
        owner.call("overwrite", range(64), [0] * 64)
        slots = np.arange(32, dtype=np.int64)
        wait_until(lambda: transport.reaches(owner.endpoint))
        owner.stop()
        assert pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE
        owner.resume()
        assert memory.holds(slots, slots, np.zeros(32, dtype=np.uint64)).all()
        transport.close()


def test_stopped_owner_still_serves_through_its_relay() -> None:
    """The relay is a reader itself: it serves although the engine is stopped."""
    memory = KvMemory()
    with OwnerProcess({"relay": RELAY}) as owner:
        transport = RelayTransport(memory.rank, token="secret")
        owner.stop()
        slots = np.arange(32, dtype=np.int64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        owner.resume()
        transport.close()


def test_pull_that_hangs_holds_its_slots_until_nothing_can_land_in_them(emulated: dict[str, object]) -> None:
    """Owner stopped for longer than the deadline: `pull` returns when its READ is over, with all rows, no sooner."""
    memory = KvMemory(64, 4, 64 << 10)
    with OwnerProcess({"memory": BIG, "transport": emulated, "progress": True}) as owner:
        transport = nixl(memory, overdue_grace_s=120.0, **emulated)
        slots = np.arange(64, dtype=np.int64)
        owner.call("overwrite", slots, [0] * 64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        memory.clear()
        owner.stop()

        def resume_when_overdue() -> None:
            wait_until(lambda: transport.overdue_count == 1)
            owner.resume()

        resuming = threading.Thread(target=resume_when_overdue)
        resuming.start()
        result = pull(transport, owner.endpoint, slots, seconds=2.0)
        resuming.join()
        assert result.outcome is PullOutcome.DONE, result
        assert memory.holds(slots, slots, np.zeros(64, dtype=np.uint64)).all()
        transport.close()


def test_read_given_up_at_its_deadline_never_reaches_engine_memory(emulated: dict[str, object]) -> None:
    """Owner stopped, READ of a probe given up, owner continues: it lands in quarantine, and not one byte elsewhere."""
    memory = KvMemory(64, 4, 64 << 10)
    with OwnerProcess({"memory": BIG, "transport": emulated, "progress": True}) as owner:
        transport = nixl(memory, **emulated)
        slots = np.arange(64, dtype=np.int64)
        owner.call("overwrite", slots, [0] * 64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        memory.clear()
        owner.stop()
        with pytest.raises(TransferError, match="given up at its deadline"):
            transport.probe(owner.endpoint, slots[:2], timeout_s=2.0)
        assert transport.quarantined_count == 1
        with pytest.raises(PeerUnreachable):
            transport.probe(owner.endpoint, slots[:2], timeout_s=0.5)
        again = pull(transport, owner.endpoint, slots, seconds=0.5)
        assert again.outcome is PullOutcome.FAILED
        assert transport.quarantined_count == 1, "a peer that hangs must not eat one buffer after the other"
        owner.resume()
        wait_until(lambda: transport.quarantined_count == 0)
        assert not any(rows.any() for rows in memory.rows)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        assert memory.holds(slots, slots, np.zeros(64, dtype=np.uint64)).all()
        transport.close()


def test_stopped_relay_ends_the_pull_at_its_deadline_and_nothing_lands_later() -> None:
    """A relay that hangs costs the deadline; once the pull returned, the local slots stay as they are."""
    memory = KvMemory()
    with OwnerProcess({"relay": RELAY}) as owner:
        transport = RelayTransport(memory.rank, token="secret")
        slots = np.arange(32, dtype=np.int64)
        owner.call("overwrite", slots, [0] * 32)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        memory.clear()
        assert owner.relay_pid is not None
        stop_process(owner.relay_pid)
        result = pull(transport, owner.endpoint, slots, seconds=0.5)
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.TIMEOUT)
        os.kill(owner.relay_pid, signal.SIGCONT)
        wait_until(lambda: pull(transport, owner.endpoint, slots[:1]).outcome is PullOutcome.DONE)
        assert not any(rows[1:].any() for rows in memory.rows)
        transport.close()


@pytest.mark.parametrize("kind", ["nixl", "relay"])
def test_owner_killed_during_pulls_fails_them_and_its_next_incarnation_serves(kind: str) -> None:
    """Kill -9 in the middle: no pull hangs or lies, and the restarted owner is pulled from as a new incarnation."""
    memory = KvMemory(64, 4, 64 << 10)
    options = {"relay": RELAY} if kind == "relay" else {}
    transport: Transport = RelayTransport(memory.rank, token="secret") if kind == "relay" else nixl(memory)
    slots = np.arange(64, dtype=np.int64)
    for _ in range(2):
        with OwnerProcess({"memory": BIG, **options}) as owner:
            owner.call("overwrite", slots, [0] * 64)
            wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
            threading.Timer(0.2, owner.kill).start()
            started = time.monotonic()
            while (result := pull(transport, owner.endpoint, slots)).outcome is PullOutcome.DONE:
                assert memory.holds(slots, slots, np.zeros(64, dtype=np.uint64)).all()
                assert time.monotonic() - started < 60
            assert result.outcome is PullOutcome.FAILED
            assert result.reason in {MissReason.PEER_UNREACHABLE, MissReason.TRANSFER_FAILED}
            transport.forget(owner.endpoint)
    transport.close()


@pytest.mark.parametrize("kind", ["nixl", "relay"])
def test_reader_killed_in_mid_pull_never_harms_the_owner(kind: str) -> None:
    """Readers are stopped, continued and killed while they pull; owner and relay stay alive and keep serving."""
    rng = random.Random(5)
    memory = KvMemory(64, 4, 64 << 10)
    options = {"relay": RELAY} if kind == "relay" else {}
    with OwnerProcess({"memory": BIG, **options}) as owner, Readers(kind, owner.endpoint) as readers:
        relay_pid = owner.relay_pid
        for number in range(READERS_KILLED):
            pid = readers.fork()
            threading.Event().wait(rng.uniform(0, 0.02))  # the moment of death is what is varied
            if number % 4 == 0:
                os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            assert owner.alive(), f"the owner died with reader {number}"
            assert owner.call("ping")
        if relay_pid is not None:
            os.kill(relay_pid, 0)
        transport: Transport = RelayTransport(memory.rank, token="secret") if kind == "relay" else nixl(memory)
        slots = np.arange(64, dtype=np.int64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        transport.close()


def test_killed_relay_is_started_again_on_its_port() -> None:
    """The relay may die: the owner lives, the relay comes back, and readers find it where it was."""
    memory = KvMemory()
    with OwnerProcess({"relay": RELAY}) as owner:
        transport = RelayTransport(memory.rank, token="secret")
        slots = np.arange(8, dtype=np.int64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        assert owner.relay_pid is not None
        os.kill(owner.relay_pid, signal.SIGKILL)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is not PullOutcome.DONE)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE, 60)
        assert owner.alive()
        transport.close()


def test_relay_dies_with_its_owner() -> None:
    """Kill -9 of the engine leaves no relay behind."""
    with OwnerProcess({"relay": RELAY}) as owner:
        pid = owner.relay_pid
        assert pid is not None
        owner.kill()
        wait_until(lambda: not running(pid))


def running(pid: int) -> bool:
    """Say whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
