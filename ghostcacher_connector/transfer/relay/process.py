"""Starts the relay process beside an engine's rank, and starts it again, a bounded number of times, when it dies."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import subprocess
import sys
import threading
import time

import msgspec

from ghostcacher_connector.core.addresses import is_unspecified
from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import ConfigError, TransferError
from ghostcacher_connector.core.log_format import LogFormat
from ghostcacher_connector.core.settings import Listen
from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.nixl.agent import nixl_package
from ghostcacher_connector.transfer.relay.wire import is_loopback, parse_address

logger = logging.getLogger(__name__)

END_S = 1.0
START_S = 60.0
"""It starts while an engine loads its model with all cores."""

REFUSED = "refused "
"""Begins the line by which a relay says why it cannot listen."""

RESTARTS_MAX = 20
"""For one incarnation of the worker: a relay that keeps dying has a cause which another start does not remove."""


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay is told at its start, over a pipe: arguments and environment would show the token."""

    endpoint: RankEndpoint
    """The rank to serve."""
    listen: str
    """Where to listen, "host:port"; port 0 is any."""
    token: str
    """The secret that readers must know; it may be empty on loopback only."""
    ucx_tls: str | None
    """The setting of this name."""
    nixl_package: str
    """The package in which the parent found NIXL; looking for it would load torch."""
    log_format: LogFormat = "text"
    """The setting of this name."""

    def __repr__(self) -> str:
        return f"RelayConfig({self.endpoint.agent_name}, listen={self.listen}, token={'set' if self.token else 'none'})"


class RelayProcess:
    """One relay for one rank. The relay dies with this process; this process survives the relay's death."""

    def __init__(
        self,
        endpoint: RankEndpoint,
        *,
        listen: str,
        token: str | None = None,
        advertise_host: str | None = None,
        ucx_tls: str | None = None,
        log_format: LogFormat = "text",
    ) -> None:
        """listen: "host:port", port 0 for any. advertise_host: what readers connect to; found out when not given.

        Raises ConfigError for a listener beyond loopback without a token.
        """
        self._host, self._port = parse_address(listen)
        if not token and not is_loopback(self._host):
            raise ConfigError(f"relay_listen={listen!r} is open to the network: relay_token is required")
        self._advertise_host = advertise_host or _own_address(self._host)
        self._endpoint = endpoint
        self._log_format: LogFormat = log_format
        self._token = token or ""
        self._ucx_tls = ucx_tls
        self._restarts_left = RESTARTS_MAX
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"RelayProcess({self.address}, pid={self.pid}, restarts left={self._restarts_left})"

    @property
    def address(self) -> str:
        """What readers connect to, "host:port"; valid after `start`."""
        return str(Listen(self._advertise_host, self._port))

    @property
    def pid(self) -> int | None:
        with self._lock:
            return self._process.pid if self._process is not None else None

    def start(self) -> str:
        """Start the relay, wait until it listens, and return its address.

        Raises ConfigError, naming the setting, when it cannot listen there, TransferError when it does not start.
        """
        self._spawn()
        threading.Thread(target=self._supervise, name="gc-relay-supervisor", daemon=True).start()
        return self.address

    def close(self) -> None:
        """End the relay. Idempotent."""
        self._closed.set()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _spawn(self) -> None:
        config = RelayConfig(
            endpoint=self._endpoint,
            listen=self._listen(),
            token=self._token,
            ucx_tls=self._ucx_tls,
            nixl_package=nixl_package(),
            log_format=self._log_format,
        )
        body = msgspec.msgpack.encode(config)
        command = [sys.executable, "-m", "ghostcacher_connector.transfer.relay"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        try:
            assert process.stdin is not None
            process.stdin.write(len(body).to_bytes(4, "little") + body)
            process.stdin.flush()
            self._port = _read_port(process, self._listen())
        except ConfigError:
            _end(process)
            raise
        except (OSError, TransferError) as exc:
            _end(process)
            raise TransferError(f"the relay on {self._listen()} did not start: {exc}") from exc
        with self._lock:
            closed = self._closed.is_set()
            self._process = None if closed else process
        if closed:
            _end(process)

    def _listen(self) -> str:
        return str(Listen(self._host, self._port))

    def _supervise(self) -> None:
        backoff = Backoff()
        while not self._closed.is_set():
            with self._lock:
                process = self._process
            if process is not None:
                status = process.wait()
                if self._closed.is_set():
                    return
                logger.warning("the relay on %s ended with status %d", self._listen(), status)
                _end(process)
            if self._restarts_left <= 0:
                logger.error("the relay on %s died too often and stays down; other hosts recompute", self._listen())
                return
            self._restarts_left -= 1
            if self._closed.wait(backoff.failed(time.monotonic())):
                return
            try:
                self._spawn()
            except (ConfigError, TransferError) as exc:
                with self._lock:
                    self._process = None
                logger.warning("%s", exc)


def _read_port(process: subprocess.Popen[bytes], listen: str) -> int:
    """Wait for the line "port N" or "refused WHY"; libraries may print others before it.

    Raises ConfigError when the relay cannot listen, TransferError when it says nothing.
    """
    assert process.stdout is not None
    until = time.monotonic() + START_S
    text = b""
    said = select.poll()  # select() takes no descriptor beyond 1,023, and an engine with many peers has more
    said.register(process.stdout, select.POLLIN)
    while time.monotonic() < until:
        if said.poll(200):
            data = process.stdout.read1(4096)  # type: ignore[attr-defined]
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                raise TransferError(f"it ended with status {process.poll()}; it printed {text[-200:]!r}")
            text += data
            for line in text.decode(errors="replace").splitlines() if text.endswith(b"\n") else ():
                if line.startswith(REFUSED):
                    raise ConfigError(
                        f"relay_listen: expected a free port, cannot listen on {listen}: {line.removeprefix(REFUSED)}"
                    )
                if line.startswith("port "):
                    return int(line.removeprefix("port "))
    raise TransferError(f"no port within {START_S:.0f} s; it printed {text[-200:]!r}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError as exc:
                logger.debug("closing a pipe of the relay: %s", exc)


def _own_address(host: str) -> str:
    """Return the address under which others reach a listener on `host`."""
    if not is_unspecified(host):
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: the kernel only picks the address it would send from.
            probe.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
