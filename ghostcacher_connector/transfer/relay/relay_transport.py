"""Pulls through a peer's relay: rows arrive over TCP, straight into the local slots, and their seal is checked here.

The relay READs the seal of a chunk after the chunk's rows, and sends it after them (`_send_chunk` in server.py).
`_exchange` receives both, in this order; `_check_seals` then says which rows are valid.

Rule 5 of base.py is kept easily: rows are written only by `recv` in the pulling thread, so when `pull` returns nothing
can land any more, whatever the relay does. A connection that failed is closed and never used again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import PeerUnreachable, ProtocolError, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, SlotMemory
from ghostcacher_connector.slots import Generations, Slots, check_header, seal_words, valid_mask
from ghostcacher_connector.transfer.base import (
    Probe,
    PullRequest,
    PullResult,
    Transport,
    Validity,
    checked_result,
    failed_result,
)
from ghostcacher_connector.transfer.layout import endpoint_fault, request_fault, slots_fault
from ghostcacher_connector.transfer.relay.sinks import HostSink, Sink, check_memory, sink_for
from ghostcacher_connector.transfer.relay.wire import (
    SLOTS_MAX,
    Ask,
    Channel,
    Chunk,
    Done,
    Failure,
    Seal,
    client_handshake,
    parse_address,
)

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
IDLE_PER_PEER = 2
EMPTY: Slots = np.zeros(0, dtype=np.int64)


class RelayTransport(Transport):
    """Pulls by way of the relay process beside each peer. Thread-safe; each pull has a connection of its own."""

    name = "relay"

    def __init__(
        self, memory: SlotMemory, *, token: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigError when `memory` is on a device and torch cannot reach it."""
        self._memory = memory
        self._token = token or ""
        self._clock = clock
        check_memory(memory)
        self._lock = threading.Lock()
        self._idle: dict[str, list[Channel]] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._proven: set[str] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"RelayTransport({len(self._proven)} peers, token {'set' if self._token else 'none'})"

    def reaches(self, peer: RankEndpoint) -> bool:
        if self._closed or not peer.relay or endpoint_fault(peer):
            return False
        with self._lock:
            if peer.agent_name in self._proven:
                return True
            if not self._backoff(peer).ready(self._clock()):
                return False
        try:
            self.probe(peer, EMPTY, timeout_s=CONNECT_S)
        except TransferError as exc:
            logger.info("the relay of %s cannot be used: %s", peer.agent_name, exc)
            return False
        return True

    def pull(self, request: PullRequest) -> PullResult:
        started = self._clock()
        count = len(request.local_slots)
        peer = request.peer
        fault = request_fault(self._memory, peer, request.remote_slots, request.local_slots, len(request.generations))
        if fault is not None:
            return failed_result(count, self.name, *fault)
        valid = np.zeros(count, dtype=np.bool_)
        moved = 0
        try:
            for low in range(0, count, SLOTS_MAX):
                part = slice(low, low + SLOTS_MAX)
                with self._connection(peer, request.deadline) as channel:
                    sink = sink_for(self._memory, request.local_slots[part])
                    seals = _exchange(channel, peer, request.remote_slots[part], sink)
                moved += peer.bytes_per_slot * len(request.remote_slots[part])
                valid[part] = _check_seals(peer, seals, request.generations[part])
        except TransferError as exc:
            reason = _reason_of(exc)
            return failed_result(count, self.name, reason, str(exc), moved_bytes=moved, seconds=self._clock() - started)
        return checked_result(valid, self.name, moved, self._clock() - started)

    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        fault = endpoint_fault(peer) or slots_fault(slots, peer.slot_count)
        if fault:
            raise TransferError(f"probe of {peer.agent_name}: {fault}")
        sink = HostSink(len(slots), peer.slot_bytes)
        with self._connection(peer, self._clock() + timeout_s) as channel:
            started = time.perf_counter()
            seals = _exchange(channel, peer, EMPTY, sink)
            header_read = time.perf_counter()
            if len(slots):
                seals = _exchange(channel, peer, slots, sink)
            data_s = time.perf_counter() - header_read
        words = np.concatenate([words[seal_words(0) :] for words in seals])
        current = check_header(seals[0][: seal_words(0)].tobytes(), peer.incarnation, peer.slot_count)
        return Probe(self.name, header_read - started, current, words, sink.tobytes(), data_s)

    def forget(self, peer: RankEndpoint) -> None:
        with self._lock:
            self._proven.discard(peer.agent_name)
            self._backoffs.pop(peer.agent_name, None)
            channels = self._idle.pop(peer.agent_name, [])
        for channel in channels:
            channel.close()

    def close(self) -> None:
        self._closed = True
        with self._lock:
            channels = [channel for idle in self._idle.values() for channel in idle]
            self._idle.clear()
        for channel in channels:
            channel.close()

    @contextlib.contextmanager
    def _connection(self, peer: RankEndpoint, deadline: float) -> Iterator[Channel]:
        """Lend a connection to a peer's relay. What goes wrong closes it, and is raised as TransferError."""
        if self._clock() >= deadline:
            raise RelayTimeout(f"deadline passed before the relay of {peer.agent_name} was asked")
        with self._lock:
            backoff = self._backoff(peer)
            if not backoff.ready(self._clock()):
                failures = backoff.failures
                raise PeerUnreachable(f"the relay of {peer.agent_name} is backed off from after {failures} failures")
        channel: Channel | None = None
        try:
            channel = self._idle_channel(peer) or self._dial(peer, deadline)
            channel.deadline = deadline
            yield channel
        except BaseException as exc:
            if channel is not None:
                channel.close()
            error = _translated(peer, exc)
            if error is None:
                raise
            self._note_failure(peer)
            raise error from (None if error is exc else exc)
        self._keep(peer, channel)

    def _dial(self, peer: RankEndpoint, deadline: float) -> Channel:
        left = min(CONNECT_S, deadline - self._clock())
        if left <= 0:
            raise TimeoutError("deadline passed")
        channel = Channel(socket.create_connection(parse_address(peer.relay or ""), timeout=left), self._clock)
        try:
            channel.deadline = min(deadline, self._clock() + CONNECT_S)
            welcome = client_handshake(channel, self._token, peer.agent_name)
            if welcome.slot_bytes != peer.slot_bytes:
                raise ProtocolError("the relay's bytes per slot differ from the endpoint's")
        except BaseException:
            channel.close()
            raise
        return channel

    def _idle_channel(self, peer: RankEndpoint) -> Channel | None:
        while True:
            with self._lock:
                idle = self._idle.get(peer.agent_name)
                channel = idle.pop() if idle else None
            if channel is None or channel.quiet():
                return channel
            channel.close()

    def _keep(self, peer: RankEndpoint, channel: Channel) -> None:
        with self._lock:
            self._backoff(peer).succeeded()
            self._proven.add(peer.agent_name)
            idle = self._idle.setdefault(peer.agent_name, [])
            if len(idle) < IDLE_PER_PEER and not self._closed:
                idle.append(channel)
                return
        channel.close()

    def _note_failure(self, peer: RankEndpoint) -> None:
        with self._lock:
            self._backoff(peer).failed(self._clock())
            self._proven.discard(peer.agent_name)

    def _backoff(self, peer: RankEndpoint) -> Backoff:
        return self._backoffs.setdefault(peer.agent_name, Backoff())


