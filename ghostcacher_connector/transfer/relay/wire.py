"""What travels between a relay and a reader: length-prefixed msgpack frames, raw bytes between them, and the handshake.

    server: Hello(nonce)                  both nonces are fresh and random
    client: Login(nonce, agent, proof)    proof = HMAC(token, "client" nonces agent)
    server: Welcome(proof, ...)           proof = HMAC(token, "server" nonces agent)
    client: Ask(slots)            server: (Chunk, rows, Seal)*, Done | Failure      repeated

The rows of a chunk come segment after segment, in each in the order in which the slots were asked for. The seal of a
chunk was read after its rows. No size is believed: frames, slots and chunks are bounded.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.types import MissReason

VERSION = 1
NONCE_BYTES = 32
FRAME_BYTES_MAX = 1 << 20
SLOTS_MAX = 65_536
VIEWS_PER_CALL = 64


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The server's first frame."""

    version: int
    """The version of this protocol."""
    nonce: bytes
    """The server's, fresh and random."""


class Login(msgspec.Struct, frozen=True, tag=True):
    """The reader's answer to Hello."""

    nonce: bytes
    """The reader's, fresh and random."""
    agent: str
    """The agent name of the rank that the reader wants; the relay of another incarnation refuses."""
    proof: bytes
    """That the reader knows the token."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The server lets the reader in."""

    proof: bytes
    """That the server knows the token."""
    slot_bytes: tuple[int, ...]
    """The row size of each segment."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """The reader asks for the rows and the seal of slots."""

    slots: bytes
    """int64, little endian. None of them means only the seal's header."""
    budget_ms: int
    """What is left until the reader's deadline."""


class Chunk(msgspec.Struct, frozen=True, tag=True):
    """The rows of the next slots follow."""

    count: int
    """How many slots."""
    nbytes: int
    """How many bytes follow, in all."""


class Seal(msgspec.Struct, frozen=True, tag=True):
    """The seal of the chunk before it, which was read after the chunk's rows."""

    words: bytes
    """The header and one generation a slot, uint64, little endian."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """Everything that was asked for has been sent."""


class Failure(msgspec.Struct, frozen=True, tag=True):
    """The server cannot serve."""

    reason: MissReason
    detail: str
    """The reason in words, for the reader's log."""


Message = Hello | Login | Welcome | Ask | Chunk | Seal | Done | Failure
_decoder = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


class Channel:
    """A socket with a deadline: every call ends by then, however slowly the other side sends. Not thread-safe."""

    def __init__(self, sock: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._clock = clock
        self.deadline = clock()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: Message) -> None:
        """Send one frame. Raises OSError; TimeoutError at the deadline."""
        body = _encoder.encode(message)
        self.send_raw(len(body).to_bytes(4, "little") + body)

    def send_raw(self, data: bytes | memoryview) -> None:
        """Send bytes. `sendall` bounds the whole call by the time-out, not each part of it."""
        self._arm()
        self._sock.sendall(data)

    def receive(self) -> Message:
        """Return the next frame. Raises ProtocolError for what is not one, OSError, TimeoutError."""
        prefix = bytearray(4)
        self.receive_into([memoryview(prefix)])
        size = int.from_bytes(prefix, "little")
        if not 0 < size <= FRAME_BYTES_MAX:
            raise ProtocolError(f"frame of {size} bytes: expected 1 to {FRAME_BYTES_MAX}")
        body = bytearray(size)
        self.receive_into([memoryview(body)])
        try:
            message: Message = _decoder.decode(body)
        except msgspec.MsgspecError as exc:
            raise ProtocolError(f"malformed frame: {exc}") from exc
        return message

    def receive_into(self, views: Sequence[memoryview]) -> None:
        """Fill the views, in order. Raises ConnectionError when the other side ends first."""
        waiting = [view for view in views if view.nbytes]
        first = 0
        while first < len(waiting):
            self._arm()
            got = self._sock.recvmsg_into(waiting[first : first + VIEWS_PER_CALL])[0]
            if got == 0:
                raise ConnectionError("the other side closed the connection")
            while first < len(waiting) and got >= waiting[first].nbytes:
                got -= waiting[first].nbytes
                first += 1
            if got:
                waiting[first] = waiting[first][got:]

    def left_s(self) -> float:
        """Return the time until the deadline in seconds, negative after it."""
        return self.deadline - self._clock()

    def quiet(self) -> bool:
        """Say whether an idle connection can be used: anything there is to read now is its end, or out of turn."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        """Close the socket: nothing can be received any more."""
        self._sock.close()

    def _arm(self) -> None:
        left = self.left_s()
        if left <= 0:
            raise TimeoutError("deadline passed")
        self._sock.settimeout(left)


def server_handshake(channel: Channel, token: str, agent: str, slot_bytes: tuple[int, ...]) -> None:
    """Let a reader in who knows the token and wants this rank. Raises ProtocolError, OSError."""
    ours = secrets.token_bytes(NONCE_BYTES)
    channel.send(Hello(VERSION, ours))
    login = channel.receive()
    if not isinstance(login, Login) or len(login.nonce) != NONCE_BYTES:
        raise ProtocolError(f"expected Login, got {type(login).__name__}")
    if not hmac.compare_digest(login.proof, _proof(token, b"client", ours, login.nonce, login.agent)):
        raise ProtocolError("the reader does not know the token")
    if login.agent != agent:
        channel.send(Failure(MissReason.PEER_UNREACHABLE, f"this relay serves {agent}"))
        raise ProtocolError(f"the reader wants {login.agent}, this is {agent}")
    channel.send(Welcome(_proof(token, b"server", ours, login.nonce, agent), slot_bytes))


def client_handshake(channel: Channel, token: str, agent: str) -> Welcome:
    """Enter a relay that knows the token and serves the rank `agent`. Raises ProtocolError, OSError."""
    hello = channel.receive()
    if not isinstance(hello, Hello) or hello.version != VERSION or len(hello.nonce) != NONCE_BYTES:
        raise ProtocolError(f"expected Hello of version {VERSION}, got {type(hello).__name__}")
    ours = secrets.token_bytes(NONCE_BYTES)
    channel.send(Login(ours, agent, _proof(token, b"client", hello.nonce, ours, agent)))
    welcome = channel.receive()
    if isinstance(welcome, Failure):
        raise ProtocolError(f"refused: {welcome.detail}")
    if not isinstance(welcome, Welcome):
        raise ProtocolError(f"expected Welcome, got {type(welcome).__name__}")
    if not hmac.compare_digest(welcome.proof, _proof(token, b"server", hello.nonce, ours, agent)):
        raise ProtocolError("the relay does not know the token")
    return welcome


def parse_address(address: str) -> tuple[str, int]:
    """Split "host:port" ("[v6]:port" too). Raises ProtocolError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 <= int(port) < 1 << 16:
        raise ProtocolError(f"relay address {address!r}: expected host:port")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Say whether only this host can reach an address."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _proof(token: str, side: bytes, server_nonce: bytes, client_nonce: bytes, agent: str) -> bytes:
    # Fixed-length nonces and the side in front: a proof of one side is never one of the other.
    text = b"ghostcacher relay v%d|%s|" % (VERSION, side) + server_nonce + client_nonce + agent.encode()
    return hmac.digest(token.encode(), text, "sha256")
