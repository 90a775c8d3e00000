"""What one prompt and its chain change in the prefix map, given what is known: each rule by itself."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_router.prefix_map.map_update import NO_BLOCKS, Claim, changed_claims
from ghostcacher_router.types import Prompt

COUNTS = tuple(range(8, 81, 8))


def claim(blocks: int, tag: str = "this") -> Claim:
    return Claim(blocks, f"{tag} {blocks}".encode())


def changes(ends: Sequence[int], known: Sequence[Claim | None], *, last: int | None = None) -> dict[int, Claim]:
    """Learn from a prompt of 80 blocks, one byte a block."""
    counts = COUNTS if last is None else (*(count for count in COUNTS if count < last), last)
    prompt = Prompt(ends, [bytes(16)] * len(ends), (), b"", None)
    return changed_claims(
        prompt,
        [one and one.pack() for one in known],
        PromptChain("r", 16 * counts[-1], counts, tuple(claim(n).block_hash for n in counts)),
    )


def test_unknown_boundaries_get_their_share_rounded_down() -> None:
    """One that says no more than the one before it is not entered at all."""
    assert changes([7, 20, 23, 40, 80], [None] * 5) == {1: claim(16), 3: claim(40), 4: claim(80)}


def test_agreement_changes_nothing() -> None:
    """Neither up nor down, whatever the new estimate is."""
    assert changes([20, 40, 80], [claim(8), claim(48), claim(80)]) == {}


def test_count_that_the_chain_lacks_is_taken_down_to_one_that_it_has() -> None:
    """The end of a turn has an uneven count; the next turn keeps all even ones of it."""
    assert changes([21, 80], [claim(21), claim(80)]) == {0: claim(16)}


def test_claim_deeper_than_a_whole_prompt_is_taken_down_to_its_estimate() -> None:
    """The prompt is shorter than what its beginning was thought to have."""
    assert changes([40, 80], [claim(96, "other"), None], last=80) == {0: claim(40), 1: claim(80)}


def test_overshot_claim_is_halved_towards_the_boundary_before() -> None:
    """Repeated, this meets the truth between both."""
    known = [claim(16), claim(64, "other"), None]
    assert changes([16, 70, 80], known) == {1: claim(40), 2: claim(80)}


def test_overshot_claim_is_taken_down_to_the_new_estimate() -> None:
    """If that is less."""
    known = [claim(16), claim(64, "other"), None]
    assert changes([16, 24, 80], known) == {1: claim(24), 2: claim(80)}


def test_overshot_claim_of_the_first_count_has_no_blocks_from_then_on() -> None:
    """It is remembered as having no blocks, so that the next prompt does not claim it again."""
    assert changes([10, 80], [claim(8, "other"), None]) == {0: NO_BLOCKS, 1: claim(80)}
    known = changes([10, 80], [NO_BLOCKS, claim(80)])
    assert known == {}


def test_boundary_has_no_less_than_an_agreed_one_before_it() -> None:
    """It contains its text, however small its own estimate."""
    known = [claim(40), claim(64, "other"), claim(8), None]
    found = changes([4, 5, 6, 80], known)
    assert found == {1: claim(40), 2: claim(40), 3: claim(80)}


def test_new_claim_is_no_deeper_than_what_is_known_behind_it() -> None:
    """What a longer text is known to have, a shorter one cannot exceed."""
    assert changes([60, 70, 80], [None, claim(24), None]) == {0: claim(24), 2: claim(80)}


def test_new_claim_is_lowered_when_one_behind_it_is_found_to_overshoot() -> None:
    """The changes of one prompt ascend."""
    found = changes([16, 64, 66, 80], [claim(16), None, claim(32, "other"), None])
    assert found == {1: claim(24), 2: claim(24), 3: claim(80)}


def test_text_whose_blocks_are_all_others_is_learned_anew() -> None:
    """All but the first, which is halved, and what says nothing new is overwritten, too."""
    known = [claim(16, "old"), claim(32, "old"), claim(40, "old"), claim(64, "old"), None]
    assert changes([16, 32, 33, 64, 80], known) == {
        0: claim(8),
        1: claim(32),
        2: claim(32),
        3: claim(64),
        4: claim(80),
    }


def test_text_of_which_some_is_agreed_on_is_not_learned_anew() -> None:
    """Then what fails has overshot."""
    known = [claim(16), claim(48, "old"), claim(64, "old"), None]
    found = changes([16, 48, 64, 80], known)
    assert found == {1: claim(32), 2: claim(48), 3: claim(80)}


def test_text_of_which_a_later_boundary_holds_is_not_learned_anew() -> None:
    """Wherever it is that the chain agrees."""
    known = [claim(16, "old"), claim(32), claim(64, "old"), None]
    assert changes([16, 60, 64, 80], known) == {0: claim(8), 2: claim(48), 3: claim(80)}


def test_agreed_claims_that_do_not_ascend_are_lifted() -> None:
    """Two routers may have learned them."""
    assert changes([40, 50, 80], [claim(40), claim(16), claim(80)]) == {1: claim(40)}
