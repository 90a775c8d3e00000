"""Pulls from one process's GPU memory into another's, on a real GPU. Skipped where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult, Transport
from ghostcacher_connector.transfer.copier import Copier
from ghostcacher_connector.transfer.jobs import CopyJob
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.worker.host_memory import GIB, open_host_memory
from tests.integration.connector.torture import MUTATIONS, TOKEN, run
from tests.support.owner_client import OwnerProcess

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SLOTS = np.arange(8, dtype=np.int64)
FIRST = np.zeros(8, dtype=np.uint64)
MEMORY = {"device": 0}


@pytest.fixture(params=["layers", "blocks"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def owner(layout: str) -> Iterator[OwnerProcess]:
    options = {"memory": {**MEMORY, "layout": layout}, "relay": {"listen": "127.0.0.1:0", "token": TOKEN}}
    with OwnerProcess(options) as owner:
        owner.call("write", SLOTS, FIRST + 1)
        yield owner


def pull(transport: Transport, owner: OwnerProcess, local: np.ndarray) -> PullResult:
    return transport.pull(PullRequest(owner.endpoint, SLOTS, local, FIRST + 1, time.monotonic() + 60))


@pytest.mark.parametrize("kind", ["nixl", "relay"])
def test_pulled_slots_hold_the_owners_bytes_until_it_reuses_them(owner: OwnerProcess, layout: str, kind: str) -> None:
    """Device to device: merged and scattered slots arrive whole, and a reused one is refused."""
    from tests.support.device_memory import DeviceMemory

    memory = DeviceMemory(layout=layout)
    transport: Transport = NixlTransport(memory.memories, memory.table, name="reader")
    if kind == "relay":
        transport = RelayTransport(memory.rank, token=TOKEN)
    for local in (SLOTS + 20, SLOTS[::-1].copy(), SLOTS * 3):
        memory.clear()
        result = pull(transport, owner, local)
        assert result.outcome is PullOutcome.DONE, result
        assert memory.holds(local, SLOTS, FIRST + 1).all()
    owner.call("write", SLOTS[2:4], FIRST[2:4] + 2)
    result = pull(transport, owner, SLOTS)
    assert result.valid.tolist() == [True, True, False, False, True, True, True, True]
    transport.close()


def test_probe_sees_the_bytes_of_a_peer_and_the_seal_of_its_own(owner: OwnerProcess, layout: str) -> None:
    """What the doctor reads, and what the self-check does: a process cannot open its own device memory."""
    from tests.support.device_memory import DeviceMemory

    memory, content = DeviceMemory(layout=layout), DeviceMemory(layout=layout)
    content.overwrite(SLOTS, FIRST + 1)
    transport = NixlTransport(memory.memories, memory.table, name="reader")
    probe = transport.probe(owner.endpoint, SLOTS, timeout_s=5)
    assert probe.current
    assert probe.data == content.tobytes(SLOTS)
    assert transport.probe(transport.endpoint(rank=0), SLOTS[:0], timeout_s=5).current
    transport.close()


def test_owner_that_dies_is_a_failed_pull_and_the_reader_stays_well(owner: OwnerProcess, layout: str) -> None:
    """Its memory is gone with it; the next owner can be read."""
    from tests.support.device_memory import DeviceMemory

    memory = DeviceMemory(layout=layout)
    transport = NixlTransport(memory.memories, memory.table, name="reader")
    assert pull(transport, owner, SLOTS).outcome is PullOutcome.DONE
    owner.kill()
    result = pull(transport, owner, SLOTS)
    assert result.outcome is PullOutcome.FAILED
    assert result.reason in {MissReason.PEER_UNREACHABLE, MissReason.TRANSFER_FAILED}
    with OwnerProcess({"memory": {**MEMORY, "layout": layout}}) as heir:
        heir.call("write", SLOTS, FIRST + 1)
        assert pull(transport, heir, SLOTS).outcome is PullOutcome.DONE
    transport.close()


@pytest.mark.parametrize(("kind", "pulls"), [("nixl", 3000), ("relay", 800)])
def test_writer_at_full_speed_never_gets_a_torn_or_stale_block_accepted(kind: str, pulls: int) -> None:
    """As in host memory (test_torture.py): a kernel's writes and a copy engine's reads obey the same order."""
    tally = run(pulls, kind=kind, device=0)
    assert tally.bad == 0, tally
    assert tally.failed_pulls == 0, tally
    assert tally.stale > 0, tally
    assert tally.accepted > 0, tally


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_ordering_is_noticed(mutation: str) -> None:
    for _ in range(8):
        if run(1000, mutate=mutation, device=0).bad > 0:
            return
    pytest.fail(f"{mutation}: no torn or stale block was seen; the torture proves nothing")


def test_blocks_go_down_to_pinned_host_memory_and_come_back(layout: str) -> None:
    """Copied from the device and back to it, in runs and scattered, whole; a reused slot is refused both ways."""
    from tests.support.device_memory import DeviceMemory

    memory = DeviceMemory(layout=layout)
    host = open_host_memory(64 * memory.rank.bytes_per_slot / GIB, memory.rank, ranks=1)
    assert host is not None
    table = SlotTable(128)
    copier = Copier((memory.rank, host.slots), table)
    peer = MemoryTransport(Fabric(), (memory.rank, host.slots), table, name="me").endpoint(rank=0)
    local = LocalTransport((memory.rank, host.slots), table, agent_name=peer.agent_name)
    memory.overwrite(SLOTS, FIRST + 1)
    table.bump(SLOTS, FIRST + 1)
    for places in (SLOTS + 64, SLOTS[::-1] * 3 + 64):
        copier.submit(CopyJob(1, SLOTS, FIRST + 1, places))
        assert copier.poll(wait_s=20)[0].valid.all()
        for target in (SLOTS + 20, SLOTS[::-1] * 2 + 30):
            memory.clear()
            result = local.pull(PullRequest(peer, places, target, FIRST, time.monotonic() + 60))
            assert result.outcome is PullOutcome.DONE, result
            assert memory.holds(target, SLOTS, FIRST + 1).all()
            memory.overwrite(SLOTS, FIRST + 1)
    table.bump(SLOTS[:1], FIRST[:1] + 2)
    copier.submit(CopyJob(2, SLOTS, FIRST + 1, SLOTS + 64))
    assert copier.poll(wait_s=20)[0].valid.tolist() == [False] + [True] * 7
    assert copier.close()
    host.close()


def test_host_slots_of_a_peer_arrive_on_the_device(layout: str) -> None:
    """By way of a bounce buffer; a peer whose engine is in host memory serves as well as one on a GPU."""
    from tests.support.device_memory import DeviceMemory

    memory = DeviceMemory(layout=layout)
    transport = NixlTransport(memory.memories, memory.table, name="reader")
    with OwnerProcess({"memory": {"host_slots": 64}}) as owner:
        remote = SLOTS + 64
        owner.call("write", remote, FIRST + 1)
        request = PullRequest(owner.endpoint, remote, SLOTS * 3, FIRST + 1, time.monotonic() + 60)
        result = transport.pull(request)
        assert result.outcome is PullOutcome.DONE, result
        assert memory.holds(SLOTS * 3, remote, FIRST + 1).all()
    transport.close()
