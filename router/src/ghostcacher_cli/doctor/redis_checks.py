"""Is there a Redis, is it fit to be the index, and how far is it away?"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from ghostcacher_cli.doctor.permissions import check_permissions
from ghostcacher_cli.doctor.report import Check, fail, ok, warn
from ghostcacher_connector.core.redis.client import text_of
from ghostcacher_connector.core.redis.url import Client, make_client, parse_redis_url

VERSION_MIN = (6, 2)
PINGS = 5
LATENCY_WARN_S = 0.005
"""A lookup is one round trip beside the scheduler; slower than this eats into its deadline of 50 ms."""

REDIS_FIX = (
    "start Redis, or correct --redis-url / GC_REDIS_URL (host, port, user, password, rediss:// for TLS); "
    "while it is away the engines serve on, and share nothing"
)
EMBEDDED_FIX = (
    "name the fleet's Redis with --redis-url or GC_REDIS_URL; without either this is the private Redis of this user, "
    "which ghostcacher up, or the first engine that is told of no other, starts"
)


def check_redis(url: str, timeout_s: float, fix: str = REDIS_FIX) -> Iterator[Check]:
    """Yield what there is to say about the Redis at a URL; ends after the first check when it cannot be reached.

    fix: what to do then.
    Raises ConfigError for a URL that makes no sense. No message shows the URL's user or password.
    """
    target = parse_redis_url(url)
    try:
        client = make_client(target, timeout_s)
    except (RedisError, RedisClusterException, OSError) as exc:
        yield _unreachable(target.where, exc, target.secrets, fix)
        return
    try:
        permissions, missing = check_permissions(client)
        if "ping" not in missing:
            yield _latency(client, target.where)
        yield permissions
        if "info" not in missing:
            yield _version(client)
            yield _memory(client)
    except (RedisError, RedisClusterException, OSError) as exc:
        yield _unreachable(target.where, exc, target.secrets, fix)
    finally:
        client.close()


def _unreachable(where: str, exc: Exception, secrets: tuple[str, ...], fix: str) -> Check:
    return fail("redis", f"{where}: cannot be used: {text_of(exc, secrets)}", fix)


def _latency(client: Client, where: str) -> Check:
    times = []
    client.ping()  # the first one connects
    for _ in range(PINGS):
        started = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - started)
    text = f"{where}: reachable, round trip {median(times) * 1e3:.2f} ms"
    if median(times) > LATENCY_WARN_S:
        return warn("redis", text, "put Redis nearer to the engines, or raise lookup_deadline_ms")
    return ok("redis", text)


def _version(client: Client) -> Check:
    infos = _nodes(client.info("server"), "redis_version")
    found = min((_parsed(str(info["redis_version"])) for info in infos), default=(0, 0))
    text = ".".join(str(part) for part in found)
    wanted = ".".join(str(part) for part in VERSION_MIN)
    if found < VERSION_MIN:
        return fail("redis version", f"expected {wanted} or later, found {text}", "upgrade Redis, or use Valkey")
    return ok("redis version", f"{text} on {len(infos)} node{'s' * (len(infos) != 1)}")


def _memory(client: Client) -> Check:
    infos = _nodes(client.info("memory"), "maxmemory_policy")
    if not infos:
        return warn(
            "redis memory", "the server does not say its policy", "make sure that maxmemory-policy is volatile-lru"
        )
    bounded = [info for info in infos if int(info.get("maxmemory", 0)) > 0]
    refusing = [info for info in bounded if info["maxmemory_policy"] == "noeviction"]
    if refusing:
        return warn(
            "redis memory",
            "maxmemory is set with the policy noeviction: a full Redis refuses writes, and no new block is shared",
            "set maxmemory-policy to volatile-lru: everything in the index has a TTL and may be lost",
        )
    if not bounded:
        return warn(
            "redis memory",
            "maxmemory is not set",
            "set maxmemory, and maxmemory-policy volatile-lru, so that it is bounded",
        )
    used = max(int(info["used_memory"]) / int(info["maxmemory"]) for info in bounded)
    return ok("redis memory", f"policy {bounded[0]['maxmemory_policy']}, {used:.0%} of maxmemory used")


def _nodes(info: Any, field: str) -> list[dict[str, Any]]:
    """Return the answers of all nodes: a cluster answers by node, a single server directly."""
    if field in info:
        return [info]
    return [part for part in info.values() if isinstance(part, dict) and field in part]


def _parsed(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
