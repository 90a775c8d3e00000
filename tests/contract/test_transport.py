"""One suite of behaviour for every way to pull: in-memory, NIXL and the relay, from engine slots and from host slots,
and a rank's loads from its own host slots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.transfer.shares import RowPart, part_of_rank
from tests.support.index_parts import wait_until
from tests.support.kv_memory import KvMemory
from tests.support.owner_client import OwnerProcess

ENGINE_KINDS = ["memory", "nixl", "relay"]
PEER_KINDS = [*ENGINE_KINDS, *(f"{kind}-host" for kind in ENGINE_KINDS), "buffer-host"]
KINDS = [*PEER_KINDS, "local-host"]
"""Those that end in -host pull from host slots; buffer: by way of bounce buffers, as into a GPU."""
SLOTS = 64


class Owner(Protocol):
    """The peer that is pulled from, wherever it lives."""

    endpoint: RankEndpoint

    def call(self, command: str, slots: Any = (), generations: Any = ()) -> Any: ...
    def renew(self) -> None: ...
    def kill(self) -> None: ...


class MemoryOwner:
    """The owner's side of the in-memory fake."""

    def __init__(self, fabric: Fabric, host_slots: int) -> None:
        self.memory = KvMemory(host_slots=host_slots)
        self._transport = MemoryTransport(fabric, self.memory.memories, self.memory.table, name="owner")
        self.endpoint = self._transport.endpoint(rank=0)

    def call(self, command: str, slots: Any = (), generations: Any = ()) -> None:
        act = {"write": self.memory.write, "overwrite": self.memory.overwrite, "bump": self.memory.table.bump}
        act[command](np.asarray(slots, dtype=np.int64), np.asarray(generations, dtype=np.uint64))

    def renew(self) -> None:
        self.memory.table.renew_incarnation()
        self.endpoint = self._transport.endpoint(rank=0)

    def kill(self) -> None:
        self._transport.close()


class LocalOwner:
    """The reader itself, as the owner of its host slots."""

    def __init__(self, memory: KvMemory) -> None:
        self._fake = MemoryTransport(Fabric(), memory.memories, memory.table, name="self")
        self._memory = memory
        self.endpoint = self._fake.endpoint(rank=0)

    def call(self, command: str, slots: Any = (), generations: Any = ()) -> None:
        act = {"write": self._memory.write, "overwrite": self._memory.overwrite, "bump": self._memory.table.bump}
        act[command](np.asarray(slots, dtype=np.int64), np.asarray(generations, dtype=np.uint64))

    def renew(self) -> None:
        self._memory.table.renew_incarnation()
        self.endpoint = self._fake.endpoint(rank=0)

    def kill(self) -> None:
        raise NotImplementedError


class BufferTransport(NixlTransport):
    """Reads host slots as an engine on a GPU does."""

    def _reads_straight(self, memory: SlotMemory) -> bool:
        return memory.tier is not Tier.HOST


class Rig:
    """An owner, and a reader with memory of its own. Tests number the owner's slots from 0 in either tier."""

    def __init__(self, owner: Owner, transport: Transport, memory: KvMemory, first: int) -> None:
        """first: the number of the owner's first slot in the tier that is pulled from."""
        self.owner = owner
        self.first = first
        self.transport = transport
        self.memory = memory
        self.base = 0
        """Added to every generation, so that tests which share an owner never let one go back."""

    def call(self, command: str, slots: Any, generations: Any) -> None:
        self.owner.call(command, np.asarray(slots) + self.first, np.asarray(generations) + self.base)

    def pull(self, remote: Any, local: Any, generations: Any, *, seconds: float = 60.0, **changes: Any) -> Any:
        peer = msgspec.structs.replace(self.owner.endpoint, **changes)
        request = PullRequest(
            peer,
            np.asarray(remote, dtype=np.int64) + self.first,
            np.asarray(local, dtype=np.int64),
            np.asarray(generations, dtype=np.uint64) + np.uint64(self.base),
            time.monotonic() + seconds,
        )
        return self.transport.pull(request)

    def holds(self, local: Any, remote: Any, generations: Any) -> Any:
        expected = np.asarray(generations, dtype=np.uint64) + np.uint64(self.base)
        return self.memory.holds(np.asarray(local), np.asarray(remote) + self.first, expected)

    def engine_memory(self, **changes: Any) -> tuple[SlotMemory, ...]:
        """The owner's memories, the engine's with these changes."""
        engine, *host = self.owner.endpoint.memories
        return (msgspec.structs.replace(engine, **changes), *host)


