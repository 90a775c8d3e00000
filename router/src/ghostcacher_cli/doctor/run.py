"""The order of the checks, and what one needs from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from ghostcacher_cli.doctor import fleet_checks, link_checks
from ghostcacher_cli.doctor.reads import LOOPBACK, ReadsJob, Target, run_reads
from ghostcacher_cli.doctor.redis_checks import EMBEDDED_FIX, REDIS_FIX, check_redis
from ghostcacher_cli.doctor.report import Check, Status, fail, ok, warn
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.index.link_report import LinkReport
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis.embedded import EmbeddedRedis
from ghostcacher_connector.core.types import WorkerRecord

NIXL_FIX = "install it: pip install nixl; look at the lines that NIXL prints, and at UCX_TLS"
READERS = ("nixl", "vllm", "sglang")
"""Packages of which an engine's Python has one at least; that of a router alone needs none."""


class Options(NamedTuple):
    """redis_url: None means the embedded Redis of this user. timeout_s: of each single wait."""

    redis_url: str | None
    relay_token: str | None
    timeout_s: float
    index_key: str | None = None

    def __repr__(self) -> str:
        return f"Options(timeout_s={self.timeout_s})"


def examine(options: Options) -> Iterator[Check]:
    """Yield every check as it ends. Raises ConfigError for a Redis URL that makes no sense."""
    url = options.redis_url if options.redis_url is not None else EmbeddedRedis().url
    reachable = True
    fix = REDIS_FIX if options.redis_url is not None else EMBEDDED_FIX
    for check in check_redis(url, options.timeout_s, fix):
        reachable = reachable and not (check.name == "redis" and check.status is Status.FAIL)
        yield check
    if not reachable:
        yield from _check_reads([], options)
        return
    index = RedisIndex(url, timeout_s=options.timeout_s, key=(options.index_key or "").encode())
    try:
        yield from _check_fleet(index, options)
    except IndexUnavailable as exc:
        yield fail("index", str(exc), "look at Redis: it answered before, and does not now")
    finally:
        index.close()


def _check_fleet(index: BlockIndex, options: Options) -> Iterator[Check]:
    records = index.workers(None)
    # The ranks measure while the rest is looked at.
    asked = link_checks.ask(index, records)
    yield from fleet_checks.check_workers(records)
    yield from fleet_checks.check_names(index, records)
    yield from fleet_checks.check_gone(records, index.gone())
    yield from fleet_checks.check_unverified(index.unverified_records)
    yield from fleet_checks.check_addresses(records)
    yield from fleet_checks.check_http(records, options.timeout_s)
    yield from fleet_checks.check_fingerprints(records)
    yield from _check_reads(records, options)
    yield from fleet_checks.check_self_checks(index, records)
    found = link_checks.collect(index, records, asked, options.timeout_s)
    yield from link_checks.check_links(records, found, options.timeout_s)


def _check_reads(records: Sequence[WorkerRecord], options: Options) -> Iterator[Check]:
    """Read loopback, and every rank from here, unless this is the Python of a router alone."""
    if not any(find_spec(package) for package in READERS):
        text = "no READ was tried from here: this Python has neither NIXL nor an engine, and a router needs none"
        yield warn("nixl", text, "run the doctor with the Python of an engine, too, on its machine")
        return
    targets = {
        f"{record.worker}:{endpoint.rank}": Target(f"{record.worker}:{endpoint.rank}", endpoint)
        for record in records
        for endpoint in record.ranks
    }
    job = ReadsJob(targets=tuple(targets.values()), relay_token=options.relay_token, timeout_s=options.timeout_s)
    results, wrong = run_reads(job)
    links = {result.name: result.link for result in results}
    yield _check_loopback(links.get(LOOPBACK), wrong)
    for name in targets:
        link = links.get(name)
        if link is not None and link.ok:
            yield ok(f"read {name}", f"from here: {link_checks.describe(link)}")
        else:
            error = link.error if link is not None else wrong or "no result"
            fix = f"{link_checks.unreachable_fix(name)}; for a relay give the doctor its token (--relay-token-env)"
            yield fail(f"read {name}", f"from here: {error}", fix)


def _check_loopback(link: LinkReport | None, wrong: str) -> Check:
    if link is None:
        return fail("nixl", wrong or "no result", NIXL_FIX)
    if not link.ok:
        return fail("nixl", f"a READ from one agent to another on this machine: {link.error}", NIXL_FIX)
    return ok("nixl", f"a READ between two agents here gave the right bytes: {link_checks.describe(link)}")
