"""How many files and sockets this process may have open."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

RESERVED = 256
"""Descriptors for Redis, for connections that are kept, for probes and for the program itself."""
SPARE = 128
"""Descriptors that no client takes, half of which no connection to a worker takes: for what the program itself has
open, to refuse clients with an answer, to ask Redis and to probe workers. At most a quarter of all."""
PER_CLIENT = 2
"""A client's own connection, and one to the worker that answers it."""


def allow_clients(connections_max: int) -> None:
    """Raise the limit of open files as far as it goes; warn when `connections_max` clients do not fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as exc:  # A kernel may promise more than it gives.
            logger.warning("the limit of open files stays %d: %s", soft, exc)
    if soft == resource.RLIM_INFINITY:
        return
    fitting = (soft - RESERVED) // PER_CLIENT
    if connections_max > fitting:
        logger.warning(
            "connections_max is %d, but the limit of open files (%d) lets about %d clients in: raise it (ulimit -Hn)",
            connections_max,
            soft,
            max(fitting, 0),
        )


def short_of_files(sockets: int, *, of_worker: bool = False) -> bool:
    """Say whether so many sockets of clients and workers are too many for the files that may be open.

    of_worker: whether the last one is a worker's.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = min(SPARE, soft // 4) // (2 if of_worker else 1)
    return soft != resource.RLIM_INFINITY and sockets > soft - spare