def make_rig(kind: str, layout: str) -> Iterator[Rig]:
    kind, _, host = kind.partition("-")
    host_slots = first = SLOTS if host else 0
    memory = KvMemory(layout=layout, host_slots=host_slots if kind == "local" else 0)
    if kind == "memory":
        fabric = Fabric()
        fake = MemoryTransport(fabric, memory.memories, memory.table, name="reader")
        yield Rig(MemoryOwner(fabric, host_slots), fake, memory, first)
        return
    if kind == "local":
        itself = LocalOwner(memory)
        engine, own_host = memory.memories
        local = LocalTransport((engine, own_host), memory.table, agent_name=itself.endpoint.agent_name)
        yield Rig(itself, local, memory, first)
        return
    options: dict[str, Any] = {"memory": {"host_slots": host_slots}}
    if kind == "relay":
        options["relay"] = {"listen": "127.0.0.1:0", "token": "secret"}
    with OwnerProcess(options) as owner:
        transport: Transport
        if kind == "relay":
            transport = RelayTransport(memory.rank, token="secret")
        else:
            make = BufferTransport if kind == "buffer" else NixlTransport
            transport = make(memory.memories, memory.table, name="reader")
        # On a crowded machine connecting may take longer than its bound: it is tried again.
        wait_until(lambda: transport.reaches(owner.endpoint))
        yield Rig(owner, transport, memory, first)
        transport.close()


@pytest.fixture(scope="module", params=KINDS)
def shared_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    yield from make_rig(request.param, "layers")


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """An owner and a reader that other tests use, too: processes take a second to start."""
    shared_rig.memory.clear()
    shared_rig.base += 1000
    return shared_rig


@pytest.fixture(params=PEER_KINDS)
def own_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """An owner and a reader to be killed or closed."""
    yield from make_rig(request.param, "layers")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["layers", "blocks", "gaps"])
def test_published_slots_arrive_unchanged_in_any_layout(kind: str, layout: str) -> None:
    """The bytes of every slot equal the owner's, though reader and owner lay their memory out differently."""
    for rig in make_rig(kind, layout):
        remote = np.array([3, 4, 5, 0, 63, 20, 19])
        local = np.array([7, 8, 9, 1, 0, 33, 34])
        generations = np.arange(1, 8)
        rig.call("write", remote, generations)
        result = rig.pull(remote, local, generations)
        assert result.outcome is PullOutcome.DONE, result
        assert result.valid.all()
        assert result.reason is None
        assert result.bytes == 7 * 3 * 4096
        assert rig.holds(local, remote, generations).all()
        untouched = np.setdiff1d(np.arange(64), local)
        assert not any(rows[untouched].any() for rows in rig.memory.rows)


