"""A TCP proxy in front of a Redis server, and a cluster of one server, for tests."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from types import TracebackType

import redis

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.redis.client import script
from tests.support.index_parts import wait_until


class Proxy:
    """A TCP (or TLS) proxy that counts round trips and can swallow what it is sent.

    round_trips: how often a request followed something that was not a request.
    apply_lag_s: how long each change of the index is held back; other requests are not.
    """

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None = None, *, apply_lag_s: float = 0.0) -> None:
        self._upstream_port = upstream_port
        self._tls = tls
        self._apply_lag_s = apply_lag_s
        self._apply = script("ghostcacher_connector.core.index", "apply").sha.encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.round_trips = 0
        self.swallow = False
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for side in self._open:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def _accept(self) -> None:
        pairs = []
        while True:
            try:
                near, _ = self._listener.accept()
                if self._tls is not None:
                    near = self._tls.wrap_socket(near, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                break
            far = socket.create_connection(("127.0.0.1", self._upstream_port))
            self._open += [near, far]
            pairs.append(threading.Thread(target=self._forward, args=(near, far), daemon=True))
            pairs[-1].start()
        for pair in pairs:
            pair.join(5)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        asking = False
        with near, far, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            ready.register(near, selectors.EVENT_READ)
            ready.register(far, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is near and not asking:
                        self.round_trips += 1
                    asking = source is near
                    if asking and self._apply_lag_s and self._apply in data:
                        time.sleep(self._apply_lag_s)
                    if not self.swallow:
                        (far if asking else near).sendall(data)


def make_cluster(server: RedisServer) -> None:
    """Turn one server that was started with cluster support into a whole cluster."""
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        wait_until(lambda: b"cluster_state:ok" in _cluster_info(client), what="cluster is up")


def _cluster_info(client: redis.Redis) -> bytes:
    reply = client.execute_command("CLUSTER INFO")
    if isinstance(reply, dict):
        return b"cluster_state:" + str(reply["cluster_state"]).encode()
    return reply if isinstance(reply, bytes) else str(reply).encode()
