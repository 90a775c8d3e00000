"""What many prompts begin with."""

from __future__ import annotations

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.signals.hot_prefixes import HALF_LIFE_S, UNSEEN_MAX, HotPrefixes
from ghostcacher_router.types import Prompt
from tests.support.index_parts import FakeClock
from tests.support.routing_sim import prompt_of

SYSTEM = b"s" * 2000
DOCUMENT = b"d" * 3000


def prompt(question: str, system: bytes = SYSTEM, document: bytes = DOCUMENT) -> Prompt:
    ends = [(SectionType.SYS, len(system)), (SectionType.DOC, len(system + document))]
    return prompt_of(system + document + question.encode(), ends)


def found(hot: HotPrefixes, per_type: int = 10) -> list[tuple[str, int, float]]:
    return [(one.section.name, one.size, round(one.uses, 3)) for one in hot.hottest(per_type)]


def test_common_beginnings_are_the_hottest() -> None:
    """Each end of a section counts for itself: the system text of two documents is hotter than either."""
    hot = HotPrefixes(FakeClock())
    for number in range(3):
        hot.note(prompt(f"question {number}"))
    hot.note(prompt("other", document=b"e" * 3000))
    hot.settle()
    assert found(hot)[:2] == [("SYS", 2000, 4.0), ("DOC", 5000, 3.0)]
    assert hot.seen == 4
    assert len(found(hot, per_type=1)) == 3


def test_uses_fade() -> None:
    """What was hot is colder than what is: half after a half-life."""
    clock = FakeClock()
    hot = HotPrefixes(clock)
    for _ in range(4):
        hot.note(prompt("q"))
    hot.settle()
    clock.advance(HALF_LIFE_S)
    hot.note(prompt("q"))
    hot.settle()
    assert {uses for *_, uses in found(hot)} == {3.0}
    clock.advance(HALF_LIFE_S)
    assert hot.hottest(1)[0].heat(clock.now) == 1.5


def test_only_so_much_is_kept() -> None:
    """Of a burst the last prompts are looked at; of many prefixes the hotter half stays."""
    hot = HotPrefixes(FakeClock(), prefixes_max=50)
    for number in range(UNSEEN_MAX + 40):
        hot.note(prompt(f"{number}"))
    hot.settle()
    assert hot.seen == UNSEEN_MAX
    assert found(hot)[0] == ("SYS", 2000, float(UNSEEN_MAX))
    assert sum(1 for _ in hot.hottest(1000)) == 25
    hot.clear()
    assert found(hot) == []


def test_prompt_without_text_of_it() -> None:
    """What is kept holds no text, and what it shows of itself neither."""
    hot = HotPrefixes(FakeClock())
    hot.note(prompt("secret"))
    hot.settle()
    assert "secret" not in repr(hot.hottest(9)) + repr(hot)
