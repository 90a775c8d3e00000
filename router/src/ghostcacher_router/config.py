"""All settings of a router: names, types, units, ranges, defaults, and the one way to load them.

A setting is taken from the first of these that has it:
1. the command line, where an underscore is a dash: ``--retries-max 1``; secrets have no option;
2. the file given by ``--config``: TOML, or JSON when its name ends in .json; one flat table;
3. the environment, under ``GC_ROUTER_`` and its name in capitals (``GC_ROUTER_LISTEN``); where Redis is and its key are
   shared with the workers: ``GC_REDIS_URL`` and ``GC_INDEX_KEY``;
4. its default.

Every name and value is checked, also the ones that lose. Secrets (`admin_token`, `index_key`, the password in
`redis_url`) never appear in `repr`, in messages or in `redacted`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.log_format import LogFormat
from ghostcacher_connector.core.settings import (
    ENVIRONMENT_PREFIX,
    ROUTER_PREFIX,
    UPSTREAM_VARIABLE,
    Milliseconds,
    Port,
    Seconds,
    Secret,
    Text,
    check_redis_url,
    from_environment,
    from_mapping,
    parse_listen,
    types_of,
)
from ghostcacher_router.fleet.lazy_adapters import LazyAdapters
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint, parse_roles
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.providers.bodies.breakpoints import parse_ttl
from ghostcacher_router.providers.choice import check_providers
from ghostcacher_router.settings_file import read_file

KIB = 1 << 10
MIB = 1 << 20
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[A-Za-z0-9._\[\]:-]+")
SHARED_WITH_WORKERS = ("redis_url", "index_key")


class RouterSettings(FlowSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a router. Any way to construct it checks it; raises ConfigError naming the setting."""

    masked = frozenset({"admin_token", "index_key"})
    urls = frozenset({"redis_url", "workers", "upstreams"})

    listen: Annotated[Text, Meta(description="host:port for clients; port 0: any free one")] = "127.0.0.1:8000"
    redis: Annotated[bool, Meta(description="use Redis; false: only the workers given here, routed from memory")] = True
    redis_url: Annotated[
        Text | None, Meta(description="Redis or Valkey of the index; none: the embedded one of this user")
    ] = None
    index_key: Annotated[
        Secret | None,
        Meta(
            description="shared secret that authenticates what is in Redis, 16 characters or more; the same everywhere"
        ),
    ] = None
    redis_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=30, description="bound of every wait for Redis, in s")] = 0.25
    workers: Annotated[
        tuple[Text, ...],
        Meta(max_length=4096, description="base URLs of workers, beside those that are found through Redis"),
    ] = ()
    lazy_adapters: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=1024,
            description="LoRA adapters that engines find by themselves when they are first asked for them, as "
            "name=base-model or beginning*=base-model: these names go to workers of that model, listed or not",
        ),
    ] = ()
    roles: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=4096,
            description="what workers do where prefill and decode are apart, as URL=prefill or URL=decode; our "
            "connector beside NixlConnector says it itself",
        ),
    ] = ()
    prefill_tokens_min: Annotated[
        int, Meta(ge=0, le=10_000_000, description="shorter prompts are not computed apart, in tokens, about")
    ] = 256
    prefill_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=86_400, description="bound of computing a prompt apart, in s; then who answers does")
    ] = 600.0
    upstreams: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=3,
            description="hosted providers beside own workers, such as anthropic=https://api.anthropic.com, openai=URL, "
            "bedrock=URL; each once",
        ),
    ] = ()
    provider_models: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=1024,
            description="models that go to a provider, as model=name or beginning*=name; a provider that is not named "
            "here gets the names that its own models have",
        ),
    ] = ()
    provider_fallbacks: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=1024,
            description="what answers requests for an own model that no worker takes, if they bring x-gc-upstream-key: "
            "own-model=name:model, such as m=openai:gpt-5.2",
        ),
    ] = ()
    provider_cache: Annotated[
        bool, Meta(description="put into requests what makes a provider's own cache work; false: they go as they came")
    ] = True
    provider_ttl: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=4,
            description="how long Anthropic's cache is to keep a section, 5m or 1h, where that is not the default "
            "(tools=1h, sys=1h, doc=5m, session=5m)",
        ),
    ] = ()
    bedrock_sign: Annotated[
        bool,
        Meta(
            description="sign requests to bedrock that bring no key with the AWS credentials of this environment: "
            "whoever reaches the router uses them"
        ),
    ] = False
    bedrock_region: Annotated[
        Text | None, Meta(description="region that signatures are for; none: as the URL of bedrock says")
    ] = None
    provider_prices: Annotated[
        Text | None,
        Meta(description="prices that go over the built-in ones, a path of a JSON file of the form of prices.json"),
    ] = None
    provider_ca_file: Annotated[
        Text | None,
        Meta(description="certificates (PEM) that are trusted for providers, beside the system's; a path"),
    ] = None
    provider_connect_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=60, description="bound of connecting to a provider, with TLS, in s")
    ] = 10.0
    admin_token: Annotated[
        Secret | None,
        Meta(description="bearer token of /gc/*, 16 characters or more; none: /gc/* is for this machine only"),
    ] = None
    allowed_origins: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=1024,
            description="origins of web pages that may read what the router answers itself, beside /gc/*, and its "
            "headers in what engines let them read, such as https://chat.example; *: all. Engines have their own",
        ),
    ] = ()
    body_bytes_max: Annotated[
        int, Meta(ge=KIB, le=1024 * MIB, description="largest body of a request; larger ones get 413, in bytes")
    ] = 64 * MIB
    buffered_bytes_max: Annotated[
        int,
        Meta(
            ge=KIB,
            le=1024 * 1024 * MIB,
            description="of all bodies held at a time; beyond, requests get 503 at once (the last sixteenth is for "
            "bodies up to 256 KiB), in bytes",
        ),
    ] = 1024 * MIB
    head_bytes_max: Annotated[
        int, Meta(ge=KIB, le=MIB, description="largest head of a request; larger ones get 431, in bytes")
    ] = 64 * KIB
    connections_max: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="clients at a time; beyond, idle ones are dropped for new ones, a count"),
    ] = 4096
    connections_per_address_max: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="the same of one address; none: no limit, as behind a load balancer, which is one address; "
            "a count"
        ),
    ] = None
    client_header_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=3600, description="time that a client has to send a request's head, in s")
    ] = 10.0
    client_body_timeout_s: Annotated[
        Seconds,
        Meta(
            ge=0.1,
            le=3600,
            description="time that a client has for a body, again and again while it sends 16 KiB/s, in s",
        ),
    ] = 60.0
    keep_alive_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=3600, description="time that a client's connection stays open unused, in s")
    ] = 75.0
    connect_timeout_s: Annotated[Seconds, Meta(ge=0.01, le=60, description="bound of connecting to a worker, in s")] = (
        2.0
    )
    read_timeout_s: Annotated[
        Seconds,
        Meta(
            ge=0.1,
            le=7 * 86_400,
            description="longest wait for a worker's answer, and then for more of it, while it answers probes, in s",
        ),
    ] = 3600.0
    upstream_idle_s: Annotated[
        Seconds, Meta(ge=0.1, le=3600, description="time that a worker's connection is kept unused, in s")
    ] = 4.0
    replicas: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="routers before the same workers, this one included, where Redis does not tell: more than one "
            "agree by hash on who gets what, a count",
        ),
    ] = 1
    processes: Annotated[
        int,
        Meta(ge=1, le=64, description="processes of this router on its one address, each of one core, a count"),
    ] = 1
    retries_max: Annotated[
        int, Meta(ge=0, le=16, description="other workers tried when one refuses a request, a count")
    ] = 2
    drain_timeout_s: Annotated[
        Seconds, Meta(ge=0, le=3600, description="time that requests have to end when the router stops, in s")
    ] = 30.0
    health_interval_s: Annotated[
        Seconds, Meta(ge=0.05, le=600, description="between two probes of a worker that is well, in s")
    ] = 5.0
    health_timeout_s: Annotated[
        Seconds, Meta(ge=0.05, le=600, description="time that a worker has to answer a probe, in s")
    ] = 3.0
    health_failures_max: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="probes in a row that are not answered, or wrongly, before a worker is DOWN, a count",
        ),
    ] = 3
    dns_refresh_s: Annotated[
        Seconds,
        Meta(ge=0.1, le=3600, description="age at which the address of a worker's name is looked up again, in s"),
    ] = 5.0
    load_interval_ms: Annotated[
        Milliseconds, Meta(ge=10, le=10_000, description="between two readings of the workers' load, in ms")
    ] = 200.0
    session_ttl_s: Annotated[
        Seconds, Meta(ge=1, le=7 * 86_400, description="time after which an unused session is forgotten, in s")
    ] = 3600.0
    stored_ttl_s: Annotated[
        Seconds,
        Meta(
            ge=1,
            le=7 * 86_400,
            description="time after its last use for which the worker of a stored answer, file or batch is remembered, "
            "in s",
        ),
    ] = 4 * 3600.0
    affinity_tolerance: Annotated[
        float,
        Meta(ge=0, le=10, description="how much worse, as a part of the best forecast, a session's worker may be"),
    ] = 0.25
    ghost_lock: Annotated[bool, Meta(description="compute a cold prefix once in the fleet, others wait or follow")] = (
        True
    )
    ghost_lock_tokens_min: Annotated[
        int, Meta(ge=1, le=10_000_000, description="shortest cold prefix worth a lock, in tokens")
    ] = 1024
    p2p_port: Annotated[
        Port | None,
        Meta(description="port of vLLM's own P2P tier: workers without our connector are told whom to pull from"),
    ] = None
    kv_transfer_from_clients: Annotated[
        bool,
        Meta(
            description="pass on what a request says of other engines (kv_transfer_params, bootstrap_host and the "
            "like), by which whoever asks can have an engine connect to any host; false: such a request gets 400"
        ),
    ] = False
    section_hints: Annotated[
        bool,
        Meta(
            description="tell workers where the sections of a prompt end, and what is to be kept, behind the request's "
            "id; false: engines get, and put into the ids of their answers, the plain id"
        ),
    ] = True
    text_map_entries_max: Annotated[
        int, Meta(ge=1000, le=100_000_000, description="boundaries of prompts held in memory, a count")
    ] = 200_000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe messages that are logged")
    ] = "info"
    log_format: Annotated[
        LogFormat, Meta(description="text: lines for people; json: each line is one JSON object, for programs")
    ] = "text"
    tracing: Annotated[
        bool,
        Meta(
            description="record spans of each request through OpenTelemetry (extra `tracing`), and tell workers of its "
            "trace; where they go, its variables OTEL_* say"
        ),
    ] = False
    access_log: Annotated[bool, Meta(description="log one line for each request")] = False
    access_log_prompts: Annotated[bool, Meta(description="in JSON, name prompts' beginnings by digests")] = False

    def check_together(self) -> None:
        """Check what one type cannot say; raise ConfigError."""
        super().check_together()
        parse_listen(self.listen, "listen")
        check_redis_url(self.redis_url)
        for url in self.workers:
            parse_endpoint(url, "workers")
        parse_roles(self.roles, "roles")
        LazyAdapters(self.lazy_adapters)
        check_providers(self.upstreams, self.provider_models, self.provider_fallbacks)
        parse_ttl(self.provider_ttl, "provider_ttl")
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"allowed_origins: expected *, null or scheme://host[:port], got {origin!r}")
        if not self.finds_workers:
            raise ConfigError(
                "workers: expected at least one URL, since redis is off and none would be found; got none"
            )
        if self.buffered_bytes_max < self.body_bytes_max:
            raise ConfigError(
                f"buffered_bytes_max: expected at least body_bytes_max={self.body_bytes_max}, "
                f"got {self.buffered_bytes_max}"
            )
        if self.flow_queue_max and not self.body_bytes_max <= self.flow_queue_bytes_max <= self.buffered_bytes_max:
            raise ConfigError(
                f"flow_queue_bytes_max: expected at least body_bytes_max={self.body_bytes_max}, or the largest body "
                f"could never wait, and at most buffered_bytes_max={self.buffered_bytes_max}, which holds those that "
                f"wait, too; got {self.flow_queue_bytes_max}"
            )

    @property
    def finds_workers(self) -> bool:
        """Whether there is anything from which workers, or providers in their place, could be known."""
        return self.redis or bool(self.workers or self.upstreams)


