"""The program of one process of a router in several: ``python -m ghostcacher_router.child_main CONTROL``.

CONTROL: the number of the socket to its supervisor, which says the rest. `ghostcacher router --processes N` starts it.
"""

from __future__ import annotations

import socket
import sys

from ghostcacher_connector.core.log_format import log_to_stderr
from ghostcacher_router.app import run
from ghostcacher_router.processes.membership import Membership
from ghostcacher_router.processes.program import run_program
from ghostcacher_router.processes.seat import Start, share_of


def main() -> int:
    """Run the router of this process; return its exit status."""
    return run_program(Start, _run)


def _run(start: Start, control: socket.socket) -> int:
    log_to_stderr(start.settings.log_level, start.settings.log_format, start.name)
    settings = share_of(start.settings)
    return run(settings, lambda: settings, Membership(start.seat, control))


if __name__ == "__main__":
    sys.exit(main())
