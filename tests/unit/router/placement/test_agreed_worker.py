"""The worker at which routers meet that know nothing of each other: for each text the same one, whoever asks."""

from __future__ import annotations

from collections import Counter

from ghostcacher_router.placement.agreed_worker import LIKELY_HELD, with_agreed_worker
from ghostcacher_router.types import GRID_BYTES
from tests.support.routing_sim import prompt_of

WORKERS = ("w0", "w1", "w2")
SYSTEM = b"s" * 8 * GRID_BYTES
NOTHING: dict[str, int] = {}


def document(number: int, size: int = 16) -> bytes:
    return f"document {number:08}".encode() * (size * GRID_BYTES // 17)


def agreed(text: bytes, held: dict[str, int]) -> str:
    """Return the only worker at which something is added."""
    found = with_agreed_worker(prompt_of(text), held, WORKERS)
    (worker,) = (name for name in WORKERS if found.get(name, 0) != held.get(name, 0))
    return worker


def test_what_nobody_was_sent_is_mostly_held_where_all_routers_send_it() -> None:
    """Whatever follows the document: it is named by its beginning."""
    found = with_agreed_worker(prompt_of(document(1)), NOTHING, WORKERS)
    ((worker, held),) = found.items()
    assert abs(held - len(document(1)) * LIKELY_HELD) <= 1
    assert agreed(document(1) + b"question", NOTHING) == worker
    assert with_agreed_worker(prompt_of(document(1)), NOTHING, WORKERS[::-1]) == found


def test_documents_are_spread() -> None:
    counts = Counter(agreed(document(number), NOTHING) for number in range(60))
    assert min(counts[name] for name in WORKERS) >= 10


def test_what_all_workers_hold_names_none() -> None:
    """Documents behind a common system prompt are spread like any others, and each has one worker all the same."""
    common = dict.fromkeys(WORKERS, len(SYSTEM))
    counts = Counter(agreed(SYSTEM + document(number), common) for number in range(60))
    assert min(counts[name] for name in WORKERS) >= 10
    # A router that has sent some of it already names the same worker.
    for number in range(8):
        worker = agreed(SYSTEM + document(number), common)
        other = next(name for name in WORKERS if name != worker)
        assert agreed(SYSTEM + document(number), {**common, other: len(SYSTEM) + 4 * GRID_BYTES}) == worker


def test_agreed_worker_holds_as_much_as_any_other() -> None:
    """What this router sent elsewhere, others have sent there."""
    text = document(1)
    worker = agreed(text, NOTHING)
    other = next(name for name in WORKERS if name != worker)
    held = {other: 10 * GRID_BYTES}
    assert with_agreed_worker(prompt_of(text), held, WORKERS) == {other: 10 * GRID_BYTES, worker: 10 * GRID_BYTES}
    held = {other: 2 * GRID_BYTES, worker: 10 * GRID_BYTES}
    assert with_agreed_worker(prompt_of(text), held, WORKERS) == held


def test_where_nothing_can_be_gained_nothing_is_added() -> None:
    """All workers hold all whole KiBs, or there are none."""
    held = dict.fromkeys(WORKERS, len(SYSTEM))
    assert with_agreed_worker(prompt_of(SYSTEM + b"question"), held, WORKERS) == held
    assert with_agreed_worker(prompt_of(b"question"), NOTHING, WORKERS) == NOTHING
