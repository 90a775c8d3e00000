"""The few calls of the CUDA driver that landing places on a GPU need. Loads no torch: the relay process does without.

A context is made current for the length of a call only: callers are threads of an engine, which has its own.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from ghostcacher_connector.errors import ConfigError, TransferError
from ghostcacher_connector.transfer.views import Bytes

DRIVER = "libcuda.so.1"


class CudaDevice:
    """One device, in its primary context: the one that torch and UCX use, too. Thread-safe."""

    def __init__(self, number: int, *, driver: str = DRIVER) -> None:
        """number: as CUDA_VISIBLE_DEVICES counts. Raises ConfigError without a driver, TransferError if it refuses."""
        self.number = number
        try:
            self._driver: Any = ctypes.CDLL(driver)
        except OSError as exc:
            raise ConfigError(f"device memory needs the CUDA driver: {exc}") from exc
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def __repr__(self) -> str:
        return f"CudaDevice({self.number})"

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory, which is kept as long as the process lives. Raises TransferError."""
        address = ctypes.c_uint64()
        with self._current():
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def copy_to_host(self, target: Bytes, address: int) -> None:
        """Fill `target`, shape (n,), contiguous, from n bytes at `address`; returns when they are there."""
        place = ctypes.c_void_p(int(target.ctypes.data))
        with self._current():
            self._call("cuMemcpyDtoH_v2", place, ctypes.c_uint64(address), ctypes.c_size_t(target.nbytes))

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
            raise TransferError(f"CUDA device {self.number}: {name} failed with error {code}")
