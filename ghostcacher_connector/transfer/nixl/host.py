"""What this host is and has, as far as moving bytes is concerned."""

from __future__ import annotations

import platform
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RDMA_DEVICES = Path("/sys/class/infiniband")


def host_id() -> str:
    """Return the identity of this kernel's boot: equal for processes that may share memory."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()


def has_rdma() -> bool:
    """Say whether the kernel shows an RDMA device (InfiniBand, RoCE, EFA)."""
    try:
        return any(RDMA_DEVICES.iterdir())
    except OSError:
        return False