@pytest.mark.parametrize("kind", [kind for kind in PEER_KINDS if "relay" not in kind])
@pytest.mark.parametrize("layout", ["layers", "blocks", "gaps"])
def test_parts_of_rows_arrive_in_their_places(kind: str, layout: str) -> None:
    """Each quarter of the owner's rows is put where a quarter of the reader's belongs, here in reverse order."""
    for rig in make_rig(kind, layout):
        remote, local, generations = np.array([3, 4, 5, 0, 63]), np.array([7, 8, 9, 1, 0]), np.arange(1, 6)
        rig.call("write", remote, generations)
        for number in range(4):
            theirs, ours = RowPart(number, 4), RowPart(3 - number, 4)
            endpoint = part_of_rank(rig.owner.endpoint, theirs, ours)
            stamps, deadline = generations.astype(np.uint64), time.monotonic() + 60
            result = rig.transport.pull(PullRequest(endpoint, remote + rig.first, local, stamps, deadline, ours))
            assert result.outcome is PullOutcome.DONE, result
            assert result.bytes == 5 * 3 * 1024
        for rows in rig.memory.rows:
            rows[local] = rows[local].reshape(5, 4, -1)[:, ::-1].reshape(5, -1)
        assert rig.holds(local, remote, generations).all()
        untouched = np.setdiff1d(np.arange(64), local)
        assert not any(rows[untouched].any() for rows in rig.memory.rows)


def test_reused_slot_is_refused_and_its_neighbours_are_kept(rig: Rig) -> None:
    """A bumped slot is invalid even before it is overwritten; the others of the same pull stay valid."""
    rig.call("write", [1, 2, 3], [5, 5, 5])
    rig.call("bump", [2], [6])
    result = rig.pull([1, 2, 3], [1, 2, 3], [5, 5, 5])
    assert result.outcome is PullOutcome.STALE
    assert result.reason is MissReason.STALE_GENERATION
    assert result.valid.tolist() == [True, False, True]
    assert rig.holds([1, 3], [1, 3], [5, 5]).all()


def test_entry_of_earlier_incarnation_is_refused(rig: Rig) -> None:
    """After the owner became a new incarnation, nothing published before is accepted, equal generations or not."""
    rig.call("write", [1, 2], [5, 5])
    before = rig.owner.endpoint.incarnation
    assert rig.pull([1, 2], [1, 2], [5, 5]).outcome is PullOutcome.DONE
    rig.owner.renew()
    assert rig.pull([1, 2], [1, 2], [5, 5], incarnation=before).outcome is PullOutcome.STALE
    assert rig.pull([1, 2], [1, 2], [5, 5]).outcome is PullOutcome.DONE


@pytest.mark.parametrize(("remote", "local"), [([64], [0]), ([-1], [0]), ([0], [64]), ([0], [-1]), ([0, 1], [5, 5])])
def test_slot_out_of_range_fails_without_a_read(rig: Rig, remote: list[int], local: list[int]) -> None:
    """Slots outside either table, or two blocks for one place, end the pull before any byte moves."""
    remote = [slot - rig.first if slot < 0 else slot for slot in remote]
    result = rig.pull(remote, local, [0] * len(remote))
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.MALFORMED_ENTRY)
    assert result.bytes == 0
    assert not result.valid.any()


def test_other_row_size_fails_as_fingerprint_mismatch(rig: Rig) -> None:
    """A peer whose slots have another size is refused before any byte moves."""
    memories = tuple(
        msgspec.structs.replace(
            memory, segments=tuple(Segment(s.base, s.stride_bytes, s.slot_bytes // 2) for s in memory.segments)
        )
        for memory in rig.owner.endpoint.memories
    )
    result = rig.pull([1], [1], [0], memories=memories)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.FINGERPRINT_MISMATCH)
    assert result.bytes == 0


def test_wrong_slot_count_is_refused(rig: Rig) -> None:
    """A record that claims another table size than the seal's header says is not believed."""
    rig.call("write", [1], [5])
    result = rig.pull([1], [1], [5], memories=rig.engine_memory(slot_count=32))
    assert not result.valid.any()
    assert result.outcome in {PullOutcome.STALE, PullOutcome.FAILED}


def test_deadline_in_the_past_fails_as_timeout(rig: Rig) -> None:
    """A pull that starts too late moves nothing."""
    rig.call("write", [1], [5])
    assert rig.transport.reaches(rig.owner.endpoint)
    result = rig.pull([1], [1], [5], seconds=-1.0)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.TIMEOUT)


