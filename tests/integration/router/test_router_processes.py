"""A router in several processes, as people start it: replaced under load, killed, and ended."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import RedisServer
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.core.process.guard import PR_SET_CHILD_SUBREAPER, descendants
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.processes.child import Child
from ghostcacher_router.processes.listeners import Listeners
from ghostcacher_router.processes.seat import FeedStart
from ghostcacher_router.processes.supervisor import Supervisor
from tests.support.mock_engine import until
from tests.support.proxy_rig import on_loop
from tests.support.restart_load import EchoEngine, RestartLoad

PATIENCE_S = 60.0
FEED = b"ghostcacher_router.feed_main"
WAITING = 16
"""Connections of which about half wait for a process that will never accept them."""


class Running:
    """A router of several processes that is up, and what its log says."""

    def __init__(self, router: RouterProcess) -> None:
        self.router = router

    @property
    def log(self) -> str:
        return self.router.process.log_tail(400)

    def count(self, text: str) -> int:
        return len(re.findall(text, self.log))

    async def said(self, text: str, times: int = 1) -> None:
        try:
            await until(lambda: self.count(text) >= times, text, PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"expected {text!r} {times} times in:\n{self.log}") from None

    def children(self, program: bytes = b"ghostcacher_router.child_main") -> list[int]:
        """The processes that serve, or those of another program."""
        found = []
        for pid in self.router.process.processes():
            with suppress(FileNotFoundError, ProcessLookupError):  # It may have ended since.
                if program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    async def ended(self) -> int | None:
        await until(lambda: self.router.process.poll() is not None, "the end", PATIENCE_S)
        return self.router.process.poll()


@asynccontextmanager
async def running(
    folder: Path, engine: EchoEngine, *words: str, redis_url: str | None = None
) -> AsyncIterator[Running]:
    arguments = ("--processes", "2", "--health-interval-s", "600", *words)
    router = await asyncio.to_thread(
        RouterProcess,
        redis_url=redis_url,
        workers=[f"http://127.0.0.1:{engine.port}"],
        arguments=arguments,
        log_dir=folder,
        env={"TMPDIR": str(folder)},
    )
    try:
        run = Running(router)
        await run.said("listens on", 2)
        await run.said("ready, was joining", 2)
        yield run
    finally:
        await asyncio.to_thread(router.process.kill)


@pytest.fixture
def redis_url() -> Iterator[str]:
    with RedisServer() as redis:
        yield redis.url


@on_loop
async def test_rolling_restart_under_load_loses_no_request(tmp_path: Path) -> None:
    """On kept connections, on new ones, and of streams that last longer than their process accepts clients."""
    async with EchoEngine() as engine, running(tmp_path, engine) as run:
        before = run.children()
        load = RestartLoad(run.router.port, clients=8, streams=8, fresh=8)
        await until(lambda: load.streamed > 0, "a stream", PATIENCE_S)
        os.kill(run.router.process.pid, signal.SIGHUP)
        await run.said("the rolling restart is done")
        answered, streamed = load.answered, load.streamed
        await until(lambda: load.answered > answered and load.streamed > streamed, "answers", PATIENCE_S)
        await load.stop()
        assert load.failures == []
        assert load.closed > 0
        stats = await ask_fresh(run.router.port, "GET", "/gc/stats")
        assert stats["requests"]["total"] == load.answered + load.streamed, "of those that have ended, too"
        after = run.children()
        assert len(after) == 2
        assert not set(before) & set(after)
        assert set(re.findall(r"INFO \[(\S+)\] ghostcacher_router\.app: router \S+ listens", run.log)) == {
            "0.1", "1.2", "0.3", "1.4",
        }  # fmt: skip
        os.kill(run.router.process.pid, signal.SIGTERM)
        assert await run.ended() == 0


async def ask_fresh(port: int, method: str, path: str, body: object = None) -> Any:
    """Ask the router on a connection of its own, which any of its processes may get."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}Connection: close\r\n\r\n".encode() + data)
    async with asyncio.timeout(PATIENCE_S):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200"), head
    return body if path in ("/metrics", "/v1/completions") else json.loads(body)


