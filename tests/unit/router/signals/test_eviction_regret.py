"""How likely it is that what full caches evict next is asked for again, for loads of which the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from ghostcacher_router.signals import eviction_regret
from ghostcacher_router.signals.eviction_regret import EvictionRegret
from ghostcacher_router.types import GRID_BYTES, Prompt
from ghostcacher_simulator.text import TOKEN_BYTES, text_of
from tests.support.routing_sim import prompt_of

KIB_TOKENS = GRID_BYTES // TOKEN_BYTES
DOCUMENT_KIB = 8


def regret_of(prompts: list[Prompt], capacity_kib: int, samples: int = 4096) -> EvictionRegret:
    """Return what a fleet whose caches hold so much finds of these prompts."""
    regret = EvictionRegret(samples)
    for prompt in prompts:
        regret.measure(len(prompt.digests), prompt.size // TOKEN_BYTES)
        regret.resize(capacity_kib * KIB_TOKENS)
        regret.note(prompt.digests, "w")
    return regret


def document(number: int) -> Prompt:
    return prompt_of(text_of(f"document {number}", DOCUMENT_KIB * KIB_TOKENS))


def at_random(documents: int, count: int) -> list[Prompt]:
    known, rng = [document(number) for number in range(documents)], Random(1)
    return [rng.choice(known) for _ in range(count)]


@pytest.mark.parametrize("samples", [4096, 64])
def test_documents_that_fill_the_caches_all_come_back(samples: int) -> None:
    """Of documents that are asked for at random everything comes back, also where a part of the text is looked at."""
    assert regret_of(at_random(40, 2000), 40 * DOCUMENT_KIB, samples).share > 0.9


def test_regret_is_known_before_anything_was_forgotten() -> None:
    """What has sunk a moment ago and may still come back is not taken for what never does."""
    assert regret_of(at_random(40, 60), 40 * DOCUMENT_KIB).share > 0.8


@pytest.mark.parametrize("count", [30, 100, 400])
def test_what_is_asked_for_once_never_comes_back(count: int) -> None:
    """Prompts that nobody repeats are evicted without regret, from the first on."""
    assert regret_of([document(number) for number in range(count)], 40 * DOCUMENT_KIB).share == 0.0


def test_half_of_what_sinks_is_half_the_regret_as_soon_as_the_caches_are_full() -> None:
    """Of every two documents one comes back: that is found while most of the others are not forgotten yet."""
    rng = Random(1)
    prompts = [document(rng.randrange(30) if number % 2 else 1000 + number) for number in range(160)]
    assert 0.25 < regret_of(prompts, 60 * DOCUMENT_KIB).share < 0.75


@pytest.mark.parametrize(
    ("held", "least", "most"),
    [(20, 1.9, 2.01), (40, 1.9, 2.01), (55, 0.5, 1.5), (66, 0.1, 0.5), (90, 0.0, 0.0), (200, 0.0, 0.0)],
)
def test_evicting_costs_the_more_the_less_room_there_is_for_copies(held: int, least: float, most: float) -> None:
    """Forty documents: where no second copy has room each eviction leads to the next, where all have it none does."""
    assert least <= regret_of(at_random(40, 1500), held * DOCUMENT_KIB).price <= most


def test_evicting_what_nobody_asks_for_costs_nothing() -> None:
    assert regret_of([document(number) for number in range(400)], 40 * DOCUMENT_KIB).price == 0.0


def test_common_system_prompt_is_no_regret() -> None:
    """What everybody asks for is never about to be evicted: what is, are the questions."""
    system = text_of("system", 4 * KIB_TOKENS)
    prompts = [prompt_of(system + text_of(f"question {number}", 2 * KIB_TOKENS)) for number in range(600)]
    assert regret_of(prompts, 400).share == 0.0


def test_documents_and_questions_share_the_regret() -> None:
    """Half of what sinks are documents, which come back, and half are questions, which do not."""
    rng, prompts = Random(1), []
    for number in range(2000):
        text = text_of(f"document {rng.randrange(40)}", DOCUMENT_KIB * KIB_TOKENS)
        prompts.append(prompt_of(text + text_of(f"question {number}", DOCUMENT_KIB * KIB_TOKENS)))
    share = regret_of(prompts, 2 * 40 * DOCUMENT_KIB).share
    assert 0.25 < share < 0.6


def test_a_part_of_the_requests_tells_the_same() -> None:
    """One of four routers, which places every fourth request, finds about what a single one finds."""
    prompts = at_random(60, 8000)
    alone, one_of_four = (regret_of(some, 40 * DOCUMENT_KIB).share for some in (prompts, prompts[::4]))
    assert alone == pytest.approx(one_of_four, abs=0.1)


def test_regret_is_bounded_and_follows_the_load() -> None:
    """It holds no more than twice its samples, and forgets documents that nobody asks for any more."""
    once = [document(number) for number in range(1000, 2500)]
    regret = regret_of(at_random(40, 1000) + once, 40 * DOCUMENT_KIB, samples=128)
    assert len(regret._top) + len(regret._deep) <= 2 * 128
    assert regret.share < 0.1


@pytest.mark.parametrize("samples", [4096, 256])
def test_working_set_is_what_was_sent_there_last_and_comes_again(samples: int) -> None:
    """A document counts where it was sent last, as long as anybody asks for it; questions soon count nowhere."""
    regret, documents, rng = EvictionRegret(samples), [document(number) for number in range(20)], Random(1)
    homes = {number: f"w{number % 3}" for number in range(20)}

    def send(prompt: Prompt, worker: str) -> None:
        regret.measure(len(prompt.digests), prompt.size // TOKEN_BYTES)
        regret.resize(40 * DOCUMENT_KIB * KIB_TOKENS)
        regret.note(prompt.digests, worker)

    for number in range(3000):
        chosen = rng.randrange(20)
        send(documents[chosen], homes[chosen])
        send(prompt_of(text_of(f"question {number}", 2 * KIB_TOKENS)), homes[chosen])
    found = [regret.working_set_tokens(f"w{number}") / KIB_TOKENS for number in range(3)]
    assert found == pytest.approx([7 * DOCUMENT_KIB, 7 * DOCUMENT_KIB, 6 * DOCUMENT_KIB], rel=0.3)
    before = found[1]
    for number in range(0, 20, 3):
        send(documents[number], "w1")
    assert regret.working_set_tokens("w0") < 0.15 * before
    assert regret.working_set_tokens("w1") / KIB_TOKENS == pytest.approx(14 * DOCUMENT_KIB, rel=0.3)
    assert regret.home_tokens(documents[0].digests) == {"w1": pytest.approx(DOCUMENT_KIB * KIB_TOKENS, rel=0.6)}
    assert regret.home_tokens(document(99).digests) == {}


def test_regret_without_a_capacity_is_none() -> None:
    """Where no worker says what its cache holds, nothing is charged for evictions."""
    assert regret_of(at_random(40, 500), 0).share == 0.0


def test_what_is_asked_for_twice_at_one_worker_counts_in_full_there() -> None:
    """Also where half of all else was never asked for again."""
    regret = regret_of([document(number) for number in range(200)], 40 * DOCUMENT_KIB)
    regret.note(document(1000).digests, "home")
    assert regret.working_set_tokens("home") == 0.0
    for _ in range(3):
        regret.note(document(1000).digests, "home")
        assert regret.working_set_tokens("home") / KIB_TOKENS == pytest.approx(DOCUMENT_KIB, rel=0.2)


@pytest.mark.parametrize("ask", ["share", "price", "working_set", "home", "note"])
def test_prompts_set_aside_count_as_soon_as_somebody_asks(ask: str) -> None:
    """Whatever is asked for says the same as if each prompt had been looked at when it was sent."""
    prompts = at_random(40, 400)
    noted, aside = (regret_of(prompts, 40 * DOCUMENT_KIB) for _ in range(2))
    for prompt in prompts:
        noted.note(prompt.digests, "plain")
        aside.set_aside(prompt.digests, "plain")
    asked: dict[str, Callable[[EvictionRegret], object]] = {
        "share": lambda regret: regret.share,
        "price": lambda regret: regret.price,
        "working_set": lambda regret: regret.working_set_tokens("plain"),
        "home": lambda regret: regret.home_tokens(prompts[0].digests),
        "note": lambda regret: (regret.note(document(99).digests, "w"), regret._sets.size("plain")),
    }
    assert asked[ask](aside) == asked[ask](noted)


def test_price_of_prompts_that_were_all_set_aside_is_known() -> None:
    """Nobody has asked for anything before."""
    prompts, aside = at_random(40, 400), EvictionRegret()
    for prompt in prompts:
        aside.measure(len(prompt.digests), prompt.size // TOKEN_BYTES)
        aside.resize(40 * DOCUMENT_KIB * KIB_TOKENS)
        aside.set_aside(prompt.digests, "w")
    assert aside.price == regret_of(prompts, 40 * DOCUMENT_KIB).price > 1.0


def test_of_many_prompts_set_aside_the_latest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody asks for takes a bounded room; `clear` leaves nothing of it."""
    monkeypatch.setattr(eviction_regret, "ASIDE_MAX", 4 * DOCUMENT_KIB)
    regret = regret_of([document(0)], 40 * DOCUMENT_KIB)
    for number in range(20):
        regret.set_aside(document(number).digests, f"w{number}")
    assert len(regret._aside) == 4
    assert [number for number in range(20) if regret.working_set_tokens(f"w{number}")] == [16, 17, 18, 19]
    regret.set_aside(document(0).digests, "gone")
    regret.clear()
    assert regret.working_set_tokens("gone") == 0.0
