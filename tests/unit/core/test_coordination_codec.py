"""Forms of values in the coordination store that versions without stamps write and read."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ghostcacher_connector.core.coordination.base import MISS_REASONS_MAX, Count, LoadReport
from ghostcacher_connector.core.coordination.codec import SMALL_BYTES_MAX, Codec, LockClaim, time_load
from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.refusals import Refusals
from ghostcacher_connector.core.types import MissReason, SectionType, Tier
from tests.support.coordination_parts import make_chain, make_load, make_ref, make_update
from tests.support.index_parts import FakeClock

REF = make_ref()
NOW = 1.8e9
LOAD = msgspec.msgpack.encode(make_load())
EVENTS = msgspec.msgpack.encode((REF.namespace, REF.worker, REF.incarnation, [make_chain()], ["done"]))
UPDATE = msgspec.msgpack.encode(make_update())
LOCK = (b"7", b"router-1", b"w1", b"5.25", None)


def plain() -> Codec:
    return Codec(b"", Refusals("test"))


def test_without_a_key_values_are_written_as_before() -> None:
    """Routers and workers of versions without stamps can read them while a fleet is updated."""
    codec = plain()
    assert codec.pack_load(REF, make_load(), now=NOW, ttl_s=5) == LOAD
    assert codec.pack_events(REF, [make_chain()], ["done"], now=NOW) == EVENTS
    assert codec.pack_update(make_update(), now=NOW) == UPDATE
    assert codec.pack_session(b"s", "w1", now=NOW, ttl_s=5) == b"w1"
    assert codec.pack_router("router-1", now=NOW, ttl_s=5) == b"router-1"
    assert codec.pack_claim(b"k", LockClaim("router-1", "w1", 5.25), now=NOW, ttl_s=2) == b""


def test_largest_load_is_no_larger_than_readers_take() -> None:
    """Every count as large as a year of the busiest engine makes it, three tiers, and misses for every reason."""
    count, rate = 1 << 40, 1.0 / 3.0
    tier = TierLoad(Tier.OBJECT, count, count, (count,) * len(SectionType), count, count, count, count)
    numbers = {
        field.name: rate if field.type is not Count else count
        for field in msgspec.structs.fields(LoadReport)
        if field.name not in {"tiers", "missed_blocks", "prefill_rate_stale"}
    }
    load = LoadReport(
        **numbers, prefill_rate_stale=True, tiers=(tier,) * len(Tier), missed_blocks=(count,) * len(MissReason)
    )
    ref = make_ref("w" * 255)
    value = Codec(b"the fleet's secret", Refusals("test")).pack_load(ref, load, now=NOW, ttl_s=5)
    assert len(time_load(ref.incarnation, NOW, value)) <= SMALL_BYTES_MAX


def test_loads_of_other_versions_are_read() -> None:
    """One that says nothing of misses, and one that knows of more reasons and fields."""
    fields = msgspec.to_builtins(make_load())
    older = {name: value for name, value in fields.items() if name not in {"hit_blocks", "missed_blocks"}}
    newer = fields | {"missed_blocks": [7] * (len(MissReason) + 3), "fresh": 1}
    misses = []
    for load in (older, newer):
        value = REF.incarnation + b"%016d" % (NOW * 1e6) + msgspec.msgpack.encode(load)
        stored = plain().unpack_load(REF, value, now=NOW)
        assert stored is not None
        misses.append(stored.load.missed_blocks)
    assert misses == [(), (7,) * (len(MissReason) + 3)]


def test_reasons_of_misses_keep_their_places() -> None:
    """Load reports count them by their order: a version with another one would read other reasons."""
    assert [reason.value for reason in MissReason][:13] == [
        "not_indexed",
        "index_unavailable",
        "lookup_deadline",
        "stale_generation",
        "peer_unreachable",
        "fingerprint_mismatch",
        "malformed_entry",
        "slower_than_recompute",
        "timeout",
        "transfer_failed",
        "cancelled",
        "preempted",
        "disabled",
    ]
    assert len(MissReason) <= MISS_REASONS_MAX


OLD: dict[str, Callable[[Codec], object]] = {
    "load": lambda codec: codec.unpack_load(REF, REF.incarnation + b"%016d" % (NOW * 1e6) + LOAD, now=NOW),
    "events": lambda codec: codec.unpack_events(EVENTS, now=NOW),
    "map update": lambda codec: codec.unpack_update(UPDATE, now=NOW),
    "session": lambda codec: codec.unpack_session(b"s", b"w1", now=NOW),
    "router": lambda codec: codec.unpack_router(b"router-1", now=NOW),
    "lock": lambda codec: codec.unpack_lock(b"k", LOCK, now=NOW),
}


@pytest.mark.parametrize("kind", OLD)
def test_values_of_versions_without_stamps_are_believed_without_a_key_only(kind: str) -> None:
    """With a key they are refused, and counted, whoever wrote them."""
    codec, refusals = plain(), Refusals("test")
    assert OLD[kind](codec) is not None
    assert codec.malformed == 0
    assert OLD[kind](Codec(b"the fleet's secret", refusals)) is None
    assert refusals.counts() == {f"{kind}: not authentic": 1}


def test_refusals_are_said_once_a_minute_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger that writes much does not fill the log; how many there were is said with the next line."""
    clock = FakeClock()
    refusals = Refusals("test", clock=clock)
    codec = Codec(b"the fleet's secret", refusals)
    for pass_s in (0.0, 59.0, 2.0):
        clock.advance(pass_s)
        for _ in range(10):
            codec.unpack_session(b"s", b"w1", now=NOW)
            codec.unpack_router(b"router-1", now=NOW)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert "refused session: not authentic (21 so far)" in lines[2]


@pytest.mark.parametrize("back_s", [0.5, 20.0, 45.0, 55.0, 300.0, 1e6])
def test_store_whose_clock_goes_back_costs_no_value(back_s: float) -> None:
    """Another server has taken over: what is written from then on is believed at once, in its order."""
    key = b"the fleet's secret"
    writer, reader = Codec(key, Refusals("test")), Codec(key, Refusals("test"))
    for now in (NOW, NOW - back_s, NOW - back_s + 1.0, NOW - back_s + 2.0):
        for _ in range(3):
            update = writer.pack_update(make_update(), now=now)
            assert reader.unpack_update(update, now=now) == make_update()
    assert reader.malformed == 0
