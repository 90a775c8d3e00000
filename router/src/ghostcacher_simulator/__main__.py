"""A simulated engine as a program that can be killed: an HTTP server on loopback, and its connector in a real Redis.

    python -m ghostcacher_simulator REDIS_URL NAME INCARNATION LEASE_S

Listens on a free port and enters itself in Redis, as a connector does. Each answer's header ``x-incarnation`` names its
incarnation. SIGTERM ends it at once, whatever it is doing: whoever restarts it has to have drained it before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.connector import Connector, ConnectorThread
from ghostcacher_simulator.engine import Engine, Profile
from ghostcacher_simulator.http_server import EngineServer
from ghostcacher_simulator.text import BLOCK_TOKENS

REDIS_TIMEOUT_S = 1.0
PROFILE = Profile(prefill_tokens_per_s=4_000.0, decode_s=0.006)
"""So slow that a cold prefix is worth a ghost lock, so fast that a test can make it compute hundreds."""


async def main(url: str, name: str, incarnation: str, lease_s: str) -> None:
    """Serve until SIGTERM."""
    api = EngineApi(headers=(f"x-incarnation: {incarnation}".encode(),))
    server = EngineServer(api)
    await server.start()
    record = WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=name,
        incarnation=bytes.fromhex(incarnation),
        namespace="simulated",
        fingerprint={"model": api.models[0]},
        role=Role.BOTH,
        http=f"http://127.0.0.1:{server.port}",
        block_tokens=BLOCK_TOKENS,
        started_at=time.time(),
        ranks=(),
        stamped=True,
    )
    key = os.environ.get("GC_INDEX_KEY", "").encode()
    index = RedisIndex(url, timeout_s=REDIS_TIMEOUT_S, key=key)
    store = RedisCoordinationStore(url, timeout_s=REDIS_TIMEOUT_S, key=key)
    # It pulls from nobody: a look at a Redis that is away would stop its loop.
    connector = Connector(index, store, record, lease_ttl_s=float(lease_s), peers=lambda: ())
    api.engine = Engine(PROFILE, connector)
    connector.load = api.engine.load
    thread = ConnectorThread(connector, float(lease_s))
    thread.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await asyncio.to_thread(thread.leave)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
