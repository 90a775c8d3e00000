"""The endpoint picker and the InferencePool of a cluster, over an API server that answers as Kubernetes does."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.endpoint_picker import EndpointPicker
from ghostcacher_router.epp.pool import KubernetesApi, PoolUnread, PoolWatch
from ghostcacher_router.epp.settings import PickerSettings
from tests.integration.router.test_endpoint_picker import address, chat, picker_of
from tests.support.local_http import Asked, answering
from tests.support.mock_engine import MiniEngine, until
from tests.support.proxy_rig import on_loop
from tests.support.strict_gateway import ANSWER_S_MAX, gateway

TOKEN = "token-of-the-service-account"
SELECTOR = {"app": "vllm", "app.kubernetes.io/part-of": "fleet"}


def pod(
    ip: str, *, ready: bool = True, ending: bool = False, role: str | None = None, ports: str | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": SELECTOR | ({"llm-d.ai/role": role} if role else {})}
    if ports is not None:
        metadata["annotations"] = {"inference.networking.k8s.io/active-ports": ports}
    if ending:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    return {"metadata": metadata, "status": {"podIP": ip, "phase": "Running", "conditions": conditions}}


class Cluster:
    """What an API server knows of one pool.

    away: whether it answers with an error. page_pods: listed at once. is_there, deleted_at: whether there is the pool,
    and since when it is being deleted.
    """

    def __init__(self, account: Path) -> None:
        self.account = account
        (account / "token").write_text(TOKEN + "\n")
        self.ports = [8000]
        self.pods: list[dict[str, Any]] = []
        self.away = False
        self.is_there = True
        self.deleted_at: str | None = None
        self.page_pods = 500
        self.asked = 0

    def __call__(self, asked: Asked) -> tuple[int, bytes]:
        self.asked += 1
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, b"Unauthorized"
        if self.away:
            return 503, b"etcd is away"
        path, query = urlsplit(asked.path).path, parse_qs(urlsplit(asked.path).query)
        if path == "/apis/inference.networking.k8s.io/v1/namespaces/llm/inferencepools/fleet":
            if not self.is_there:
                return 404, json.dumps({"kind": "Status", "status": "Failure", "reason": "NotFound"}).encode()
            spec = {"selector": {"matchLabels": SELECTOR}, "targetPorts": [{"number": port} for port in self.ports]}
            return 200, json.dumps({"metadata": {"deletionTimestamp": self.deleted_at}, "spec": spec}).encode()
        if path != "/api/v1/namespaces/llm/pods":
            return 404, b"not found"
        assert query["labelSelector"] == ["app=vllm,app.kubernetes.io/part-of=fleet"], query
        begin = int(query.get("continue", ["0"])[0])
        end = begin + min(self.page_pods, int(query["limit"][0]))
        more = {"continue": str(end)} if end < len(self.pods) else {}
        return 200, json.dumps({"metadata": more, "items": self.pods[begin:end]}).encode()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def api(cluster: Cluster) -> Iterator[KubernetesApi]:
    with answering(cluster) as url:
        yield KubernetesApi(url, account=cluster.account)


@asynccontextmanager
async def picker_of_pool(api: KubernetesApi) -> AsyncIterator[EndpointPicker]:
    settings = PickerSettings(listen="127.0.0.1:0", grpc_listen="127.0.0.1:0", redis=False, pool="llm/fleet")
    picker = EndpointPicker(settings, api=api)
    try:
        await picker.start()
        yield picker
    finally:
        await picker.stop()


def watch_of(api: KubernetesApi) -> tuple[PoolWatch, list[Any]]:
    told: list[Any] = []
    return PoolWatch(api, "llm/fleet", lambda endpoints, roles: told.append((endpoints, dict(roles)))), told


@on_loop
async def test_members_are_the_ports_of_ready_pods_over_all_pages(cluster: Cluster, api: KubernetesApi) -> None:
    """Neither a pod that loads nor one that ends is one; the label says who computes prompts for whom."""
    cluster.ports, cluster.page_pods = [8000, 8001], 2
    cluster.pods = [
        pod("10.0.0.1", role="prefill"),
        pod("10.0.0.2", ready=False),
        pod("10.0.0.3", ending=True),
        pod("fd00::4", role="both"),
    ]
    watch, told = watch_of(api)
    await watch.look()
    assert watch.members == {"10.0.0.1:8000", "10.0.0.1:8001", "[fd00::4]:8000", "[fd00::4]:8001"}
    assert {endpoint.port: role for endpoint, role in told[0][1].items()} == {
        8000: PdRole.PREFILL,
        8001: PdRole.PREFILL,
    }
    members = watch.members
    await watch.look()
    assert (watch.members is members, len(told)) == (True, 1), "nothing has changed"


@on_loop
async def test_pool_stays_as_it_was_while_the_api_is_away(cluster: Cluster, api: KubernetesApi) -> None:
    """What cannot be read is no news: not an error, not a wrong token or none, not an answer without a pool."""
    cluster.pods = [pod("10.0.0.1")]
    watch, told = watch_of(api)
    cluster.away = True
    await watch.look()
    assert (watch.is_known, watch.members) == (False, frozenset())
    cluster.away = False
    await watch.look()
    assert (watch.is_known, watch.members) == (True, {"10.0.0.1:8000"})
    cluster.pods = []
    (cluster.account / "token").write_text("an old one")
    with pytest.raises(PoolUnread, match="expected status 200, got 401"):
        await watch.read()
    await watch.look()
    (cluster.account / "token").write_text("of two\nlines")
    with pytest.raises(PoolUnread, match=r"expected one line of ASCII$"):
        await watch.read()
    await watch.look()
    assert watch.members == {"10.0.0.1:8000"}
    (cluster.account / "token").write_text(TOKEN)
    await watch.look()
    assert (watch.members, len(told)) == (frozenset(), 2)


@on_loop
async def test_pods_serve_the_ports_that_they_name(cluster: Cluster, api: KubernetesApi) -> None:
    """Of the pool's, by an annotation; what is no port of the pool means nothing."""
    cluster.ports = [8000, 8001, 8002]
    cluster.pods = [pod("10.0.0.1", ports="8002, 8000,9,x"), pod("10.0.0.2", ports=""), pod("10.0.0.3")]
    watch, _ = watch_of(api)
    await watch.look()
    every = {f"10.0.0.3:{port}" for port in cluster.ports}
    assert watch.members == {"10.0.0.1:8000", "10.0.0.1:8002", *every}


