"""A real Redis whose users may do just what the documents say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.redis.permissions import CLUSTER, PROGRAMS, acl_rules

PASSWORD = "pw-of-all-users"


def set_user(server: RedisServer, user: str, commands: Sequence[str], *more: str) -> str:
    """Give a server a user that may run these commands on our keys; return the URL with which it connects."""
    with server.client() as raw:
        raw.execute_command("ACL", "SETUSER", user, "on", f">{PASSWORD}", *acl_rules(tuple(commands)), *more)
    return f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}"


def set_everything(server: RedisServer, *, cluster: bool = False) -> str:
    """Give a server one user that may do what all programs need together; return its URL."""
    commands = {command for some in PROGRAMS.values() for command in some}
    url = set_user(server, "everything", sorted(commands | set(CLUSTER if cluster else ())))
    return url.replace("redis://", "redis+cluster://") if cluster else url


@contextmanager
def acl_server() -> Iterator[tuple[RedisServer, dict[str, str]]]:
    """Yield a server, and the URL of a user for each program."""
    with RedisServer(tcp=True) as server:
        yield server, {name: set_user(server, f"gc-{name}", commands) for name, commands in PROGRAMS.items()}
