"""Copies to and from a device: nothing of them lands after they have been given up."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.transfer.cuda import Copy2D, CudaDevice

OUT_OF_MEMORY = 2


class Driver:
    """Takes the calls of the driver's interface, and refuses one of the copies."""

    def __init__(self, refused: int) -> None:
        self._refused = refused
        self.in_flight = 0
        self.landed = 0

    def cuMemcpy2DAsync_v2(self, *_: Any) -> int:
        if self.in_flight == self._refused:
            return OUT_OF_MEMORY
        self.in_flight += 1
        return 0

    def cuStreamSynchronize(self, _: Any) -> int:
        self.landed, self.in_flight = self.landed + self.in_flight, 0
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0


@pytest.mark.parametrize("refused", [0, 2])
def test_refused_copy_waits_for_those_before_it(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """The engine is given its slots back with the error: what landed later would overwrite somebody's KV."""
    driver = Driver(refused)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    device = CudaDevice(0)
    copy = Copy2D(to_device=True, source=0, source_step=8, target=0, target_step=8, row_bytes=8, row_count=2)
    with pytest.raises(TransferError, match="cuMemcpy2DAsync_v2"):
        device.copy_all([copy] * 4)
    assert (driver.in_flight, driver.landed) == (0, refused)
