"""The relay process: ``python -m ghostcacher_connector.transfer.relay``, started by `RelayProcess`, never by hand.

It reads one `RelayConfig` from standard input and prints "port N", or "refused WHY" where it cannot listen. Then it
serves until standard input ends, which the kernel brings about when the parent dies, however it dies. It loads neither
torch nor an engine.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

import msgspec

from ghostcacher_connector.core.log_format import formatter
from ghostcacher_connector.transfer.nixl.agent import NixlAgent
from ghostcacher_connector.transfer.nixl.bounce_buffers import BounceBuffers
from ghostcacher_connector.transfer.nixl.reader import NixlReader
from ghostcacher_connector.transfer.relay.process import REFUSED, RelayConfig
from ghostcacher_connector.transfer.relay.server import RelayServer
from ghostcacher_connector.transfer.relay.wire import parse_address

BUFFERS = 8
BUFFER_BYTES_MIN = 4 << 20
PARENT_POLL_S = 1.0
EXIT_REFUSED = 1


def main() -> None:
    """Serve until the parent is gone."""
    size = int.from_bytes(sys.stdin.buffer.read(4), "little")
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(size), type=RelayConfig)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(config.log_format, "relay %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    threading.Thread(target=_die_at_end_of_input, daemon=True).start()
    endpoint = config.endpoint
    size = max(BUFFER_BYTES_MIN, endpoint.bytes_per_slot)
    engine = endpoint.memories[0]
    # Before the agent: UCX opens a peer's device memory only in a process that has a context on the device.
    buffers = BounceBuffers(BUFFERS, size, memory=engine.memory, device=engine.device)
    agent = NixlAgent(
        f"relay-of-{endpoint.agent_name}-{os.getpid()}", ucx_tls=config.ucx_tls, threads=2, package=config.nixl_package
    )
    reader = NixlReader(agent, buffers)
    try:
        server = RelayServer(reader, endpoint, parse_address(config.listen), token=config.token)
    except OSError as exc:
        print(f"{REFUSED}{exc.strerror or exc}", flush=True)
        sys.exit(EXIT_REFUSED)
    reader.reaches(endpoint)  # connect now, so that the first reader does not pay for it
    print(f"port {server.port}", flush=True)
    server.serve_forever()


def _die_at_end_of_input() -> None:
    # Not by way of `sys.stdin`: an interpreter that ends needs the lock that such a read holds, and aborts without it.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    """End when the parent is gone although a process that it forked keeps our input open.

    The kernel's parent-death signal is of no use: it fires when the *thread* ends that started us.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(0)


if __name__ == "__main__":
    main()
