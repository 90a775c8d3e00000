"""What the router answers to its dashboard, and to whoever else asks.

Made by sdk/generate_types.py from the router's schema: change that, then `make reference`.
"""

from __future__ import annotations

import msgspec

from ghostcacher.client.admin_types import Quantiles


class HistoryPoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the router fared in one interval. What was nothing is left out."""

    at: float
    """The end of the interval, in seconds since 1970."""
    seconds: float
    """How long it was."""
    requests: float = 0.0
    """Requests that ended, without those that the router answers itself."""
    failed: float = 0.0
    """Those of them that were answered with a server's error (5xx)."""
    prompt_tokens: float = 0.0
    """Prompt tokens of requests that were answered."""
    hit_tokens: float = 0.0
    """How many of those needed no computing, by the forecast."""
    saved_ttft_ms: float = 0.0
    """Forecast time to first token that cached prefixes saved, in ms."""
    ttft_ms: Quantiles = Quantiles()
    """Of streams: from the request written to the first byte of the answer's body, in ms."""
    overhead_ms: Quantiles = Quantiles()
    """What the router added to a request, waiting for a ghost lock included, in ms."""
    forecast_ratio: Quantiles = Quantiles()
    """Observed over forecast time to first token."""
    in_flight: int = 0
    """Requests of this router at workers, at the end of the interval."""
    ready: int = 0
    """Workers that were ready then."""
    hit_blocks: int = 0
    """KV blocks that workers' requests took from peers or tiers."""
    missed_blocks: dict[str, int] = {}
    """KV blocks that were computed though the fleet might have held them, by the reason why."""


class FirstTokens(msgspec.Struct, frozen=True):
    """The forecasts of the last answers, each beside what came of it. Both have one number an answer, oldest first."""

    forecast_ms: tuple[float, ...] = ()
    """The forecast time to first token, in ms."""
    observed_ms: tuple[float, ...] = ()
    """The observed one, in ms."""


class History(msgspec.Struct, frozen=True):
    """Answers GET /gc/history?after=T."""

    router: str
    """The name of this run of the router, as in `Status`: after a restart it knows nothing of before."""
    now: float
    """The router's time, in seconds since 1970."""
    interval_s: float
    """How long an interval is, in seconds."""
    points: tuple[HistoryPoint, ...] = ()
    """Those that ended after T (all, without T), oldest first."""
    first_tokens: FirstTokens = FirstTokens()
    """The last few hundred answers to streams that had a forecast."""


class Prefix(msgspec.Struct, frozen=True):
    """What many prompts began with lately, up to the end of a section. No text of it is kept."""

    key: str
    """The digest of the text up to there, in hex: what POST /gc/flush takes as `key`."""
    section: str
    """The type of the section at its end: tools, sys, doc, session or user."""
    bytes: int
    """The size of the text, in the form in which the router hashes it."""
    uses: float
    """How many of the prompts that were looked at began with it; what is older counts less."""
    last_s: float
    """How long ago the last one came, in seconds."""
    blocks: int | None = None
    """KV blocks that it fills; None when no worker with a connector has told."""
    tokens: int | None = None
    """Tokens of these blocks; None likewise."""
    holders: tuple[str, ...] = ()
    """Workers that hold it, at most 16 of them; of plain engines it is a guess."""
    holder_count: int = 0
    """How many hold it, as far as was asked."""


class Prefixes(msgspec.Struct, frozen=True):
    """Answers GET /gc/prefixes: what is hottest, of each type of section."""

    prefixes: tuple[Prefix, ...] = ()
    """The hottest first, at most ten of a type."""
    seen: int = 0
    """Prompts that were looked at, since the router started. A busy router looks at a part of them."""


class LockReport(msgspec.Struct, frozen=True):
    """A ghost lock: a worker computes a cold prefix, and others who need it wait for that."""

    key: str
    """The digest of its deepest boundary, in hex."""
    worker: str
    """Who computes."""
    ours: bool
    """Whether a request of this router holds it. Of other routers' locks it knows those that its requests met."""
    confirmed: bool
    """Whether the store has granted it, or has not answered in time."""
    age_s: float
    """Since when this router knows of it, in seconds."""
    ready_s: float
    """When it will be computed, as forecast, in seconds from now; negative when it is late."""
    boundaries: int
    """Boundaries of the prompt that it covers, one in about each KiB."""


class Locks(msgspec.Struct, frozen=True):
    """Answers GET /gc/locks."""

    locks: tuple[LockReport, ...] = ()
    """Those that are held now, the oldest first, at most 64."""
    total: int = 0
    """How many there are."""


class Link(msgspec.Struct, frozen=True):
    """One worker's way to a peer's cache, as it has timed it itself, once a minute; of rank 0."""

    reader: str
    """Who reads."""
    owner: str
    """Whose cache is read."""
    ok: bool
    """Whether the last timed read went well."""
    transport: str | None = None
    """What carried it, such as nixl or relay; None when nothing did."""
    bytes_per_s: float | None = None
    """How fast it was; None when that was not measured."""
    rtt_us: float | None = None
    """The round trip, in us; None when that was not measured."""
    error: str = ""
    """What went wrong; empty when nothing did."""
    age_s: float = 0.0
    """How old this is, in seconds."""


class Links(msgspec.Struct, frozen=True):
    """Answers GET /gc/links: of all workers, or with ?worker=ID of one of them."""

    links: tuple[Link, ...] = ()
    """By reader and owner, at most 64 of a reader."""
    readers: int = 0
    """Readers that were looked at, 24 at most."""
