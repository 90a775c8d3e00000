"""All settings: their names, types, units, ranges and defaults, and the one way to load them.

A setting comes from, first found wins:
1. the engine's own configuration (vLLM: ``kv_connector_extra_config``), under its name, ill-typed values refused;
2. the environment, under ``GC_`` and its name in capitals (``GC_REDIS_URL``), converted by the setting's type:
   bool from 1/0/true/false, a tuple from a comma-separated list, optional settings to None from an empty string;
3. its default.

Every name and value is checked, also the ones that lose. Variables that begin with ``GC_`` belong to GhostCacher: one
that names no setting is refused, since a typing error that is ignored looks exactly like a cache that never hits.
Those that begin with ``GC_ROUTER_`` are the router's business, which checks them.

Secrets (`relay_token`, `index_key`, the password in `redis_url`) never appear in `repr`, in messages or in `redacted`.
An engine may log its own configuration: give secrets by the environment.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from ghostcacher_connector.core.addresses import check_reachable
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.log_format import LogFormat
from ghostcacher_connector.core.object_url import parse_object_url
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.settings import (
    ENVIRONMENT_PREFIX,
    ROUTER_PREFIX,
    SECRET_CHARS_MIN,
    UPSTREAM_VARIABLE,
    Milliseconds,
    Port,
    Seconds,
    Secret,
    Text,
    check_http_url,
    check_redis_url,
    from_environment,
    from_mapping,
    parse_listen,
    types_of,
)

RENEWALS_PER_LEASE = 3
"""A lease is renewed this often: one lost renewal must not cost it."""

WORKER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Worker = Annotated[str, Meta(pattern=WORKER_PATTERN)]
Transports = Annotated[tuple[Literal["nixl", "relay"], ...], Meta(min_length=1, max_length=2)]


class Settings(RetentionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a worker. Any way to construct it checks it; raises ConfigError naming the setting."""

    masked = frozenset({"relay_token", "index_key"})
    urls = frozenset({"redis_url", "http_url", "object_url"})

    redis_url: Annotated[Text | None, Meta(description="Redis or Valkey of the index; none: one is started here")] = (
        None
    )
    index_key: Annotated[
        Secret | None,
        Meta(
            description="shared secret that authenticates what is in Redis, 16 characters or more; the same everywhere"
        ),
    ] = None
    redis_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=30, description="bound of every wait for Redis, in s")] = 0.25
    worker_id: Annotated[
        Worker | None,
        Meta(
            description="name of this worker, unique in the fleet; none: host and port of http_url, or the engine's id"
        ),
    ] = None
    http_url: Annotated[
        Text | None, Meta(description="base URL at which routers reach this engine; none: routers do not learn it")
    ] = None
    lease_ttl_s: Annotated[
        Seconds, Meta(ge=0.5, le=3600, description="time after which a silent worker counts as dead, in s")
    ] = 10.0
    report_interval_ms: Annotated[
        Milliseconds, Meta(ge=20, le=10_000, description="how often this worker's load is published for routers, in ms")
    ] = 200.0
    lookup_deadline_ms: Annotated[
        Milliseconds,
        Meta(ge=0.1, le=60_000, description="time that a lookup has before it counts as a miss, at least, in ms"),
    ] = 50.0
    pull: Annotated[
        Literal["auto", "always", "never"],
        Meta(description="auto: pull what is forecast to be faster than computing; always, never: as they say"),
    ] = "auto"
    pull_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=600, description="bound of one pull, in s")] = 5.0
    pull_threads: Annotated[int, Meta(ge=1, le=64, description="threads that pull, a count for each rank")] = 2
    pull_sources_max: Annotated[int, Meta(ge=1, le=64, description="holders tried for one prompt, a count")] = 2
    hbm_swap_threshold: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="share of the engine's KV blocks that are not copied to the host tier before they are about to "
            "be evicted: the blocks that the engine gives up next are, at least those that the largest recent prompt "
            "would take",
        ),
    ] = 0.85
    transports: Annotated[Transports, Meta(description="ways to read a peer's memory, the best one first")] = (
        "nixl",
        "relay",
    )
    host_tier_gib: Annotated[
        float,
        Meta(
            ge=0,
            le=1 << 20,
            description="host memory that keeps blocks which the engine's cache evicts, of all ranks of one engine "
            "together, in GiB; taken whole at start; 0: none",
        ),
    ] = 0.0
    kv_layout: Annotated[
        Literal["auto", "engine"],
        Meta(
            description="auto: vLLM on CUDA is asked for a block-major KV cache, which pulls read fastest; engine: not"
        ),
    ] = "auto"
    ucx_tls: Annotated[Text | None, Meta(description="UCX transports, as UCX_TLS; never TCP; none: all but TCP")] = None
    relay_listen: Annotated[
        Text | None,
        Meta(
            description="host:port of the relay for readers without RDMA; each rank has its own port, counted from "
            "this one; port 0: any; none: no relay"
        ),
    ] = None
    relay_token: Annotated[
        Secret | None,
        Meta(description="shared secret of the relays, 16 characters or more; needed beyond loopback"),
    ] = None
    self_check: Annotated[bool, Meta(description="prove at start that a pull works, before anything is published")] = (
        True
    )
    object_url: Annotated[
        Text | None,
        Meta(
            description="where blocks outlive engines, behind the host tier, on vLLM alone: file:///folder or "
            "s3://bucket/prefix?endpoint=http://..., with credentials from the AWS environment; none: nowhere"
        ),
    ] = None
    object_ttl_h: Annotated[
        float, Meta(ge=0.01, le=100_000, description="how long an object is kept after its last use, in h")
    ] = 168.0
    object_max_gib: Annotated[
        float, Meta(ge=0.001, le=1e9, description="what all objects of the fleet may take at object_url, in GiB")
    ] = 100.0
    object_queue_mib: Annotated[
        int, Meta(ge=16, le=1 << 20, description="blocks that may wait to become objects, for each rank, in MiB")
    ] = 256
    object_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=300, description="bound of one request to the object store, in s")
    ] = 10.0
    object_compression: Annotated[
        Literal["auto", "always", "never", "fp8"],
        Meta(
            description="lossless compression of objects; auto: where the measured rate of the store makes it pay; "
            "fp8: lossy, KV of 16 or 32 bits is rounded to 8, and shared only among workers that say so"
        ),
    ] = "auto"
    weights_id: Annotated[
        Text | None, Meta(description="name of the exact weights, for models whose files cannot be read here")
    ] = None
    tracing: Annotated[
        bool,
        Meta(
            description="record spans of look-ups and pulls of requests that the engine traces (vLLM: "
            "`--otlp-traces-endpoint`, SGLang: `--enable-trace`), through OpenTelemetry"
        ),
    ] = False
    log_format: Annotated[
        LogFormat,
        Meta(description="text: our lines look like the engine's; json: each of ours is one JSON object, for programs"),
    ] = "text"
    metrics_port: Annotated[
        Port | None,
        Meta(
            description="port of a Prometheus page of its own; a data-parallel rank's is its number above it; 0: any; "
            "none: no page"
        ),
    ] = None
    metrics_host: Annotated[
        Text,
        Meta(
            description="address of this machine at which that page is; 0.0.0.0 or ::, all of them, for a Prometheus "
            "on another machine. There is nothing but metrics, for whoever reaches it"
        ),
    ] = "127.0.0.1"

    @property
    def rounds_objects(self) -> bool:
        """Whether blocks that come from objects may have been rounded."""
        return self.object_compression == "fp8"

    def check_together(self) -> None:
        """Check what one type cannot say; raise ConfigError."""
        check_redis_url(self.redis_url)
        if self.http_url is not None:
            check_http_url("http_url", self.http_url)
            check_reachable("http_url", self.http_url)
        if self.object_url is not None:
            parse_object_url(self.object_url)
            if self.host_tier_gib == 0:
                raise ConfigError(
                    "host_tier_gib: expected more than 0 with object_url: objects are read into it, got 0"
                )
        elif self.rounds_objects:
            raise ConfigError("object_url: expected one with object_compression fp8, got none")
        _check_metrics_host(self.metrics_host)
        _check_relay(self)
        _check_sizes(self)


