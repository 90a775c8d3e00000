"""Which commands of Redis each program needs: what an ACL user must be allowed, and nothing else.

Commands that a script runs are checked as if the user ran them. The names are those of Redis' ACL.
"""

from __future__ import annotations

from collections.abc import Mapping

KEYS = "~gc2:*"
"""The keys: all of ours begin so, whatever the namespace."""

_SCRIPTS = ("eval", "evalsha")

WORKER = (
    *_SCRIPTS,
    *("time", "type", "unlink", "pexpire", "expire", "pttl"),
    *("get", "set", "strlen"),
    *("hset", "hdel", "hmget", "hexists", "hlen", "hgetall"),
    *("zadd", "zrem", "zscore", "zcount", "zrevrange", "zremrangebyscore"),
    *("xadd", "xtrim", "xrange"),
)
"""An engine with the connector."""

ROUTER = (
    *_SCRIPTS,
    *("time", "type", "unlink", "pexpire", "expire", "pttl"),
    *("get", "set", "strlen"),
    *("hset", "hget", "hmget", "hexists", "hstrlen"),
    *("zadd", "zrem", "zscore", "zrange", "zrevrange", "zremrangebyscore"),
    *("xadd", "xtrim", "xread", "xrange", "xrevrange"),
)
"""A router."""

DOCTOR = (
    *("eval", "evalsha", "ping", "info", "exists"),
    *("time", "type", "unlink", "pexpire", "expire"),
    *("get", "strlen"),
    *("hset", "hlen", "hgetall"),
    *("zadd", "zrem", "zscore", "zrevrange", "zrevrangebyscore", "zremrangebyscore"),
)
"""`ghostcacher doctor`."""

CLUSTER = ("cluster", "command")
"""Each of them in addition, where Redis is a cluster."""

PROGRAMS: Mapping[str, tuple[str, ...]] = {"worker": WORKER, "router": ROUTER, "doctor": DOCTOR}


def acl_rules(commands: tuple[str, ...]) -> list[str]:
    """Return the rules of an ACL user that may run these commands on our keys, and do nothing else."""
    return ["resetkeys", KEYS, "resetchannels", "-@all", *(f"+{command}" for command in sorted(commands))]
