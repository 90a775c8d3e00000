"""The nouns that the router's parts share, and the protocols between them. No I/O, no policy.

*HTTP proxy*: what speaks HTTP with clients and workers (http/). *prompt*: the part of a request that an engine
prefills, as bytes. *section*: a typed part of a prompt, such as its documents; a *block* is always a KV block.
*boundary*: a place in the bytes of a prompt, named by the digest of all before it. *placement*: one attempt of a
request at the worker that was picked for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.types import PdRole, SectionType

GRID_BYTES = 1024
"""There is a boundary at every multiple of it, counted from the prompt's first byte."""

DIGEST_BYTES = 16
"""The size of a boundary's digest. A collision by chance takes 2**64 tries, and the seed is the fleet's own."""


class Prompt(NamedTuple):
    """A prompt as the router sees it: never tokenised, hashed at boundaries."""

    ends: Sequence[int]
    """How many bytes lie before each boundary, ascending; shape (boundaries,)."""
    digests: Sequence[bytes]
    """The digest of the bytes before each boundary; shape (boundaries,)."""
    section_ends: Sequence[tuple[SectionType, int]]
    """The type of each section and the index into `ends` at which it ends, in order."""
    prefix_key: bytes
    """SHA256(H_sys || sep || H_tools || sep || H_doc), 32 bytes. Without these sections, of the first KiB."""
    tokens: int | None
    """The exact count, when the prompt came as token ids; else None."""
    hint: str = ""
    """What tells the worker of the sections, to be put behind the request's id (core/sections.py); empty for none."""

    @property
    def size(self) -> int:
        """Return how many bytes the whole prompt has."""
        return self.ends[-1] if self.ends else 0


class LongBody:
    """A long body, in the pieces in which it came: joining them copies it, while the event loop waits."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = tuple(pieces)
        """In order, none of them empty."""
        self._size = sum(map(len, pieces))

    def __repr__(self) -> str:
        return f"LongBody(bytes={self._size}, pieces={len(self.pieces)})"

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return self._size

    def join(self) -> bytes:
        """Return it in one piece: 60 MiB take up to 0.1 s."""
        return b"".join(self.pieces)


Body = bytes | LongBody


class RequestShape(NamedTuple):
    """What routing needs to know of the body of a request."""

    model: str | None
    """As the client wrote it; None when the body names none."""
    stream: bool
    """Whether the client wants the answer piece by piece."""
    prompt: Prompt | None
    """What an engine prefills; None when that is nothing, or when the router does not understand it."""
    session: str | None
    """The client's own name for the conversation; None when it gives none."""
    needs_id: str | None = None
    """The id of a stored object, such as an earlier answer, that one worker keeps and the request needs."""
    makes_id: bool = False
    """Whether the answer begins with the id of an object, by which the worker names the request as well."""
    keeps: bool = False
    """Whether the client may ask for that object later."""
    priority: int | None = None
    """vLLM's: lower goes first; None when the body has none."""
    cache_salt: str | None = None
    """What the client wants its blocks to be shared under alone; None when it gives none."""
    names_engine: str | None = None
    """The field or header by which it names another engine, for its engine to connect to; None where it names none."""


class WorkerState(Enum):
    """Whether a worker can be sent requests."""

    JOINING = "joining"
    """It is known, but has not yet answered what it serves."""
    READY = "ready"
    """It gets requests."""
    DRAINING = "draining"
    """It gets no new requests, since a person wants it so."""
    DOWN = "down"
    """It refuses connections or fails its probes."""


class Reason(str, Enum):
    """Why a worker was picked. The values are labels of ``gc_router_picks_total``."""

    FORECAST = "forecast"
    """Its forecast is the least, made of known blocks and known load."""
    FOLLOW = "follow"
    """The same prefix is being computed there, or was waited for."""
    MEMORY = "memory"
    """The index cannot be asked, and the router itself sent this prefix there before."""
    AFFINITY = "affinity"
    """It is the worker of the session, and within the tolerance of the best forecast."""
    HASH = "hash"
    """Bounded-load consistent hashing on the prefix leads there."""
    LEAST_LOAD = "least_load"
    """It has the least load."""
    ONLY = "only"
    """There was no choice."""


