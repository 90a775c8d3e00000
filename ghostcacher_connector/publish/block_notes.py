"""What is known of the blocks that this worker holds beside where they are: enough to drop some of them on order.

A note says which block comes before a block, what it belongs to, and in which session. It stays as long as any tier
holds the block, and a while longer: notes are swept when there are many more of them than blocks.

Written by the scheduler's thread alone. `doomed` may run on another thread while nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ghostcacher_connector.core.coordination.flushes import FlushOrder
from ghostcacher_connector.core.types import BlockHash, FlushScope, SectionType

SWEEP_MIN = 4_096
"""Fewer notes than these are not worth a sweep."""


class Note(NamedTuple):
    """What is known of one block."""

    parent: BlockHash | None
    """The block before it; None for the first one of a chain."""
    section: SectionType
    """What it belongs to, by the last request that had it published."""
    session: bytes | None
    """The tag of the session that it belongs to; None for what sessions share, and when not known."""


class BlockNotes:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._notes: dict[BlockHash, Note] = {}
        self._sweep_at = SWEEP_MIN

    def __repr__(self) -> str:
        return f"BlockNotes({len(self)})"

    def __len__(self) -> int:
        return len(self._notes)

    def put(self, block: BlockHash, note: Note) -> None:
        """Note a block that is about to be published."""
        self._notes[block] = note

    def put_first(self, block: BlockHash, note: Note) -> None:
        """Note a block of which nothing is noted yet."""
        self._notes.setdefault(block, note)

    def copy(self) -> BlockNotes:
        """Return the same notes for another thread: some 10 ms for a million."""
        other = BlockNotes()
        other._notes = self._notes.copy()
        return other

    @property
    def sweep_due(self) -> bool:
        """Whether `sweep` is worth its time: the number of notes has doubled since the last one."""
        return len(self._notes) >= self._sweep_at

    def sweep(self, held: Collection[BlockHash]) -> None:
        """Forget all but the blocks that are held. Some 0.1 us a note, twice for each block over its life at most."""
        self._notes = {block: note for block, note in self._notes.items() if block in held}
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._notes))

    def doomed(self, order: FlushOrder, held: Collection[BlockHash], also: Iterable[BlockHash] = ()) -> set[BlockHash]:
        """Return which of the held blocks an order drops. About 1 us a held block. also: held ones that it names, too.

        These are the blocks that it names and all that follow them, since nothing can use a block without those before
        it. A prompt and a document are named by some of their blocks: those before them go, too, up to the first one
        that something else follows, and of a document up to its beginning.
        """
        if order.scope == FlushScope.ALL.value:
            return set(held)
        if order.scope == FlushScope.TOOLS.value:
            named = {block for block in held if self._section_of(block) is SectionType.TOOLS}
        elif order.scope == FlushScope.SESSION.value:
            named = {block for block in held if (note := self._notes.get(block)) and note.session == order.session}
        else:
            named = {block for block in order.blocks if block in held}
        doomed = self._with_followers(named.union(also), held)
        if order.scope == FlushScope.PREFIX.value:
            return self._with_lone_parents(doomed, held, within=None)
        if order.scope == FlushScope.DOC.value:
            return self._with_lone_parents(doomed, held, within=SectionType.DOC)
        return doomed

    def _section_of(self, block: BlockHash) -> SectionType | None:
        note = self._notes.get(block)
        return None if note is None else note.section

    def _parent_of(self, block: BlockHash) -> BlockHash | None:
        note = self._notes.get(block)
        return None if note is None else note.parent

    def _with_followers(self, named: set[BlockHash], held: Iterable[BlockHash]) -> set[BlockHash]:
        """Add all held blocks that have a named one before them. The way up from each is walked once."""
        verdicts = dict.fromkeys(named, True)
        for block in held:
            way: list[BlockHash] = []
            at: BlockHash | None = block
            while at is not None and at not in verdicts:
                way.append(at)
                at = self._parent_of(at)
            verdicts.update(dict.fromkeys(way, at is not None and verdicts[at]))
        return {block for block in held if verdicts[block]}

    def _with_lone_parents(
        self, doomed: set[BlockHash], held: Collection[BlockHash], *, within: SectionType | None
    ) -> set[BlockHash]:
        """Add the held blocks before these, up to the first one that something else follows.

        within: of this type alone; None for any.
        """
        followers: dict[BlockHash | None, int] = {}
        for block in held:
            parent = self._parent_of(block)
            followers[parent] = followers.get(parent, 0) + 1
        found = set(doomed)
        for block in doomed:
            at = self._parent_of(block)
            while at is not None and at in held and at not in found:
                followers[at] -= 1
                if followers[at] or (within is not None and self._section_of(at) is not within):
                    break
                found.add(at)
                at = self._parent_of(at)
        return found
