"""Three ways to use the clients, which behave alike: Python that waits, Python with asyncio, Node.

A driver carries out one `Ask` and says what came of it as plain JSON, in the words of Python's client.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ghostcacher.client import AnswerBroken, AsyncGhostCacherClient, GhostCacherClient
from ghostcacher.client.errors import GhostCacherError

NODE_PROGRAM = Path(__file__).with_name("driver.mjs")
NODE_TIMEOUT_S = 60.0
POSITIONAL = {
    "admin.explain": ["request"],
    "admin.prefetch": ["request"],
    "admin.drain": ["worker"],
    "admin.undrain": ["worker"],
    "admin.flush": ["scope"],
}
"""What methods take by place; all else is named. Node's take that as one object."""


class Ask(NamedTuple):
    """One use of a client."""

    client: dict[str, Any]
    """What the client is set up with, in Python's names."""
    call: str
    """Such as messages.create."""
    given: dict[str, Any]
    """The fields of the API."""
    options: dict[str, Any]
    """What calls take beside them, in Python's names."""
    stop_after: int | None
    """Leave a stream after so many events; None: read it to its end."""


Result = Any
"""JSON: the answer, or `error` and what it has."""
Driver = Callable[[Ask], Result]


class SyncPython:
    """Uses GhostCacherClient. Clients stay open, so that what ends a request is what the ask does."""

    def __init__(self) -> None:
        self._clients: dict[str, GhostCacherClient[Any]] = {}

    def __call__(self, ask: Ask) -> Result:
        texts: list[str] = []
        try:
            client = self._client(ask.client)
            places, names = _arguments(client, ask)
            answer = _method(client, ask.call)(*places, **names)
            if not ask.given.get("stream"):
                return shown(answer)
            with answer:
                for count, event in enumerate(answer, 1):
                    texts.append(event.text)
                    if count == ask.stop_after:
                        break
            return {"texts": texts, "cache": shown(answer.cache)}
        except GhostCacherError as exc:
            return failed(exc, texts)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _client(self, setup: dict[str, Any]) -> GhostCacherClient[Any]:
        key = json.dumps(setup)
        if key not in self._clients:
            self._clients[key] = GhostCacherClient(**setup)
        return self._clients[key]


class AsyncPython:
    """Uses AsyncGhostCacherClient; a stream that is left early is left by cancelling the task."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._clients: dict[str, AsyncGhostCacherClient[Any]] = {}

    def __call__(self, ask: Ask) -> Result:
        return self._runner.run(self._use(ask))

    def close(self) -> None:
        for client in self._clients.values():
            self._runner.run(client.close())
        self._runner.close()

    async def _use(self, ask: Ask) -> Result:
        texts: list[str] = []
        try:
            client = self._client(ask.client)
            places, names = _arguments(client, ask)
            answer = await _method(client, ask.call)(*places, **names)
            if not ask.given.get("stream"):
                return shown(answer)
            enough = asyncio.Event()
            reading = asyncio.create_task(_read(answer, texts, ask.stop_after, enough))
            if ask.stop_after is not None:
                await enough.wait()
                reading.cancel()
            await asyncio.gather(reading, return_exceptions=ask.stop_after is not None)
            return {"texts": texts, "cache": shown(answer.cache)}
        except GhostCacherError as exc:
            return failed(exc, texts)

    def _client(self, setup: dict[str, Any]) -> AsyncGhostCacherClient[Any]:
        key = json.dumps(setup)
        if key not in self._clients:
            self._clients[key] = AsyncGhostCacherClient(**setup)
        return self._clients[key]


async def _read(stream: Any, texts: list[str], stop_after: int | None, enough: asyncio.Event) -> None:
    async for event in stream:
        texts.append(event.text)
        if len(texts) == stop_after:
            enough.set()


class Node:
    """Uses @ghostcacher/client in one process of Node. package: the folder of the built package."""

    def __init__(self, package: Path) -> None:
        self._process = subprocess.Popen(
            ["node", NODE_PROGRAM, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, ask: Ask) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(ask._asdict()), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the program for Node has ended"
        result: Result = json.loads(line)
        return result

    def close(self) -> None:
        self._process.communicate(timeout=NODE_TIMEOUT_S)
        assert self._process.returncode == 0


def failed(exc: GhostCacherError, texts: list[str]) -> Result:
    fields = ("field", "status", "code", "param", "request_id", "retry_after_s")
    told = {name: getattr(exc, name) for name in fields if hasattr(exc, name)}
    texts_told = {"texts": texts} if isinstance(exc, AnswerBroken) or texts else {}
    return {"error": type(exc).__name__, "message": str(exc), **told, **texts_told}


def shown(answer: Any) -> Any:
    """Return an answer as JSON, its text and cache info beside its fields."""
    fields = dict(answer.raw) if hasattr(answer, "raw") else json.loads(msgspec.json.encode(answer))
    if hasattr(answer, "cache"):
        fields |= {"text": answer.text, "cache": msgspec.to_builtins(answer.cache)}
    return fields


def _method(client: Any, call: str) -> Any:
    for name in call.split("."):
        client = getattr(client, name)
    return client


def _arguments(client: Any, ask: Ask) -> tuple[list[Any], dict[str, Any]]:
    """Return what a method is called with, by place and by name. `request` stands for what prepare() makes of it."""
    given = dict(ask.given)
    if "request" in given and ask.call in POSITIONAL:
        given["request"] = client.messages.prepare(**given["request"])
    return [given.pop(name) for name in POSITIONAL.get(ask.call, ())], given | ask.options
