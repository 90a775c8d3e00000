"""The two orderings of the seal under full load, and the proof that this torture would notice if one were broken."""

from __future__ import annotations

import pytest

from tests.integration.connector.torture import MUTATIONS, run


@pytest.mark.parametrize(("kind", "pulls", "threads"), [("nixl", 3000, 2), ("relay", 800, 2)])
def test_writer_at_full_speed_never_gets_a_torn_or_stale_block_accepted(kind: str, pulls: int, threads: int) -> None:
    """Thousands of pulls from slots that are being rewritten: every accepted block is whole and current."""
    tally = run(pulls, kind=kind, threads=threads)
    assert tally.bad == 0, tally
    assert tally.failed_pulls == 0, tally
    assert tally.stale > 0, f"the writer was too slow to prove anything: {tally}"
    assert tally.accepted > 0, f"the writer was too fast to prove anything: {tally}"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_ordering_is_noticed(mutation: str) -> None:
    """With the seal read before the data, or the bump after the overwrite, bad blocks are accepted, and seen."""
    for _ in range(8):
        if run(1000, mutate=mutation).bad > 0:
            return
    pytest.fail(f"{mutation}: no torn or stale block was seen; the torture proves nothing")