class Forecast(NamedTuple):
    """The forecast of one request on one worker: its time to first token (TTFT), and what else counts for the choice.

    The times add up: total_ms = queue_ms + wait_ms + pull_ms + compute_ms + penalty_ms + decode_ms + others_ms. The
    tokens add up to the prompt's.
    """

    worker: str
    """The name of the worker."""
    total_ms: float
    """What is compared: the TTFT, the price of decoding and what others lose."""
    queue_ms: float
    """The work that is ahead of this request."""
    wait_ms: float
    """Waiting until a prefix that another request computes is there."""
    pull_ms: float
    """Pulling KV blocks from peers."""
    compute_ms: float
    """Computing what is neither in the worker's cache nor pulled."""
    penalty_ms: float
    """A surcharge for tokens that the worker's KV cache has no free room for."""
    decode_ms: float
    """A price for decoding beside the requests that run there. No part of the TTFT."""
    others_ms: float
    """What other requests lose: those behind it wait longer, and what it evicts is computed again. No part of the
    TTFT."""
    local_tokens: int
    """Tokens in the worker's own cache."""
    pulled_tokens: int
    """Tokens whose blocks come from a peer."""
    computed_tokens: int
    """Tokens that the worker computes."""

    @property
    def ttft_ms(self) -> float:
        """Return the forecast TTFT."""
        return self.total_ms - self.decode_ms - self.others_ms

    @property
    def cached_tokens(self) -> int:
        """Return how many tokens need no computing."""
        return self.local_tokens + self.pulled_tokens

    @property
    def saved_ms(self) -> float:
        """Return how much sooner the first token comes for what is cached: computing that, less pulling it."""
        cached = self.local_tokens + self.pulled_tokens
        saved_ms = cached * (self.compute_ms / (self.computed_tokens or 1)) - self.pull_ms
        return saved_ms if saved_ms > 0.0 else 0.0


class Outcome(Enum):
    """How an attempt at a worker ended."""

    DONE = "done"
    """The whole answer came."""
    REFUSED = "refused"
    """The connection could not be made: the worker never saw the request."""
    BROKE = "broke"
    """The connection was closed before a byte of an answer came, and the request had been written."""
    FAILED = "failed"
    """The connection broke after the answer had begun."""
    CANCELLED = "cancelled"
    """The client left, or the router stopped."""


class Endpoint(NamedTuple):
    """Where a worker listens."""

    host: str
    """A name or an IP address; IPv6 without brackets."""
    port: int
    """A TCP port, from 1."""
    tls: bool
    """Whether it speaks https."""
    path: str
    """The prefix of every path, without a slash at its end; mostly empty."""

    @property
    def name(self) -> str:
        """Return the name of a worker that is known by its URL only: host:port, and the path where there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.path}"

    @property
    def url(self) -> str:
        """Return it as a URL."""
        return f"{'https' if self.tls else 'http'}://{self.name}"


class LockWaits(Protocol):
    """Learns that a request has waited for another one's work."""

    def waited(self, began_at: float, ended_at: float, *, worker: str) -> None:
        """Note a wait for a ghost lock; loop clock, s. worker: the owner's."""


class Turn:
    """How far a request has come in waiting for its turn, over all attempts at workers. flow/ fills it in.

    received_at: when the router had all of it; loop clock, s. body_bytes: that are held while it waits.
    """

    __slots__ = (
        "body_bytes",
        "deadline",
        "is_read",
        "passed",
        "priority",
        "queued_s",
        "received_at",
        "refusal",
        "tells",
        "until",
        "waits",
    )

    def __init__(self, received_at: float, body_bytes: int) -> None:
        self.received_at = received_at
        self.body_bytes = body_bytes
        self.is_read = False
        """Whether priority and deadline are known."""
        self.priority = 0
        """Lower goes first."""
        self.tells: int | None = None
        """The priority that is written into its body for engines; None where none is."""
        self.deadline: float | None = None
        """When it may wait no longer for a worker; loop clock, s."""
        self.until: float | None = None
        """End of its wait in the queue, at the latest; None before it has waited."""
        self.passed: frozenset[str] | None = None
        """The workers that had refused it when it last had its turn; None before that."""
        self.waits = False
        """Whether it waits in the queue now. That time counts toward none of what bounds a worker's."""
        self.queued_s = 0.0
        """How long it has waited in the queue, in all, but for the wait that goes on."""
        self.refusal: NoWorker | None = None
        """Why it gets no turn any more: whoever still asks for it is told the same."""

    def __repr__(self) -> str:
        return f"Turn(priority={self.priority}, queued_s={self.queued_s:.3f}, passed={self.passed})"


