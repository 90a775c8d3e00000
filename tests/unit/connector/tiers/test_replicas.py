"""Which blocks a worker has to keep for the fleet's sake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import PrefixHit
from ghostcacher_connector.tiers.replicas import Replicas

ROOT = b"root"
WORKERS = ("a", "b", "c", "d", "e")


def hits(held: dict[str, int], reader: str) -> list[PrefixHit]:
    """Return what a reader is told of what the others hold."""
    return [PrefixHit(worker, b"i", length, ()) for worker, length in held.items() if worker != reader and length]


def keepers(held: dict[str, int], block: int, replicas_min: int) -> list[str]:
    """Return the holders of a block that keep it."""
    found = []
    for worker, length in held.items():
        kept_from = Replicas(worker, replicas_min).kept_from(ROOT, hits(held, worker))
        if length > block and kept_from is not None and block >= kept_from:
            found.append(worker)
    return found


@given(held=st.fixed_dictionaries(dict.fromkeys(WORKERS, st.integers(0, 4))), replicas_min=st.integers(1, 6))
def test_as_many_holders_keep_a_block_as_are_to_have_it(held: dict[str, int], replicas_min: int) -> None:
    """All of them, where there are fewer; never more, while all see the same."""
    for block in range(4):
        holders = sum(length > block for length in held.values())
        assert len(keepers(held, block, replicas_min)) == min(replicas_min, holders)


def test_no_worker_keeps_all_prompts() -> None:
    """Each has its part of those that all hold."""
    roots = [b"%d" % number for number in range(400)]
    held = dict.fromkeys(WORKERS, 1)
    kept = {one: sum(Replicas(one, 1).kept_from(root, hits(held, one)) == 0 for root in roots) for one in WORKERS}
    assert sum(kept.values()) == len(roots)
    assert min(kept.values()) > len(roots) / len(WORKERS) / 2


def test_worker_that_knows_of_nobody_keeps_what_it_has() -> None:
    assert Replicas("a", 1).kept_from(ROOT, ()) == 0


@pytest.mark.parametrize("others", [0, 3])
def test_nothing_is_kept_when_no_copies_are_wanted(others: int) -> None:
    held = dict.fromkeys(WORKERS[: others + 1], 2)
    assert Replicas("a", 0).kept_from(ROOT, hits(held, "a")) is None


def test_holders_that_there_are_not_cost_one_copy_its_protection() -> None:
    """Whoever can write to the index can say that others have it: the block is then one like any other."""
    lies = [PrefixHit(f"liar-{number}", b"i", 1 << 40, ()) for number in range(64)]
    assert Replicas("a", 1).kept_from(ROOT, lies) == 1 << 40