async def counted(port: int) -> dict[str, float]:
    """Return how many requests were answered with 200, by the number of the process, as /metrics says."""
    page = (await ask_fresh(port, "GET", "/metrics")).decode()
    found = re.findall(r'gc_router_requests_total{process="(.+)",path="/v1/completions",status="200"} (.+)', page)
    return {process.partition(".")[0]: float(value) for process, value in found}


@on_loop
async def test_any_process_answers_for_all_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    """Counters are sums, a drain holds in all. Who waits for a process that is killed is answered by another one."""
    async with EchoEngine() as engine, running(tmp_path, engine) as run:
        port = run.router.port
        load = RestartLoad(port, clients=8)
        await until(lambda: load.answered > 50, "answers", PATIENCE_S)
        await load.stop()
        assert load.failures == []
        answered, samples = load.answered, await counted(port)
        while len(samples) < 2:  # the kernel gives each connection to either process, and may have given all to one
            await ask_fresh(port, "POST", "/v1/completions", {"model": "m", "prompt": "one more"})
            answered, samples = answered + 1, await counted(port)
            assert answered < load.answered + 64, samples
        for _ in range(8):
            stats = await ask_fresh(port, "GET", "/gc/stats")
            assert stats["requests"] == {"total": answered, "by_status": {"200": answered}}
            assert (await ask_fresh(port, "GET", "/gc/status"))["processes"] == 2
            samples = await counted(port)
            assert sorted(samples) == ["0", "1"]
            assert sum(samples.values()) == answered
        prompt = {"model": "m", "prompt": "one process has sent this " * 400}
        await ask_fresh(port, "POST", "/v1/completions", prompt)
        for _ in range(8):
            (forecast,) = (await ask_fresh(port, "POST", "/gc/explain?path=/v1/completions", prompt))["workers"]
            assert forecast["local_tokens"] > 0
        (worker,) = (await ask_fresh(port, "GET", "/gc/workers"))["workers"]
        await ask_fresh(port, "POST", f"/gc/workers/{worker['id']}/drain")
        for _ in range(8):
            (worker,) = (await ask_fresh(port, "GET", "/gc/workers"))["workers"]
            assert worker["state"] == "draining"
        await ask_fresh(port, "DELETE", f"/gc/workers/{worker['id']}/drain")

        before = run.children()
        os.kill(before[0], signal.SIGSTOP)
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(WAITING)]
        for _, writer in waiting:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        os.kill(before[0], signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            answers = [await reader.read() for reader, _ in waiting]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), answers
        await run.said(r"has ended \(SIGKILL\), and is started again")
        load = RestartLoad(port, clients=8, fresh=8)
        await run.said("ready, was joining", 3)
        await load.stop()
        assert load.failures == []
        after = run.children()
        assert len(after) == 2
        assert before[0] not in after
        assert before[1] in after

        os.kill(run.router.process.pid, signal.SIGKILL)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in after), "the children's end", PATIENCE_S)
        assert "the supervisor is gone" in run.log
        assert not list(tmp_path.glob("gc-router-*"))


@on_loop
async def test_feed_that_dies_is_started_again_and_costs_no_request(tmp_path: Path, redis_url: str) -> None:
    """The processes read Redis themselves until then; at a rolling restart they have a feed of the new settings."""
    told = "tells what routers and workers publish"
    async with EchoEngine() as engine, running(tmp_path, engine, redis_url=redis_url) as run:
        await run.said(told, 2)
        load = RestartLoad(run.router.port, clients=8)
        (feed,) = run.children(FEED)
        os.kill(feed, signal.SIGKILL)
        await run.said("feed.1 tells no more", 2)
        await run.said("and is started again")
        await run.said(told, 4)
        os.kill(run.router.process.pid, signal.SIGHUP)
        await run.said(f"feed.2 {told}", 2)
        await run.said("the rolling restart is done")
        await until(lambda: len(run.children(FEED)) == 1, "one feed", PATIENCE_S)
        await load.stop()
        assert load.failures == []
        assert (await ask_fresh(run.router.port, "GET", "/gc/status"))["processes"] == 2
        os.kill(run.router.process.pid, signal.SIGTERM)
        assert await run.ended() == 0
        assert run.count("has ended") == 1


