"""What a client's connection is to the kernel: whether the other side has closed it, what has arrived, its reset."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress

_INT = struct.Struct("i")
_NO_LINGERING = struct.pack("ii", 1, 0)
_CLOSED_STATES = frozenset({7, 8})
"""Linux's TCP_CLOSE and TCP_CLOSE_WAIT: the other side has closed."""


def peer_has_closed(transport: asyncio.Transport) -> bool:
    """Say whether the peer has closed, behind bytes of it that are not read yet. False where the system cannot say."""
    connected = transport.get_extra_info("socket")
    if connected is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] in _CLOSED_STATES


def has_arrived(transport: asyncio.Transport) -> bool:
    """Say whether the peer's system has acknowledged all that was written. True where the system cannot say."""
    if transport.get_write_buffer_size():
        return False
    connected = transport.get_extra_info("socket")
    if connected is None:
        return True
    try:
        unacknowledged = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
    except OSError:
        return True
    return bool(_INT.unpack(unacknowledged)[0] == 0)


def reset_connection(transport: asyncio.Transport) -> None:
    """Close at once with a reset: nobody takes that for the end of what was written, some of which may be lost."""
    connected = transport.get_extra_info("socket")
    if connected is not None:
        with suppress(OSError):  # The peer may have closed it.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()
