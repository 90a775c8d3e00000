"""Which blocks of a tier are of prompts with which tools, and which tools are over."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import TierBlock

OVER_MAX = 1_024
"""Sets of tools that are known to be over; of more the one that has been over for longest counts as any other."""


class ToolSets:
    """The blocks of one tier by the tools of the prompt that used them last.

    Tools lie at the front of a prompt, so that all of its blocks are of no use to prompts with others. A set that is
    *over* is used by nobody, as far as is known: until a prompt has it again.
    """

    def __init__(self) -> None:
        self._blocks: dict[bytes, dict[TierBlock, None]] = {}
        self._over: dict[bytes, None] = {}

    def is_over(self, tools: bytes | None) -> bool:
        return tools in self._over

    def add(self, block: TierBlock) -> None:
        """Take note of a block that has come."""
        if block.tools is not None:
            self._blocks.setdefault(block.tools, {})[block] = None

    def remove(self, block: TierBlock) -> None:
        """Forget a block that has left."""
        if block.tools is None:
            return
        of_set = self._blocks[block.tools]
        del of_set[block]
        if not of_set:
            del self._blocks[block.tools]

    def clear(self) -> dict[bytes, dict[TierBlock, None]]:
        """Forget all blocks, not which sets are over; return what there was, to be freed."""
        blocks, self._blocks = self._blocks, {}
        return blocks

    def begin(self, tools: bytes | None) -> None:
        """Take note that a prompt has these tools: they are not over."""
        if tools is not None:
            self._over.pop(tools, None)

    def use(self, block: TierBlock, tools: bytes | None) -> None:
        """Take note that a prompt with these tools uses a block."""
        if tools != block.tools:
            self.remove(block)
            block.tools = tools
            self.add(block)

    def end(self, tools: bytes) -> list[TierBlock]:
        """Have a set be over; return its blocks."""
        self._over[tools] = None
        if len(self._over) > OVER_MAX:
            del self._over[next(iter(self._over))]
        return list(self._blocks.get(tools, ()))

    def check_invariants(self, blocks: set[TierBlock]) -> None:
        """blocks: all that are in the tier."""
        of_sets = [block for of_set in self._blocks.values() for block in of_set]
        assert all(self._blocks.values())
        assert len(of_sets) == len({*of_sets}) == sum(block.tools is not None for block in blocks)
        assert all(block in blocks and block in self._blocks[block.tools or b""] for block in of_sets)
        assert len(self._over) <= OVER_MAX
