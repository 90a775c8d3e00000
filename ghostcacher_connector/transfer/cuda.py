"""The few calls of the CUDA driver that bounce buffers and host slots of a GPU need. Loads no torch: the relay process
does without.

The primary context, which is also torch's and UCX's, is made current for the length of a call only: callers are threads
of an engine. Copies go on a stream of their own, so that they neither wait for the engine's work nor hold it up.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ghostcacher_connector.core.errors import ConfigError, TransferError
from ghostcacher_connector.transfer.layout import Bytes

DRIVER = "libcuda.so.1"
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""
NUMBER_END = 1 << 31


PITCH_MAX = (1 << 31) - 1
"""CU_DEVICE_ATTRIBUTE_MAX_PITCH of every device so far."""

HOST, DEVICE = 1, 2
"""CU_MEMORYTYPE_HOST and CU_MEMORYTYPE_DEVICE."""


class Copy2D(NamedTuple):
    """Rows of equal size, equally far apart on both sides: one is the host's, one the device's."""

    to_device: bool
    source: int
    """The address of the first row."""
    source_step: int
    """From one row to the next, in bytes."""
    target: int
    target_step: int
    row_bytes: int
    row_count: int
    """How many rows."""


class _Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("srcXInBytes", ctypes.c_size_t),
        ("srcY", ctypes.c_size_t),
        ("srcMemoryType", ctypes.c_uint),
        ("srcHost", ctypes.c_void_p),
        ("srcDevice", ctypes.c_uint64),
        ("srcArray", ctypes.c_void_p),
        ("srcPitch", ctypes.c_size_t),
        ("dstXInBytes", ctypes.c_size_t),
        ("dstY", ctypes.c_size_t),
        ("dstMemoryType", ctypes.c_uint),
        ("dstHost", ctypes.c_void_p),
        ("dstDevice", ctypes.c_uint64),
        ("dstArray", ctypes.c_void_p),
        ("dstPitch", ctypes.c_size_t),
        ("WidthInBytes", ctypes.c_size_t),
        ("Height", ctypes.c_size_t),
    )


def _parameters(copy: Copy2D) -> _Memcpy2D:
    parameters = _Memcpy2D(
        srcPitch=copy.source_step, dstPitch=copy.target_step, WidthInBytes=copy.row_bytes, Height=copy.row_count
    )
    if copy.to_device:
        parameters.srcMemoryType, parameters.srcHost = HOST, copy.source
        parameters.dstMemoryType, parameters.dstDevice = DEVICE, copy.target
    else:
        parameters.srcMemoryType, parameters.srcDevice = DEVICE, copy.source
        parameters.dstMemoryType, parameters.dstHost = HOST, copy.target
    return parameters


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

    def copy_all(self, copies: Iterable[Copy2D]) -> None:
        """Carry out copies between device and host memory; returns when the bytes of all of them are there.

        Raises TransferError when one is refused, once those before it have landed: the caller gives their places away.
        """
        with self._current():
            try:
                for copy in copies:
                    self._start(copy)
            finally:
                self._call("cuStreamSynchronize", self._stream)

    def pin(self, address: int, nbytes: int) -> None:
        """Lock host memory in place, so that copies run beside the engine's work. Raises TransferError."""
        with self._current():
            self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(0))

    def unpin(self, address: int) -> None:
        """Undo `pin`. Raises TransferError."""
        with self._current():
            self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def wait_for_all(self) -> None:
        """Return when nothing that this process has given the device to do is left."""
        with self._current():
            self._call("cuCtxSynchronize")

    def _start(self, copy: Copy2D) -> None:
        """Give a copy to the stream: at once, or row by row where the rows are farther apart than the driver takes."""
        if copy.row_count == 1 or max(copy.source_step, copy.target_step) <= PITCH_MAX:
            self._call("cuMemcpy2DAsync_v2", ctypes.byref(_parameters(copy)), self._stream)
            return
        for number in range(copy.row_count):
            source, target = copy.source + number * copy.source_step, copy.target + number * copy.target_step
            size = ctypes.c_size_t(copy.row_bytes)
            if copy.to_device:
                place = ctypes.c_void_p(source)
                self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target), place, size, self._stream)
            else:
                place = ctypes.c_void_p(target)
                self._call("cuMemcpyDtoHAsync_v2", place, ctypes.c_uint64(source), size, self._stream)

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