def test_killed_owner_fails_as_unreachable_and_stays_so(own_rig: Rig) -> None:
    """Pulls from a killed owner fail at once, again and again, and the reader lives on."""
    own_rig.call("write", [1], [5])
    assert own_rig.pull([1], [1], [5]).outcome is PullOutcome.DONE
    own_rig.owner.kill()
    for _ in range(3):
        result = own_rig.pull([1], [1], [5])
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE), result
        assert not result.valid.any()
    assert not own_rig.transport.reaches(own_rig.owner.endpoint)


def test_probe_reads_data_and_generations_without_touching_local_slots(rig: Rig) -> None:
    """A probe returns the slots' bytes, segment after segment, and leaves the engine's memory alone."""
    rig.call("write", [1, 2], [5, 6])
    slots = np.array([1, 2]) + rig.first
    probe = rig.transport.probe(rig.owner.endpoint, slots, timeout_s=5.0)
    assert probe.current
    assert probe.generations.tolist() == [rig.base + 5, rig.base + 6]
    expected = KvMemory(host_slots=rig.first)
    expected.overwrite(slots, np.array([5, 6], dtype=np.uint64) + np.uint64(rig.base))
    assert probe.data == expected.tobytes(slots)
    assert not any(rows.any() for rows in rig.memory.rows)


def test_probe_of_unknown_slot_raises(rig: Rig) -> None:
    """A probe says clearly when it is asked for what is not there."""
    with pytest.raises(TransferError, match=f"slot {SLOTS + rig.first} is outside"):
        rig.transport.probe(rig.owner.endpoint, np.array([SLOTS + rig.first]), timeout_s=5.0)


def test_empty_pull_is_done(rig: Rig) -> None:
    """Nothing asked for, nothing missing."""
    assert rig.pull([], [], []).outcome is PullOutcome.DONE


def test_close_twice_is_harmless_and_later_pulls_fail(own_rig: Rig) -> None:
    """After close a pull fails, it does not crash."""
    own_rig.transport.close()
    own_rig.transport.close()
    assert own_rig.pull([1], [1], [0]).outcome in {PullOutcome.FAILED, PullOutcome.DONE, PullOutcome.STALE}


@pytest.mark.parametrize("kind", [kind for kind in PEER_KINDS if kind.endswith("-host")])
def test_one_pull_takes_engine_slots_and_host_slots(kind: str) -> None:
    """A prefix lies partly in either tier: every block arrives in its place, whatever the order of their slots."""
    for rig in make_rig(kind, "layers"):
        remote, local = np.array([-60, 5, -59, 63, 0, -1]), np.array([9, 8, 7, 6, 5, 4])
        generations = np.arange(1, 7)
        rig.call("write", remote, generations)
        rig.call("bump", [5, -1], [8, 8])
        result = rig.pull(remote, local, generations)
        assert result.valid.tolist() == [True, False, True, True, True, False]
        assert result.bytes == 6 * 3 * 4096
        assert rig.holds(local, remote, generations).all()
        slots = remote + rig.first
        probe = rig.transport.probe(rig.owner.endpoint, slots, timeout_s=5.0)
        expected = KvMemory(host_slots=rig.first)
        expected.overwrite(slots, generations.astype(np.uint64))
        assert probe.data == expected.tobytes(slots)
        assert probe.generations.tolist() == [1, 8, 3, 4, 5, 8]


def test_load_of_an_engine_slot_or_of_another_rank_is_refused() -> None:
    """Engine slots are no source of loads: a block would be copied over itself. Another rank's are not here."""
    for rig in make_rig("local-host", "layers"):
        result = rig.pull([-1], [1], [0])
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.MALFORMED_ENTRY)
        result = rig.pull([1], [1], [0], agent_name="another")
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)
        assert not any(rows.any() for rows in rig.memory.rows)
