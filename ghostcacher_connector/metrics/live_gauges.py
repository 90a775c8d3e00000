"""Gauges that stay true while an engine is idle.

Where deltas travel with an engine's steps (vLLM), none arrives while it has nothing to do. So the process that knows
the present values answers whoever asks for them, and the process that serves the metrics page asks once a second:

    scheduler process: GaugeServer(engine id) <--connect-- page's process: read_gauges(engine id) -> Exporter
                                              --values-->

The address is an abstract Unix socket (Linux): it needs no file and ends with its process, however that ends. It
reaches processes of one machine and one network namespace; from beyond, `read_gauges` finds nobody, and the page shows
what came with the last step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.metrics.catalog import METRICS, Kind
from ghostcacher_connector.metrics.recorder import Delta

logger = logging.getLogger(__name__)

TIMEOUT_S = 0.2
ANSWER_BYTES_MAX = 64 << 10
ASK_INTERVAL_S = 1.0
"""How often a page's process asks, well under the interval of any scrape."""

_CREDENTIALS = struct.Struct("3i")


class GaugeServer:
    """Answers with the present values of gauges. Owner of one daemon thread."""

    def __init__(self, engine: str, read: Callable[[], Delta]) -> None:
        """Begin to answer. An address that is taken is a warning: no engine may fail for its metrics.

        engine: id of the engine, unique on this machine.
        read: returns the values; called on the thread.
        """
        self._read = read
        self._closed = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = daemon_thread("gc-gauges", self._serve)
        try:
            self._listener.bind(_address(engine))
            self._listener.listen()
        except OSError as exc:
            logger.warning("gauges are shown as of the last step: the socket of engine %s: %s", engine, exc)
            self._listener.close()
            return
        self._thread.start()

    def close(self) -> None:
        """Free the address and end the thread. Idempotent."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which `close` alone would not
        self._listener.close()
        if self._thread.is_alive():
            self._thread.join(2 * TIMEOUT_S)

    def _serve(self) -> None:
        while True:
            try:
                asker, _ = self._listener.accept()
            except OSError as exc:
                if self._closed.is_set():
                    return
                logger.warning("gauges are not shown for %g s: %s", TIMEOUT_S, exc)
                self._closed.wait(TIMEOUT_S)
                continue
            try:
                with asker:
                    asker.settimeout(TIMEOUT_S)
                    asker.sendall(msgspec.json.encode(self._read()))
            except OSError as exc:
                logger.debug("nobody took the gauges: %s", exc)
            except Exception:
                logger.exception("unexpected error while reading gauges")


def read_gauges(engine: str) -> Delta:
    """Return the present gauges of an engine on this machine; empty when it does not answer in time."""
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(TIMEOUT_S)
            asked.connect(_address(engine))
            # Anybody on this machine can take a free address: only a process of this user is believed.
            peer = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(peer)[1] != os.geteuid():
                return {}
            answer = b""
            while (part := asked.recv(ANSWER_BYTES_MAX)) and len(answer) < ANSWER_BYTES_MAX:
                answer += part
        found = msgspec.json.decode(answer, type=dict[str, dict[str, float]])
    except (OSError, msgspec.MsgspecError) as exc:
        logger.debug("gauges of engine %s: %s", engine, exc)
        return {}
    return {name: {**series} for name, series in found.items() if name in METRICS and METRICS[name].kind is Kind.GAUGE}


def _address(engine: str) -> str:
    return f"\0ghostcacher-gauges-{engine}"
