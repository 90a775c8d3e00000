"""Does Redis let its user do what the programs of a fleet need, and if not, what is missing?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from ghostcacher_cli.doctor.report import Check, fail, ok, warn
from ghostcacher_connector.core.redis.client import refusal_of
from ghostcacher_connector.core.redis.permissions import KEYS, PROGRAMS
from ghostcacher_connector.core.redis.url import Client
from ghostcacher_connector.core.schema import router_key

NAME = "redis permissions"
KEY = router_key("doctor")
NO_SCRIPT = "0" * 40

PROBES = """
    get KEY | set KEY 1 PX 1000 | strlen KEY | exists KEY | type KEY | unlink KEY
    expire KEY 1 | pexpire KEY 1000 | pttl KEY | time | ping | info server
    hset KEY f v | hget KEY f | hdel KEY f | hmget KEY f | hexists KEY f | hlen KEY | hgetall KEY | hstrlen KEY f
    zadd KEY 1 m | zrem KEY m | zscore KEY m | zcount KEY 0 1 | zrange KEY 0 1 | zrevrange KEY 0 1
    zrevrangebyscore KEY 1 0 | zremrangebyscore KEY 0 1
    xadd KEY * f v | xtrim KEY MAXLEN 1 | xrange KEY - + COUNT 1 | xrevrange KEY + - COUNT 1
    xread COUNT 1 STREAMS KEY 0
"""
"""One harmless call of each command; KEY is a key of the doctor's own, which is removed after each."""

_SCRIPT = """
local failed = {}
for i, probe in ipairs(ARGV) do
    local words = {}
    for word in string.gmatch(probe, '%S+') do words[#words + 1] = word == 'KEY' and KEYS[1] or word end
    local reply = redis.pcall(unpack(words))
    if type(reply) == 'table' and reply.err then failed[#failed + 1] = { words[1], reply.err } end
    redis.pcall('PEXPIRE', KEYS[1], 1000)
    redis.pcall('UNLINK', KEYS[1])
end
return failed
"""


def check_permissions(client: Client) -> tuple[Check, frozenset[str]]:
    """Return what the user may do, and which commands of those that any program needs it may not run.

    Raises what redis-py raises when the server cannot be reached.
    """
    try:
        missing = _missing(client)
    except ResponseError as exc:
        if (refusal := refusal_of(exc)) is None:
            raise
        everything = frozenset(command for commands in PROGRAMS.values() for command in commands)
        return fail(NAME, refusal, f"allow this user +eval and {KEYS}; {_WHERE}"), everything
    return _judged(missing), frozenset(missing)


def _judged(missing: set[str]) -> Check:
    lacks = {program: sorted(missing & set(commands)) for program, commands in PROGRAMS.items()}
    able = [program for program, commands in lacks.items() if not commands]
    said = "; ".join(f"not all that a {program} needs: {_list(some)}" for program, some in lacks.items() if some)
    if not able:
        nearest = min(lacks.values(), key=len)
        return fail(NAME, f"this user may do {said}", f"allow this user {_list(nearest)}; {_WHERE}")
    text = f"this user may do what a {', a '.join(able)} needs{'; ' * bool(said)}{said}"
    if "doctor" not in able:
        return warn(NAME, text, f"give the doctor a user of its own, or allow this one {_list(lacks['doctor'])}")
    return ok(NAME, text)


_WHERE = "the commands of each program: docs/operating/transports-and-security.md"


def _missing(client: Client) -> set[str]:
    """Return the commands, of all that any program needs, that this user may not run."""
    probes = [probe.strip() for line in PROBES.splitlines() for probe in line.split("|") if probe.strip()]
    failed: Any = client.eval(_SCRIPT, 1, KEY, *probes)
    missing = {name.decode() for name, error in failed if refusal_of(ResponseError(error.decode())) is not None}
    try:
        client.evalsha(NO_SCRIPT, 1, KEY)
    except NoScriptError:
        pass
    except NoPermissionError:
        missing.add("evalsha")
    return missing


def _list(commands: Iterable[str]) -> str:
    return ", ".join(f"+{command}" for command in commands)
