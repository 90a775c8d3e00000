"""The endpoint picker where something does not come in time, and its TLS and its program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.endpoint_picker import EndpointPicker
from ghostcacher_router.epp import health, server
from ghostcacher_router.epp.picking import EndpointPicking
from ghostcacher_router.epp.server import PickerServer
from ghostcacher_router.types import Ask, Dispatcher, Endpoint, Placement
from tests.integration.router.test_endpoint_picker import address, chat, count, in_flight, picker_of
from tests.support.mock_engine import MiniEngine, until
from tests.support.proxy_rig import on_loop
from tests.support.strict_gateway import BUFFERED, gateway


class WaitsForPrompts:
    """A dispatcher that waits for ever before it places a prompt. waiting: how many requests do."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.waiting = 0
        self.hands_over = dispatcher.hands_over

    def place_now(self, ask: Ask) -> Placement | None:
        return None if ask.shape.prompt is not None else self._dispatcher.place_now(ask)

    async def place(self, ask: Ask) -> Placement:
        if ask.shape.prompt is None:
            return await self._dispatcher.place(ask)
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        raise AssertionError("it waits for ever")


@pytest.mark.parametrize(("mode", "timeout_s"), [(None, 0.01), (BUFFERED, 600.0)])
@on_loop
async def test_what_does_not_come_in_time_is_no_reason_to_wait(mode: int | None, timeout_s: float) -> None:
    """Then a worker is picked by load. Where the gateway holds the body it would not wait for long itself."""
    async with picker_of([MiniEngine()]) as picker:
        parts = picker.router.parts()
        slow = parts._replace(dispatcher=WaitsForPrompts(parts.dispatcher))  # type: ignore[arg-type]
        picking = EndpointPicking(slow, fallbacks_max=2, members=lambda: None)
        picker.server._parts, picker.server._picking, picker.server._timeout_s = slow, picking, timeout_s
        modes = {} if mode is None else {"request_mode": mode}
        async with gateway(picker.server.port, **modes) as asking:
            exchange = await asking.ask(chat())
            assert (len(exchange.destination), in_flight(picker)) == (1, 1)
            assert count(picker, "late") == 1
            await exchange.respond()
            await exchange.ended()
            await until(lambda: in_flight(picker) == 0)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 7])
@on_loop
async def test_engine_is_told_of_the_priority_that_counts(piece_bytes: int) -> None:
    """In full duplex, where the body comes back from the picker, however it came."""
    settings = {"flow_priority_to_engines": True, "flow_priorities": "header"}
    async with picker_of([MiniEngine()], **settings) as picker, gateway(picker.server.port) as asking:
        body = json.dumps(json.loads(chat("one")) | {"priority": -3}).encode()
        pieces = [body[begin : begin + piece_bytes] for begin in range(0, len(body), piece_bytes)]
        exchange = await asking.ask(*pieces, headers={"x-gc-priority": "7"}, body_changes=True)
        assert json.loads(exchange.body) == json.loads(body) | {"priority": 7}
        exchange.abort()
        told = body.replace(b"-3", b"7")
        same = await asking.ask(told, headers={"x-gc-priority": "7"})
        assert same.body == told
        same.abort()


@on_loop
async def test_saturated_pool_has_requests_wait_and_refuses_them_at_the_bound() -> None:
    """With flow control: the protocol's 429, and when to come back; who waits goes on when there is room."""
    settings = {"flow_queue_max": 1, "flow_worker_requests_max": 1}
    async with picker_of([MiniEngine()], **settings) as picker, gateway(picker.server.port) as asking:
        first = await asking.ask(chat("one"))
        waiting = asyncio.create_task(asking.ask(chat("two")))
        await until(lambda: picker.server.streams == 2)
        refused = await asking.ask(chat("three"))
        assert refused.immediate is not None
        status, headers, _ = refused.immediate
        assert (status, int(headers["retry-after"]) > 0, waiting.done()) == (429, True, False)
        await first.respond()
        await first.ended()
        second = await waiting
        assert second.destination == first.destination
        second.abort()
        await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)


