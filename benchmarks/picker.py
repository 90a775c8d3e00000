"""What a pick costs in the endpoint picker, beside a request in the router, in the same process and the same run.

    python -m benchmarks.picker [--short] [--json FILE]

`ghostcacher epp` has one core to itself; gateways, clients and workers have another. Its HTTP port is a router's, so
the same bodies are sent there, and answered by the same mock engines.
- CPU us: user and system time of that process for one request, at full load: for a gateway, from the request's headers
  to the end of its answer, the body in pieces of 16 KiB both ways (FULL_DUPLEX_STREAMED).
- "heads": the same without the bodies of answers (response_body_mode: NONE).
- "gRPC alone": a server of the same library that answers the same messages without reading them: what is left for
  gRPC when a picker does nothing.
Answers of workers come in one piece, and in 16. Every destination is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import uvloop

from benchmarks.harness import GuardedProcess, free_port
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, table
from benchmarks.proxy.bodies import MARK, PROJECTS, chat_body, corpus
from benchmarks.proxy.proxies import urls
from benchmarks.proxy.running import GRACE_S, PATH, Cores, Load, Mocks, pinned, run_load, two_cores, wait_for
from ghostcacher_router.epp import messages
from ghostcacher_router.epp import protocol as pb

KIB = 1 << 10
SIZES = (2 * KIB, 32 * KIB, 256 * KIB)
PIECE = 16 * KIB
WORKERS = 8
CONCURRENT = 16
EVENTS = (1, 16)
WARM_S = 1.0
END_OF_STREAM = b"\x10\x01"
"""The last field of the last piece of a body, as it is sent: the gateway must not be what takes the time."""
NAMED = rb"x-gateway-destination-endpoint.{2,4}?"
EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"delta":{"content":"token"}}]}\n\n'
ALONE = "gRPC alone"
"""What stands for a picker that does nothing: this module, as a program of its own."""


class Case(NamedTuple):
    """What is sent. events: pieces of the answer."""

    size: int
    events: int
    bodies: Sequence[bytes]

    @property
    def name(self) -> str:
        return f"{self.size // KIB} KiB, {self.events} piece{'s' if self.events > 1 else ''} of answer"


class Gateway:
    """Asks a picker as Envoy does."""

    def __init__(self, port: int, workers: Sequence[int], *, answers: bool = True) -> None:
        """answers: whether the picker is sent what workers answer, and not only the head of that."""
        self._answers = answers
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._process = self._channel.stream_stream(f"/{messages.SERVICE}/Process", _serialized)
        self._destination = re.compile(
            NAMED + b"(" + b"|".join(b"127.0.0.1:%d," % port for port in workers) + b")", re.DOTALL
        )
        modes = {
            "request_body_mode": messages.FULL_DUPLEX,
            "response_body_mode": messages.FULL_DUPLEX if answers else 0,
        }
        self._config = pb.classes["ProtocolConfiguration"](**modes)

    async def ask(self, case: Case, number: int) -> None:
        """Have a request picked for, and tell of its answer."""
        body = case.bodies[number % len(case.bodies)].replace(MARK.encode(), b"%016d" % number)
        call = self._process()
        await call.write(self._headers("request_headers", REQUEST, protocol_config=self._config))
        for begin in range(0, len(body), PIECE):
            await call.write(_body("request_body", body[begin : begin + PIECE], end=begin + PIECE >= len(body)))
        answer = await call.read()
        assert self._destination.search(answer), answer
        size = 0
        while not (piece := await call.read()).endswith(END_OF_STREAM):
            size += len(piece)
        assert len(body) < size + len(piece) < 1.1 * len(body) + 100, (size, len(body))
        await call.write(self._headers("response_headers", RESPONSE))
        await call.read()
        for place in range(case.events if self._answers else 0):
            await call.write(_body("response_body", EVENT, end=place == case.events - 1))
            await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    async def close(self) -> None:
        await self._channel.close()

    @staticmethod
    def _headers(kind: str, headers: Sequence[tuple[str, bytes]], **more: Any) -> Any:
        listed = [pb.classes["HeaderValue"](key=key, raw_value=value) for key, value in headers]
        message = pb.classes["HttpHeaders"](headers=pb.classes["HeaderMap"](headers=listed))
        return pb.ProcessingRequest(**{kind: message}, **more)


REQUEST = [
    (":method", b"POST"),
    (":path", PATH.encode()),
    (":authority", b"models.example"),
    (":scheme", b"http"),
    ("content-type", b"application/json"),
    ("user-agent", b"OpenAI/Python 2.0"),
    ("authorization", b"Bearer sk-0123456789abcdef"),
    ("x-request-id", b"5b1b1c6a-3b4f-4c8f-9d53-0f5f3e0a1b2c"),
    ("x-forwarded-for", b"10.0.0.1"),
    ("x-forwarded-proto", b"https"),
]
RESPONSE = [(":status", b"200"), ("content-type", b"text/event-stream"), ("server", b"uvicorn")]


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _body(kind: str, body: bytes, *, end: bool) -> Any:
    return pb.ProcessingRequest(**{kind: pb.classes["HttpBody"](body=body, end_of_stream=end)})


async def answer_alone(port: int) -> None:
    """Answer gateways for ever, with messages that say nothing of what was asked."""
    headers = messages.request_headers([("x-request-id", b"-" * 36)], destination="127.0.0.1:1,127.0.0.1:2,127.0.0.1:3")
    told = messages.response_headers([("x-gc-worker", b"127.0.0.1:1")])

    async def process(_: Any, context: Any) -> None:
        held: list[bytes] = []
        while (request := await context.read()) is not grpc.aio.EOF:
            kind = request.WhichOneof("request")
            if kind == "request_body":
                held.append(request.request_body.body)
                if request.request_body.end_of_stream:
                    await context.write(headers)
                    body = b"".join(held)
                    for begin in range(0, len(body), 62_000):
                        end = begin + 62_000 >= len(body)
                        await context.write(messages.streamed_request(body[begin : begin + 62_000], end=end))
            elif kind == "response_headers":
                await context.write(told)
            elif kind == "response_body":
                piece = request.response_body
                await context.write(messages.streamed_response(piece.body, end=piece.end_of_stream))

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(process, pb.ProcessingRequest.FromString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(messages.SERVICE, {"Process": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


def cases() -> list[Case]:
    source = corpus()
    return [
        Case(size, events, [chat_body(source, project, size, stream=True) for project in range(PROJECTS)])
        for size in SIZES
        for events in EVENTS
    ]


async def cpu_of_picks(process: GuardedProcess, gateway: Gateway, case: Case, seconds: float) -> tuple[float, float]:
    """Return CPU time of the process for one request, and requests a second. Both in seconds."""
    numbers = itertools.count(int(time.time() * 1e3))
    done = 0
    ends_at = time.monotonic() + WARM_S

    async def one_after_the_other() -> None:
        nonlocal done
        while time.monotonic() < ends_at:
            await gateway.ask(case, next(numbers))
            done += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENT)))

    await all_of_them()
    done, began, before = 0, time.monotonic(), process.cpu_s()
    ends_at = began + seconds
    await all_of_them()
    return (process.cpu_s() - before) / done, done / (time.monotonic() - began)


def start(
    stack: ExitStack, name: str, command: Sequence[str], ready: str, cores: Cores, folder: Path
) -> GuardedProcess:
    """Start a program on its core; return it when its log says that it is ready."""
    process = GuardedProcess(pinned(cores.proxy, command), log=folder / f"{name}.log", grace_s=GRACE_S)
    stack.callback(process.stop)
    wait_for(name, process, lambda: ready in process.log_tail(200))
    return process


class Plan(NamedTuple):
    """seconds: of each measurement. core: of everything but what is measured."""

    seconds: float
    core: int
    folder: Path
    mocks: Mocks


def router_cpu(picker: GuardedProcess, port: int, case: Case, plan: Plan) -> float:
    """Return the CPU time of the same process for a request that it routes, in seconds."""
    folder, mocks = plan.folder, plan.mocks
    bodies, expected = folder / "bodies", folder / "expected"
    bodies.write_bytes(b"".join(case.bodies))
    mocks.set(chunks=case.events, gap_us=0)
    expected.write_bytes(mocks.answer(stream=True))
    load = Load(bodies, case.size, expected, CONCURRENT, WARM_S, 0, 0.0)
    run_load(load, port, plan.core, folder)
    before = picker.cpu_s()
    answered = run_load(load._replace(seconds=plan.seconds), port, plan.core, folder)
    return (picker.cpu_s() - before) / answered.answers


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0."""
    cores = two_cores()
    os.sched_setaffinity(0, {cores.others})  # what measures must not disturb what is measured
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-picker-")))
        mocks = Mocks(stack, folder, cores.others, WORKERS)
        listen, grpc_port, alone_port = free_port(), free_port(), free_port()
        words = [sys.executable, "-m", "ghostcacher_cli.main", "epp", "--no-redis", "--listen", f"127.0.0.1:{listen}"]
        words += ["--grpc-listen", f"127.0.0.1:{grpc_port}", *(f"--worker={url}" for url in urls(mocks.ports))]
        picker = start(stack, "picker", words, "listens for gateways on", cores, folder)
        module = [sys.executable, "-m", "benchmarks.picker", "--alone", str(alone_port)]
        alone = start(stack, "alone", module, "ready", cores, folder)
        plan = Plan(1.0 if chosen.short else 4.0, cores.others, folder, mocks)
        rows = uvloop.run(measure(picker, alone, (listen, grpc_port, alone_port), plan, progress))
    progress.done(f"CPU us of a request, {CONCURRENT} at a time")
    head = ["body, answer", "picker", "heads", ALONE, "picker's own", "router", "picks/s"]
    shown = [
        [
            row["case"],
            *(
                f"{row[name]:.0f}"
                for name in ("picker_us", "heads_us", "alone_us", "own_us", "router_us", "picks_per_s")
            ),
        ]
        for row in rows
    ]
    print(table(head, shown), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


async def measure(
    picker: GuardedProcess,
    alone: GuardedProcess,
    ports: tuple[int, int, int],
    plan: Plan,
    progress: ProgressLine,
) -> list[dict[str, Any]]:
    """Return the numbers of each case, by name."""
    listen, grpc_port, alone_port = ports
    rows = []
    for case in cases():
        found = []
        for name, process, port, known, answers in (
            ("picker", picker, grpc_port, plan.mocks.ports, True),
            ("heads", picker, grpc_port, plan.mocks.ports, False),
            (ALONE, alone, alone_port, [1], True),
        ):
            progress(f"{case.name}: {name}")
            gateway = Gateway(port, known, answers=answers)
            found.append(await cpu_of_picks(process, gateway, case, plan.seconds))
            await gateway.close()
        progress(f"{case.name}: router")
        router_s = await asyncio.to_thread(router_cpu, picker, listen, case, plan)
        (picker_s, rate), (heads_s, _), (alone_s, _) = found
        rows.append(
            {
                "case": case.name,
                "picker_us": picker_s * 1e6,
                "heads_us": heads_s * 1e6,
                "alone_us": alone_s * 1e6,
                "own_us": (picker_s - alone_s) * 1e6,
                "router_us": router_s * 1e6,
                "picks_per_s": rate,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.picker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a minute, less exact")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.alone:
        uvloop.run(answer_alone(chosen.alone))
        return 0
    progress = ProgressLine()
    return run_program(lambda: run(chosen, progress))


if __name__ == "__main__":
    sys.exit(main())
