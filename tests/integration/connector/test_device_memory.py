"""Pulls from one process's GPU memory into another's, on a real GPU. Skipped where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult, Transport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from tests.integration.connector.torture import MUTATIONS, TOKEN, run
from tests.support.owner_client import OwnerProcess

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.timeout(240),
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
    return transport.pull(PullRequest(owner.endpoint, SLOTS, local, FIRST + 1, time.monotonic() + 10))


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
