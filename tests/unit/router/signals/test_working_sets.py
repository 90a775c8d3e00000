"""What has its home at a worker, and what a prompt costs others in caches that have room, and that have none."""

from __future__ import annotations

import pytest

from ghostcacher_router.signals.working_sets import (
    CROWDED,
    Displacement,
    Room,
    WorkingSets,
    displacements,
    may_crowd,
    older_copies,
)

CAPACITY, DOCUMENT, REGRET = 320.0, 64, 0.5
USUAL, DEAR = Displacement(REGRET), Displacement(0.0, CROWDED + REGRET)


def rooms(*documents: int, home: int | None = None) -> list[Room]:
    """Return caches in which so many documents have their homes. home: of the prompt's document; None when new."""
    own = [float(DOCUMENT) if number == home else 0.0 for number in range(len(documents))]
    return [Room(f"w{at}", CAPACITY, count * DOCUMENT, own[at]) for at, count in enumerate(documents)]


def prices(found: list[Room]) -> list[Displacement]:
    assert may_crowd(found, DOCUMENT)
    return prices_of(found)


def prices_of(found: list[Room]) -> list[Displacement]:
    costs = displacements(found, DOCUMENT, REGRET)
    return [costs[room.worker] for room in found]


def test_new_text_does_not_go_where_it_would_crowd() -> None:
    """A fifth document has no room beside four, and a fourth has."""
    assert prices(rooms(4, 3, 4)) == [DEAR, USUAL, DEAR]


def test_what_is_at_home_in_a_crowded_cache_moves_to_where_there_is_room() -> None:
    """It pays at home, there or evicted, and nothing more where there is room."""
    assert prices(rooms(5, 3, 4, home=0)) == [DEAR, USUAL, DEAR]


def test_what_is_at_home_stays_where_all_caches_are_full() -> None:
    """A copy or a move would crowd another cache."""
    assert prices(rooms(4, 4, 4, home=0)) == [USUAL, DEAR, DEAR]


@pytest.mark.parametrize("found", [rooms(5, 5, 4, home=0), rooms(4, 4, 4)])
def test_more_than_fits_costs_the_average(found: list[Room]) -> None:
    """Some cache is crowded wherever the prompt goes."""
    assert prices_of(found) == [USUAL] * 3


def test_nobody_looks_for_homes_where_nothing_is_crowded_or_all_is() -> None:
    assert not may_crowd(rooms(2, 1, 0), DOCUMENT)
    assert not may_crowd(rooms(5, 5, 4), DOCUMENT)
    assert not may_crowd(rooms(4, 3, 4), int(CAPACITY) // 8), "a small prompt"
    assert not may_crowd([room._replace(capacity=0.0) for room in rooms(1, 0, 0)], DOCUMENT)


def test_home_is_where_a_text_was_sent_last() -> None:
    sets = WorkingSets()
    home = sets.move(None, "a")
    assert (home.repeated, sets.size("a")) == (False, 1.0)
    home = sets.move(home, "b")
    assert (home.repeated, sets.size("a"), sets.size("b")) == (True, 0.0, 1.0)
    sets.forget(home)
    assert sets.size("b") == 0.0
    assert sets.once_share == 1.0


def test_what_was_asked_for_once_counts_as_much_as_comes_again() -> None:
    """Of four texts one was asked for again and three were forgotten: a fifth counts for a quarter."""
    sets = WorkingSets()
    sets.move(sets.move(None, "a"), "a")
    for _ in range(3):
        sets.forget(sets.move(None, "a"))
    assert sets.size("b") == 0.0
    home = sets.move(None, "b")
    assert sets.size("b") == sets.weight(home) == 0.25
    assert sets.size("a") == 1.0
    sets.fade()
    assert sets.once_share == 0.25
    sets.clear()
    assert sets.size("a") == sets.size("b") == 0.0


def test_older_copy_costs_what_keeping_it_takes() -> None:
    """In proportion to how long it was not used, and no more than bringing it anew; the latest one costs nothing."""
    assert older_copies({"w0": 900, "w1": 700, "w2": 10}, 2.0, 400) == {
        "w1": Displacement(1.0, 1.0),
        "w2": Displacement(0.0, 2.0),
    }
    assert older_copies({"w0": 900}, 2.0, 400) == {}
    assert older_copies({}, 2.0, 0) == {}
