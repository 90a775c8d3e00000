"""What a request says of its turn: its priority, its tenant and its deadline. No I/O.

    x-gc-priority      a number; lower goes first, as in vLLM's `priority`, which counts where settings say so
    x-gc-deadline-ms   how long it may wait, in ms, from when the router has all of it

What cannot be right is refused with 400. Whose word counts is a matter of settings: a header that clients can send
themselves says nothing of who they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.signals.prefix_match import BYTES_PER_TOKEN_GUESS
from ghostcacher_router.types import Ask, NoWorker

PRIORITY = b"x-gc-priority"
DEADLINE = b"x-gc-deadline-ms"
CACHE_SALT = "cache_salt"
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
NOBODY = ""
"""The tenant of requests that name none."""

NUMBER_MAX = 999_999_999
_NUMBER = re.compile(rb"[+-]?[0-9]{1,9}")
_WEIGHT = re.compile(r"([^=]{1,256})=([0-9]{1,6}(?:\.[0-9]{1,6})?)")
SHOWN_BYTES = 64
_ANSWER_TOKENS_GUESS = 256
"""An answer is work, too. How long it gets nobody knows."""


class WishOptions(NamedTuple):
    """Whose word counts. See the settings of the same names."""

    priorities: Literal["off", "header", "client"] = "off"
    priority_min: int = 0
    priority_max: int = 100
    tenants: str | None = None
    deadlines: bool = False


def priority_of(ask: Ask, options: WishOptions) -> int:
    """Return the priority of a request. Raises NoWorker where it may not have it."""
    if options.priorities == "off":
        return 0
    given = ask.headers.get(PRIORITY)
    expected = f"an int from {options.priority_min} to {options.priority_max}"
    if given is not None:
        priority, name = _number(given), PRIORITY.decode()
        if priority is None:
            raise _refused(name, expected, given)
    elif options.priorities == "client" and ask.shape.priority is not None:
        priority, name, given = ask.shape.priority, "priority", str(ask.shape.priority)[:SHOWN_BYTES].encode()
    else:
        return max(options.priority_min, min(0, options.priority_max))
    if not options.priority_min <= priority <= options.priority_max:
        raise _refused(name, expected, given)
    return priority


def tenant_of(ask: Ask, options: WishOptions) -> str:
    """Return the name by which a request's tenant is known here: a digest, since it may be a secret of its client's."""
    if options.tenants is None:
        return NOBODY
    if options.tenants == CACHE_SALT:
        named = (ask.shape.cache_salt or "").encode(errors="replace")
    else:
        named = ask.headers.get(options.tenants.lower().encode(), b"")
    return digest_of(named) if named else NOBODY


def deadline_s(ask: Ask, options: WishOptions) -> float | None:
    """Return how long a request may wait, in s; None: as long as others. Raises NoWorker for what is no time."""
    given = ask.headers.get(DEADLINE) if options.deadlines else None
    if given is None:
        return None
    number = _number(given)
    if number is None or number < 0:
        raise _refused(DEADLINE.decode(), f"a whole number of ms from 0 to {NUMBER_MAX}", given)
    return number / 1e3


def work_of(ask: Ask) -> int:
    """Return what a request costs its tenant, in tokens, about."""
    prompt = ask.shape.prompt
    if prompt is None:
        return _ANSWER_TOKENS_GUESS
    return _ANSWER_TOKENS_GUESS + (prompt.tokens or prompt.size // BYTES_PER_TOKEN_GUESS)


def parse_weights(given: Sequence[str], key: str) -> Mapping[str, float]:
    """Return the weight of each tenant, by the name that `tenant_of` gives it. Raises ConfigError."""
    found: dict[str, float] = {}
    for text in given:
        match = _WEIGHT.fullmatch(text)
        if match is None or float(match[2]) <= 0:
            raise ConfigError(f"{key}: expected name=weight with a weight above 0, such as a=4, got {text!r}")
        found[digest_of(match[1].encode())] = float(match[2])
    if len(found) < len(given):
        raise ConfigError(f"{key}: expected each name once, got {tuple(given)!r}")
    return found


def digest_of(name: bytes) -> str:
    """Return the name by which a tenant is known here."""
    return blake2b(name, digest_size=6).hexdigest()


def _number(text: bytes) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _refused(name: str, expected: str, got: bytes) -> NoWorker:
    shown = got[:SHOWN_BYTES].decode("latin-1")
    return NoWorker(400, f"{name}: expected {expected}, got {shown!r}", kind="invalid_value")
