"""Which of a worker's blocks an order drops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.coordination.flushes import ORDER_BYTES, FlushOrder
from ghostcacher_connector.core.types import FlushScope, SectionType
from ghostcacher_connector.publish.block_notes import SWEEP_MIN, BlockNotes, Note

TOOLS, SYS, DOC, SESSION, USER = SectionType


def order(scope: str, blocks: Iterable[str] = (), session: bytes = b"") -> FlushOrder:
    return FlushOrder(bytes(ORDER_BYTES), scope, tuple(block.encode() for block in blocks), session, "router-1")


def note(
    notes: BlockNotes, chain: Sequence[str], sections: Sequence[SectionType], session: bytes | None = None
) -> None:
    """Note a chain of blocks. Those of SESSION and USER are the session's."""
    parent = None
    for block, section in zip(chain, sections, strict=True):
        own = session if section in (SESSION, USER) else None
        notes.put(block.encode(), Note(parent, section, own))
        parent = block.encode()


def doomed(notes: BlockNotes, wanted: FlushOrder, held: str) -> str:
    """Return which of the held blocks go, each a letter."""
    return "".join(sorted(block.decode() for block in notes.doomed(wanted, {letter.encode() for letter in held})))


@pytest.fixture
def notes() -> BlockNotes:
    """Tools t; system s; documents d, e with the sessions a (A, B) and c (C) on d; x is a prompt without tools."""
    notes = BlockNotes()
    note(notes, "tsdfAB", [TOOLS, SYS, DOC, DOC, SESSION, USER], b"a")
    note(notes, "tsdfC", [TOOLS, SYS, DOC, DOC, USER], b"c")
    note(notes, "tse", [TOOLS, SYS, DOC])
    note(notes, "xy", [DOC, USER])
    return notes


HELD = "tsdfABCexy"


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        (order("all"), HELD),
        (order("tools"), "tsdfABCe"),
        (order("session", session=b"a"), "AB"),
        (order("session", session=b"c"), "C"),
        (order("session", session=b"nobody"), ""),
        (order("doc", "f"), "dfABC"),
        (order("doc", "df"), "dfABC"),
        (order("doc", "e"), "e"),
        (order("prefix", "B"), "AB"),
        (order("prefix", "f"), "dfABC"),
        (order("prefix", "y"), "xy"),
        (order("prefix", "sd"), "tsdfABCe"),
        (order("prefix", "z"), ""),
        (order("of a later version"), ""),
    ],
)
def test_order_drops_what_it_names_and_what_is_of_no_use_without(
    notes: BlockNotes, wanted: FlushOrder, gone: str
) -> None:
    """What others share stays."""
    assert doomed(notes, wanted, HELD) == "".join(sorted(gone))


def test_blocks_after_a_gap_go_with_what_was_before_it(notes: BlockNotes) -> None:
    """The engine has evicted the document: what followed it is named by its chain all the same."""
    assert doomed(notes, order("tools"), "tsAB") == "ABst"
    assert doomed(notes, order("prefix", "s"), "sABx") == "ABs"


def test_document_goes_from_its_beginning_and_leaves_what_was_before(notes: BlockNotes) -> None:
    """Nothing else follows the system text any more; other documents will."""
    assert doomed(notes, order("doc", "f"), "tsdf") == "df"
    assert doomed(notes, order("prefix", "f"), "tsdf") == "dfst"


def test_blocks_of_which_nothing_is_known_go_with_everything_alone(notes: BlockNotes) -> None:
    """They were published by somebody who keeps no notes."""
    assert doomed(notes, order("tools"), "txz") == "t"
    assert doomed(notes, order("session", session=b"a"), "z") == ""
    assert doomed(notes, order("all"), "z") == "z"
    assert doomed(notes, order("prefix", "z"), "z") == "z"


def test_notes_of_blocks_that_are_gone_are_swept() -> None:
    """Not before there are twice as many notes as after the last sweep."""
    notes = BlockNotes()
    for number in range(SWEEP_MIN):
        assert not notes.sweep_due
        notes.put(b"%d" % number, Note(None, DOC, None))
    assert notes.sweep_due
    notes.sweep({b"%d" % number for number in range(SWEEP_MIN - 10)})
    assert (len(notes), notes.sweep_due) == (SWEEP_MIN - 10, False)


@given(data=st.data(), parents=st.lists(st.integers(-1, 30), min_size=1, max_size=30))
def test_what_goes_is_closed_downwards_and_nothing_shared_is_lost(data: st.DataObject, parents: list[int]) -> None:
    """In any forest: all that follow go, and of those before, those only that nothing that stays follows."""
    notes, count = BlockNotes(), len(parents)
    parents = [min(parent, number - 1) for number, parent in enumerate(parents)]
    blocks = [b"%d" % number for number in range(count)]
    for number, parent in enumerate(parents):
        notes.put(blocks[number], Note(None if parent < 0 else blocks[parent], DOC, None))
    named = data.draw(st.sets(st.sampled_from(range(count)), max_size=4))
    wanted = FlushOrder(
        bytes(ORDER_BYTES), FlushScope.PREFIX.value, tuple(blocks[number] for number in named), b"", "r"
    )
    gone = {blocks.index(block) for block in notes.doomed(wanted, set(blocks))}
    assert named <= gone
    for number, parent in enumerate(parents):
        assert number in gone or parent not in gone, "what follows goes"

    def leads_from(number: int) -> bool:
        while number >= 0:
            if number in named:
                return True
            number = parents[number]
        return False

    followers = {number: {child for child in range(count) if parents[child] == number} for number in range(count)}
    for number in gone:
        assert leads_from(number) or (followers[number] and followers[number] <= gone), "nothing else goes"
    for number in set(range(count)) - gone:
        assert not followers[number] or not followers[number] <= gone, "what nothing follows any more goes"
