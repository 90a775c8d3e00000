"""Boundary of a text -> (number of engine blocks, hash of the last one), per namespace, shared by all routers.

Only `PrefixMapUpdate` changes the map, and each of its entries takes the place of an earlier one, whatever that was. A
router applies what it learns at once, and again when it reads it back, in the order of the log that all routers read:
so all that have read the same log have the same map, and reading an item twice changes nothing. What decides between
old and new is `lesson.py`, at the one router that learns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, Flush, PrefixMapUpdate, PromptChain
from ghostcacher_router.prefix_map.map_update import COUNT_BYTES, Claim, learn
from ghostcacher_router.prefix_map.two_generation_cache import Recent
from ghostcacher_router.types import DIGEST_BYTES, Prompt

ENTRIES_MAX = 200_000
"""Some 50 MB: 200 MB of text that is in use."""

TTL_S = 4 * 3600.0
"""As long as documents are kept (DESIGN, section 8)."""

BYTES_PER_TOKEN = 4.0
"""Of English prose in today's vocabularies, until something is learned."""

BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX = 0.1, 1000.0
"""Beyond this is no text: a byte is at most a few tokens, and a token is at most a few hundred bytes."""

BYTES_PER_TOKEN_WEIGHT = 0.1
"""Of the newest text: one odd prompt moves the estimate little, twenty of them nearly wholly."""

NAMESPACES_MAX = 256

BLOCKS_MAX = (1 << 8 * COUNT_BYTES) - 1


class KnownBoundary(msgspec.Struct, frozen=True, gc=False):
    """A boundary of a prompt whose blocks are known. index: into the prompt's boundaries; end_bytes: its position."""

    index: int
    end_bytes: int
    block_count: int
    block_hash: bytes


class TextMap:
    """The map of one router. Used on the event loop only.

    router: its name, in what it learns. malformed: chains and learned texts that were dropped, being none in form.
    """

    malformed: int

    def __init__(
        self,
        router: str,
        *,
        entries_max: int = ENTRIES_MAX,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._recent = Recent(entries_max=entries_max, ttl_s=ttl_s, clock=clock)
        self._bytes_per_token: dict[str, float] = {}
        self.malformed = 0

    def __repr__(self) -> str:
        return f"TextMap(boundaries={len(self)}, namespaces={len(self._bytes_per_token)})"

    def __len__(self) -> int:
        """Boundaries known, over all namespaces."""
        return len(self._recent)

    def known(self, namespace: str, prompt: Prompt) -> list[KnownBoundary]:
        """Return the boundaries of a prompt whose blocks are known, with ascending block counts.

        Of several with one count, the first: it is in the most prompts. One that claims more than a later one is
        left out: the later one's text contains its own.
        """
        found = list(self._from_deepest(namespace, prompt))
        found.reverse()
        return found

    def deepest(self, namespace: str, prompt: Prompt) -> KnownBoundary | None:
        """Return the last of the `known` boundaries, without looking for the others."""
        return next(self._from_deepest(namespace, prompt), None)

    def _from_deepest(self, namespace: str, prompt: Prompt) -> Iterator[KnownBoundary]:
        index, value, least = -1, b"", BLOCKS_MAX + 1
        for at, claimed in self._recent.from_last(namespace, prompt.digests):
            count = int.from_bytes(claimed[:COUNT_BYTES], "little")
            if count > least:
                continue
            if count < least and value:
                yield KnownBoundary(index, prompt.ends[index], least, value[COUNT_BYTES:])
            if not count:
                return
            index, value, least = at, claimed, count
        if value:
            yield KnownBoundary(index, prompt.ends[index], least, value[COUNT_BYTES:])

    def tokens_of(self, namespace: str, prompt: Prompt) -> int:
        """Return how many tokens a prompt has: exactly, if it came as such, else by the namespace's average."""
        if prompt.tokens is not None:
            return prompt.tokens
        return max(1, round(prompt.size / self._bytes_per_token.get(namespace, BYTES_PER_TOKEN)))

    def learn(self, prompt: Prompt, chain: PromptChain, namespace: str) -> PrefixMapUpdate | None:
        """Learn from what an engine made of a prompt; return what other routers must be told, None for nothing.

        A prompt whose text is well known costs nothing more.
        """
        if not chain.block_counts or not prompt.size:
            return None
        if chain.block_counts[-1] > min(chain.tokens, BLOCKS_MAX):
            self.malformed += 1
            return None
        lessons = learn(prompt, self._recent.find(namespace, prompt.digests), chain)
        if not lessons:
            return None
        told = list(lessons.items())[:BOUNDARIES_MAX]
        text = PrefixMapUpdate(
            namespace=namespace,
            digests=tuple(prompt.digests[index] for index, _ in told),
            block_counts=tuple(claim.blocks for _, claim in told),
            hashes=tuple(claim.block_hash for _, claim in told),
            bytes_per_token=self._observed(namespace, prompt, chain.tokens),
            router=self._router,
        )
        self._take(text)
        return text

    def apply(self, text: PrefixMapUpdate) -> None:
        """Take over what a router has learned. What is malformed is dropped whole, and counted."""
        if not _well_formed(text):
            self.malformed += 1
            return
        self._take(text)

    def flush(self, flush: Flush) -> None:
        """Forget everything, or the one boundary that the flush names. Boundaries behind it have names of their own."""
        if flush.scope == "all":
            self._recent.clear()
        else:
            self._recent.drop(flush.key)

    def _take(self, text: PrefixMapUpdate) -> None:
        for digest, blocks, block_hash in zip(text.digests, text.block_counts, text.hashes, strict=True):
            self._recent.put(text.namespace, digest, Claim(blocks, block_hash).pack())
        averages = self._bytes_per_token
        if text.namespace not in averages and len(averages) >= NAMESPACES_MAX:
            del averages[next(iter(averages))]
        averages[text.namespace] = text.bytes_per_token

    def _observed(self, namespace: str, prompt: Prompt, tokens: int) -> float:
        """Return the namespace's average with one more prompt in it. Token ids have no text that could be measured."""
        average = self._bytes_per_token.get(namespace)
        if prompt.tokens is not None:
            return BYTES_PER_TOKEN if average is None else average
        ratio = min(max(prompt.size / tokens, BYTES_PER_TOKEN_MIN), BYTES_PER_TOKEN_MAX)
        return ratio if average is None else average + BYTES_PER_TOKEN_WEIGHT * (ratio - average)


def _well_formed(text: PrefixMapUpdate) -> bool:
    """Say whether a text from the network can be applied. Lengths are checked where it is decoded."""
    return (
        bool(text.namespace)
        and all(len(digest) == DIGEST_BYTES for digest in text.digests)
        and _ascending(text.block_counts)
        and BYTES_PER_TOKEN_MIN <= text.bytes_per_token <= BYTES_PER_TOKEN_MAX
    )


def _ascending(counts: Sequence[int]) -> bool:
    return all(one <= two for one, two in zip((0, *counts), (*counts, BLOCKS_MAX), strict=True))
