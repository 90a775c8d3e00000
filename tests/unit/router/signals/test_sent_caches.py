"""The model of what each worker's cache holds: what is found of it, what it evicts, and how it is undone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.signals.sent_caches import (
    ASIDE_MAX,
    CAPACITY_KIB_MAX,
    KIB_TOKENS,
    OTHERS_FEW,
    SHARE_MAX,
    SHARE_MIN,
    SentCaches,
    grid_of,
)
from ghostcacher_router.types import GRID_BYTES, Prompt
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import prompt_of

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


def fill(caches: SentCaches, worker: str, documents: int, said_kib: int = 0) -> list[Prompt]:
    """Send a worker documents of 8 KiB; return them. said_kib: what it says of its cache; 0: nothing."""
    prompts = [prompt_of(text(f"{worker}, document {number}", 8)) for number in range(documents)]
    for prompt in prompts:
        caches.record(prompt, worker, said_kib * KIB_TOKENS)
    return prompts


def ask_again(
    caches: SentCaches, worker: str, prompt: Prompt, computed_kib: int, *, alone: bool = True, said_kib: int = 0
) -> None:
    """Send a prompt that is answered when so much of it can have been computed."""
    use = caches.record(prompt, worker, said_kib * KIB_TOKENS)
    caches.answered(worker, prompt, use, computed_kib * GRID_BYTES, alone=alone)


def test_prompt_that_is_computed_anew_shows_how_much_was_evicted() -> None:
    """The cache has less room than the model had in it; it, and others of which nothing is known, hold as much less."""
    caches = SentCaches()
    first, *_ = fill(caches, "w1", 10)
    assert caches.capacity_tokens("w1") == 80 * KIB_TOKENS
    ask_again(caches, "w1", first, 8)
    assert caches.capacity_tokens("w1") == 76 * KIB_TOKENS
    others = fill(caches, "w2", 10)
    assert caches.capacity_tokens("w2") == 76 * KIB_TOKENS
    assert held_kib(caches, others[0]) == {"w2": 4}


def test_prompt_that_is_not_computed_shows_that_there_was_room() -> None:
    """Who answers too soon to have computed what the model has evicted had room for all that came since."""
    caches = SentCaches()
    first, *_ = fill(caches, "w1", 10)
    for _ in range(5):
        ask_again(caches, "w1", first, 8)
    assert caches.capacity_tokens("w1") < 64 * KIB_TOKENS
    second, *_ = fill(caches, "w1", 10)
    assert held_kib(caches, second) == {}
    ask_again(caches, "w1", second, 1)
    assert caches.capacity_tokens("w1") == 80 * KIB_TOKENS


def test_room_that_an_engine_says_it_has_counts_before_any_answer() -> None:
    """And what others have shown of theirs does not."""
    caches = SentCaches()
    ask_again(caches, "w1", fill(caches, "w1", 10)[0], 8)
    prompts = fill(caches, "w2", 10, said_kib=40)
    assert caches.capacity_tokens("w2") == 40 * KIB_TOKENS
    assert [held_kib(caches, prompt) for prompt in prompts] == [{}] * 5 + [{"w2": 8}] * 5


def test_answers_correct_what_an_engine_says_within_what_a_guess_can_be_wrong_by() -> None:
    """How many bytes its tokens have is a guess; the texts of all engines are alike, so it is wrong for all of them."""
    caches = SentCaches()
    prompts = fill(caches, "w1", 20, said_kib=80)
    ask_again(caches, "w1", prompts[-1], 8, said_kib=80)
    assert caches.capacity_tokens("w1") == 76 * KIB_TOKENS
    fill(caches, "w2", 20, said_kib=40)
    assert caches.capacity_tokens("w2") == 38 * KIB_TOKENS
    for _ in range(50):
        ask_again(caches, "w1", prompts[-1], 8, said_kib=80)
    assert caches.capacity_tokens("w1") == SHARE_MIN * 80 * KIB_TOKENS
    long = [prompt_of(text(f"long {number}", 64)) for number in range(4)]
    for prompt in (*long, long[0]):
        ask_again(caches, "w1", prompt, 1, said_kib=80)
    assert caches.capacity_tokens("w1") == SHARE_MAX * 80 * KIB_TOKENS


def test_answer_that_may_have_waited_for_others_shows_nothing() -> None:
    """Neither does one that comes too late or too soon for its own few KiBs, or as soon as was forecast."""
    caches = SentCaches()
    prompts = fill(caches, "w1", 10)
    ask_again(caches, "w1", prompts[0], 8, alone=False)
    ask_again(caches, "w1", prompts[1], 1)
    short = prompt_of(text("short", 3))
    ask_again(caches, "w1", short, 3)
    ask_again(caches, "w1", short, 3)
    assert caches.capacity_tokens("w1") == 83 * KIB_TOKENS
    ask_again(caches, "w1", prompts[2], 8)
    evicting = caches.capacity_tokens("w1")
    ask_again(caches, "w1", prompt_of(text("never sent", 8)), 0)
    assert caches.capacity_tokens("w1") == evicting < 83 * KIB_TOKENS


def test_what_is_remembered_of_evicted_prompts_is_bounded() -> None:
    """What a worker holds and what it has evicted are no more than the largest cache that is thought of."""
    caches, many = SentCaches(), CAPACITY_KIB_MAX // 512 + 4
    for number in range(many):
        prompt = prompt_of(text(f"document {number}", 512))
        ask_again(caches, "w1", prompt, 512)
        ask_again(caches, "w1", prompt, 512)
    cache = caches._caches["w1"]
    assert 0 < len(cache.evicted) <= CAPACITY_KIB_MAX - len(cache.held)


def test_what_is_set_aside_counts_once_somebody_asks() -> None:
    """As if it had been looked at when it was sent, in the same order; what has failed, or is gone, is taken back."""
    caches, system = SentCaches(), text("system", 4)
    first, second, failed = (prompt_of(system + text(name, 6)) for name in ("first", "second", "failed"))
    caches.set_aside(first, "w1", 12 * KIB_TOKENS)
    caches.withdraw("w1", caches.set_aside(failed, "w1", 12 * KIB_TOKENS))
    late = caches.set_aside(second, "w1", 12 * KIB_TOKENS)
    caches.set_aside(first, "w2", 12 * KIB_TOKENS)
    assert [held_kib(caches, prompt) for prompt in (first, second, failed)] == [
        {"w1": 6, "w2": 10},
        {"w1": 10, "w2": 4},
        {"w1": 4, "w2": 4},
    ]
    caches.withdraw("w1", late)
    caches.set_aside(second, "w2", PLENTY)
    caches.forget_worker("w2")
    assert held_kib(caches, second) == {"w1": 4}
    caches.set_aside(second, "w1", PLENTY)
    caches.clear()
    assert held_kib(caches, second) == {}


def test_what_is_set_aside_is_bounded() -> None:
    """The latest prompts stay."""
    caches, many = SentCaches(), ASIDE_MAX // 512 + 2
    for number in range(many):
        caches.set_aside(prompt_of(text(f"document {number}", 512)), f"w{number}", 0)
    workers = [f"w{number}" for number in range(many)]
    held = [caches.held_bytes(prompt_of(text(f"document {number}", 512)), workers) for number in range(many)]
    kept = [number for number in range(many) if held[number]]
    assert kept == list(range(many - len(kept), many))
    assert many - 10 < len(kept) < many


@given(st.integers(1, 40 * GRID_BYTES), st.sets(st.integers(1, 40 * GRID_BYTES), max_size=OTHERS_FEW + 4))
def test_grid_is_the_boundaries_at_whole_kibs(size: int, others: set[int]) -> None:
    """Wherever other boundaries lie between them, few or many."""
    ends = sorted({*range(GRID_BYTES, size + 1, GRID_BYTES), *(end for end in others if end < size), size})
    prompt = Prompt(ends, [b"%d" % end for end in ends], [], b"", None)
    assert list(grid_of(prompt)) == [b"%d" % end for end in range(GRID_BYTES, size + 1, GRID_BYTES)]


def test_what_is_sent_again_after_a_failure_counts_as_used_as_a_whole() -> None:
    """Another request has gone on behind what was taken back; sent once more, it is all there, in its order."""
    caches, first = SentCaches(), text("first", 3)
    failed = caches.record(prompt_of(first), "w1", 12 * KIB_TOKENS)
    longer = prompt_of(first + text("more", 3))
    caches.record(longer, "w1", 12 * KIB_TOKENS)
    caches.withdraw("w1", failed)
    assert held_kib(caches, longer) == {}
    other = prompt_of(text("other", 2))
    caches.record(other, "w1", 12 * KIB_TOKENS)
    caches.record(longer, "w1", 12 * KIB_TOKENS)
    assert held_kib(caches, longer) == {"w1": 6}
    caches.record(prompt_of(text("third", 6)), "w1", 12 * KIB_TOKENS)
    assert (held_kib(caches, longer), held_kib(caches, other)) == ({"w1": 6}, {})
