"""Where Redis is: the URL forms that GhostCacher understands, and clients made from them.

    redis://[user:password@]host[:port][/db]                 one server (rediss:// for TLS)
    unix://[user:password@]/path/to/socket[?db=n]            one server on this machine
    redis+sentinel://[user:password@]h1[:p1],h2[:p2]/service[/db]   the primary that Sentinel names (rediss+sentinel://)
    redis+cluster://[user:password@]h1[:p1],h2[:p2]          a cluster, met at any of these nodes (rediss+cluster://)

User and password are those of the Redis servers, percent-encoded where need be. Options, after ``?``:
``db``, ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs`` (required, optional, none),
``ssl_check_hostname`` (true, false), ``sentinel_username``, ``sentinel_password``. Any other is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.redis.reply_bounds import bound_cluster_replies, bound_replies

REDIS_PORT = 6379
SENTINEL_PORT = 26379
RETRIES_MAX = 1
"""One more try, for a pooled connection that the server has closed meanwhile. Waiting longer is the caller's choice."""

_SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS = (*_TLS_OPTIONS, "db", "sentinel_username", "sentinel_password")

Client = redis.Redis | RedisCluster


@dataclass(frozen=True, kw_only=True, repr=False)
class RedisTarget:
    """What a URL says. kind: single, unix, sentinel or cluster. Secrets never appear in `repr()`."""

    kind: str
    nodes: tuple[tuple[str, int], ...]
    path: str
    service: str
    db: int
    tls: bool
    username: str | None
    password: str | None
    options: dict[str, str]

    @property
    def where(self) -> str:
        """Name the place for messages, without user or password."""
        if self.kind == "unix":
            return self.path
        nodes = ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{nodes} ({self.kind} {self.service})" if self.service else nodes

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(secret for secret in (self.password, self.options.get("sentinel_password")) if secret)

    def __repr__(self) -> str:
        return f"RedisTarget({self.kind}, {self.where})"


def parse_redis_url(url: str) -> RedisTarget:
    """Return what a URL says; raise ConfigError, without its password, when it says nothing sensible."""
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ConfigError(f"redis_url: not a URL: {type(exc).__name__}") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"redis_url: expected one of {', '.join(_SCHEMES)}, got {parts.scheme or 'no scheme'!r}")
    kind, tls = _SCHEMES[parts.scheme]
    options = _options(parts)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    path = [unquote(step) for step in parts.path.split("/") if step]
    if kind == "sentinel" and not path:
        raise ConfigError(f"redis_url: expected {parts.scheme}://hosts/service, got no service")
    service = path.pop(0) if kind == "sentinel" else ""
    db_text = options.pop("db", None) or (path[0] if path and kind in ("single", "sentinel") else "0")
    if not db_text.isdecimal() or (kind == "cluster" and db_text != "0"):
        raise ConfigError(f"redis_url: expected a database number{' 0' * (kind == 'cluster')}, got {db_text!r}")
    if kind == "unix" and not parts.path:
        raise ConfigError("redis_url: expected unix:///path/to/socket, got no path")
    return RedisTarget(
        kind=kind,
        nodes=() if kind == "unix" else _nodes(hosts, SENTINEL_PORT if kind == "sentinel" else REDIS_PORT),
        path=unquote(parts.path) if kind == "unix" else "",
        service=service,
        db=int(db_text),
        tls=tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        options=options,
    )


def _options(parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(f"redis_url: expected options among {', '.join(_OPTIONS)}, got {name!r}")
    return options


def _nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for text in (hosts or "localhost").split(","):
        try:
            node = urlsplit(f"//{text}")
            nodes.append((node.hostname or "localhost", default_port if node.port is None else node.port))
        except ValueError:
            raise ConfigError(f"redis_url: expected host[:port], got {text!r}") from None
    return tuple(nodes)


def make_client(target: RedisTarget, timeout_s: float) -> Client:
    """Return a client of the target. A cluster is met at once, any other at its first command.

    Raises what redis-py raises. Each network wait of the client is at most `timeout_s`; replies are bounded
    (reply_bounds.py).
    """
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # A time-out is not tried again: the caller has waited long enough.
        "retry": Retry(NoBackoff(), RETRIES_MAX, supported_errors=(redis.ConnectionError,)),
        "protocol": 2,
        "redis_connect_func": bound_cluster_replies if target.kind == "cluster" else bound_replies,
    }
    access: dict[str, Any] = {"username": target.username, "password": target.password}
    if target.kind == "unix":
        return redis.Redis(unix_socket_path=target.path, db=target.db, **access, **common)
    common |= {"socket_keepalive": True} | _tls(target)
    if target.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in target.nodes]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **access, **common)
    if target.kind == "sentinel":
        sentinel_access = {name: target.options.get(f"sentinel_{name}") for name in ("username", "password")}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            target.nodes, sentinel_kwargs=common | sentinel_access, db=target.db, **access, **common
        )
        primary: redis.Redis = sentinel.master_for(target.service)  # type: ignore[no-untyped-call]
        return primary
    host, port = target.nodes[0]
    return redis.Redis(host=host, port=port, db=target.db, **access, **common)


def _tls(target: RedisTarget) -> dict[str, Any]:
    if not target.tls:
        return {}
    tls: dict[str, Any] = {"ssl": True}
    tls |= {name: value for name, value in target.options.items() if name in _TLS_OPTIONS}
    if "ssl_check_hostname" in tls:
        tls["ssl_check_hostname"] = tls["ssl_check_hostname"].lower() in ("true", "yes", "1")
    return tls