@on_loop
async def test_feed_whose_supervisor_is_gone_leaves_nothing_behind(tmp_path: Path, redis_url: str) -> None:
    """The folder of the sockets goes with whoever leaves last."""
    folder = tmp_path / "gc-router"
    folder.mkdir()
    feed = await Child.started(FeedStart(str(folder / "feed.1"), RouterSettings(redis_url=redis_url)))
    await until((folder / "feed.1").exists, "its socket", PATIENCE_S)
    feed._control.close()
    async with asyncio.timeout(PATIENCE_S):
        assert await feed.ended == 0
    assert not folder.exists()


@on_loop
async def test_settings_that_are_read_again_are_of_all_processes(tmp_path: Path) -> None:
    """A bad file changes nothing, and what belongs to the supervisor is named."""
    file = tmp_path / "router.toml"
    file.write_text("retries_max = 1")
    async with EchoEngine() as engine, running(tmp_path, engine, "--config", str(file)) as run:
        before = run.children()
        file.write_text("retries_max = 99")
        os.kill(run.router.process.pid, signal.SIGHUP)
        await run.said("the settings stay as they are")
        assert run.children() == before
        file.write_text(
            "access_log = true\nprovider_prices = '/no/such/file'\nupstreams = ['openai=http://127.0.0.1:9']"
        )
        os.kill(run.router.process.pid, signal.SIGHUP)
        await run.said("the rolling restart has stopped")
        assert run.children() == before
        file.write_text("access_log = true")
        os.kill(run.router.process.pid, signal.SIGHUP)
        await run.said("the rolling restart is done")
        assert not set(run.children()) & set(before)
        await ask_fresh(run.router.port, "GET", "/health")
        await run.said('"GET /health" 200')
        assert not run.count("is started again")
        os.kill(run.router.process.pid, signal.SIGINT)
        assert await run.ended() == 0


@on_loop
async def test_router_whose_processes_cannot_start_ends_with_their_error(tmp_path: Path) -> None:
    """It is said once."""
    words = ("--processes", "4", "--upstream", "openai=http://127.0.0.1:9", "--provider-prices", "/no/such/file")
    with pytest.raises(RuntimeError, match="the router does not answer") as caught:
        await asyncio.to_thread(RouterProcess, workers=["http://127.0.0.1:9"], arguments=words, log_dir=tmp_path)
    assert str(caught.value).count("/no/such/file") == 1
    assert "has ended (exit status 2) before it was ready" in str(caught.value)


def adopt_orphans(wanted: bool) -> None:
    """Have this process become the parent of those below it whose parents have died, or no longer."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0


def zombies() -> set[int]:
    """The processes below this one that have ended, and whose parents have not looked yet."""
    found = set()
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.add(pid)
    return found


def test_process_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing ends it but the supervisor: probes from outside seldom come to it. What it leaves behind is let go of."""
    monkeypatch.setattr("ghostcacher_router.processes.supervisor.SILENCE_S_MAX", 3.0)

    async def run() -> None:
        before = zombies()
        async with EchoEngine() as engine:
            settings = RouterSettings(redis=False, workers=(engine.endpoint.url,), listen="127.0.0.1:0")
            listeners = Listeners(Listen("127.0.0.1", 0), settings.processes)
            supervisor = Supervisor(settings, lambda: settings, listeners, tmp_path)
            running = asyncio.create_task(supervisor.run())
            await until(lambda: supervisor.pids != [], "the child", PATIENCE_S)
            (hung,) = supervisor.pids
            os.kill(hung, signal.SIGSTOP)
            await until(lambda: supervisor.pids not in ([hung], []), "its successor", PATIENCE_S)
            assert f"({hung}) hangs" in caplog.text
            assert supervisor._ended, "what it had counted is kept"
            await until(lambda: zombies() <= before, "the end of its parsing process", PATIENCE_S)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 0

    adopt_orphans(True)  # As process 1 of a container does.
    try:
        asyncio.run(run())
    finally:
        adopt_orphans(False)
