"""The relay: serves readers over TCP with what it READs from the one rank beside it.

Each connection has a thread; their number is bounded, and so is every wait: for the handshake, the next request, the
I/O of a chunk, a bounce buffer. A reader that dies or stalls costs its thread until then, and the engine nothing.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

import numpy as np

from ghostcacher_connector.core.errors import PeerUnreachable, ProtocolError, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.layout import slots_fault
from ghostcacher_connector.transfer.nixl.bounce_buffers import SEAL_SLOTS_MAX
from ghostcacher_connector.transfer.nixl.reader import NixlReader, NoBounceBuffer
from ghostcacher_connector.transfer.relay.wire import (
    SLOTS_MAX,
    Ask,
    Channel,
    Chunk,
    Done,
    Failure,
    Seal,
    server_handshake,
)

logger = logging.getLogger(__name__)


CONNECTIONS_MAX = 64
"""Readers that are connected at the same time; more are refused. Suits a node of eight GPUs, as do the bounds below."""

HANDSHAKE_S = 5.0
"""How long a reader may take to authenticate."""

IDLE_S = 120.0
"""How long a connection may be without a request."""

CHUNK_S = 10.0
"""How long READING and sending one chunk may take."""

BUFFER_S = 2.0
"""How long a chunk may wait for a bounce buffer."""


class RelayServer:
    """Listens, and serves the memory of one rank to authenticated readers."""

    def __init__(
        self,
        reader: NixlReader,
        endpoint: RankEndpoint,
        address: tuple[str, int],
        *,
        token: str,
    ) -> None:
        self._reader = reader
        self._endpoint = endpoint
        self._token = token
        self._slot_bytes = endpoint.slot_bytes
        self._lock = threading.Lock()
        self._connections = 0
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=64)

    @property
    def port(self) -> int:
        """The port that readers connect to."""
        return int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Accept readers for as long as the process lives."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError:
                return
            if not self._admit():
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), name="gc-relay", daemon=True).start()

    def _admit(self) -> bool:
        with self._lock:
            if self._connections >= CONNECTIONS_MAX:
                logger.warning("refused a reader: %d are connected", self._connections)
                return False
            self._connections += 1
            return True

    def _serve(self, sock: socket.socket) -> None:
        channel = Channel(sock)
        try:
            channel.deadline = time.monotonic() + HANDSHAKE_S
            server_handshake(channel, self._token, self._endpoint.agent_name, self._slot_bytes)
            while True:
                channel.deadline = time.monotonic() + IDLE_S
                ask = channel.receive()
                if not isinstance(ask, Ask):
                    raise ProtocolError(f"expected Ask, got {type(ask).__name__}")
                self._answer(channel, ask)
        except (ProtocolError, OSError) as exc:
            logger.debug("a reader's connection ended: %s", exc)
        finally:
            channel.close()
            with self._lock:
                self._connections -= 1

    def _answer(self, channel: Channel, ask: Ask) -> None:
        until = time.monotonic() + min(IDLE_S, max(1, ask.budget_ms) / 1000)
        channel.deadline = until
        fault = (
            "" if len(ask.slots) % 8 == 0 and len(ask.slots) <= 8 * SLOTS_MAX else f"{len(ask.slots)} bytes of slots"
        )
        slots = np.frombuffer(ask.slots[: len(ask.slots) // 8 * 8], dtype="<i8").astype(np.int64)
        fault = fault or slots_fault(slots, self._endpoint.slot_count)
        if fault:
            channel.send(Failure(MissReason.MALFORMED_ENTRY, fault))
            return
        step = min(SEAL_SLOTS_MAX, max(1, self._reader.buffers.data_bytes // self._endpoint.bytes_per_slot))
        try:
            for low in range(0, max(1, len(slots)), step):
                self._send_chunk(channel, slots[low : low + step], until)
        except PeerUnreachable as exc:
            channel.send(Failure(MissReason.PEER_UNREACHABLE, str(exc)))
        except TransferError as exc:
            channel.send(Failure(MissReason.TRANSFER_FAILED, str(exc)))
        else:
            channel.send(Done())

    def _send_chunk(self, channel: Channel, slots: Slots, until: float) -> None:
        """READ the rows of a chunk, after them its seal, and only then send the two, in this order."""
        deadline = min(until, time.monotonic() + CHUNK_S)
        channel.deadline = deadline
        reader = self._reader
        self._await_buffer(min(deadline, time.monotonic() + BUFFER_S))
        with reader.reading_from(self._endpoint) as loan:
            size = reader.read_rows(self._endpoint, loan, slots, deadline) if len(slots) else 0
            seal = reader.read_seal(self._endpoint, loan, slots, deadline).tobytes()
            channel.send(Chunk(len(slots), size))
            if size:
                channel.send_raw(loan.buffer.data[:size].data)
            channel.send(Seal(seal))

    def _await_buffer(self, deadline: float) -> None:
        """Wait until a bounce buffer is likely to be free. Slow readers hold them, at most for CHUNK_S."""
        while self._reader.buffers.free_count() == 0:
            if time.monotonic() >= deadline:
                raise NoBounceBuffer(f"the relay is busy: {self._reader.buffers}")
            time.sleep(0.002)