@pytest.mark.parametrize("how", ["deleted", "being deleted"])
@on_loop
async def test_pool_that_is_deleted_has_no_pods(cluster: Cluster, api: KubernetesApi, how: str) -> None:
    """Its picker refuses requests, and is not ready, until there is one again: as the extension's own picker does."""
    async with MiniEngine() as engine:
        cluster.ports, cluster.pods = [engine.port], [pod("127.0.0.1")]
        async with picker_of_pool(api) as picker, gateway(picker.server.port) as asking:
            assert picker.pool is not None
            assert (await asking.ask(chat())).destination == [address(engine)]
            cluster.is_there = how != "deleted"
            cluster.deleted_at = "2026-01-01T00:00:00Z"
            await picker.pool.look()
            refused = await asking.ask(chat())
            assert refused.immediate is not None
            assert (refused.immediate[0], picker.server._is_ready()) == (503, False)
            cluster.is_there, cluster.deleted_at = True, None
            await picker.pool.look()
            await until(lambda: len(picker.router.parts().fleet.serving("m")) == 1)
            assert (await asking.ask(chat())).destination == [address(engine)]
            assert picker.server._is_ready()


@on_loop
async def test_path_that_the_api_does_not_know_is_no_news_of_the_pool(cluster: Cluster, api: KubernetesApi) -> None:
    """Without the definition of its kind, for instance while that is installed anew, nobody can say it is gone."""
    cluster.pods = [pod("10.0.0.1")]
    watch, _ = watch_of(api)
    await watch.look()
    watch._name = "another"
    await watch.look()
    assert (watch.is_known, watch.members) == (True, {"10.0.0.1:8000"})


@on_loop
async def test_api_that_sends_byte_by_byte_is_given_up_within_one_bound(tmp_path: Path) -> None:
    """However soon each next byte comes."""
    (tmp_path / "token").write_text(TOKEN)
    sent = 0

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            sent += 1
            await asyncio.sleep(0.01)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        watch, _ = watch_of(KubernetesApi(url, account=tmp_path, answer_s_max=0.1))
        async with asyncio.timeout(60):
            with pytest.raises(PoolUnread, match=r"does not answer within 0\.1 s"):
                await watch.read()
    assert sent > 0


