"""The nouns that the router's parts share, and the ports between them. No I/O, no policy.

*front*: what speaks HTTP with clients and workers (http/). *prompt*: the part of a request that an engine prefills, as
bytes. *boundary*: a place in these bytes, named by the digest of all before it. *placement*: a request and the worker
that was picked for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

DIGEST_BYTES = 16
"""Of a boundary's digest: 2**64 tries for a collision by chance, and its seed is the fleet's own."""


class BlockKind(IntEnum):
    """What a part of a prompt is, in the order in which templates use them. The value is stored: never renumber."""

    TOOLS = 0
    SYS = 1
    DOC = 2
    SESSION = 3
    USER = 4


class PromptBlock(NamedTuple):
    """One typed part of a prompt, as canonical bytes."""

    kind: BlockKind
    data: bytes


class Prompt(NamedTuple):
    """A prompt as the router sees it: never tokenised, hashed at boundaries.

    ends, digests: of each boundary, ascending: the bytes before it, and their digest; shape (boundaries,) each.
    block_ends: kind and index into `ends` of the end of each typed block, in order.
    prefix_key: SHA256(H_sys || sep || H_tools || sep || H_doc), 32 bytes; of an untyped prompt, of its first KiB.
    tokens: exact count when the prompt came as token ids, else None.
    """

    ends: Sequence[int]
    digests: Sequence[bytes]
    block_ends: Sequence[tuple[BlockKind, int]]
    prefix_key: bytes
    tokens: int | None

    @property
    def size(self) -> int:
        """Bytes of the whole prompt."""
        return self.ends[-1] if self.ends else 0


class RequestShape(NamedTuple):
    """What routing needs to know of a request's body. prompt: None when nothing is prefilled or it is not understood.

    model: as the client wrote it; None when the body names none. session: the client's own name for a conversation.
    """

    model: str | None
    stream: bool
    prompt: Prompt | None
    session: str | None


class WorkerState(Enum):
    """JOINING: seen, not yet asked what it serves. READY: gets requests. DRAINING: gets no new ones. DOWN: refuses."""

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    DOWN = "down"


class Reason(str, Enum):
    """Why a worker was picked. Label values of ``gc_router_picks_total``."""

    FORECAST = "forecast"
    """Exact: known blocks, known load."""
    FOLLOW = "follow"
    """The same prefix is being computed there, or was waited for."""
    MEMORY = "memory"
    """No index: where the router itself sent this prefix before."""
    AFFINITY = "affinity"
    """The session's worker, within the tolerance of the forecast."""
    HASH = "hash"
    """Bounded-load consistent hashing on the prefix."""
    LEAST_LOAD = "least_load"
    ONLY = "only"
    """There was no choice."""


class Forecast(NamedTuple):
    """The forecast time to first token on one worker, in ms, and its terms.

    total_ms = queue_ms + wait_ms + pull_ms + compute_ms + penalty_ms. Tokens: local (in its own cache), pulled from a
    peer, computed; they add up to the prompt's.
    """

    worker: str
    total_ms: float
    queue_ms: float
    wait_ms: float
    pull_ms: float
    compute_ms: float
    penalty_ms: float
    local_tokens: int
    pulled_tokens: int
    computed_tokens: int

    @property
    def cached_tokens(self) -> int:
        return self.local_tokens + self.pulled_tokens


class Outcome(Enum):
    """How an attempt at a worker ended. REFUSED: no byte of the answer came, the connection could not be made or broke.

    FAILED: it broke after the answer had begun. CANCELLED: the client left.
    """

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Endpoint(NamedTuple):
    """Where a worker listens. path: prefix of every path, without a slash at its end."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


class Ask(NamedTuple):
    """A request to be placed. request_id: as the worker will see it. headers: lower-case names.

    exclude: workers that have refused this request already.
    """

    request_id: str
    method: str
    path: str
    shape: RequestShape
    headers: Mapping[bytes, bytes]
    exclude: frozenset[str] = frozenset()


class Placement(Protocol):
    """One attempt of one request at one worker. The front calls, in this order, each at most once:

    `sent` when the request has been written, `first_byte` with the first byte of the answer's body, never for an
    error, `ended` exactly once, always. None of them blocks or raises.
    """

    worker: str
    endpoint: Endpoint
    reason: Reason
    forecast: Forecast | None

    def sent(self) -> None: ...

    def first_byte(self) -> None: ...

    def ended(self, outcome: Outcome, status: int | None) -> None: ...


class NoWorker(Exception):
    """No worker can take the request. status and message are for the client; retry_after_s: when to come back.

    kind: OpenAI's ``error.code``, such as "model_not_found".
    """

    def __init__(self, status: int, message: str, *, kind: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.retry_after_s = retry_after_s


class Dispatcher(Protocol):
    """Picks workers. Called on the event loop only."""

    def place_now(self, ask: Ask) -> Placement | None:
        """Return a placement without waiting for anything, or None when one must be awaited. Raises NoWorker."""

    async def place(self, ask: Ask) -> Placement:
        """Return a placement, within a bounded time. Raises NoWorker."""
