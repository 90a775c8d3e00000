"""Cases of the inference extension's conformance suite, as far as gateway, picker and pods show them without a cluster.

Each test names its case there. A real Envoy is the gateway. Pods are addresses of loopback, each with a server on both
ports of the pool, and the picker reads them from an API server that answers as Kubernetes does. Where the suite has its
own picker choose by a header, here that header is the gateway's limit of what may be picked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

from ghostcacher_router.endpoint_picker import EndpointPicker
from ghostcacher_router.epp.pool import KubernetesApi
from ghostcacher_router.types import Endpoint
from tests.integration.router.test_endpoint_picker import chat
from tests.integration.router.test_endpoint_picker_pool import Cluster, picker_of_pool, pod
from tests.support.envoy_proxy import SELECTION, envoy, without_picker
from tests.support.local_http import answering
from tests.support.mock_engine import CHAT_PATH, ChatEngine, until
from tests.support.proxy_rig import on_loop
from tests.support.strict_gateway import gateway

IPS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
REQUESTS = 12


class Rank(ChatEngine):
    """A server of a pod, on one of the pool's ports."""

    def __init__(self, ip: str, port: int) -> None:
        super().__init__()
        self.ip, self.port = ip, port

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, self.ip, self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.ip, self.port, False, "")


class Suite(NamedTuple):
    client: httpx.AsyncClient
    picker: EndpointPicker
    ranks: dict[str, Rank]
    """By their `ip:port`."""
    ports: list[int]
    """Of the pool."""

    async def serving(self, selection: Iterable[str]) -> set[str]:
        """Return who serves some requests that may go to this selection."""
        said = {SELECTION: ",".join(selection)}
        served = set()
        for number in range(REQUESTS):
            before = {name: len(rank.chats) for name, rank in self.ranks.items()}
            answer = await self.client.post(CHAT_PATH, content=chat(f"{number} " * 2000), headers=said)
            assert answer.status_code == 200, answer.text
            (by,) = (name for name, rank in self.ranks.items() if len(rank.chats) > before[name])
            assert answer.headers["x-gc-worker"] == by
            served.add(by)
        return served


@asynccontextmanager
async def suite(folder: Path) -> AsyncIterator[Suite]:
    """Run a pool of three pods with two ports each, its picker, and Envoy."""
    async with AsyncExitStack() as stack:
        ports = [0, 0]
        ranks = []
        for ip in IPS:
            for place in range(2):
                rank = await stack.enter_async_context(Rank(ip, ports[place]))
                ports[place] = rank.port
                ranks.append(rank)
        cluster = Cluster(folder)
        cluster.ports, cluster.pods = ports, [pod(ip) for ip in IPS]
        url = stack.enter_context(answering(cluster))
        picker = await stack.enter_async_context(picker_of_pool(KubernetesApi(url, account=folder)))
        fleet = picker.router.parts().fleet
        await until(lambda: len(fleet.serving("m")) == len(ranks))
        endpoints = [rank.endpoint for rank in ranks]
        base = await stack.enter_async_context(
            envoy(folder, endpoints, picker.server.port, body_mode="FULL_DUPLEX_STREAMED", selects=True)
        )
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=60))
        yield Suite(client, picker, {rank.endpoint.name: rank for rank in ranks}, ports)


@on_loop
async def test_gateway_following_epp_routing(tmp_path: Path) -> None:
    """GatewayFollowingEPPRouting, GatewayFollowingEPPRoutingWithDataParallelism, GatewayDestinationEndpointServed.

    Requests reach only pods that may be picked, and of those only ports that may be; who has served is told.
    """
    async with suite(tmp_path) as running:
        first, second = running.ports
        one, two, three = IPS
        for selection in (
            [three],
            [one, two],
            [one, two, three],
            [one, f"{three}:{second}"],
            [one, f"{two}:{first}", f"{two}:{second}", three],
            *([f"{ip}:{port}"] for ip in IPS for port in running.ports),
        ):
            allowed = {name for name in running.ranks if {name, name.partition(":")[0]} & set(selection)}
            served = await running.serving(selection)
            assert served <= allowed, (selection, served)
            assert len(served) > 1 or len(allowed) == 1
        answer = await running.client.post(CHAT_PATH, content=chat(), headers={SELECTION: "127.0.0.9"})
        assert answer.status_code == 503
        assert running.picker.router.parts().metrics.picker.moved.total == 0


@on_loop
async def test_epp_unavailable_fail_open(tmp_path: Path) -> None:
    """EppUnAvailableFailOpen: with a picker the request goes where it may, and without one anywhere."""
    async with suite(tmp_path) as running:
        (only,) = await running.serving([f"{IPS[1]}:{running.ports[0]}"])
        await running.picker.server.stop(0)
        await without_picker(tmp_path)
        for _ in range(2 * len(running.ranks)):
            answer = await running.client.post(CHAT_PATH, content=chat(), headers={SELECTION: only})
            assert (answer.status_code, answer.text[-14:]) == (200, "data: [DONE]\n\n")
        assert all(rank.chats for rank in running.ranks.values())


@on_loop
async def test_pools_do_not_share_endpoints(tmp_path: Path) -> None:
    """GatewayWeightedAcrossTwoInferencePools, HTTPRouteMultipleRulesDifferentPools and
    HTTPRouteMultipleGatewaysDifferentPools, of which gateways do the rest: a picker that is given the endpoints of two
    pools picks from its own alone.
    """
    async with AsyncExitStack() as stack:
        pools = []
        for ip in IPS[:2]:
            rank = await stack.enter_async_context(Rank(ip, 0))
            account = tmp_path / ip
            account.mkdir()
            cluster = Cluster(account)
            cluster.ports, cluster.pods = [rank.port], [pod(ip)]
            api = KubernetesApi(stack.enter_context(answering(cluster)), account=account)
            picker = await stack.enter_async_context(picker_of_pool(api))
            pools.append((rank.endpoint.name, await stack.enter_async_context(gateway(picker.server.port))))
        both = [name for name, _ in pools]
        for own, asking in pools:
            exchange = await asking.ask(chat(), subset=both)
            assert exchange.destination == [own]
            exchange.abort()
            (other,) = set(both) - {own}
            refused = await asking.ask(chat(), subset=[other])
            assert refused.immediate is not None
            assert refused.immediate[0] == 503