@on_loop
async def test_client_that_leaves_while_a_worker_is_picked_leaves_nothing_waiting() -> None:
    """The gateway cancels the stream, and what the pick waits for is given up."""
    async with picker_of([MiniEngine()]) as picker:
        parts = picker.router.parts()
        dispatcher = WaitsForPrompts(parts.dispatcher)
        slow = parts._replace(dispatcher=dispatcher)  # type: ignore[arg-type]
        picker.server._picking = EndpointPicking(slow, fallbacks_max=2, members=lambda: None)
        async with gateway(picker.server.port) as asking:
            asked = asyncio.create_task(asking.ask(chat()))
            await until(lambda: dispatcher.waiting == 1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await until(lambda: dispatcher.waiting == 0 and picker.server.streams == 0)
            assert (in_flight(picker), picker.server._held.size) == (0, 0)


class ComesMeanwhile:
    """A dispatcher that waits before it places anything, and meanwhile the fleet becomes another one."""

    def __init__(self, picker: EndpointPicker, endpoints: Sequence[Endpoint]) -> None:
        self._parts, self._endpoints = picker.router.parts(), list(endpoints)
        self.hands_over = self._parts.dispatcher.hands_over

    def place_now(self, ask: Ask) -> Placement | None:  # noqa: ARG002
        return None

    async def place(self, ask: Ask) -> Placement:
        fleet = self._parts.fleet
        fleet.follow(self._endpoints, {})
        await until(lambda: len(fleet.serving(None)) == len(self._endpoints))
        return await self._parts.dispatcher.place(ask)


@pytest.mark.parametrize("in_pool", [True, False])
@on_loop
async def test_worker_that_comes_while_a_request_waits_is_not_picked_outside_of_its_subset(in_pool: bool) -> None:
    """Nor outside of the pool. Neither as the pick nor as a fallback; where it would be the only one, there is none."""
    old, new = MiniEngine(), MiniEngine()
    async with new, picker_of([old]) as picker, gateway(picker.server.port) as asking:
        for endpoints, destination in (([old.endpoint, new.endpoint], [address(old)]), ([new.endpoint], [])):
            parts = picker.router.parts()._replace(dispatcher=ComesMeanwhile(picker, endpoints))  # type: ignore[arg-type]
            members = None if in_pool else frozenset({address(old)})
            picker.server._picking = EndpointPicking(parts, fallbacks_max=2, members=lambda only=members: only)
            for _ in range(4):
                exchange = await asking.ask(chat(), subset=[address(old)] if in_pool else None)
                assert exchange.destination == destination
                exchange.abort()
                await until(lambda: in_flight(picker) == 0)
                if not destination:
                    break


@on_loop
async def test_request_that_another_endpoint_serves_waits_for_no_turn_there() -> None:
    """It is there already, however full the queue is."""
    flow = {"flow_queue_max": 4, "flow_worker_requests_max": 1}
    async with picker_of([MiniEngine(), MiniEngine()], **flow) as picker, gateway(picker.server.port) as asking:
        first, second = await asking.ask(chat("1")), await asking.ask(chat("2"))
        assert first.destination[0] != second.destination[0]
        answered = await first.respond(end=False, served=second.destination[0])
        assert answered["x-gc-worker"] == second.destination[0]
        assert picker.router.parts().in_flight(second.destination[0]) == 2


@on_loop
async def test_gateway_whose_host_is_gone_leaves_nothing_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is open still, and nothing comes over it."""
    monkeypatch.setattr(server, "KEEPALIVE_S", 1.0)
    pumps: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async with picker_of([MiniEngine()]) as picker:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection("127.0.0.1", picker.server.port)
            pumps.extend(asyncio.create_task(pump(*way)) for way in ((reader, there[1]), (there[0], writer)))

        host = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with host, gateway(host.sockets[0].getsockname()[1]) as asking:
            await asking.ask(chat())
            assert in_flight(picker) == 1
            for task in pumps:
                task.cancel()
            await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)


@on_loop
async def test_gateway_is_spoken_to_with_tls(tmp_path: Path) -> None:
    """With the certificate of the settings; a port that is taken is named."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True, timeout=60)
    tls = {"grpc_certificate": str(certificate), "grpc_key": str(key)}
    async with picker_of([MiniEngine()], **tls) as picker:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{picker.server.port}", trusted) as channel:
            answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        second = PickerServer(
            picker.router.parts()._replace(metrics=type(picker.router.parts().metrics)()),
            picker.server._picking,
            timeout_s=1.0,
        )
        with pytest.raises(ConfigError, match="grpc_listen: expected a free address"):
            await second.start(Listen("127.0.0.1", picker.server.port))


@on_loop
async def test_picker_that_has_all_it_can_take_is_ready() -> None:
    """Gateways are refused what is too much; who asks for its health is not."""
    async with picker_of([MiniEngine()], connections_max=1) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(chat())
        with pytest.raises(grpc.aio.AioRpcError, match="at most 1 requests at once"):
            await asking.opened().read()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.port}") as channel:
            answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        exchange.abort()
        await until(lambda: picker.server.streams == 0)
        other = await asking.ask(chat())
        other.abort()


@on_loop
async def test_watches_leave_room_for_those_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches stays; more than so many are refused, and a place is free again when one has left."""
    monkeypatch.setattr(health, "WATCHES_MAX", 2)
    ready = health_pb2.HealthCheckRequest(service="readiness")
    async with AsyncExitStack() as stack:
        picker = await stack.enter_async_context(picker_of([MiniEngine()]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.port}"))
        stub = HealthStub(channel)
        watches = [stub.Watch(ready) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="at most 2 watches at once"):
            await stub.Watch(ready).read()
        assert (await stub.Check(ready)).status == health_pb2.HealthCheckResponse.SERVING
        watches[0].cancel()
        await until(lambda: picker.server._health._watches == 1)
        assert (await stub.Watch(ready).read()).status == health_pb2.HealthCheckResponse.SERVING


@on_loop
async def test_program_answers_gateways_and_ends_in_order(tmp_path: Path) -> None:
    """`ghostcacher epp`, as it is started; at SIGTERM a request under way may end."""
    log = tmp_path / "log"
    words = ["-m", "ghostcacher_cli.main", "epp", "--no-redis"]
    words += ["--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    async with MiniEngine() as engine:
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, *words, "--worker", engine.endpoint.url], stderr=output)
        try:
            await until(lambda: b"listens for gateways on" in log.read_bytes(), "the picker", 60.0)
            port = int(log.read_text().partition("for gateways on 127.0.0.1:")[2].split()[0])
            async with gateway(port) as asking:
                exchange = await asking.ask(chat())
                assert exchange.destination == [f"127.0.0.1:{engine.port}"]
                process.terminate()
                await until(lambda: b"stopping: 1 streams" in log.read_bytes(), "its end", 60.0)
                await exchange.respond()
                await exchange.ended()
            assert await asyncio.to_thread(process.wait, 60) == 0
        finally:
            process.kill()
            process.wait()


def test_program_without_the_extra_says_which_one_it_needs() -> None:
    """And nothing else: no stack, no half of a picker."""
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from ghostcacher_cli.main import main\n"
        "sys.exit(main(['epp', '--no-redis', '--worker', 'http://127.0.0.1:1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "ghostcacher[epp]" in done.stderr
    assert "Traceback" not in done.stderr
