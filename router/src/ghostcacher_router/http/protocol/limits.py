"""Every limit of the HTTP proxy and of its connections to workers, with its reason. Settings are in config.py."""

from __future__ import annotations

from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20


class Limits(NamedTuple):
    """Bounds of memory, counts and time. Bytes, counts and seconds, as the names say."""

    head_bytes_max: int = 64 * KIB
    """Of the head of a request or response: twice what nginx takes, and room for a long list of cookies."""
    headers_max: int = 128
    """A head of one-letter headers is cheap to send and dear to take apart."""
    body_bytes_max: int = 64 * MIB
    """A prompt of a million tokens is 8 MiB; images and audio come as base64."""
    buffered_bytes_max: int = 1024 * MIB
    """Of all bodies held: many large ones at once must not take the machine's memory."""
    chunking_bytes_max: int = 64 * KIB
    """Of a request's framing (chunk sizes, extensions, trailers), beyond `CHUNKING_PER_BYTE` for each byte of body."""
    pipelined_bytes_max: int = 64 * KIB
    """What a client may send ahead of its answer, and one read more. Then it is not read from."""
    connections_max: int = 4096
    """Clients at a time. Beyond, the one goes that has been idle longest; when none is idle, the new one gets 503."""
    connections_per_address_max: int | None = None
    """The same of one address. None: no limit, since behind a load balancer all clients come from one address."""
    allowed_origins: tuple[str, ...] = ()
    """The origins of web pages that may read the router's own answers; "*": all. Browsers hold to it."""
    client_header_s: float = 10.0
    """For a whole head, from its first byte, or from the connection's start."""
    client_body_s: float = 60.0
    """For a body, or at least for as much of it as comes at `body_rate_min` meanwhile, again and again: neither silence
    nor a trickle holds memory, however much came before."""
    body_rate_min: float = 16 * KIB
    """Bytes/s. A slow mobile line has more."""
    body_grace_s: float = 2.0
    """A body may be slower than that at its beginning, also where its connection is wanted for another client."""
    keep_alive_s: float = 75.0
    """Between two requests; as nginx."""
    client_stall_s: float = 300.0
    """A client that reads nothing of its answer for so long is gone: the engine still computes for it."""
    linger_s: float = 2.0
    """After an error in mid-request, what the client still sends is read for so long: closing at once would reset the
    connection, and the client might never see the answer."""
    connect_s: float = 2.0
    """To a worker: a host that is gone does not answer at all."""
    worker_silence_s: float = 3600.0
    """Between two bytes of a worker. Long: a queue of long prompts, or a long answer that is not streamed."""
    turned_away_s: float = 2.0
    """For the rest of an answer that turns a request away, before another worker is tried: it is short."""
    fan_out_s: float = 120.0
    """For each server that a request is sent to which goes to all: loading an adapter takes seconds."""
    worker_gone_s: int = 30
    """A worker whose machine has vanished without a word is noticed so soon; one that only hangs is not."""
    upstream_idle_s: float = 4.0
    """Of a connection kept for later; less than the 5 s after which uvicorn closes it."""
    upstream_idle_max: int = 256
    """Connections kept for one worker; the next burst opens them again."""
    retries_max: int = 2
    """Other workers tried when one refuses a request."""
    takes_turns: bool = False
    """Whether requests wait for their turn before a worker is chosen, and may say when: see flow/."""
    section_hints: bool = True
    """Whether workers are told of a prompt's sections, behind the request's id."""
    kv_transfer_from_clients: bool = False
    """Whether a client may name another engine, for its engine to connect to."""
    prefill_tokens_min: int = 256
    """Shorter prompts are not computed apart from their answers: handing them over takes as long."""
    bytes_per_token: int = 4
    """About, of prompts whose tokens are not known."""
    prefill_s: float = 600.0
    """For computing a prompt apart from its answer, without the wait for its turn."""
    tick_s: float = 0.5
    """How late a time-out may be. One timer for all connections, so that a request sets none."""


CHUNKING_PER_BYTE = 8
"""A chunk of one byte has five bytes of framing, and some write leading zeros."""
