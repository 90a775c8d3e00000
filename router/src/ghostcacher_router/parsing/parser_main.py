"""The process that parses long bodies, started by ParserProcess: ``python -m ... MEMORY_BYTES_MAX``, a socket as stdin.

It ends when the router closes the socket, or is gone. It knows nothing and keeps nothing but the forms of tools.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
from typing import BinaryIO

import msgspec

from ghostcacher_router.parsing.messages import LENGTH, LENGTHS, ParseAsk, ParseReply
from ghostcacher_router.prompt import BadBody, parse_body

_ask = msgspec.msgpack.Decoder(ParseAsk)


def main() -> int:
    memory_bytes_max = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all; the router ends us when it has drained.
    os.nice(1)  # Among equals, the router goes first.
    gc.disable()  # Bodies have no cycles, and looking for some among a million values takes long.
    with socket.socket(fileno=0) as router, router.makefile("rb") as asks:
        while (sizes := asks.read(LENGTHS.size)) and len(sizes) == LENGTHS.size:
            reply = _reply(asks, *LENGTHS.unpack(sizes))
            router.sendall(LENGTH.pack(len(reply)) + reply)
    return 0


def _reply(asks: BinaryIO, ask_bytes: int, body_bytes: int) -> bytes:
    ask = _ask.decode(asks.read(ask_bytes))
    body = asks.read(body_bytes)
    try:
        shape = parse_body(ask.path, body, ask.headers, ask.seed, ask.billing_kept)
        return msgspec.msgpack.encode(ParseReply(shape))
    except BadBody as exc:
        return msgspec.msgpack.encode(ParseReply(None, exc.message, exc.param))
    except MemoryError:
        return msgspec.msgpack.encode(ParseReply())


if __name__ == "__main__":
    sys.exit(main())
