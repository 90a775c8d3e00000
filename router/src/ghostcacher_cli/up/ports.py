"""Fixed ports of the connector, which all engines that are started here are given, and each needs for itself."""

from __future__ import annotations

from collections.abc import Mapping

from ghostcacher_connector.config import load_settings, variable_of
from ghostcacher_connector.core.addresses import port_of_rank
from ghostcacher_connector.core.settings import Listen, parse_listen


def ports_of_engine(environ: Mapping[str, str], number: int, *, ranks: int, data_parallel: int) -> dict[str, str]:
    """Return the variables by which the ports of one engine follow those of the engines before it.

    number: of the engine, from 0. ranks: of each engine, data-parallel ones counted in. data_parallel: their count.
    Raises ConfigError when a port would be too high.
    """
    settings, own = load_settings({}, environ), {}
    if settings.metrics_port is not None:
        port = port_of_rank(settings.metrics_port, number * data_parallel, "metrics_port")
        own[variable_of("metrics_port")] = str(port)
    if settings.relay_listen is not None:
        host, first = parse_listen(settings.relay_listen, "relay_listen")
        own[variable_of("relay_listen")] = str(Listen(host, port_of_rank(first, number * ranks, "relay_listen")))
    return own
