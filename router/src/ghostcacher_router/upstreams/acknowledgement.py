"""Whether the host at the other side of a connection acknowledges what is sent to it.

A worker that computes for minutes sends nothing, and so does one that hangs; but its kernel acknowledges at once what
it receives. Where it does not, the host is gone, or the way to it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import NamedTuple

_TCP_INFO = struct.Struct("=3xB20xI28xI84xI")
"""Of Linux's `struct tcp_info` (since 4.6): tcpi_probes, tcpi_unacked, tcpi_last_ack_recv, tcpi_notsent_bytes."""
_PROBES_LOST = 3
"""A host that has no room for more is asked by the kernel, again and again, whether it has some now. So many of these
questions in a row without an answer are no accident."""


class Outstanding(NamedTuple):
    """What was written to a connection, and is not known to have arrived."""

    expected: bool
    """Whether an acknowledgement is due. Not so while the rest waits for room at the other side, which says so."""
    silent_s: float
    """For how long the other side has acknowledged nothing at all, in s."""


def outstanding(transport: asyncio.Transport) -> Outstanding | None:
    """Return what has not arrived yet; None when all has, or where the system cannot say."""
    connected = transport.get_extra_info("socket")
    if connected is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return None
    if len(info) < _TCP_INFO.size:
        return None
    probes, unacknowledged, silent_ms, unsent_bytes = _TCP_INFO.unpack(info)
    if not unacknowledged and not unsent_bytes and not transport.get_write_buffer_size():
        return None
    return Outstanding(unacknowledged > 0 or probes >= _PROBES_LOST, silent_ms / 1e3)
