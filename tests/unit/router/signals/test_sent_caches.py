"""The model of what each worker's cache holds: what is found of it, what it evicts, and how it is undone."""

from __future__ import annotations

from ghostcacher_router.signals.sent_caches import BYTES_PER_TOKEN, SentCaches
from ghostcacher_router.types import GRID_BYTES, Prompt
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import prompt_of

KIB_TOKENS = GRID_BYTES // BYTES_PER_TOKEN
PLENTY = 1 << 20
WORKERS = ["w1", "w2"]


def text(name: str, kib: int) -> bytes:
    return text_of(name, kib * KIB_TOKENS)


def held_kib(caches: SentCaches, prompt: Prompt) -> dict[str, float]:
    return {worker: size / GRID_BYTES for worker, size in caches.held_bytes(prompt, WORKERS).items()}


def test_each_worker_has_what_it_was_sent() -> None:
    """Workers share a beginning with a prompt to different depths; each has its own."""
    caches, system = SentCaches(), text("system", 4)
    caches.record(prompt_of(system + text("one", 3)), "w1", PLENTY)
    caches.record(prompt_of(system + text("two", 3)), "w2", PLENTY)
    assert held_kib(caches, prompt_of(system + text("one", 3) + text("more", 9))) == {"w1": 7, "w2": 4}
    assert held_kib(caches, prompt_of(text("other", 5))) == {}
    assert held_kib(caches, prompt_of(b"short")) == {}


def test_cache_evicts_what_was_used_longest_ago_from_its_end() -> None:
    """A cache of ten KiB that is sent a second prompt of six keeps four of the first one, its beginning."""
    caches, first, second = SentCaches(), prompt_of(text("first", 6)), prompt_of(text("second", 6))
    caches.record(first, "w1", 10 * KIB_TOKENS)
    caches.record(second, "w1", 10 * KIB_TOKENS)
    assert (held_kib(caches, first), held_kib(caches, second)) == ({"w1": 4}, {"w1": 6})
    caches.record(first, "w1", 10 * KIB_TOKENS)
    assert (held_kib(caches, first), held_kib(caches, second)) == ({"w1": 6}, {"w1": 4})


def test_failed_request_leaves_what_was_there_before() -> None:
    """What a failed request would have brought is taken back, and no more than that."""
    caches, system = SentCaches(), text("system", 4)
    caches.record(prompt_of(system), "w1", PLENTY)
    longer = prompt_of(system + text("question", 4))
    caches.withdraw("w1", caches.record(longer, "w1", PLENTY))
    assert held_kib(caches, longer) == {"w1": 4}
    caches.forget_worker("w1")
    assert held_kib(caches, longer) == {}


def test_worker_that_does_not_say_what_it_holds_is_believed_to_hold_much() -> None:
    """Without a capacity it is a guess, bounded all the same."""
    caches = SentCaches()
    for number in range(20):
        caches.record(prompt_of(text(f"document {number}", 64)), "w1", 0)
    assert held_kib(caches, prompt_of(text("document 0", 64))) == {"w1": 64}
