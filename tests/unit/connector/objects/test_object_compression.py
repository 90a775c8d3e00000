"""Compression of objects: without loss, chosen where it pays, and no worse when it is damaged."""

from __future__ import annotations

import itertools
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import compression
from ghostcacher_connector.objects.compression import TRIAL_EVERY, CompressionChoice
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.tier import ObjectTier
from ghostcacher_connector.objects.tier_options import TierOptions
from tests.support.object_tiers import BLOCK_BYTES, buffers, chain, opened, right, row_of, rows_of, write_all

pytestmark = pytest.mark.skipif(
    find_spec("zstandard") is None, reason="needs the package zstandard, of the extras [objects] and [dev]"
)

PROMPT = chain(8)
ALWAYS = TierOptions(queue_bytes=64 << 20, compress="always")
RAW_BYTES = 8 * BLOCK_BYTES


def stored(store: FileStore) -> list[tuple[Path, int]]:
    return [(store._folder / one.name, one.size_bytes) for one in store.walk("v1/objects/", 100)]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@given(data=st.binary(min_size=2, max_size=600).filter(lambda data: len(data) % 2 == 0))
def test_any_bytes_come_back(data: bytes) -> None:
    into = memoryview(bytearray(len(data)))
    assert compression.decompress(memoryview(compression.compress(memoryview(data))), into)
    assert bytes(into) == data


@given(data=st.binary(max_size=200), size=st.integers(0, 100))
def test_no_bytes_break_it(data: bytes, size: int) -> None:
    assert not compression.decompress(memoryview(data), memoryview(bytearray(2 * size + 2)))


def test_a_frame_that_wants_more_memory_than_a_block_is_refused() -> None:
    """Before anything is allocated for it."""
    huge = memoryview(compression.compress(np.zeros(64 << 20, np.uint8).data))
    assert len(huge) < 1 << 16
    assert not compression.decompress(huge, memoryview(bytearray(4096)))


def test_compressed_objects_are_smaller_and_read_as_others_are(store: FileStore) -> None:
    """By a tier that would not compress itself, in any run of blocks."""
    write_all(store, PROMPT, options=ALWAYS)
    assert sum(size for _, size in stored(store)) < 0.8 * RAW_BYTES
    with opened(store, options=TierOptions(compress="never")) as tier:
        assert right(tier, PROMPT) == 8
        assert right(tier, PROMPT[2:5]) == 3


def test_blocks_that_do_not_get_smaller_are_stored_as_they_are(store: FileStore) -> None:
    noise = [np.random.default_rng(number).integers(0, 256, BLOCK_BYTES, np.uint8).data for number in range(8)]
    with opened(store, options=ALWAYS) as tier:
        assert tier.write(PROMPT, noise, RunFacts(0, 1))
    assert sum(size for _, size in stored(store)) > RAW_BYTES
    with opened(store) as tier:
        into = buffers(8)
        assert tier.read(PROMPT, into, time.monotonic() + 60) == 8
        assert into == noise


@pytest.mark.parametrize("at", [0.2, 0.5, 0.999])
@pytest.mark.parametrize("cut", [False, True])
def test_damage_within_compressed_blocks_is_seen(store: FileStore, at: float, cut: bool) -> None:
    write_all(store, PROMPT, options=ALWAYS)
    ((path, size),) = stored(store)
    data = bytearray(path.read_bytes())
    data[int(at * size)] ^= 0x10
    path.write_bytes(data[: int(at * size)] if cut else data)
    recorder = Recorder()
    with opened(store, recorder=recorder) as tier:
        count = right(tier, PROMPT)
    reason = "truncated" if cut else "damaged"
    assert count == int(at * size - 4096) // ((size - 4096) // 8)
    delta = recorder.drain()
    assert delta["gc_object_misses_total"] == {reason: 8 - count}
    assert delta["gc_object_quarantined_total"] == {reason: 1}


def test_without_the_library_compressed_objects_are_misses_and_no_damage(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(store, PROMPT, options=ALWAYS)
    monkeypatch.setattr(compression, "zstandard", None)
    recorder = Recorder()
    with opened(store, recorder=recorder) as tier:
        assert right(tier, PROMPT) == 0
    delta = recorder.drain()
    assert delta["gc_object_misses_total"] == {"codec": 8}
    assert "gc_object_quarantined_total" not in delta
    with pytest.raises(ConfigError, match="zstandard"):
        ObjectTier.open(
            f"file://{store._folder}",
            namespace=b"n",
            rank=0,
            block_bytes=2,
            kv_dtype="bfloat16",
            options=ALWAYS,
            recorder=Recorder(),
        )


@pytest.mark.parametrize(("rate", "expected"), [(1e6, True), (20e6, True), (1e9, False)])
def test_it_pays_where_the_store_is_slow(rate: float, expected: bool) -> None:
    """Here compressing takes 10 ms for a MiB, there and back, and about half of it is left."""
    ticks = itertools.count(0, 0.01)
    choice = CompressionChoice(clock=lambda: next(ticks))
    assert choice.pays(row_of(PROMPT[0]), write_bytes_s=rate, read_bytes_s=rate) is expected


def test_what_it_costs_is_measured_now_and_then() -> None:
    """The CPU got busy: that counts with the next trial, and the rates of the store with each object."""
    ticks, tick_s = [0.0], [0.001]

    def clock() -> float:
        ticks[0] += tick_s[0]
        return ticks[0]

    choice = CompressionChoice(clock=clock)
    block = row_of(PROMPT[0])

    def pays(rate: float) -> bool:
        return choice.pays(block, write_bytes_s=rate, read_bytes_s=rate)

    assert pays(100e6)
    tick_s[0] = 1.0
    assert [pays(100e6) for _ in range(TRIAL_EVERY - 2)] == [True] * (TRIAL_EVERY - 2)
    assert not pays(10e9)
    assert ticks[0] == pytest.approx(0.002)
    assert not pays(100e6)


def test_it_never_pays_for_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, BLOCK_BYTES, np.uint8).data
    assert not CompressionChoice().pays(noise, write_bytes_s=1e3, read_bytes_s=1e3)


def test_what_was_measured_decides(store: FileStore) -> None:
    """Nothing is compressed before the store was measured; on a slow one then everything is."""
    other = chain(8, "other")
    with opened(store, options=ALWAYS._replace(compress="auto")) as tier:
        tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
        tier.wait_written(60)
        assert stored(store)[0][1] > RAW_BYTES
        for rate in (tier._objects.read_rate, tier._objects.write_rate):
            for _ in range(50):
                rate.add(1 << 20, 10.0)
        tier.write(other, rows_of(other), RunFacts(0, 1))
    assert min(size for _, size in stored(store)) < 0.8 * RAW_BYTES
