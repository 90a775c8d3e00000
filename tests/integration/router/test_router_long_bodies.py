"""The whole router and a hostile body: its memory, what others get meanwhile, and what is left at its end."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.router import RouterProcess
from benchmarks.proxy.long_bodies import hostile_bodies
from tests.support.engine_process import EngineProcess
from tests.support.index_parts import wait_until

SIZE = 6 << 20
COPIES_MAX = 3
"""How often the router may hold a body: as it came, and what its connections have in hand."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    folder = tmp_path_factory.mktemp("long-bodies")
    with ExitStack() as stack:
        engine = EngineProcess(stack, folder, "a")
        yield stack.enter_context(RouterProcess(workers=[engine.url], log_dir=folder)).wait_workers(1)


def post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def pids(router: RouterProcess) -> list[int]:
    """Return the process of the router and those below it."""
    return router.process.processes()


def memory(pid: int, field: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0]) << 10


def test_hostile_bodies_take_no_memory_but_their_own(router: RouterProcess) -> None:
    """Each is answered, by the engine or with a 400, and nothing of it stays."""
    pid = router.process.pid
    post(router.port, "/v1/completions", b'{"model":"m","prompt":"%b"}' % (b"x" * SIZE))
    before = memory(pid, "VmRSS")
    for body in hostile_bodies(SIZE):
        status = post(router.port, body.path, body.body.replace(b'"model":"mock"', b'"model":"m"', 1))
        assert status in (200, 400), body.name
        assert memory(pid, "VmHWM") - before < COPIES_MAX * SIZE, body.name


def test_unfinished_long_body_holds_up_nobody(router: RouterProcess) -> None:
    """A client that has sent all of its body but the last byte, and then sends it."""
    body = next(hostile_bodies(SIZE)).body
    with socket.create_connection(("127.0.0.1", router.port), timeout=60) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        client.sendall(body[:-1])
        assert post(router.port, "/v1/completions", b'{"model":"m","prompt":"x"}') == 200
        client.sendall(body[-1:])
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_parsing_process_ends_with_the_router(router: RouterProcess) -> None:
    """Also when the router is told to end."""
    post(router.port, "/v1/completions", b'{"model":"m","prompt":"%b"}' % (b"x" * SIZE))
    _, child = pids(router)
    router.process.stop()
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 30.0, "the parsing process to end")
