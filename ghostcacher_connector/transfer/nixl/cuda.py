"""The few calls of the CUDA driver that bounce buffers on a GPU need. Loads no torch: the relay process does without.

The primary context, which is also torch's and UCX's, is made current for the length of a call only: callers are threads
of an engine. Copies go on a stream of their own, so that they neither wait for the engine's work nor hold it up.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from ghostcacher_connector.core.errors import ConfigError, TransferError
from ghostcacher_connector.transfer.layout import Bytes

DRIVER = "libcuda.so.1"
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""
NUMBER_END = 1 << 31


def has_driver(driver: str = DRIVER) -> bool:
    """Say whether this host has the CUDA driver."""
    try:
        ctypes.CDLL(driver)
    except OSError:
        return False
    return True


class CudaDevice:
    """One device. Thread-safe."""

    def __init__(self, number: int, *, driver: str = DRIVER) -> None:
        """number: as CUDA_VISIBLE_DEVICES counts. Raises ConfigError without a driver, TransferError if it refuses."""
        self.number = number
        try:
            self._driver: Any = ctypes.CDLL(driver)
        except OSError as exc:
            raise ConfigError(f"device memory needs the CUDA driver: {exc}") from exc
        if not 0 <= number < NUMBER_END:
            raise TransferError(f"CUDA device {number}: no such number")
        device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        with self._current():
            self._call("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(NON_BLOCKING))

    def __repr__(self) -> str:
        return f"CudaDevice({self.number})"

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory. Raises TransferError."""
        address = ctypes.c_uint64()
        with self._current():
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        """Free memory that `allocate` gave. Raises TransferError."""
        with self._current():
            self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_to_host(self, target: Bytes, address: int) -> None:
        """Fill `target`, shape (n,), contiguous, from n bytes at `address`; returns when they are there."""
        place = ctypes.c_void_p(int(target.ctypes.data))
        with self._current():
            size = ctypes.c_size_t(target.nbytes)
            self._call("cuMemcpyDtoHAsync_v2", place, ctypes.c_uint64(address), size, self._stream)
            self._call("cuStreamSynchronize", self._stream)

    def wait_for_all(self) -> None:
        """Return when nothing that this process has given the device to do is left."""
        with self._current():
            self._call("cuCtxSynchronize")

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise TransferError(f"CUDA device {self.number}: {name}: {self._error_name(code)}")

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._driver.cuGetErrorName(code, ctypes.byref(text))
        return text.value.decode() if text.value else f"error {code}"
