"""KV blocks in 8 bits, which is lossy: half the bytes of 16-bit KV in the store, and half of them to read.

Each element becomes an FP8 number (E4M3: sign, 4 bits of exponent, 3 of mantissa), rounded to the nearest one, and
each `GROUP` of consecutive elements shares a scale, which is a power of two (E8M0: the exponent alone): this is the
microscaling format MXFP8. A group is a part of one head's vector of one token in the usual layouts, but nothing depends
on that.

    offset          bytes
    0               elements / GROUP    the scale of each group: exponent + 127
    elements/GROUP  elements            the numbers

A scale is the smallest power of two by which the group's largest element is rounded to 448 at most, the largest FP8
number. So multiplying is exact, and *what was rounded once is rounded to itself*: however often a block goes to objects
and comes back, it loses no more than it did the first time.

Both ways are look-ups in tables of 16 bits, by numpy: 0.4 GB/s of 16-bit KV each on one busy core.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghostcacher_connector.core.errors import ConfigError

GROUP = 32
"""Elements that share a scale."""

EXPONENT_BIAS = 127
"""Of a scale, and of an IEEE float of 32 bits."""

LARGEST = 0x43E8
"""464, the largest number that is rounded to 448, as the upper half of a 32-bit float."""


SCALE_MIN = -116
"""Exponent of the least scale. Under a lesser one zero, which has an exponent of 0 as a float, would not be rounded to
zero by `_rounded`. Elements far below it become less precise, and zero."""


class Element(NamedTuple):
    """What is to be known of a data type. Magnitudes are upper halves of 32-bit floats: ordered as integers are."""

    bytes: int
    too_large: int
    """Elements from here on would be rounded up beyond the largest one of the type, or are infinite, or no numbers."""


ELEMENTS = {
    "bfloat16": Element(2, 0x7F78),
    "float16": Element(2, 0x4778),
    "float32": Element(4, 0x7F78),
}
"""By the name of the type."""


class Fp8:
    """Encodes and decodes blocks of one data type. Thread-safe."""

    def __init__(self, dtype: str, block_bytes: int) -> None:
        """dtype: of the KV cache, such as "bfloat16". block_bytes: of one block, in one rank's memory.

        Raises ConfigError when it is not a float of 16 or 32 bits, or a block is no whole number of groups.
        """
        element = ELEMENTS.get(dtype)
        if element is None:
            raise ConfigError(
                f"object_compression: fp8 needs a KV cache of {', '.join(ELEMENTS)}; the engine's is {dtype}"
            )
        if block_bytes % (GROUP * element.bytes):
            raise ConfigError(
                f"object_compression: fp8 needs blocks of a multiple of {GROUP} elements; the engine's are of "
                f"{block_bytes} bytes in {dtype}"
            )
        self._dtype, self._element = dtype, element
        self._groups = block_bytes // (GROUP * element.bytes)

    def __repr__(self) -> str:
        return f"Fp8({self._dtype})"

    def encode(self, block: memoryview) -> bytes | None:
        """Return a block in 8 bits; None when it holds what cannot be: infinite, no number, or about the largest."""
        upper = self._upper_halves(block).reshape(self._groups, GROUP)
        magnitudes = (upper & 0x7FFF).view(np.int16)
        largest = magnitudes.max(axis=1)
        if int(largest.max(initial=0)) >= self._element.too_large:
            return None
        exponents = _exponents(largest)
        # The exponent's place in the upper half: dividing by the scale is subtracting it.
        numbers = _rounded().take(magnitudes - (exponents << 7)[:, None], mode="clip")
        numbers |= ((upper >> 8) & 0x80).astype(np.uint8)
        return (exponents + EXPONENT_BIAS).astype(np.uint8).tobytes() + numbers.tobytes()

    def decode(self, stored: memoryview, into: memoryview) -> bool:
        """Write a block to `into`; return False when `stored` has not the size of one."""
        if len(stored) != self._groups * (GROUP + 1):
            return False
        scales = np.frombuffer(stored, np.uint8, self._groups).astype(np.uint16)
        numbers = np.frombuffer(stored, np.uint8, offset=self._groups).reshape(self._groups, GROUP)
        values = _values(self._dtype)
        target = np.frombuffer(into, values.dtype).reshape(self._groups, GROUP)
        np.take(values, (scales << 8)[:, None] | numbers, out=target, mode="clip")
        return True

    def _upper_halves(self, block: memoryview) -> NDArray[np.uint16]:
        """Return each element as the upper half of a 32-bit float, whose last bit says also whether anything follows.

        That is as good as all of it: the last bit is beyond what decides how FP8 numbers are rounded.
        """
        if self._dtype == "bfloat16":
            return np.frombuffer(block, np.uint16)
        with np.errstate(invalid="ignore"):  # what is no number stays none
            floats = np.frombuffer(block, self._dtype).astype(np.float32, copy=False).view(np.uint32)
        upper: NDArray[np.uint16] = ((floats >> 16) | ((floats & 0xFFFF) != 0)).astype(np.uint16)
        return upper


def _exponents(largest: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the exponent of each group's scale, by its largest magnitude."""
    exponents = (largest >> 7) - EXPONENT_BIAS - 8 + ((largest & 0x7F) > (LARGEST & 0x7F))
    bounded: NDArray[np.int16] = np.maximum(exponents, SCALE_MIN).astype(np.int16)
    return bounded


@cache
def _rounded() -> NDArray[np.uint8]:
    """Return the nearest FP8 number of every magnitude up to the largest one; of two the even one."""
    magnitudes = (np.arange(LARGEST + 1, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    with np.errstate(divide="ignore"):
        exponents = np.maximum(np.floor(np.log2(magnitudes)), -6)
    step = 2.0 ** (exponents - 3)
    codes: NDArray[np.uint8] = np.searchsorted(_numbers(), np.rint(magnitudes / step) * step).astype(np.uint8)
    return codes


@cache
def _values(dtype: str) -> NDArray[Any]:
    """Return the element for each ``scale << 8 | number``, as an integer with its bits where numpy lacks the type."""
    signed = np.concatenate([_numbers(), [np.nan]])
    signed = np.concatenate([signed, -signed])
    with np.errstate(over="ignore"):
        scaled = (2.0 ** (np.arange(256) - EXPONENT_BIAS)[:, None] * signed).ravel()
        values: NDArray[Any] = scaled.astype("float32" if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    return values


def _numbers() -> NDArray[np.float64]:
    """Return the FP8 numbers that are not negative, in order: from 0 to 448."""
    codes = np.arange(0x7F)
    return np.where(codes >> 3, (8 + (codes & 7)) * 2.0 ** ((codes >> 3) - 10), (codes & 7) * 2.0**-9)
