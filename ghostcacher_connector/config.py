"""All settings: their names, types, units, ranges and defaults, and the one way to load them.

A setting comes from, first found wins:
1. the engine's own configuration (vLLM: ``kv_connector_extra_config``), under its name, ill-typed values refused;
2. the environment, under ``GC_`` and its name in capitals (``GC_REDIS_URL``), converted by the setting's type:
   bool from 1/0/true/false, a tuple from a comma-separated list, optional settings to None from an empty string;
3. its default.

Every name and value is checked, also the ones that lose. Variables that begin with ``GC_`` belong to GhostCacher: one
that names no setting is refused, since a typing error that is ignored looks exactly like a cache that never hits.

Secrets (`relay_token`, `index_key`, the password in `redis_url`) never appear in `repr`, in messages or in `redacted`.
An engine may log its own configuration: give secrets by the environment.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from ghostcacher_connector.conversion import checked, from_text
from ghostcacher_connector.errors import ConfigError

ENVIRONMENT_PREFIX = "GC_"
MASK = "***"
SECRET_CHARS_MIN = 16
"""Whoever can reach the relay's port or read Redis can try secrets against what they see: they must withstand it."""

RENEWALS_PER_LEASE = 3
"""A lease is renewed this often: one lost renewal must not cost it."""

_SECRETS = frozenset({"redis_url", "relay_token", "index_key"})
_MASKED = _SECRETS - {"redis_url"}
"""Secrets of which nothing is shown; of a URL the rest is."""

