"""Numpy views of memory that is known by address only: the engine's slots, a bounce buffer.

The caller guarantees that the memory outlives the view.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import Segment

Bytes = npt.NDArray[np.uint8]


def bytes_at(address: int, nbytes: int) -> Bytes:
    """Return the `nbytes` bytes at `address` as a writable array, shape (nbytes,)."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def rows_of(segment: Segment, slot_count: int) -> Bytes:
    """Return the rows of a segment as a writable array, shape (slot_count, slot_bytes)."""
    span = bytes_at(segment.base, (slot_count - 1) * segment.stride_bytes + segment.slot_bytes)
    return np.lib.stride_tricks.as_strided(
        span, shape=(slot_count, segment.slot_bytes), strides=(segment.stride_bytes, 1)
    )