class RelayTimeout(TransferError):
    """The deadline passed; the connection is closed."""


class RelayRefused(TransferError):
    """The relay answered that it cannot serve; `reason` is the one that it gave."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"the relay: {failure.detail}")
        self.reason = failure.reason


def _exchange(channel: Channel, peer: RankEndpoint, slots: Slots, sink: Sink) -> list[Generations]:
    """Ask for slots, put their rows into the sink, and return the seals, chunk after chunk."""
    budget_ms = max(1, int(channel.left_s() * 1000))
    channel.send(Ask(slots.astype("<i8").tobytes(), budget_ms))
    seals: list[Generations] = []
    at = 0
    while not isinstance(message := channel.receive(), Done):
        if isinstance(message, Failure):
            raise RelayRefused(message)
        if not isinstance(message, Chunk) or not 0 <= message.count <= len(slots) - at or len(seals) > len(slots):
            raise ProtocolError(f"unexpected {type(message).__name__} after {at} of {len(slots)} slots")
        if message.nbytes != message.count * peer.bytes_per_slot:
            raise ProtocolError(
                f"{message.count} slots: expected {peer.bytes_per_slot} bytes each, got {message.nbytes}"
            )
        channel.receive_into(sink.views(at, message.count))
        sink.landed(at, message.count)
        seals.append(_seal_of(channel, message.count))
        at += message.count
    if at != len(slots) or not seals:
        raise ProtocolError(f"the relay ended after {at} of {len(slots)} slots")
    return seals


def _seal_of(channel: Channel, count: int) -> Generations:
    message = channel.receive()
    if not isinstance(message, Seal) or len(message.words) != 8 * seal_words(count):
        raise ProtocolError(f"expected the seal of {count} slots, got {type(message).__name__}")
    return np.frombuffer(message.words, dtype="<u8").astype(np.uint64)


def _check_seals(peer: RankEndpoint, seals: list[Generations], expected: Generations) -> Validity:
    """Compare the seals of an exchange with the generations that were published; return which rows are valid.

    seals: one for each chunk, of as many slots as the chunk. expected: shape (n,), n the slots of all chunks.
    """
    valid: list[Validity] = []
    at = 0
    for seal in seals:
        count = len(seal) - seal_words(0)
        try:
            valid.append(valid_mask(seal, peer.incarnation, peer.slot_count, expected[at : at + count]))
        except ProtocolError as exc:
            raise PeerUnreachable(f"{peer.agent_name}: {exc}") from exc
        at += count
    return np.concatenate(valid)


def _translated(peer: RankEndpoint, error: BaseException) -> TransferError | None:
    """Return an exception of a pull through the relay of `peer` as TransferError; None for what is a bug of ours."""
    if isinstance(error, TransferError):
        return error
    if isinstance(error, TimeoutError):
        return RelayTimeout(f"the relay of {peer.agent_name} did not answer in time")
    if isinstance(error, OSError):
        return PeerUnreachable(f"the relay of {peer.agent_name} at {peer.relay}: {error}")
    if isinstance(error, (ProtocolError, UnicodeError)):  # the latter: a host name that cannot be one
        return PeerUnreachable(f"the relay of {peer.agent_name} at {peer.relay}: {error}")
    return None


def _reason_of(error: TransferError) -> MissReason:
    if isinstance(error, RelayTimeout):
        return MissReason.TIMEOUT
    if isinstance(error, RelayRefused):
        return error.reason
    return MissReason.PEER_UNREACHABLE if isinstance(error, PeerUnreachable) else MissReason.TRANSFER_FAILED
