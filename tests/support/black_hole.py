"""Makes a socket deaf and mute: its kernel drops what comes for it, as if no host were there."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

_SO_ATTACH_FILTER = 26
_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
"""A filter of one instruction: `ret #0`."""


def swallow(connection: Any) -> None:
    """Drop what comes for a socket from now on; a listening one takes no more connections, and refuses none."""
    program = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
