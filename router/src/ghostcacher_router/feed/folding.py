"""Makes of what was read what the processes of a router are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ghostcacher_connector.core.coordination.base import Batch, Cursor, Flush, PrefixMapUpdate, WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.feed.messages import Folded, FoldedEvents, FoldedPrompt, MapPart, encode
from ghostcacher_router.ports import Clock
from ghostcacher_router.prefix_map import entries_of
from ghostcacher_router.signals.received_blocks import ReceivedBlocks

ENTRIES_MAX = 4096
"""Of the map in one message: some 0.5 ms of whoever takes them over."""
WEIGHT_MAX = 2 * ENTRIES_MAX
PROMPT_WEIGHT = 32
"""What a prompt weighs, in entries of the map."""


class Folding:
    """Folds batches, one after the other."""

    malformed: int
    """How many updates were left out because they were malformed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._received = ReceivedBlocks()
        self.malformed = 0

    def __repr__(self) -> str:
        return f"Folding({self._received!r})"

    def fold(self, batch: Batch, before: Cursor, hashes_below: bytes) -> list[Folded]:
        """Return the messages that tell a batch, at least one.

        before: the cursor that the batch was read from. hashes_below: which hashes of chains a process needs.
        """
        messages: list[Folded] = []
        parts: list[MapPart | Flush] = []
        events: list[FoldedEvents] = []
        weight = 0
        for item in (*self._folded_map(batch.updates), *self._folded_events(batch.events, hashes_below)):
            if isinstance(item, FoldedEvents):
                events.append(item)
                weight += PROMPT_WEIGHT * (1 + len(item.prompts))
            else:
                parts.append(item)
                weight += PROMPT_WEIGHT if isinstance(item, Flush) else len(item.entries)
            if weight >= WEIGHT_MAX:
                messages.append(Folded(*before, tuple(parts), tuple(events)))
                parts, events, weight = [], [], 0
        messages.append(Folded(*batch.cursor, tuple(parts), tuple(events)))
        return messages

    def _folded_map(self, updates: Sequence[PrefixMapUpdate | Flush]) -> Iterator[MapPart | Flush]:
        """Yield what updates put into the map, those of one namespace together, in an order that comes to the same."""
        open_parts: dict[str, MapPart] = {}
        for update in updates:
            if isinstance(update, Flush):
                yield from open_parts.values()
                open_parts.clear()
                yield update
                continue
            entries = entries_of(update)
            if entries is None:
                self.malformed += 1
                continue
            part = open_parts.pop(update.namespace, None)
            if part is not None:
                if len(part.entries) + len(entries) <= ENTRIES_MAX:
                    part.entries.update(entries)
                    entries = part.entries
                else:
                    yield part
            *whole, rest = _pieces(entries)
            for piece in whole:
                yield MapPart(update.namespace, piece, update.bytes_per_token)
            open_parts[update.namespace] = MapPart(update.namespace, rest, update.bytes_per_token)
        yield from open_parts.values()

    def _folded_events(self, all_events: Sequence[WorkerEvents], below: bytes) -> Iterator[FoldedEvents]:
        now = self._clock()
        for events in all_events:
            ref, computed = WorkerRef(events.namespace, events.worker, events.incarnation), set(events.computed)
            prompts = []
            for chain in events.chains:
                blocks = self._received.blocks(ref, chain, now)
                self._received.remember(ref, chain, now)
                sampled = tuple([each for each in chain.hashes if each < below])
                prompts.append(
                    FoldedPrompt(
                        chain.request,
                        chain.tokens,
                        len(chain.hashes),
                        blocks,
                        chain.request in computed,
                        sampled,
                        msgspec.Raw(encode(chain)),
                    )
                )
            yield FoldedEvents(*events[:3], tuple(prompts), events.computed)


def _pieces(entries: dict[bytes, bytes]) -> list[dict[bytes, bytes]]:
    """Return entries in pieces of ENTRIES_MAX at most, in order, at least one."""
    if len(entries) <= ENTRIES_MAX:
        return [entries]
    items = list(entries.items())
    return [dict(items[at : at + ENTRIES_MAX]) for at in range(0, len(items), ENTRIES_MAX)]
