"""The processes of one run: mock engines, proxies, the load, each on its core, all gone when the run is over."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.harness import GuardedProcess, ServerError
from benchmarks.proxy.build import compiled

START_TIMEOUT_S = 60.0
POLL_S = 0.02
PATH = "/v1/chat/completions"
GRACE_S = 3.0
LOAD_MARGIN_S = 60.0


class Cores(NamedTuple):
    """proxy: the core that only the measured proxy computes on. others: the core of everything else. more: the rest."""

    proxy: int
    others: int
    more: tuple[int, ...] = ()

    def proxies(self, count: int) -> str:
        """Return the cores of a proxy of so many processes: as many, as far as there are any beside `others`."""
        return ",".join(map(str, (self.proxy, *self.more)[:count]))


def two_cores() -> Cores:
    """Return the first two cores that we may use. Raises OSError when there are not two."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise OSError(f"cores: expected at least 2, one for the proxy and one for the load, got {len(usable)}")
    return Cores(*usable[:2], tuple(usable[2:]))


def pinned(core: int | str, command: Sequence[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return status and body of one request. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as exc:
        raise OSError(f"{method} {path} on port {port}: {exc!r}") from exc
    finally:
        connection.close()


def wait_for(what: str, process: GuardedProcess, ready: Callable[[], bool]) -> None:
    """Return when `ready` says so. Raises ServerError when the process ends before, or after 60 s."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerError(f"{what} does not answer:\n{process.log_tail(15)}")
        time.sleep(POLL_S)


class Mocks:
    """Mock engines, all in one process, serving when constructed. report: a FIFO; see mock_engine.c."""

    def __init__(self, stack: ExitStack, folder: Path, core: int, count: int, report: Path | None = None) -> None:
        command = [str(compiled("mock_engine")), str(count), *([str(report)] if report else [])]
        self._process = GuardedProcess(pinned(core, command), log=folder / "mocks.log", grace_s=GRACE_S)
        stack.callback(self._process.stop)
        wait_for("mock_engine", self._process, lambda: bool(self._ports()))
        self.ports = self._ports()

    def _ports(self) -> list[int]:
        found = re.fullmatch(r"listening((?: \d+)+)", self._process.log_tail().strip())
        return [int(port) for port in found[1].split()] if found else []

    def set(self, *, chunks: int, gap_us: int) -> None:
        """Say how many events a stream has, besides the one that ends it, and how far apart they are."""
        status, _ = ask(self.ports[0], "POST", f"/mock/set?chunks={chunks}&gap_us={gap_us}", b"")
        if status != 200:
            raise ServerError(f"mock_engine: expected status 200, got {status}")

    def answer(self, *, stream: bool) -> bytes:
        """Return the body with which every request is answered."""
        return ask(self.ports[0], "POST", PATH, json.dumps({"stream": stream}).encode())[1]


class Server:
    """A proxy that answers when constructed, or the mocks without any proxy. process: None for these."""

    def __init__(self, name: str, port: int, process: GuardedProcess | None) -> None:
        self.name = name
        self.port = port
        self.process = process

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes, in seconds; steps of 10 ms."""
        return self.process.cpu_s() if self.process else 0.0

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes together; pages that they share count for each."""
        return sum(map(_rss_bytes, self.process.processes())) if self.process else 0


def start_server(
    stack: ExitStack, name: str, command: Sequence[str], port: int, core: int | str, folder: Path
) -> Server:
    """Return a proxy that has answered a whole request. Raises ServerError with the end of its output."""
    log = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.log"
    process = GuardedProcess(pinned(core, command), log=log, grace_s=GRACE_S)
    stack.callback(process.stop)
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "Hello"}], "stream": False}).encode()

    def ready() -> bool:
        try:
            return ask(port, "POST", PATH, body)[0] == 200
        except OSError:
            return False

    wait_for(name, process, ready)
    return Server(name, port, process)


class Load(NamedTuple):
    """What the load generator is to do. seconds, requests: it ends at whichever comes first; 0: no such limit.

    rate: requests a second; 0: as many as the connections can carry.
    """

    bodies: Path
    body_bytes: int
    expected: Path
    connections: int
    seconds: float
    requests: int
    rate: float


class Answered(msgspec.Struct, frozen=True):
    """What came of it; the fields of load.c's output. reads: how often bytes were read, to see what was merged."""

    answers: int
    seconds: float
    connect: int
    closed: int
    status: int
    different: int
    reconnects: int
    reads: int
    bytes: int
    cpu_s: float
    p50_us: float
    p90_us: float
    p99_us: float
    first_p50_us: float
    first_p99_us: float

    @property
    def errors(self) -> int:
        return self.connect + self.closed + self.status + self.different


def run_load(
    load: Load, port: int, core: int, folder: Path, while_it_runs: Callable[[float], Any] = lambda _: None
) -> Answered:
    """Return what the load generator found. while_it_runs: called about 50 times a second with the time gone by."""
    command = [
        *(str(compiled("load")), str(port), PATH, str(load.bodies), str(load.body_bytes), str(load.expected)),
        *(str(load.connections), str(load.seconds), str(load.requests), str(load.rate)),
    ]
    log = folder / "load.log"
    log.unlink(missing_ok=True)
    process = GuardedProcess(pinned(core, command), log=log, grace_s=GRACE_S)
    began = time.monotonic()
    bound_s = load.seconds + LOAD_MARGIN_S if load.seconds else float("inf")  # load.c itself ends when nothing moves
    try:
        while process.poll() is None and time.monotonic() - began < bound_s:
            while_it_runs(time.monotonic() - began)
            time.sleep(POLL_S)
        output = process.log_tail()
    finally:
        process.stop()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.poll() != 0 or not lines:
        raise ServerError(f"the load generator failed:\n{output}")
    answered = msgspec.json.decode(lines[-1], type=Answered)
    if answered.errors:
        first = next((line for line in output.splitlines() if line.startswith("first failure")), "")
        print(f"port {port}: {answered.errors} errors; {first}")
    return answered


def _rss_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0
