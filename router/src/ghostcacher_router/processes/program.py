"""What the programs of a router in several processes have in common: ``python -m PROGRAM CONTROL``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_router.processes.membership import Kind, receive

EXIT_FAILED = 1
EXIT_USAGE = 2


def run_program(kind: type[Kind], run: Callable[[Kind, socket.socket], int]) -> int:
    """Run a process until its supervisor, or a signal, ends it; return its exit status.

    kind: of what the supervisor tells it first. run: does it, and is given that and the socket to the supervisor.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        return run(receive(control, kind), control)
    except ConfigError as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except (GhostCacherError, OSError, EOFError) as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_FAILED
