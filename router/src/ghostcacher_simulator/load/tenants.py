"""Who asks: the tenants among whom a load is shared out, each with a priority and a deadline of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.requests import Load

EXPECTED = "NAME, or NAME:share=N,priority=N,deadline=S, each of which may be left out (urgent:share=0.1,priority=-5)"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of those who ask."""

    name: str
    share: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Of the requests, over the sum of all shares."""
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    """Lower goes first."""
    deadline: Annotated[float, Meta(ge=0, le=1e5)] | None = None
    """How long its requests may wait before a worker has them, in s; None: as long as others."""


def parse_tenant(text: str) -> Tenant:
    """Return the tenant that a text describes. Raises ConfigError."""
    name, _, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")] if rest else []
    try:
        if not _NAME.fullmatch(name) or any(key == "name" or not equals for key, equals, _ in pairs):
            raise ValueError(text)
        return msgspec.convert({key: value for key, _, value in pairs} | {"name": name}, Tenant, strict=False)
    except ValueError as exc:
        raise ConfigError(f"--tenant: expected {EXPECTED}, got {text!r}") from exc


def shared_out(load: Load, tenants: Sequence[Tenant], *, seed: int) -> Load:
    """Return a load whose requests are of these tenants, each by its share, at random; all of a conversation of one."""
    if not tenants:
        return load
    rng = Random(f"tenants {seed}")  # noqa: S311 - no secret
    shares = [tenant.share for tenant in tenants]
    of_session: dict[str, Tenant] = {}
    requests = []
    for request in load.requests:
        tenant = of_session.get(request.session) if request.session is not None else None
        if tenant is None:
            (tenant,) = rng.choices(tenants, shares)
            if request.session is not None:
                of_session[request.session] = tenant
        requests.append(request._replace(tenant=tenant.name, priority=tenant.priority, deadline_s=tenant.deadline))
    return load._replace(requests=requests)
