"""The command line of `ghostcacher simulate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ghostcacher_cli.simulate.fleets import FleetOptions, add_fleet, fleet_options
from ghostcacher_cli.simulate.slo import EXPECTED, Goal, parse_goals
from ghostcacher_cli.terminal.numbers import Number, Whole
from ghostcacher_cli.terminal.options import OptionParser
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.generated import KINDS, Made, parse_made
from ghostcacher_simulator.load.tenants import EXPECTED as WHO
from ghostcacher_simulator.load.tenants import Tenant, parse_tenant
from ghostcacher_simulator.load.trace_files import ANSWER_TOKENS
from ghostcacher_simulator.replay.failures import EXPECTED as FAILS
from ghostcacher_simulator.replay.failures import Failure, parse_failure
from ghostcacher_simulator.replay.flow_options import EXPECTED as FLOW
from ghostcacher_simulator.replay.flow_options import flow_of
from ghostcacher_simulator.replay.policies import Entrant, entrants

PLOT_KINDS = (".png", ".svg")
WORKERS, WORKERS_MAX = 4, 4_096
ROUTERS_MAX = 64
REQUESTS_MAX = 10_000_000
DEFAULT_POLICY = "ghostcacher"
COMPARED = ("round-robin", "hashing", "sent-prefix", "prefix", DEFAULT_POLICY)
"""What `--compare` runs: what balancers do, and what routers with prefix caches in mind do."""
BLOCK_TOKENS_MADE, BLOCK_TOKENS_OF_TRACES = 128, 512


class LoadOptions(NamedTuple):
    """Which load."""

    trace: Path | None
    """The file; None where the load is made."""
    made: Made | None
    """What is made; None where it is read."""
    first: int
    """The first request of a trace that is taken, from 0."""
    requests: int | None
    """How many are taken of a trace; None: all."""
    speed: float
    """How many times faster they come."""
    seed: int
    """Of what is random in a load that is made."""
    block_tokens: int
    """Tokens of a KV block, and of what a trace's hash stands for."""
    answer_tokens: int
    """Of answers of which a trace does not say how long they are."""
    clients: int | None
    """That send one request after the other, whatever the load says of times; None: at their times."""


class SimulateOptions(NamedTuple):
    """What to run, and how to show it."""

    load: LoadOptions
    fleet: FleetOptions
    workers: Sequence[int]
    """Sizes of fleets, each run by itself; none where the least one is looked for."""
    goals: Sequence[Goal]
    """What the least fleet has to keep; none where sizes are given."""
    workers_max: int
    """The largest fleet to try."""
    policies: Sequence[Entrant]
    """Each run by itself; at least one."""
    tenants: Sequence[Tenant]
    """Those who ask; none: nobody is told apart."""
    failures: Sequence[Failure]
    """What fails in each run; where anything does, all that must hold is checked at each step."""
    as_json: bool
    """Whether to print JSON."""
    plot: Path | None
    """The picture to write."""


def parse(words: Sequence[str]) -> SimulateOptions:
    """Return what the command line says. Raises ConfigError; SystemExit as argparse does, for help and wrong usage."""
    given = _parser().parse_args(words)
    if given.plot is not None and given.plot.suffix.lower() not in PLOT_KINDS:
        raise ConfigError(f"--plot: expected a name that ends in .png or .svg, got {str(given.plot)!r}")
    if given.slo and given.workers:
        raise ConfigError("--slo: expected no --workers, since the least fleet is looked for, got both")
    load, tenants = _load(given), [parse_tenant(text) for text in given.tenant]
    if len({tenant.name for tenant in tenants}) < len(tenants):
        raise ConfigError(f"--tenant: expected each name once, got {', '.join(given.tenant)}")
    return SimulateOptions(
        load,
        fleet_options(given, load.block_tokens),
        given.workers or ([] if given.slo else [WORKERS]),
        parse_goals(given.slo) if given.slo else (),
        given.workers_max,
        _policies(given.policies, entrants(given.routers, flow_of(given.flow, tenants)), compare=given.compare),
        tenants,
        [parse_failure(text) for text in given.fail],
        given.as_json,
        given.plot,
    )


