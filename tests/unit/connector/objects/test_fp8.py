"""Blocks in 8 bits: rounded to the nearest FP8 number, once and for all, and never where exact ones are expected."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.fp8 import ELEMENTS, GROUP, Fp8
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.tier_options import TierOptions
from tests.support.object_tiers import BLOCK_BYTES, buffers, chain, opened, right, rows_of

FP8 = TierOptions(queue_bytes=64 << 20, compress="fp8")
PROMPT = chain(8)
STEP = 2.0**-9
"""Between the smallest FP8 numbers."""


def as_floats(block: memoryview, dtype: str) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # numbers that are none
        if dtype == "bfloat16":
            return (np.frombuffer(block, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.frombuffer(block, dtype).astype(np.float64)


def block_of(values: NDArray[np.float64], dtype: str) -> memoryview:
    """Return the bytes of numbers in a data type; cut, not rounded, where that is bfloat16."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).data.cast("B")
    return values.astype(dtype).data.cast("B")


def there_and_back(block: memoryview, dtype: str) -> tuple[memoryview, bytes]:
    """Return a block as it comes back, and as it is stored."""
    fp8 = Fp8(dtype, len(block))
    stored = fp8.encode(block)
    assert stored is not None
    into = memoryview(bytearray(len(block)))
    assert fp8.decode(memoryview(stored), into)
    return into, stored


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    """Every bfloat16 number that is rounded to 448 at most, its neighbours in the other types, and ties among them."""
    torch = pytest.importorskip("torch")
    magnitudes = (np.arange(0x43E9, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    near = [magnitudes, np.nextafter(magnitudes.astype(np.float32), np.float32(0)), magnitudes * (1 + 2.0**-11)]
    values = np.concatenate([sign * each for each in near for sign in (1, -1)])
    values = values[np.abs(values) <= 464]
    values = np.where(np.abs(values) < 2.0**-14, 0.0, values) if dtype == "float16" else values
    values = np.resize(values, (-(-len(values) // (GROUP - 1)), GROUP - 1))
    largest = np.full((len(values), 1), 448.0)  # so that the scale of each group is 1
    block = block_of(np.hstack([values, largest]).ravel(), dtype)
    plain = torch.from_numpy(as_floats(block, dtype))
    expected = plain.to(torch.float32).to(torch.float8_e4m3fn).to(torch.float64).numpy()
    back, stored = there_and_back(block, dtype)
    assert set(stored[: len(values)]) == {127}
    assert np.array_equal(as_floats(back, dtype), expected)


@pytest.mark.parametrize("dtype", ELEMENTS)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-20, 12),
    spread=st.integers(0, 12),
    zeros=st.floats(0, 1),
)
def test_what_comes_back_is_near_and_is_rounded_to_itself(
    dtype: str, seed: int, exponent: int, spread: int, zeros: float
) -> None:
    """Each element within a sixteenth of itself, or half a step of its group; again and again the same bytes."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(8 * GROUP) * 2.0 ** (exponent + random.integers(-spread, 1, 8 * GROUP))
    block = block_of(np.where(random.random(8 * GROUP) < zeros, 0.0, values), dtype)
    back, stored = there_and_back(block, dtype)
    before, after = as_floats(block, dtype), as_floats(back, dtype)
    scales = np.repeat(2.0 ** (np.frombuffer(stored, np.uint8, 8).astype(np.float64) - 127), GROUP)
    assert (np.abs(after - before) <= np.maximum(np.abs(before) / 16, scales * STEP / 2)).all()
    assert there_and_back(back, dtype) == (back, stored)


@pytest.mark.parametrize("dtype", ELEMENTS)
@given(data=st.binary(min_size=128, max_size=128))
def test_any_bytes_are_rounded_to_themselves_or_left_alone(dtype: str, data: bytes) -> None:
    """Whatever KV holds: what has 8 bits has them for good, and every number of it is one."""
    fp8 = Fp8(dtype, len(data))
    stored = fp8.encode(memoryview(data))
    if stored is None:
        limit = 2.0**15 if dtype == "float16" else 2.0**127
        assert not (np.abs(as_floats(memoryview(data), dtype)) < limit).all()
        return
    into = memoryview(bytearray(len(data)))
    assert fp8.decode(memoryview(stored), into)
    assert np.isfinite(as_floats(into, dtype)).all()
    assert there_and_back(into, dtype) == (into, stored)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -(2.0**-10), 448.0, 1.125])
def test_fp8_numbers_are_kept(dtype: str, value: float) -> None:
    block = block_of(np.full(GROUP, value), dtype)
    assert there_and_back(block, dtype)[0] == block


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_numbers_at_the_ends_of_a_type_stay_numbers(dtype: str, end: str) -> None:
    """Each alone, so that its group has its scale: a block with some of the largest ones is left alone."""
    unsigned = np.uint32 if dtype == "float32" else np.uint16
    infinite = int(np.frombuffer(block_of(np.array([np.inf]), dtype), unsigned)[0])
    first = 1 if end == "smallest" else infinite - 256
    rounded = 0
    for bits in range(first, first + 256):
        block = np.array([bits] + [0] * (GROUP - 1), unsigned).data.cast("B")
        if Fp8(dtype, len(block)).encode(block) is None:
            assert end == "largest"
            continue
        back, stored = there_and_back(block, dtype)
        assert np.isfinite(as_floats(back, dtype)).all()
        assert not as_floats(back, dtype)[1:].any()
        assert there_and_back(back, dtype) == (back, stored)
        rounded += 1
    assert rounded == 256 if end == "smallest" else rounded < 256


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_finite_number_is_left_alone(dtype: str, value: float) -> None:
    values = np.ones(2 * GROUP)
    values[GROUP + 3] = value
    assert Fp8(dtype, len(block_of(values, dtype))).encode(block_of(values, dtype)) is None


@given(data=st.binary(min_size=66, max_size=66), size=st.integers(0, 70))
def test_no_stored_bytes_break_it(data: bytes, size: int) -> None:
    into = memoryview(bytearray(128))
    fp8 = Fp8("bfloat16", 128)
    assert fp8.decode(memoryview(data), into)
    assert fp8.decode(memoryview(data)[:size], into) is (size >= 66)


@pytest.mark.parametrize("dtype", ["uint8", "float8_e4m3fn", "int8", ""])
def test_kv_of_another_type_is_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"fp8 needs a KV cache of bfloat16, float16, float32.*{dtype}"):
        Fp8(dtype, 1 << 20)


def test_blocks_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 32 elements.* 96 bytes in bfloat16"):
        Fp8("bfloat16", 96)


# -- as objects --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def sizes(store: FileStore) -> list[int]:
    return [one.size_bytes for one in store.walk("v1/objects/", 100)]


def write(store: FileStore, rows: list[memoryview]) -> None:
    with opened(store, options=FP8) as tier:
        assert tier.write(PROMPT, rows, RunFacts(0, 1))


def read(store: FileStore) -> list[memoryview]:
    into = buffers(len(PROMPT))
    with opened(store, options=FP8) as tier:
        assert tier.read(PROMPT, into, time.monotonic() + 60) == len(PROMPT)
    return into


def test_objects_are_half_as_large_and_come_back_rounded(store: FileStore) -> None:
    write(store, rows_of(PROMPT))
    assert sum(sizes(store)) < 0.53 * len(PROMPT) * BLOCK_BYTES
    assert read(store) == [there_and_back(row, "bfloat16")[0] for row in rows_of(PROMPT)]


def test_rounded_blocks_that_are_written_again_are_the_same(tmp_path: Path) -> None:
    """As often as they come back to a host tier, and go to objects from there."""
    stores = [FileStore(tmp_path / name) for name in ("one", "two", "three")]
    rows = rows_of(PROMPT)
    for each in stores:
        write(each, rows)
        rows = read(each)
    files = [[(each._folder / one.name).read_bytes() for one in each.walk("v1/objects/", 100)] for each in stores]
    assert files[0] == files[1] == files[2]


def test_blocks_that_cannot_be_rounded_are_stored_as_they_are(store: FileStore) -> None:
    """With all of their object, so that nothing of it is lost."""
    rows = rows_of(PROMPT)
    rows[5] = np.full(BLOCK_BYTES // 2, 0x7F80, np.uint16).data.cast("B")
    write(store, rows)
    assert sum(sizes(store)) > len(PROMPT) * BLOCK_BYTES
    assert read(store) == rows


def test_rounded_blocks_are_foreign_where_blocks_are_exact(store: FileStore) -> None:
    """They never meet, since such workers have a namespace of their own; if they did, nothing rounded would be used."""
    write(store, rows_of(PROMPT))
    recorder = Recorder()
    with opened(store, recorder=recorder) as tier:
        assert right(tier, PROMPT) == 0
    delta = recorder.drain()
    assert delta["gc_object_misses_total"] == {"foreign": len(PROMPT)}
    assert delta["gc_object_quarantined_total"] == {"foreign": 1}


@pytest.mark.parametrize("at", [0.01, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("cut", [False, True])
def test_damage_within_rounded_blocks_is_seen(store: FileStore, at: float, cut: bool) -> None:
    """In a scale as in a number."""
    write(store, rows_of(PROMPT))
    (size,), ((path,),) = sizes(store), [[store._folder / one.name for one in store.walk("v1/objects/", 100)]]
    data, place = bytearray(path.read_bytes()), int(at * size)
    data[place] ^= 0x10
    path.write_bytes(data[:place] if cut else data)
    recorder, into = Recorder(), buffers(len(PROMPT))
    with opened(store, options=FP8, recorder=recorder) as tier:
        count = tier.read(PROMPT, into, time.monotonic() + 60)
    reason = "truncated" if cut else "damaged"
    assert count == (place - 4096) // ((size - 4096) // len(PROMPT))
    assert recorder.drain()["gc_object_misses_total"] == {reason: len(PROMPT) - count}
    assert into[:count] == [there_and_back(row, "bfloat16")[0] for row in rows_of(PROMPT)[:count]]


def test_what_a_tier_cannot_round_ends_it_at_start(store: FileStore) -> None:
    with pytest.raises(ConfigError, match="uint8"), opened(store, options=FP8, kv_dtype="uint8"):
        pass
    with opened(store, kv_dtype="uint8"):  # which is no matter where blocks are exact
        pass
