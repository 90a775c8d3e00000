"""Do the live workers answer, do they agree on what a block is, and did their own checks pass?"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import msgspec

from ghostcacher_cli.doctor.fingerprint_flags import fix_of
from ghostcacher_cli.doctor.report import Check, fail, ok, warn
from ghostcacher_connector.core.addresses import is_loopback_url
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import GONE_S, BlockIndex, GoneWorker
from ghostcacher_connector.core.index.link_report import unpack
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.identity.fingerprint import differences
from ghostcacher_connector.publish.worker_name import REFUSED_REPORT, RefusedEngine, where
from ghostcacher_connector.worker.link_probe import SelfCheckReport, self_check_report
from ghostcacher_connector.worker.live_workers import hosts_of

HTTP_THREADS = 16
HTTP_OK = 200
VALUE_CHARS_MAX = 160


def check_workers(records: Sequence[WorkerRecord]) -> Iterator[Check]:
    """Yield one line a live worker, or that there is none."""
    if not records:
        yield warn(
            "workers",
            "no live worker in the index",
            "start an engine with the GhostCacher connector and this same redis_url; "
            "a worker without redis_url uses an embedded Redis of its own user on its own machine",
        )
    for record in records:
        age_s = max(0.0, time.time() - record.started_at)
        ranks = f"{len(record.ranks)} rank{'s' * (len(record.ranks) != 1)}"
        yield ok(f"worker {record.worker}", f"live for {age_s:.0f} s, {ranks}, {record.role.value}, {record.namespace}")


def check_names(index: BlockIndex, records: Sequence[WorkerRecord]) -> Iterator[Check]:
    """Yield a failure for each name that several live engines have, or want. Raises IndexUnavailable."""
    fix = "give each engine a worker_id (GC_WORKER_ID) of its own, or none where http_url names it; then restart it"
    by_name: dict[str, list[WorkerRecord]] = defaultdict(list)
    for record in records:
        by_name[record.worker].append(record)
        packed = index.reports(record.namespace, record.worker, REFUSED_REPORT).get("engine")
        if packed is not None:
            yield fail(
                f"worker {record.worker}",
                f"another engine was refused this name and does not share: {_refused(packed)}; {where(record)} has it",
                fix,
            )
    for name, group in by_name.items():
        # One process may be about to change from one namespace to another; versions without owners cannot be told.
        owners = {record.owner.token for record in group if record.owner is not None}
        if len(owners) > 1:
            places = "; ".join(f"{where(record)} in {record.namespace}" for record in group)
            yield fail(f"worker {name}", f"{len(owners)} live engines have this name: {places}", fix)


def _refused(packed: bytes) -> str:
    try:
        return msgspec.json.decode(packed, type=RefusedEngine).where[:VALUE_CHARS_MAX]
    except msgspec.MsgspecError:
        return "its report cannot be read"


def check_addresses(records: Sequence[WorkerRecord]) -> Iterator[Check]:
    """Yield a warning for each worker at a loopback address, when workers are on several machines."""
    count = len(hosts_of(records))
    for record in records:
        if count > 1 and record.http is not None and is_loopback_url(record.http):
            yield warn(
                f"address {record.worker}",
                f"{record.http} leads every router to its own machine, and workers are on {count}",
                "set http_url (GC_HTTP_URL) to the address at which other machines reach the engine",
            )


def check_gone(records: Sequence[WorkerRecord], gone: Sequence[GoneWorker]) -> Iterator[Check]:
    """Yield a failure for each worker that went without leaving, and whose name did not come back anywhere."""
    live = {record.worker for record in records}
    for worker in gone:
        if worker.worker not in live:
            yield fail(
                f"worker {worker.worker}",
                f"gone: its lease was renewed last {worker.silent_s:.0f} s ago, and it did not leave",
                "look at its log and at its machine, and start it again; a worker that stays away is forgotten "
                f"{GONE_S // 60} minutes after it went",
            )


def check_unverified(count: int) -> Iterator[Check]:
    """Yield a failure when workers' records, `count` of them, could not be verified."""
    if count:
        yield fail(
            "index key",
            f"{count} record{'s' * (count != 1)} could not be verified: GC_INDEX_KEY differs, or they are damaged",
            "set GC_INDEX_KEY (index_key) alike on all workers, and for the doctor (--index-key-env); "
            "where it is, look for what else writes to this Redis",
        )