Seconds = float
Milliseconds = float
Worker = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Secret = Annotated[str, Meta(min_length=SECRET_CHARS_MIN, max_length=4096)]
Transports = Annotated[tuple[Literal["nixl", "relay"], ...], Meta(min_length=1, max_length=2)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a worker. Any way to construct it checks it; raises ConfigError naming the setting."""

    redis_url: Annotated[Text | None, Meta(description="Redis or Valkey of the index; none: one is started here")] = (
        None
    )
    index_key: Annotated[
        Secret | None,
        Meta(description="shared secret that vouches for what is in Redis, 16 characters or more; the same everywhere"),
    ] = None
    redis_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=30, description="bound of every wait for Redis, in s")] = 0.25
    worker_id: Annotated[
        Worker | None, Meta(description="name of this worker, unique in the fleet; none: the engine's own id")
    ] = None
    http_url: Annotated[
        Text | None, Meta(description="base URL at which routers reach this engine; none: not told to routers")
    ] = None
    lease_ttl_s: Annotated[
        Seconds, Meta(ge=0.5, le=3600, description="time after which a silent worker counts as dead, in s")
    ] = 10.0
    publish_interval_ms: Annotated[
        Milliseconds, Meta(ge=0.1, le=10_000, description="longest wait to fill a batch of index entries, in ms")
    ] = 5.0
    publish_batch: Annotated[int, Meta(ge=1, le=100_000, description="index entries sent at once, a count")] = 512
    publish_queue_max: Annotated[
        int, Meta(ge=1, le=10_000_000, description="index entries waiting to be sent; more are dropped, a count")
    ] = 100_000
    lookup_deadline_ms: Annotated[
        Milliseconds, Meta(ge=0.1, le=60_000, description="time after which a lookup counts as a miss, in ms")
    ] = 50.0
    lookup_threads: Annotated[int, Meta(ge=1, le=64, description="threads that ask the index, a count")] = 2
    lookup_queue_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="lookups waiting for a thread; more count as misses, a count")
    ] = 512
    pull: Annotated[
        Literal["auto", "always", "never"],
        Meta(description="auto: pull what is forecast to be faster than computing; always, never: as they say"),
    ] = "auto"
    pull_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=600, description="bound of one pull, in s")] = 5.0
    pull_threads: Annotated[int, Meta(ge=1, le=64, description="threads that pull, a count for each rank")] = 2
    pull_sources_max: Annotated[int, Meta(ge=1, le=64, description="holders tried for one prompt, a count")] = 2
    transports: Annotated[Transports, Meta(description="ways to read a peer's memory, the best one first")] = (
        "nixl",
        "relay",
    )
    allow_ucx_tcp: Annotated[
        bool, Meta(description="let UCX use TCP, over which a dying reader can crash the worker that it reads from")
    ] = False
    ucx_tls: Annotated[Text | None, Meta(description="UCX transports, as UCX_TLS; none: all but TCP")] = None
    staging_mib: Annotated[
        int, Meta(ge=1, le=65_536, description="bounce buffer for transports that may write late, in MiB for each rank")
    ] = 64
    relay_listen: Annotated[
        Text | None, Meta(description="host:port of the relay for readers without RDMA; port 0: any; none: no relay")
    ] = None
    relay_token: Annotated[
        Secret | None,
        Meta(description="shared secret of the relays, 16 characters or more; needed beyond loopback"),
    ] = None
    self_check: Annotated[bool, Meta(description="prove at start that a pull works, before anything is published")] = (
        True
    )
    allow_unproven_engine: Annotated[
        bool, Meta(description="start with an engine version on which GhostCacher was not proven")
    ] = False
    weights_id: Annotated[
        Text | None, Meta(description="name of the exact weights, for models whose files cannot be read here")
    ] = None
    metrics_port: Annotated[
        Port | None, Meta(description="loopback port of a Prometheus page of its own; 0: any; none: no page")
    ] = None

    def __post_init__(self) -> None:
        for key, annotation in _types().items():
            checked(key, getattr(self, key), annotation, secret=key in _SECRETS)
        _check_urls(self)
        _check_relay(self)
        _check_sizes(self)

    def __repr__(self) -> str:
        changed = {key: value for key, value in self.redacted().items() if value != _defaults()[key]}
        return f"Settings({', '.join(f'{key}={value!r}' for key, value in changed.items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list(self.redacted().items())

    def redacted(self) -> dict[str, object]:
        """Return every setting by name, fit for a log: secrets are masked."""
        return {key: _fit_for_log(key, getattr(self, key)) for key in self.__struct_fields__}


class Listen(NamedTuple):
    """An address to listen on. Port 0 means any free port."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Say whether only this machine can connect. A name other than localhost counts as reachable from afar."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load_settings(extra: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Return the settings of this worker: `extra` over ``GC_*`` of `environ` over defaults.

    Raises ConfigError naming the key, what was expected and what came.
    """
    types = _types()
    chosen: dict[str, object] = {}
    for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in types or variable != variable_of(key):
            raise ConfigError(_unknown("environment variable", variable, [variable_of(known) for known in types]))
        chosen[key] = from_text(variable, environ[variable], types[key], secret=key in _SECRETS)
    for key, value in extra.items():
        if key not in types:
            raise ConfigError(_unknown("setting", str(key), list(types)))
        chosen[key] = checked(key, value, types[key], secret=key in _SECRETS)
    return Settings(**chosen)  # type: ignore[arg-type]  # checked above, key by key


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return ENVIRONMENT_PREFIX + key.upper()


def parse_listen(text: str, key: str = "relay_listen") -> Listen:
    """Return the parts of ``host:port`` or ``[ipv6]:port``. Raises ConfigError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:  # noqa: PLR2004 - the largest port
        raise ConfigError(f'{key}: expected "host:port" with a port from 0 to 65535, got {text!r}')
    return Listen(match[1] or match[2], int(match[3]))


def redact_url(url: str) -> str:
    """Return a URL without the user, the password and the password options in it."""
    scheme, found, rest = url.partition("://")
    if not found:
        return MASK if "@" in url else url
    _, found, address = rest.rpartition("@")
    address = re.sub(r"([?&][^=&]*password=)[^&]*", rf"\1{MASK}", address)
    return f"{scheme}://{MASK}@{address}" if found else f"{scheme}://{address}"


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Settings, include_extras=True)


@cache
def _defaults() -> dict[str, object]:
    return {field.name: field.default for field in msgspec.structs.fields(Settings)}


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {what} {name}: {hint}"


def _fit_for_log(key: str, value: object) -> object:
    if value is None:
        return None
    if key in _MASKED:
        return MASK
    return redact_url(value) if key in ("redis_url", "http_url") and isinstance(value, str) else value


def _check_urls(settings: Settings) -> None:
    if settings.redis_url is not None and not re.match(r"(redis|unix)[a-z+]*://", settings.redis_url):
        raise ConfigError("redis_url: expected a URL such as redis://host:6379/0 or unix:///path, got no such scheme")
    if settings.http_url is None:
        return
    try:
        parts = urlsplit(settings.http_url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or parts.username is not None or parts.query or parts.fragment:
        shown = redact_url(settings.http_url)
        raise ConfigError(f"http_url: expected http[s]://host[:port][/path] without user or query, got {shown!r}")


def _check_relay(settings: Settings) -> None:
    if settings.relay_listen is None:
        return
    if not parse_listen(settings.relay_listen).loopback and settings.relay_token is None:
        raise ConfigError(
            f"relay_listen: {settings.relay_listen!r} is reachable from other machines: expected relay_token to be set "
            f"({variable_of('relay_token')}, {SECRET_CHARS_MIN} characters or more), got none"
        )


def _check_sizes(settings: Settings) -> None:
    if settings.publish_queue_max < settings.publish_batch:
        raise ConfigError(
            f"publish_queue_max: expected at least publish_batch={settings.publish_batch}, "
            f"got {settings.publish_queue_max}"
        )
    if settings.redis_timeout_s > settings.lease_ttl_s / RENEWALS_PER_LEASE:
        raise ConfigError(
            f"redis_timeout_s: expected at most lease_ttl_s / {RENEWALS_PER_LEASE} = "
            f"{settings.lease_ttl_s / RENEWALS_PER_LEASE:g}, else one slow answer of Redis costs the lease; "
            f"got {settings.redis_timeout_s:g}"
        )
