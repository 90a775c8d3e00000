"""Prompts that wait for what engines make of them."""

from __future__ import annotations

from ghostcacher_router.prefix_map import PendingPrompts
from ghostcacher_router.types import Prompt
from tests.support.prompt_segments import Segment, make_prompt


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def prompt(boundaries: int) -> Prompt:
    return make_prompt([Segment(0, 1024 * boundaries, 1)])


def test_prompt_is_there_until_it_is_taken() -> None:
    """An engine tells twice: the first look leaves it, the second takes it."""
    pending, one = PendingPrompts(), prompt(3)
    pending.put("r", one)
    assert pending.get("r") is pending.get("r") is one
    assert pending.pop("r") is one
    assert pending.get("r") is pending.pop("r") is None
    assert repr(pending) == "PendingPrompts(prompts=0, boundaries=0)"


def test_same_id_is_one_request() -> None:
    """A second try, of the same prompt, takes the place of the first."""
    pending, again = PendingPrompts(), prompt(3)
    pending.put("r", prompt(3))
    pending.put("r", again)
    assert pending.get("r") is again
    assert repr(pending) == "PendingPrompts(prompts=1, boundaries=3)"


def test_id_of_two_prompts_is_nobodys() -> None:
    """Whose chain an engine tells under it cannot be known, until long after the last one was put."""
    clock = Clock()
    pending = PendingPrompts(ttl_s=10, clock=clock)
    pending.put("r", prompt(3))
    pending.put("r", prompt(2))
    clock.now = 9
    pending.put("r", prompt(2))
    assert (pending.get("r"), pending.is_ambiguous("r"), len(pending)) == (None, True, 0)
    clock.now = 18
    assert pending.is_ambiguous("r")
    clock.now = 19
    pending.put("r", prompt(2))
    assert (pending.get("r") is None, pending.is_ambiguous("r")) == (False, False)


def test_ambiguous_ids_are_bounded() -> None:
    """Clients make them up; the oldest are forgotten."""
    pending = PendingPrompts(prompts_max=3)
    for number in range(10):
        pending.mark_ambiguous(f"r{number}")
    assert [number for number in range(10) if pending.is_ambiguous(f"r{number}")] == [7, 8, 9]


def test_oldest_are_forgotten_beyond_the_limit_of_prompts() -> None:
    """However many requests are never answered."""
    pending = PendingPrompts(prompts_max=3)
    for number in range(10):
        pending.put(f"r{number}", prompt(1))
    assert [number for number in range(10) if pending.get(f"r{number}")] == [7, 8, 9]
    assert repr(pending) == "PendingPrompts(prompts=3, boundaries=3)"


def test_oldest_are_forgotten_beyond_the_limit_of_boundaries() -> None:
    """Large prompts count by their size, and one that is larger than all may be is not kept."""
    pending = PendingPrompts(boundaries_max=10)
    pending.put("a", prompt(6))
    pending.put("b", prompt(6))
    pending.put("c", prompt(11))
    assert pending.get("a") is pending.get("c") is None
    assert pending.get("b") is not None
    assert repr(pending) == "PendingPrompts(prompts=1, boundaries=6)"


def test_prompt_is_forgotten_after_its_time() -> None:
    """To whoever asks at once, and by memory with the next one put."""
    clock = Clock()
    pending = PendingPrompts(ttl_s=10, clock=clock)
    pending.put("a", prompt(1))
    clock.now = 10
    assert pending.get("a") is pending.pop("a") is None
    pending.put("b", prompt(1))
    clock.now = 20
    pending.put("c", prompt(1))
    assert len(pending) == 1
