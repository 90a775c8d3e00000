"""A real Redis of one's own, on a private Unix socket: start, kill, restart, flush. It dies with us."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from ghostcacher_cli.up.machine import free_port, is_port_free
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_connector.core.redis.embedded import find_server

START_TIMEOUT_S = 60.0
POLL_S = 0.02
PORT_MIN = 1024
BUS_OFFSET = 10_000
"""A server in cluster mode also listens on its port and this much more."""
ANSWERS = (b"+PONG", b"-NOAUTH")


class RedisServer(AbstractContextManager["RedisServer"]):
    """One redis-server without persistence, answering when constructed.

    Unlike the connector's embedded one (core/redis/embedded.py), it is not shared with other processes of the user, can
    be killed and restarted at will, and listens on TCP when `tcp` is set. The address stays the same over a restart.

    port: on loopback; 0 without TCP.
    """

    def __init__(self, *arguments: str, tcp: bool = False, sentinel_config: str | None = None) -> None:
        """arguments: more options of redis-server. sentinel_config: be a Sentinel with these lines of configuration."""
        # Short on purpose: a Unix socket's path has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="gc-redis-"))
        self.port = _free_port() if tcp else 0
        self._arguments = arguments
        self._sentinel_config = sentinel_config
        self._process: GuardedProcess | None = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"RedisServer({self.url}, {self._process!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self._folder}/redis.sock"

    @property
    def process(self) -> GuardedProcess:
        assert self._process is not None, "stopped"
        return self._process

    def start(self) -> None:
        """Start it, empty, where it was before, and return when it answers."""
        self._process = GuardedProcess(self._command(), log=self._folder / "redis.log", grace_s=3.0)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._call(b"PING").startswith(ANSWERS):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server does not answer at {self.url}:\n{self._process.log_tail(10)}")
            time.sleep(POLL_S)

    def client(self) -> redis.Redis:
        """Return a client of it."""
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def kill(self) -> None:
        """Kill it at once (SIGKILL); `start` brings back an empty one at the same address."""
        self.process.kill()

    def restart(self) -> None:
        """Kill it and start an empty one."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Make it silent without closing its connections (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        """Let go on what `pause` stopped."""
        self.process.resume()

    def flush(self) -> None:
        """Forget everything (FLUSHALL)."""
        answer = self._call(b"FLUSHALL")
        if answer != b"+OK":
            raise RuntimeError(f"FLUSHALL: expected +OK, got {answer!r}")

    def stop(self) -> None:
        """End it and remove its folder. Idempotent."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self) -> list[str]:
        listen = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self._folder / "redis.sock")]
        listen += ["--dir", str(self._folder), *self._arguments]
        if self._sentinel_config is None:
            return [str(find_server()), *listen, "--save", "", "--appendonly", "no"]
        config = self._folder / "sentinel.conf"  # a Sentinel rewrites it
        config.write_text(self._sentinel_config)
        return [str(find_server()), str(config), "--sentinel", *listen]

    def _call(self, command: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2.0)
                connection.connect(str(self._folder / "redis.sock"))
                connection.sendall(command + b"\r\n")
                return connection.recv(256).strip()
        except OSError:
            return b""


def _free_port() -> int:
    """Return a free port whose port for a cluster's bus is free, too. Raises OSError.

    Both stay free while the server is restarted: outgoing connections get neither.
    """
    for _ in range(100):
        port = free_port() - BUS_OFFSET
        if port >= PORT_MIN and is_port_free("127.0.0.1", port):
            return port
    raise OSError("no port was found that is free together with the one for a cluster's bus")