def certificate(folder: Path) -> ssl.SSLContext:
    """Make a certificate of loopback, which signs itself, as `ca.crt`; return what a server has of it."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=kubernetes"
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "ca.crt")]
    words = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key")
    return context


@on_loop
async def test_api_is_spoken_to_over_tls_with_the_accounts_authority(tmp_path: Path) -> None:
    """By its address, as a pod knows it; another authority's certificate is no answer, and sees no token."""
    context, asked = certificate(tmp_path), []
    (tmp_path / "token").write_text(TOKEN)
    pool = {"spec": {"selector": {"matchLabels": SELECTOR}, "targetPorts": [{"number": 8000}]}}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        body = json.dumps(pool if b"inferencepools" in asked[-1] else {"items": [pod("10.0.0.1")]}).encode()
        # Without a length, as Go sends what is long.
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        watch, _ = watch_of(KubernetesApi(url, account=tmp_path))
        assert [member.endpoint.name for member in await watch.read()] == ["10.0.0.1:8000"]
        assert [f"authorization: bearer {TOKEN}".encode() in head.lower() for head in asked] == [True, True]
        certificate(tmp_path)
        with pytest.raises(PoolUnread, match="CERTIFICATE_VERIFY_FAILED"):
            await watch.read()
        assert len(asked) == 2


@on_loop
async def test_only_the_pool_is_picked_and_what_leaves_it_is_not(cluster: Cluster, api: KubernetesApi) -> None:
    """The fleet follows the pool while requests go on."""
    async with MiniEngine() as one, MiniEngine() as two:
        cluster.ports, cluster.pods = [one.port, two.port], [pod("127.0.0.1")]
        async with picker_of_pool(api) as picker, gateway(picker.server.port) as asking:
            assert picker.pool is not None
            first = await asking.ask(chat())
            assert sorted(first.destination) == sorted([address(one), address(two)])
            # The picker looks by itself, too, and may have begun to before something changes.
            exchanges = [first]
            async with asyncio.timeout(60):
                cluster.ports = [two.port]
                while exchanges[-1].destination != [address(two)]:
                    await picker.pool.look()
                    exchanges.append(await asking.ask(chat()))
                cluster.pods = []
                while exchanges[-1].immediate is None:
                    await picker.pool.look()
                    exchanges.append(await asking.ask(chat()))
            for exchange in exchanges[:-1]:
                exchange.abort()
            await until(lambda: picker.server.streams == 0)


@on_loop
async def test_pod_that_is_labelled_later_changes_its_role() -> None:
    """It is the same worker, and was known without a role before."""
    engines = [MiniEngine(), MiniEngine()]
    async with picker_of(engines) as picker:
        parts, endpoints = picker.router.parts(), [engine.endpoint for engine in engines]
        assert not parts.dispatcher.hands_over("m")
        for role in (PdRole.PREFILL, PdRole.DECODE):
            parts.fleet.follow(endpoints, {endpoints[0]: role})
            assert parts.dispatcher.hands_over("m") is (role is PdRole.PREFILL)


@on_loop
async def test_health_service_says_when_the_pool_is_known_and_when_the_picker_stops(
    cluster: Cluster, api: KubernetesApi
) -> None:
    """Under each name of the protocol; liveness whatever else is."""
    cluster.away = True
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with picker_of_pool(api) as picker:
        assert picker.pool is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.port}") as channel:
            stub = HealthStub(channel)

            async def status(name: str) -> int:
                return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)

            names = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"]
            assert [await status(name) for name in names] == [not_serving] * 3
            assert await status("liveness") == serving
            cluster.away = False
            await picker.pool.look()
            assert [await status(name) for name in names] == [serving] * 3
            watching = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
            async with asyncio.timeout(ANSWER_S_MAX):
                assert (await watching.read()).status == serving
                picker.server._draining = True
                assert (await watching.read()).status == not_serving
                assert await watching.read() is grpc.aio.EOF, "a watch does not hold up the end"
            with pytest.raises(grpc.aio.AioRpcError, match="expected liveness, readiness"):
                await status("another")


def test_pool_is_wanted_in_a_pod_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there is no token, and no API that it would be for."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="pool: expected to run in a pod"):
        EndpointPicker(PickerSettings(redis=False, pool="llm/fleet"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "fleet"}, "pool: expected namespace/name"),
        ({"pool": "llm/fleet", "workers": ("http://10.0.0.1",)}, "workers: expected none beside pool"),
        ({"grpc_certificate": "cert.pem"}, "grpc_key: expected a path"),
        ({"grpc_listen": "9002"}, "grpc_listen: expected"),
        ({"redis": False}, "workers: expected at least one URL"),
        ({"upstreams": ("openai=https://api.example",)}, "upstreams: expected none"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PickerSettings(**settings)
