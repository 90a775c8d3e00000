"""The program of one process of a router in several: ``python -m ghostcacher_router.child_main CONTROL``.

CONTROL: the number of the socket to its supervisor, which says the rest. `ghostcacher router --processes N` starts it.
"""

from __future__ import annotations

import socket
import sys

from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_connector.core.log_format import log_to_stderr
from ghostcacher_router.app import run
from ghostcacher_router.processes.membership import Membership, receive
from ghostcacher_router.processes.seat import Start, share_of

EXIT_FAILED = 1
EXIT_USAGE = 2


def main() -> int:
    """Run the router of this process until its supervisor, or a signal, ends it; return its exit status."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        start = receive(control, Start)
        log_to_stderr(start.settings.log_level, start.settings.log_format)
        settings = share_of(start.settings)
        return run(settings, lambda: settings, Membership(start.seat, control))
    except ConfigError as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except (GhostCacherError, OSError, EOFError) as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
