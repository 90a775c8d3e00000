"""Notices when a conversation has other tools than before, with the same system text.

The old tools are then taken to be over, and what the tier holds of prompts with them goes first. Conversations that are
named by the same session may well have several sets of tools in turn, for agents that work for each other: those differ
in their system text, or come back. A set that comes back, or was used somewhere else meanwhile, is not over.
"""

from __future__ import annotations

from collections import OrderedDict

from ghostcacher_connector.core.sections import AGENT_BYTES, TOOLS_TAG_BYTES

CONVERSATIONS_MAX = 4_096
"""Of more the one that was silent for longest is forgotten: some 0.3 KiB each."""

SETS_MAX = 8
"""Sets of tools that are known of one conversation."""


class ToolChanges:
    """What each conversation had for tools. Owner: one thread."""

    def __init__(self) -> None:
        self._sets: OrderedDict[tuple[bytes, bytes, bytes], tuple[bytes, ...]] = OrderedDict()

    def __repr__(self) -> str:
        return f"ToolChanges(conversations={len(self._sets)})"

    def __len__(self) -> int:
        """Return the number of conversations that are known."""
        return len(self._sets)

    def replaced(self, session: bytes, tools: bytes) -> bytes | None:
        """Take note of a prompt; return the tools that its own ones have replaced, None unless these are new.

        session, tools: their tags, as the router tells them; behind that of the tools what names the tenant, if
        anything does.
        """
        conversation = (session, tools[:AGENT_BYTES], tools[TOOLS_TAG_BYTES:])
        known = self._sets.pop(conversation, ())
        self._sets[conversation] = (tools, *(other for other in known if other != tools))[:SETS_MAX]
        if len(self._sets) > CONVERSATIONS_MAX:
            self._sets.popitem(last=False)
        return known[0] if known and tools not in known else None