def load_settings(extra: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Return the settings of this worker: `extra` over ``GC_*`` of `environ` over defaults.

    Raises ConfigError naming the key, what was expected and what came.
    """
    ours = [name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and not name.startswith(ROUTER_PREFIX)]
    ours = [name for name in ours if name != UPSTREAM_VARIABLE]
    variables = {variable_of(key): key for key in types_of(Settings)}
    return Settings(**(from_environment(Settings, environ, ours, variables) | from_mapping(Settings, extra)))


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return ENVIRONMENT_PREFIX + key.upper()


def _check_relay(settings: Settings) -> None:
    if settings.relay_listen is None:
        return
    if not parse_listen(settings.relay_listen, "relay_listen").loopback and settings.relay_token is None:
        raise ConfigError(
            f"relay_listen: {settings.relay_listen!r} is reachable from other machines: expected relay_token to be set "
            f"({variable_of('relay_token')}, {SECRET_CHARS_MIN} characters or more), got none"
        )


def _check_metrics_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(
            f"metrics_host: expected an IP address of this machine, such as 0.0.0.0 for all of them, got {host!r}"
        ) from None


def _check_sizes(settings: Settings) -> None:
    if settings.redis_timeout_s > settings.lease_ttl_s / RENEWALS_PER_LEASE:
        raise ConfigError(
            f"redis_timeout_s: expected at most lease_ttl_s / {RENEWALS_PER_LEASE} = "
            f"{settings.lease_ttl_s / RENEWALS_PER_LEASE:g}, else one slow answer of Redis costs the lease; "
            f"got {settings.redis_timeout_s:g}"
        )