def _load(given: argparse.Namespace) -> LoadOptions:
    made = given.load.partition(":")[0] in KINDS
    if made and given.first:
        raise ConfigError(f"--first: expected a trace, got the load {given.load!r}, which is made")
    if made and given.requests is not None:
        raise ConfigError(
            f"--requests: expected a trace; of a load that is made: {given.load}:requests={given.requests}"
        )
    usual = BLOCK_TOKENS_MADE if made else BLOCK_TOKENS_OF_TRACES
    return LoadOptions(
        None if made else Path(given.load),
        parse_made(given.load) if made else None,
        given.first,
        given.requests,
        given.speed,
        given.seed,
        given.block_tokens or usual,
        given.answer_tokens,
        given.clients,
    )


def _policies(text: str | None, known: Sequence[Entrant], *, compare: bool) -> Sequence[Entrant]:
    by_key = {each.key: each for each in known}
    if text == "all":
        return list(by_key.values())
    names = text.split(",") if text is not None else COMPARED if compare else (DEFAULT_POLICY,)
    for name in names:
        if name not in by_key:
            raise ConfigError(f"--policies: expected some of {', '.join(by_key)}, or all, got {name!r}")
    return [by_key[name] for name in dict.fromkeys(names)]


def _parser() -> argparse.ArgumentParser:
    made = "; ".join(f"{name} ({', '.join(kind.__struct_fields__)})" for name, kind in KINDS.items())
    policies = "; ".join(f"{each.key}: {each.name}" for each in entrants(4))
    parser = OptionParser(
        "simulate",
        "LOAD",
        description="Say how a fleet would serve a load: simulated engines in virtual time, with the router's own "
        "routing and the connectors' own index and eviction code. Touches no engine, no Redis and no network.",
        epilog=f"LOAD is a trace (JSON lines as Mooncake's and aiperf's, CSV as Azure's and BurstGPT's), or made: "
        f"KIND or KIND:name=value,name=value, where KIND is one of {made}. Policies are {policies}.",
    )
    add = parser.add_argument
    add("load", metavar="LOAD", help="a file, or the kind of a load that is made (see below)")
    add("--first", type=Whole(0, REQUESTS_MAX), default=0, metavar="N", help="first request of a trace to take (0)")
    add("--requests", type=Whole(1, REQUESTS_MAX), metavar="N", help="requests of a trace to take (all)")
    add("--speed", type=Number(), default=1.0, metavar="N", help="how many times faster requests come (1)")
    add("--seed", type=Whole(0, 1 << 62), default=1, metavar="N", help="of what is random in a load that is made (1)")
    add(
        "--block-tokens",
        type=Whole(1, 65_536),
        metavar="N",
        help=f"tokens of a KV block ({BLOCK_TOKENS_MADE}; of a trace {BLOCK_TOKENS_OF_TRACES}, as of its hashes)",
    )
    add(
        "--answer-tokens",
        type=Whole(1, 1 << 24),
        default=ANSWER_TOKENS,
        metavar="N",
        help=f"of an answer, where a trace (an access log) does not say ({ANSWER_TOKENS})",
    )
    add("--clients", type=Whole(1, 1 << 20), metavar="N", help="that send one request after the other (at their times)")
    add("--workers", type=_sizes, metavar="N,N", help=f"sizes of the fleet, each run by itself ({WORKERS})")
    add("--slo", metavar="GOALS", help=f"find the least fleet that keeps {EXPECTED}, several with commas")
    add(
        "--workers-max", type=Whole(1, WORKERS_MAX), default=64, metavar="N", help="largest fleet to try for --slo (64)"
    )
    add("--policies", metavar="A,B", help=f"each run by itself, or all ({DEFAULT_POLICY})")
    add("--compare", action="store_true", help=f"run {', '.join(COMPARED)}, where --policies does not say which")
    add("--routers", type=Whole(1, ROUTERS_MAX), default=4, metavar="N", help="of the policies with several (4)")
    add("--tenant", action="append", default=[], metavar="WHO", help=f"who asks, any number of times: {WHO}")
    add("--flow", action="append", default=[], metavar="NAME=VALUE", help=f"flow control of the routers: {FLOW}")
    add("--fail", action="append", default=[], metavar="WHAT", help=f"let something fail, any number of times: {FAILS}")
    add("--json", dest="as_json", action="store_true", help="print one JSON object instead of text")
    add("--plot", type=Path, metavar="FILE", help="write a picture as well, a .png or an .svg (needs matplotlib)")
    add_fleet(parser)
    return parser


def _sizes(text: str) -> Sequence[int]:
    size = Whole(1, WORKERS_MAX)
    return sorted({size(each) for each in text.split(",")})
