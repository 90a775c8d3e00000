"""One child process that parses bodies, and is started anew when it is gone. Used by one thread."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import Final

import msgspec

from ghostcacher_router.parsing.messages import LENGTH, LENGTHS, ParseAsk, ParseReply
from ghostcacher_router.types import Body

logger = logging.getLogger(__name__)

SILENCE_S_MAX: Final = 20
"""A child that neither reads nor answers for so long is ended. The worst body takes it some seconds."""
REPLY_BYTES_MAX: Final = 1 << 30

_reply = msgspec.msgpack.Decoder(ParseReply)


class ParserFailed(Exception):
    """The child ended, hung or could not be started; the next call starts another one."""


class ParserProcess:
    """The child. memory_bytes_max: its address space."""

    def __init__(self, memory_bytes_max: int) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        # Whoever closes it while it starts waits until there is a child to end.
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"ParserProcess(pid={self.pid})"

    @property
    def pid(self) -> int | None:
        """Return the child's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start a child unless there is one. Raises ParserFailed."""
        self._connected()

    def parse(self, ask: ParseAsk, body: Body) -> ParseReply:
        """Have one body parsed, and wait for it. Raises ParserFailed."""
        child = self._connected()
        head = msgspec.msgpack.encode(ask)
        try:
            child.sendall(LENGTHS.pack(len(head), len(body)) + head)
            for piece in (body,) if isinstance(body, bytes) else body.pieces:
                child.sendall(piece)
            return _reply.decode(self._receive(child))
        except (OSError, EOFError, msgspec.MsgspecError) as exc:
            self._end()
            raise ParserFailed(f"the parsing process did not answer: {exc!r}") from exc

    def close(self) -> None:
        """End the child for good; from any thread. A call that waits for it fails. Idempotent."""
        with self._lock:
            self._closed = True
        self._end()

    def _connected(self) -> socket.socket:
        with self._lock:
            if self._closed:
                raise ParserFailed("closed")
            if self._socket is None:
                self._socket, self._process = self._started()
            return self._socket

    def _started(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", SILENCE_S_MAX, 0))
            command = [sys.executable, "-P", "-m", "ghostcacher_router.parsing.parser_main"]
            command.append(str(self._memory_bytes_max))
            # Not our settings, of which some are secrets: it reads what strangers send.
            env = {name: value for name, value in os.environ.items() if not name.startswith("GC_")}
            try:
                return ours, subprocess.Popen(command, stdin=theirs.fileno(), env=env)  # noqa: S603
            except OSError as exc:
                ours.close()
                raise ParserFailed(f"the parsing process could not be started: {exc}") from exc

    def _receive(self, child: socket.socket) -> bytes:
        (size,) = LENGTH.unpack(_read(child, LENGTH.size))
        return _read(child, min(size, REPLY_BYTES_MAX))

    def _end(self) -> None:
        with self._lock:
            child, self._socket = self._socket, None
            process, self._process = self._process, None
        if child is not None:
            with contextlib.suppress(OSError):
                child.shutdown(socket.SHUT_RDWR)
            child.close()
        if process is not None:
            process.kill()
            process.wait()


def _read(child: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        count = child.recv_into(view[at:])
        if count == 0:
            raise EOFError("it ended")
        at += count
    return bytes(data)