Kind = TypeVar("Kind", bound=RouterSettings)


def load_router_settings(
    options: Mapping[str, object], file: Path | None, environ: Mapping[str, str]
) -> RouterSettings:
    """Return the settings of this router: `options` over `file` over `environ` over defaults.

    Raises ConfigError naming the key, what was expected and what came; of a file, the file as well.
    """
    return load_settings(RouterSettings, options, file, environ)


def load_settings(
    kind: type[Kind], options: Mapping[str, object], file: Path | None, environ: Mapping[str, str]
) -> Kind:
    """Return what `load_router_settings` does, of a program that is a router and more."""
    variables = {variable_of(key): key for key in types_of(kind)}
    for key in SHARED_WITH_WORKERS:
        if (name := ROUTER_PREFIX + key.upper()) in environ:
            raise ConfigError(
                f"unknown environment variable {name}: workers share it, did you mean {variable_of(key)}?"
            )
    if UPSTREAM_VARIABLE in environ and (name := variable_of("upstreams")) in environ:
        raise ConfigError(f"expected {name} or {UPSTREAM_VARIABLE}, which means the same; got both")
    variables[UPSTREAM_VARIABLE] = "upstreams"
    ours = [name for name in environ if name.startswith(ROUTER_PREFIX) or name in variables]
    found = from_environment(kind, environ, ours, variables)
    if file is not None:
        values = read_file(file)
        try:
            found |= from_mapping(kind, values)
        except ConfigError as exc:
            raise ConfigError(f"{file}: {exc}") from None
    return kind(**(found | from_mapping(kind, options)))


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return (ENVIRONMENT_PREFIX if key in SHARED_WITH_WORKERS else ROUTER_PREFIX) + key.upper()
