"""Lossless compression of KV blocks, and whether it pays.

KV in 16 bits has a byte of sign and exponent, in which few values are frequent, and a byte that is close to noise.
Apart from each other (*shuffled*) the first half compresses, and zstd passes over the second.

It pays where the time to compress, write, read and decompress is shorter than the time to write and read: on a slow
store, and not on a fast disk. Nothing of that is assumed: a block of the object is tried, and the store's rates are
those that were measured on it lately.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from ghostcacher_connector.core.errors import ConfigError

zstandard: Any
try:
    zstandard = import_module("zstandard")
except ModuleNotFoundError:  # the extra [objects] is not installed
    zstandard = None

LEVEL = 1
"""Higher levels take four times as long for the same bytes of KV (measured), and lower ones leave 94 % and more."""
GAIN_MIN = 1.1
"""What compression must be faster by, all in all: an engine has better uses for its CPUs."""

SAMPLE_BYTES = 1 << 20
"""Even, as blocks are; some milliseconds."""

TRIAL_EVERY = 64
"""Objects: half a GiB. The CPUs are busy at one time and not at another."""


def check_compression() -> None:
    """Raise ConfigError unless the library is there."""
    if zstandard is None:
        raise ConfigError("object_compression: needs the package zstandard: pip install 'ghostcacher[objects]'")


def available() -> bool:
    """Return whether the library is there."""
    return zstandard is not None


def compress(block: memoryview) -> bytes:
    """Return a block's bytes, shuffled and compressed. Its size must be even."""
    pairs = np.frombuffer(block, np.uint16)
    shuffled = np.empty((2, len(pairs)), np.uint8)
    np.bitwise_and(pairs, 0xFF, out=shuffled[0], casting="unsafe")
    np.right_shift(pairs, 8, out=shuffled[1], casting="unsafe")
    return bytes(zstandard.ZstdCompressor(level=LEVEL).compress(shuffled.data.cast("B", (shuffled.nbytes,))))


def decompress(stored: memoryview, into: memoryview) -> bool:
    """Write a block's bytes to `into`; return False when `stored` is not a block of that size."""
    try:
        # A frame says how much it wants to be allocated for it.
        if zstandard.frame_content_size(stored) != len(into):
            return False
        plain = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError:
        return False
    half = len(plain) // 2
    target = np.frombuffer(into, np.uint8)
    source = np.frombuffer(plain, np.uint8)
    target[0::2] = source[:half]
    target[1::2] = source[half:]
    return True


class Trial(NamedTuple):
    """What compressing a part of a block has shown."""

    ratio: float
    """Bytes as stored over bytes as they were."""
    byte_s: float
    """Seconds for each byte, there and back."""

    def pays(self, write_bytes_s: float, read_bytes_s: float) -> bool:
        """Return whether such blocks are sooner written and read when compressed, at these rates of the store."""
        store_byte_s = 1 / write_bytes_s + 1 / read_bytes_s
        return store_byte_s > GAIN_MIN * (self.byte_s + self.ratio * store_byte_s)


def tried(block: memoryview, clock: Callable[[], float] = time.perf_counter) -> Trial:
    """Compress the beginning of a block, and decompress it."""
    sample = block[:SAMPLE_BYTES]
    scratch = memoryview(bytearray(len(sample)))
    began = clock()
    stored = memoryview(compress(sample))
    decompress(stored, scratch)
    return Trial(len(stored) / len(sample), (clock() - began) / len(sample))


class CompressionChoice:
    """Decides for one object after the other; what it costs is measured now and then. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._trial: Trial | None = None
        self._asked = 0

    def pays(self, block: memoryview, *, write_bytes_s: float, read_bytes_s: float) -> bool:
        """Return whether objects of blocks like this one are to be compressed. The rates are those of the store."""
        trial = self._trial
        if trial is None or self._asked % TRIAL_EVERY == 0:
            trial = self._trial = tried(block, self._clock)
        self._asked += 1
        return trial.pays(write_bytes_s, read_bytes_s)
