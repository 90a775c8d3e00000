"""Where this router sent which prompt: what is found of it, how it is undone, and how it is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.signals.sent_history import (
    ANSWERED_S,
    HOLDERS_MAX,
    PER_PROMPT_MAX,
    TTL_S,
    SentHistory,
    SentPrompt,
)
from ghostcacher_router.types import GRID_BYTES, Prompt
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import prompt_of

SHARED = text_of("shared", 1000)


def holders(history: SentHistory, prompt: Prompt, now: float) -> list[str]:
    """Return where the deepest boundary of a prompt was sent, latest first."""
    found = history.find(prompt, now)
    return [] if found is None else [sent.worker for sent in found.holders]


def computed(history: SentHistory, prompt: Prompt, worker: str, now: float) -> SentPrompt:
    """Send a prompt to a worker, which computes it at once."""
    sent = history.record(prompt, worker, now)
    history.computed(sent, now, now)
    return sent


def test_history_finds_the_deepest_boundary() -> None:
    """A prompt finds where its longest sent part went, and whether that is computed."""
    history = SentHistory()
    history.record(prompt_of(SHARED), "w1", 0.0)
    found = history.find(prompt_of(SHARED + b"more" * 200), 1.0)
    assert found is not None
    assert ([sent.worker for sent in found.holders], found.boundary) == (["w1"], 2)
    assert found.holders[0].done_at == float("inf")
    assert history.find(prompt_of(text_of("other", 1000)), 1.0) is None


def test_history_keeps_who_has_computed() -> None:
    """Sending a text elsewhere does not hide that a worker has it; once the other one has computed it, both do."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    computed(history, prompt, "w1", 0.0)
    second = history.record(prompt, "w2", 1.0)
    assert holders(history, prompt, 1.0) == ["w1"]
    history.computed(second, 2.0, 2.0)
    assert holders(history, prompt, 2.0) == ["w2", "w1"]


def test_history_knows_when_each_copy_was_used_last() -> None:
    """Whatever goes on from a text uses the copy of the worker that it is sent to, and no other."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    for used, worker in ((1, "w1"), (2, "w2")):
        sent = history.record(prompt, worker, 0.0, held_share=0.0, used=used)
        history.computed(sent, 0.0, 0.0)

    def used() -> dict[str, int]:
        found = history.find(prompt, 1.0)
        assert found is not None
        return {sent.worker: sent.used for sent in found.holders}

    assert used() == {"w1": 1, "w2": 2}
    history.record(prompt_of(SHARED + b"more" * 200), "w1", 1.0, used=5)
    assert used() == {"w1": 5, "w2": 2}
    history.record(prompt, "w2", 1.0, used=7)
    assert used() == {"w1": 5, "w2": 7}


def test_history_knows_who_else_has_computed() -> None:
    """Not the worker itself, and nobody who is only just computing; the deepest part that another one has counts."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    longer = prompt_of(SHARED + text_of("more", 4000))
    computed(history, longer, "w1", 0.0)
    assert history.computed_elsewhere(longer, "w1", 1.0) is None
    history.record(longer, "w2", 1.0)
    assert history.computed_elsewhere(longer, "w1", 1.0) is None
    computed(history, prompt, "w2", 2.0)
    found = history.computed_elsewhere(longer, "w1", 3.0)
    assert found is not None
    assert (found[1].worker, longer.ends[found[0]] <= prompt.size) == ("w2", True)
    found = history.computed_elsewhere(longer, "w3", 3.0)
    assert found is not None
    assert (found[1].worker, found[0]) == ("w1", len(longer.ends) - 1)


def test_history_knows_where_a_text_is_being_brought() -> None:
    """A text that goes to a worker without it is on its way there, though another has it; who has it adds nothing."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    computed(history, prompt, "w1", 0.0)
    history.record(prompt, "w1", 1.0)
    assert holders(history, prompt, 1.0) == ["w1"]
    brought = history.record(prompt, "w2", 1.0, held_share=0.0)
    history.record(prompt, "w2", 1.5, held_share=0.0)
    assert holders(history, prompt, 2.0) == ["w2", "w1"]
    history.withdraw(brought)
    assert holders(history, prompt, 2.0) == ["w1"]


def test_history_tells_all_boundaries_at_once_that_a_prompt_is_computed() -> None:
    """What was entered when a prompt was sent counts as computed at each boundary, the earliest time of all told."""
    history, prompt = SentHistory(), prompt_of(text_of("long", 20_000))
    sent = history.record(prompt, "w1", 0.0)
    for told in (3.0, 2.0, 4.0):
        history.computed(sent, 5.0, told)
    for size in (3_000, 12_000, 20_000):
        found = history.find(prompt_of(text_of("long", 20_000)[:size] + b"x" * 300), 5.0)
        assert found is not None
        assert [one.done_at for one in found.holders] == [2.0]


def test_history_knows_where_a_text_overflowed_to() -> None:
    """A text that went to several workers is remembered at the latest few of them."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    for number in range(6):
        history.record(prompt, f"w{number}", float(number))
    assert holders(history, prompt, 6.0) == ["w5", "w4", "w3", "w2"]