def check_http(records: Sequence[WorkerRecord], timeout_s: float) -> Iterator[Check]:
    """Ask every engine for its health, all at the same time."""
    with ThreadPoolExecutor(max_workers=HTTP_THREADS) as pool:
        yield from pool.map(lambda record: _health(record, timeout_s), records)


def _health(record: WorkerRecord, timeout_s: float) -> Check:
    name = f"engine {record.worker}"
    if record.http is None:
        return warn(
            name,
            "its address is not known: routers cannot send it requests",
            "set http_url in kv_connector_extra_config, or GC_HTTP_URL, to the URL at which routers reach it",
        )
    url = record.http.rstrip("/") + "/health"
    fix = "check that the engine is up, and that http_url (GC_HTTP_URL) is right as seen from here"
    if urlsplit(url).scheme not in ("http", "https"):
        return fail(name, f"{url}: expected an http or https URL", fix)
    # Workers are asked directly: a proxy meant for the world outside would answer for itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    started = time.perf_counter()
    try:
        with opener.open(url, timeout=timeout_s) as response:
            status = response.status
    except urllib.error.HTTPError as exc:
        exc.close()
        return fail(name, f"{url}: expected status 200, got {exc.code}", fix)
    except (OSError, ValueError) as exc:
        return fail(name, f"{url}: {exc}", fix)
    if status != HTTP_OK:
        return fail(name, f"{url}: expected status 200, got {status}", fix)
    return ok(name, f"{url}: healthy in {(time.perf_counter() - started) * 1e3:.0f} ms")


def check_fingerprints(records: Sequence[WorkerRecord]) -> Iterator[Check]:
    """Say which workers share blocks, and for those of one model that do not, which fields keep them apart.

    Engines of two kinds that serve one model are two fleets behind one router, by design: each is looked at by itself.
    """
    namespaces: dict[tuple[str, str], dict[str, list[WorkerRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        kind = record.fingerprint.get("model", "(no model)"), record.fingerprint.get("engine", "(no engine)")
        namespaces[kind][record.namespace].append(record)
    models = [model for model, _ in namespaces]
    for (model, engine), groups in sorted(namespaces.items()):
        name = model if models.count(model) == 1 else f"{model} on {engine}"
        lead, *others = sorted(groups.values(), key=lambda group: (-len(group), group[0].worker))
        yield ok(f"fingerprint {name}", f"{_names(lead)} share{'s' * (len(lead) == 1)} namespace {lead[0].namespace}")
        for group in others:
            yield _kept_apart(name, lead, group)


def _kept_apart(model: str, lead: Sequence[WorkerRecord], group: Sequence[WorkerRecord]) -> Check:
    found = differences(group[0].fingerprint, lead[0].fingerprint)
    mine, theirs = _names(group), _names(lead)
    fields = "; ".join(f"{field}: {_short(a)} on {mine}, {_short(b)} on {theirs}" for field, a, b in found)
    return fail(
        f"fingerprint {model}",
        f"{mine} and {theirs} never share a block; {fields or 'no field differs: records disagree'}",
        fix_of(lead[0].fingerprint.get("engine", ""), found),
    )


def check_self_checks(index: BlockIndex, records: Sequence[WorkerRecord]) -> Iterator[Check]:
    """Report how the self-check of every rank ended. Raises IndexUnavailable."""
    for record in records:
        for endpoint in record.ranks:
            name = f"self-check {record.worker}:{endpoint.rank}"
            stored = index.reports(record.namespace, record.worker, self_check_report(endpoint.rank))
            packed = stored.get(str(endpoint.rank))
            yield _self_check(name, packed)


def _self_check(name: str, packed: bytes | None) -> Check:
    if packed is None:
        return warn(name, "no result", "set self_check to true, or look at the worker's log when it should have run")
    try:
        report = unpack(packed, SelfCheckReport)
    except ProtocolError as exc:
        return fail(name, f"its result cannot be read: {exc}", "run one version of GhostCacher everywhere")
    if not report.ok:
        return fail(
            name, report.error or "failed without a reason", "look at the worker's log: its transport does not work"
        )
    return ok(name, f"passed over {report.transport}")


def _names(records: Sequence[WorkerRecord]) -> str:
    return ", ".join(record.worker for record in records)


def _short(value: str) -> str:
    return value if len(value) <= VALUE_CHARS_MAX else f"{value[:VALUE_CHARS_MAX]}..."
