"""Which workers a gateway may be told of: those of the pool, by addresses at which it reaches them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.dns.resolver import is_address
from ghostcacher_router.epp.parts import Parts
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint, NoWorker

MODELS_MAX = 64
"""Of which it is known who can answer for them."""
ADDRESSES_MAX = 8192
RETRY_AFTER_S = 2

_NOBODY = "No endpoint that the gateway may use is ready. Please try again."


def nobody() -> NoWorker:
    """Return what a client is told when no worker may take its request."""
    return NoWorker(503, _NOBODY, kind="no_worker", retry_after_s=RETRY_AFTER_S)


class Candidates:
    """The workers that may be picked. On the event loop only."""

    def __init__(self, parts: Parts, members: Callable[[], Collection[str] | None]) -> None:
        """members: `ip:port` of the pool, the same object until they change; None: all workers."""
        self._parts, self._members = parts, members
        self._resolved: dict[str, str] = {}
        """Host name -> address, of workers that the fleet has."""
        self._named: tuple[object, list[str]] = (None, [])
        """The fleet's list, and the host names in it."""
        self._outside: tuple[object, object, frozenset[str]] = (None, None, frozenset())
        self._others: dict[str | None, tuple[object, object, list[tuple[str, str]]]] = {}
        """Model -> the fleet's list, the pool's members, and what `stand_ins` made of them."""

    def __repr__(self) -> str:
        return f"Candidates({self._parts.fleet!r})"

    def excluded(self, subset: frozenset[str] | None) -> frozenset[str]:
        """Return the names of workers that a gateway may not send this request to. Raises NoWorker when all are."""
        ready, members = self._parts.fleet.serving(None), self._members()
        if self._outside[0] is not ready or self._outside[1] is not members:
            # The fleet's list is the same object until something changes; so are the pool's members.
            outside = frozenset(worker.name for worker in ready if not self._belongs(worker, members))
            self._outside = (ready, members, outside)
        excluded = self._outside[2]
        if subset is not None:
            excluded |= {worker.name for worker in ready if not self._belongs(worker, subset)}
        if len(excluded) >= len(ready) and (ready or subset is not None):
            raise nobody()
        return excluded

    def may_go_to(self, name: str, subset: frozenset[str] | None) -> bool:
        """Say whether a worker is in the pool, and among those that a gateway may use for this request."""
        worker = self._parts.fleet.workers.get(name)
        return worker is not None and self._belongs(worker, self._members()) and self._belongs(worker, subset)

    def _belongs(self, worker: Worker, endpoints: Collection[str] | None) -> bool:
        address = self.address(worker.endpoint)
        return address is not None and is_in(address, endpoints)

    def address(self, endpoint: Endpoint) -> str | None:
        """Return `ip:port`; None of an endpoint that a gateway cannot reach by that alone."""
        address = _address_of(endpoint)
        return address or _address_of(endpoint._replace(host=self._resolved.get(endpoint.host, "")))

    async def resolve_names(self) -> None:
        """Look up the workers' names, where they have names: gateways want addresses."""
        ready = self._parts.fleet.serving(None)
        if self._named[0] is not ready:
            self._named = (ready, [each.endpoint.host for each in ready if not _is_address(each.endpoint.host)])
            known = {worker.endpoint.host for worker in self._parts.fleet.workers.values()}
            self._resolved = {host: address for host, address in self._resolved.items() if host in known}
        for host in self._named[1]:
            with suppress(OSError):
                found = (await self._parts.resolver.addresses(host))[0]
                if self._resolved.get(host) != found:
                    self._resolved[host] = found
                    self._outside = (None, None, frozenset())
                    self._others.clear()

    def stand_ins(self, model: str | None) -> list[tuple[str, str]]:
        """Return names and `ip:port` of workers that can answer for a model. It is the same list until they change."""
        ready, members = self._parts.fleet.serving(model), self._members()
        known = self._others.get(model)
        if known is not None and known[0] is ready and known[1] is members:
            return known[2]
        found = [
            (worker.name, address)
            for worker in ready
            if worker.data_parallel_rank is None
            and worker.pd_role is not PdRole.PREFILL
            and (address := self.address(worker.endpoint)) is not None
            and is_in(address, members)
        ]
        if len(self._others) >= MODELS_MAX:
            self._others.clear()
        self._others[model] = (ready, members, found)
        return found


def is_in(address: str, endpoints: Collection[str] | None) -> bool:
    """Say whether an endpoint is among these, which are named as `ip:port` or `ip`; None: all are."""
    return endpoints is None or address in endpoints or address.rpartition(":")[0].strip("[]") in endpoints


@lru_cache(ADDRESSES_MAX)
def _is_address(host: str) -> bool:
    return is_address(host)


@lru_cache(ADDRESSES_MAX)
def _address_of(endpoint: Endpoint) -> str | None:
    """Return `ip:port` of an endpoint that is reached by it alone: without TLS of its own, and without a path."""
    if not _is_address(endpoint.host) or endpoint.tls or endpoint.path:
        return None
    return f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"
