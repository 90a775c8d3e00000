"""A client of GhostCacher's router.

    from ghostcacher.client import GhostCacherClient

    with GhostCacherClient(provider="openai", ghostcacher_url="http://localhost:8000") as client:
        answer = client.messages.create(model="m", documents=[text], messages=[{"role": "user", "content": "Why?"}])
        print(answer.text, answer.cache.cached_tokens)

arguments.py        what calls take, and the checks of it
documents.py        documents as one message, always in the same order
calls.py            from arguments to requests
transport.py        sends them, again where nothing came of them
replies.py          from what came over the wire to answers and errors
streams.py          answers that come event by event
admin_types.py      what the router's own API answers, as does dashboard_types.py: made from its schema
"""

from ghostcacher.client.admin_types import FlushScope
from ghostcacher.client.answers import ChatChunk, ChatCompletion, Completion, Message, MessageEvent
from ghostcacher.client.cache_info import CacheInfo
from ghostcacher.client.calls import PromptRequest
from ghostcacher.client.client import AsyncGhostCacherClient, GhostCacherClient
from ghostcacher.client.errors import (
    AnswerBroken,
    AnswerMalformed,
    AnswerTimeout,
    ArgumentError,
    ConnectFailed,
    GhostCacherError,
    StatusError,
)
from ghostcacher.client.streams import AsyncStream, Stream

__version__ = "0.1.0"

__all__ = [
    "AnswerBroken",
    "AnswerMalformed",
    "AnswerTimeout",
    "ArgumentError",
    "AsyncGhostCacherClient",
    "AsyncStream",
    "CacheInfo",
    "ChatChunk",
    "ChatCompletion",
    "Completion",
    "ConnectFailed",
    "FlushScope",
    "GhostCacherClient",
    "GhostCacherError",
    "Message",
    "MessageEvent",
    "PromptRequest",
    "StatusError",
    "Stream",
]
