"""The orderings of the host tier under full load, and the proof that this torture would notice if one were broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.connector.tier_torture import MUTATIONS, run_down, run_up
from tests.integration.connector.torture import Tally, run

WAYS: dict[str, Callable[[int, str | None], Tally]] = {"down": run_down, "up": run_up}


def check(tally: Tally) -> None:
    assert tally.bad == 0, tally
    assert tally.failed_pulls == 0, tally
    assert tally.stale > 0, f"the writer was too slow to prove anything: {tally}"
    assert tally.accepted > 0, f"the writer was too fast to prove anything: {tally}"


@pytest.mark.parametrize("way", WAYS)
def test_slots_reused_at_full_speed_never_get_a_torn_or_stale_block_accepted(way: str) -> None:
    """Copied down while the engine reuses its slots, loaded while host slots are given away: what counts is whole."""
    check(WAYS[way](3000, None))


@pytest.mark.parametrize(("kind", "pulls"), [("nixl", 3000), ("relay", 800)])
def test_host_slots_that_a_copier_refills_never_get_a_torn_block_accepted(kind: str, pulls: int) -> None:
    """The owner, a process of its own, copies into host slots at full speed, while a reader READs them."""
    check(run(pulls, kind=kind, threads=2, host=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_copy_is_noticed(way: str, mutation: str) -> None:
    """The seal read before the rows, the bump late or left out, no comparison, wrong addresses: bad blocks are seen."""
    notice(mutation, lambda: WAYS[way](1000, mutation))


@pytest.mark.parametrize("mutation", ["seal-first", "bump-last", "swapped"])
def test_broken_pull_of_host_slots_is_noticed(mutation: str) -> None:
    """The same for peers that READ host slots."""
    notice(mutation, lambda: run(1000, mutate=mutation, host=True))


def notice(mutation: str, once: Callable[[], Tally]) -> None:
    for _ in range(8):
        if once().bad > 0:
            return
    pytest.fail(f"{mutation}: no torn or stale block was seen; the torture proves nothing")
