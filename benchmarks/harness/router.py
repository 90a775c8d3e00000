"""A real router as a context manager: the command that people run, on a free port."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.harness.client import Client
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.process.guarded import GuardedProcess

START_TIMEOUT_S = 60.0
REDIS_TIMEOUT_S = 5
"""A Redis that stands still for a moment, with all that runs beside it on one machine, is not one that is away."""
POLL_S = 0.05


class RouterProcess(AbstractContextManager["RouterProcess"]):
    """One ``ghostcacher router`` on loopback; it answers when constructed. See `wait_workers`."""

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        workers: Sequence[str] = (),
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
    ) -> None:
        """Start it.

        redis_url: of a Redis that may take `REDIS_TIMEOUT_S` for an answer.
        workers: base URLs of engines that have no lease in Redis. arguments: further ones of the command.
        env: variables beside ours.
        """
        self.port = free_port()
        folder = log_dir or Path(tempfile.mkdtemp(prefix="ghostcacher-logs-"))
        self._command = [
            sys.executable,
            "-m",
            "ghostcacher_cli.main",
            "router",
            "--listen",
            f"127.0.0.1:{self.port}",
        ]
        redis = ["--redis-url", redis_url or "", "--redis-timeout-s", str(REDIS_TIMEOUT_S)]
        self._command += redis if redis_url else ["--no-redis"]
        self._command += [text for url in workers for text in ("--worker", url)]
        self._command += arguments
        self._env = None if env is None else {**os.environ, **env}
        self._log = folder / f"router-{self.port}.log"
        self.start()

    def __repr__(self) -> str:
        return f"RouterProcess({self.url}, {self.process!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        return Client(self.url)

    def start(self) -> None:
        """Start it, at the address where it was before, and return when it answers."""
        self.process = GuardedProcess(self._command, log=self._log, env=self._env)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.get("/health", default=None) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.process.log_tail(20)
                self.stop()
                raise RuntimeError(f"the router does not answer at {self.url}:\n{tail}")
            time.sleep(POLL_S)

    def wait_workers(self, count: int, *, deadline_s: float = 60.0) -> Self:
        """Return when the router sends requests to `count` workers. Raises RuntimeError."""
        deadline = time.monotonic() + deadline_s
        while True:
            ready = sum(pod["state"] == "ready" for pod in self.get("/gc/pods")["pods"])
            if ready >= count:
                return self
            if time.monotonic() > deadline:
                raise RuntimeError(f"the router sees {ready} of {count} workers:\n{self.process.log_tail(20)}")
            time.sleep(POLL_S)

    def get(self, path: str, *, default: Any = ...) -> Any:
        """Return the JSON at a path of the router's own; `default`, when given, for one that does not answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as reply:  # noqa: S310
                return json.loads(reply.read() or b"null") or {}
        except (urllib.error.URLError, OSError):
            if default is ...:
                raise
            return default

    def stop(self) -> None:
        """End it. Idempotent."""
        self.process.stop()
