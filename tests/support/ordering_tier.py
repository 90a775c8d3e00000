"""A host tier of one engine, and what its tests do to it: engine slots named by their number hold a block each."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.tiers.candidates import Candidate
from ghostcacher_connector.tiers.host_tier import ORDER_BYTES, HostTier
from ghostcacher_connector.transfer.jobs import CopyJob
from tests.support.index_parts import FakeClock

FIRST = 100
ROOT = b"root"


class Sink:
    """Takes what is published."""

    def __init__(self) -> None:
        self.slots: dict[int, BlockHash] = {}

    def publish(self, slot: int, block: BlockHash, root: BlockHash, generation: int) -> None:
        assert root == ROOT
        assert generation > 0
        self.slots[slot] = block

    def withdraw(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def withdraw_from(self, first_slot: int) -> None:
        for slot in [slot for slot in self.slots if slot >= first_slot]:
            del self.slots[slot]


def new_tier(
    slots: int = 4,
    *,
    ranks: int = 1,
    block_bytes: int = ORDER_BYTES // 2,
    recorder: Recorder | None = None,
    clock: FakeClock | None = None,
    **retention: float,
) -> tuple[HostTier, Sink]:
    sink = Sink()
    tier = HostTier(
        sink,
        recorder if recorder is not None else Recorder(),
        worker="own",
        first_slot=FIRST,
        slot_count=slots,
        ranks=ranks,
        block_bytes=block_bytes,
        retention=RetentionSettings(**retention),
        clock=clock if clock is not None else FakeClock(),
    )
    tier.ledger.take_bumps()
    return tier, sink


def publish(tier: HostTier, *slots: int) -> None:
    """Have engine slots hold one block each, named by the slot."""
    for slot in slots:
        publish_as(tier, slot, name(slot))


def publish_as(tier: HostTier, slot: int, block: bytes) -> None:
    tier.engine_holds(slot, Candidate(block, ROOT, None, traits_in(tier)), 1000 + slot)


def traits_in(tier: HostTier) -> BlockTraits:
    return BlockTraits(SectionType.DOC, 0, 16, tier.block_bytes)


def touch(tier: HostTier, *slots: int) -> None:
    """Have a prompt that is made of these slots' blocks."""
    tier.touch([name(slot) for slot in slots], [traits_in(tier)] * len(slots))


def name(slot: int) -> bytes:
    return f"block {slot}".encode()


def copy(tier: HostTier, *slots: int) -> list[CopyJob]:
    """Copy what engine slots hold."""
    orders = tier.order(slots)
    for order in orders:
        tier.reported(order.copy_id, [True] * len(order.engine_slots))
    return orders