def test_history_of_what_was_answered_again_counts_from_then_on() -> None:
    """What was computed long ago may have been evicted since: a new answer says more, one of a moment ago does not."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    for now in (0.0, 1.0, ANSWERED_S + 1.0):
        computed(history, prompt, "w1", now)
        found = history.find(prompt, now)
        assert found is not None
        assert [one.computed_at for one in found.holders] == [0.0 if now <= ANSWERED_S else now]


def test_history_of_a_text_that_enough_workers_have_stays_as_it_is() -> None:
    """A hot text that more workers compute than are remembered writes nothing, until what is known grows old."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    for number in range(HOLDERS_MAX):
        computed(history, prompt, f"w{number}", 0.0)
    computed(history, prompt, "w9", 1.0)
    assert holders(history, prompt, 1.0) == ["w3", "w2", "w1", "w0"]
    computed(history, prompt, "w9", TTL_S / 2 + 1)
    assert holders(history, prompt, TTL_S / 2 + 1) == ["w9", "w3", "w2", "w1"]


def test_history_in_use_does_not_grow_old() -> None:
    """A text that one worker gets again and again is still known after the time to live."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    for now in range(0, int(3 * TTL_S), 100):
        computed(history, prompt, "w1", float(now))
    assert holders(history, prompt, 3 * TTL_S) == ["w1"]


def test_history_withdraws_what_was_not_computed() -> None:
    """A failed request leaves nothing, at no boundary; what was there before comes back."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    history.withdraw(history.record(prompt, "w1", 0.0))
    assert history.find(prompt, 0.0) is None
    history.record(prompt, "w1", 1.0)
    history.withdraw(history.record(prompt, "w2", 2.0))
    assert holders(history, prompt, 2.0) == ["w1"]


@pytest.mark.parametrize("told_first", [True, False])
@pytest.mark.parametrize("failed_first", [True, False])
def test_history_keeps_what_another_request_has_shown(failed_first: bool, told_first: bool) -> None:
    """Of two requests with one text at one worker only the bad one is undone, whichever was sent and told of first."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    sent = [history.record(prompt, "w1", 0.0) for _ in range(2)]
    bad, good = sent if failed_first else reversed(sent)
    for one in (bad, good) if told_first else (good, bad):
        history.computed(one, 1.0, 1.0)
    history.withdraw(bad)
    history.computed(good, 2.0, 2.0)
    assert holders(history, prompt, 3.0) == ["w1"]


def test_history_keeps_nothing_of_an_ended_placement_but_its_places() -> None:
    """A prompt's digests are not held on to; what was added is found, and worker events that are late add nothing."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    computed(history, prompt, "w1", 0.0)
    sent = history.record(prompt, "w2", 1.0)
    history.ended(sent)
    history.computed(sent, 2.0, 2.0)
    assert not sent.digests
    assert holders(history, prompt, 2.0) == ["w1"]


def test_history_forgets_by_age_and_by_worker() -> None:
    """What was sent long ago, or to a worker whose cache is gone, is not believed; other holders still are."""
    history, prompt = SentHistory(), prompt_of(SHARED)
    history.record(prompt, "w1", 0.0)
    assert history.find(prompt, TTL_S + 1) is None
    history.forget_worker("w1", 5.0)
    assert history.find(prompt, 6.0) is None
    computed(history, prompt, "w1", 7.0)
    computed(history, prompt, "w2", 7.0)
    assert holders(history, prompt, 8.0) == ["w2", "w1"]
    history.forget_worker("w2", 8.0)
    assert holders(history, prompt, 9.0) == ["w1"]


def test_history_is_bounded() -> None:
    """Neither many prompts nor a long one fill it, and a long one is found by its shared part."""
    history = SentHistory(entries_max=200)
    for number in range(100):
        history.record(prompt_of(text_of(f"text {number}", 1000)), "w", 0.0)
    assert len(history._entries) == 200
    long = text_of("long", 100_000)
    history.record(prompt_of(long), "w1", 0.0)
    assert sum(sent[0].worker == "w1" for sent in history._entries.values()) <= PER_PROMPT_MAX
    found = history.find(prompt_of(long[:-2000] + b"x" * 500), 0.0)
    assert found is not None
    assert found.boundary > 370


def test_history_of_long_prompts_of_any_length_is_at_the_same_places() -> None:
    """A long prompt that begins like another one, and ends elsewhere, enters only what is its own."""
    history, text = SentHistory(), text_of("long", 200 << 10)
    computed(history, prompt_of(text), "w1", 0.0)
    before = len(history._entries)
    history.record(prompt_of(text[: 130 << 10] + b"x" * 3000), "w1", 1.0)
    assert len(history._entries) <= before + 2


@given(st.integers(1, 20 * PER_PROMPT_MAX), st.sets(st.integers(0, 20 * PER_PROMPT_MAX - 1), max_size=5))
def test_long_prompt_is_remembered_at_some_boundaries_in_order(many: int, sections: set[int]) -> None:
    """Every so many, which are a power of two, and the ends of its sections; of a short one all are."""
    digests = [number.to_bytes(4, "big") for number in range(many)]
    marks = [(SectionType.DOC, number) for number in sorted(sections) if number < many]
    ends = [GRID_BYTES * (number + 1) for number in range(many)]
    sent = SentHistory().record(Prompt(ends, digests, marks, b"", None), "w1", 0.0)
    stride = next(1 << n for n in range(9) if (PER_PROMPT_MAX << n) >= many)
    kept = {number for number in range(many) if (number + 1) % stride == 0} | {number for _, number in marks}
    assert list(sent.digests) == [digests[number] for number in sorted(kept)]
