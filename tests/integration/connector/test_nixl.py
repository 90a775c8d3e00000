"""NIXL itself: what damaged or hostile records can do to a reader (nothing), and what the constructor refuses."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, Segment
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult
from ghostcacher_connector.transfer.cuda import CudaDevice
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from tests.support.index_parts import wait_until
from tests.support.kv_memory import KvMemory
from tests.support.owner_client import OwnerProcess

DAMAGED_COUNT = 400


@pytest.fixture(scope="module")
def owner() -> Iterator[OwnerProcess]:
    with OwnerProcess() as owner:
        owner.call("overwrite", range(64), [0] * 64)
        yield owner


@pytest.fixture(scope="module")
def reader(owner: OwnerProcess) -> Iterator[tuple[NixlTransport, KvMemory]]:
    memory = KvMemory()
    transport = NixlTransport(memory.memories, memory.table, name="reader")
    # On a crowded machine connecting may take longer than its bound: it is tried again.
    wait_until(lambda: transport.reaches(owner.endpoint))
    yield transport, memory
    transport.close()


def pull(transport: NixlTransport, peer: RankEndpoint) -> PullResult:
    slots = np.arange(8, dtype=np.int64)
    return transport.pull(PullRequest(peer, slots, slots, np.zeros(8, dtype=np.uint64), time.monotonic() + 60))


def test_damaged_metadata_is_unreachable_and_harmless(
    owner: OwnerProcess, reader: tuple[NixlTransport, KvMemory]
) -> None:
    """Random, cut and bit-flipped metadata: never a crash of the library, always a peer that cannot be reached."""
    transport, _ = reader
    good = owner.endpoint.agent_metadata
    rng = random.Random(3)
    for number in range(DAMAGED_COUNT):
        damaged = bytearray(good)
        if number % 3 == 0:
            damaged = bytearray(rng.randbytes(rng.randrange(600)))
        elif number % 3 == 1:
            del damaged[rng.randrange(len(good)) :]
        else:
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        peer = msgspec.structs.replace(owner.endpoint, agent_name=f"damaged-{number}", agent_metadata=bytes(damaged))
        result = pull(transport, peer)
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)
        transport.forget(peer)
    wait_until(lambda: pull(transport, owner.endpoint).outcome is PullOutcome.DONE)


def test_metadata_of_another_agent_is_refused(owner: OwnerProcess, reader: tuple[NixlTransport, KvMemory]) -> None:
    """A record must not pass one rank's memory off as another's."""
    transport, _ = reader
    stranger = msgspec.structs.replace(owner.endpoint, agent_name="stranger")
    result = pull(transport, stranger)
    assert result.reason is MissReason.PEER_UNREACHABLE
    assert "expected stranger, found owner" in result.detail
    wait_until(lambda: pull(transport, owner.endpoint).outcome is PullOutcome.DONE)


@pytest.mark.parametrize(
    "changes",
    [
        {"table": 4096},
        {"segments": tuple(Segment(1 << 40, 4096, 4096) for _ in range(3))},
        {"memory": "VRAM"},
        {"device": 77},
    ],
)
def test_record_that_points_elsewhere_fails_and_the_peer_recovers(
    owner: OwnerProcess, reader: tuple[NixlTransport, KvMemory], changes: dict[str, object]
) -> None:
    """Addresses outside what the peer registered are refused by NIXL, in our words."""
    transport, memory = reader
    memory.clear()
    if "table" not in changes:
        changes = {"memories": (msgspec.structs.replace(owner.endpoint.memories[0], **changes),)}
    result = pull(transport, msgspec.structs.replace(owner.endpoint, **changes))
    assert result.outcome is PullOutcome.FAILED, result
    assert result.reason in {MissReason.PEER_UNREACHABLE, MissReason.TRANSFER_FAILED}
    assert not result.valid.any()
    until = time.monotonic() + 60
    while pull(transport, owner.endpoint).outcome is not PullOutcome.DONE:
        assert time.monotonic() < until


def test_peer_on_another_host_is_unreachable_without_trying(reader: tuple[NixlTransport, KvMemory]) -> None:
    """Without RDMA there is no way to another kernel, and UCX need not be asked."""
    transport, _ = reader
    elsewhere = msgspec.structs.replace(transport.endpoint(rank=0), host="another-boot", agent_name="elsewhere")
    assert not transport.reaches(elsewhere)


def test_own_memory_can_be_pulled_over_the_wire(reader: tuple[NixlTransport, KvMemory]) -> None:
    """The self-check of a lone worker: it pulls from itself."""
    transport, memory = reader
    memory.overwrite(np.arange(8), np.zeros(8, dtype=np.uint64))
    request = PullRequest(
        transport.endpoint(rank=0), np.arange(8), np.arange(8) + 20, np.zeros(8, dtype=np.uint64), time.monotonic() + 60
    )
    assert transport.pull(request).outcome is PullOutcome.DONE
    assert memory.holds(np.arange(8) + 20, np.arange(8), np.zeros(8, dtype=np.uint64)).all()


def test_memory_that_no_transport_reads_one_sidedly_fails_at_once_and_holds_nothing() -> None:
    """UCX would emulate such a READ, and wait for the owner's CPU for ever."""
    tls = "posix,sysv,self"  # sees only memory that was made for sharing
    memory = KvMemory()
    transport = NixlTransport(memory.memories, memory.table, name="reader", ucx_tls=tls)
    with OwnerProcess({"transport": {"ucx_tls": tls}}) as owner:
        result = pull(transport, owner.endpoint)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)
    assert transport.quarantined_count == 0, "a READ was given up that will never end"
    transport.close()


def test_device_memory_without_a_driver_is_refused() -> None:
    """The message says what is missing."""
    with pytest.raises(ConfigError, match="device memory needs the CUDA driver"):
        CudaDevice(0, driver="libcuda-that-is-not-there.so")