class KvSource(NamedTuple):
    """An engine from which another one can pull KV blocks, by a tier of its own."""

    host: str
    port: int


class Ask(NamedTuple):
    """A request to be placed."""

    request_id: str
    """As the worker will see it."""
    method: str
    """The HTTP method, in upper case."""
    path: str
    """As in the request line."""
    shape: RequestShape
    """What its body says."""
    headers: Mapping[bytes, bytes]
    """By lower-case name."""
    exclude: frozenset[str] = frozenset()
    """The names of workers that have refused this request already."""
    trace: LockWaits | None = None
    """Its trace; None where it is not traced."""
    step: PdRole | None = None
    """Which step of a request it is that two workers carry out; None: all of it."""
    turn: Turn | None = None
    """Its turn, where there is flow control; None: it waits for none."""


class Placement(Protocol):
    """One attempt of one request at one worker. The HTTP proxy reports what becomes of it.

    It calls `sent`, `first_byte` and `ended` in this order, the first two at most once and `ended` exactly once,
    always; `answer_id` before `ended`; then `failed`, at most once. None of them blocks or raises.
    """

    worker: str
    """The name of the worker."""
    endpoint: Endpoint
    """Where to send the request."""
    data_parallel_rank: int | None
    """Which of the engines there is meant; None where there is one."""
    reason: Reason
    """Why this worker."""
    forecast: Forecast | None
    """What was forecast for it; None when nothing could be."""
    ttft_ms: float | None
    """From `sent` to the first byte of a stream's output; None before that, and of other answers."""

    @property
    def prompt(self) -> Prompt | None:
        """What an engine prefills; None where that is not known."""

    def sent(self) -> None:
        """The request has been written."""

    def first_byte(self) -> None:
        """The first byte of the answer's body has come. Never called for an error."""

    def answer_id(self, answer_id: str) -> None:
        """The answer begins with this id. Called at most once, and only where the request's shape says `makes_id`."""

    def ended(self, outcome: Outcome, status: int | None) -> None:
        """The attempt is over. status: of the answer's head; None when none came."""

    @property
    def doubtful(self) -> bool:
        """Whether requests have failed at the worker lately, so that an error may be its own and not the request's."""

    def failed(self, *, sure: bool) -> None:
        """The attempt failed, and likely for the worker's sake. sure: another worker has answered the same request."""


class NoWorker(Exception):
    """No worker can take the request.

    status: of the response to the client. message: what it says there. kind: OpenAI's ``error.code``, such as
    "model_not_found". retry_after_s: when the client may come back; None when that is not known.
    """

    def __init__(self, status: int, message: str, *, kind: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.retry_after_s = retry_after_s


class Server(NamedTuple):
    """A server that requests can be sent to."""

    name: str
    """The name of a worker behind it."""
    endpoint: Endpoint
    """Where it listens."""


class Dispatcher(Protocol):
    """Picks workers for requests. Called on the event loop only."""

    def place_now(self, ask: Ask) -> Placement | None:
        """Return a placement without waiting for anything, or None when one must be awaited. Raises NoWorker."""

    async def place(self, ask: Ask) -> Placement:
        """Return a placement, within a bounded time. Raises NoWorker."""

    def hands_over(self, model: str | None) -> bool:
        """Say whether one worker computes the prompts of a model's requests and another one answers."""

    def servers(self) -> Sequence[Server]:
        """Return all servers that answer, each once, also those that are drained."""

    def told_all(self, path: str) -> None:
        """Note that a request to this path has been sent to all servers."""
