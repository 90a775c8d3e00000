"""Which requests may be sent to a second worker although the first one may have carried them out."""

from __future__ import annotations

from ghostcacher_router.http.protocol.request_head import RequestHead

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_COMPUTING_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/moderations",
        "/generate",
        "/inference/v1/generate",
        "/tokenize",
        "/v1/tokenize",
        "/detokenize",
        "/v1/detokenize",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/v1/score",
        "/classify",
        "/v1/classify",
        "/pooling",
        "/v1/pooling",
        "/encode",
    }
)
"""They compute an answer, and change nothing that a client could tell: who asks twice gets one of two good answers."""


def is_repeatable(head: RequestHead) -> bool:
    """Say whether it makes no difference to the client if two workers carry out a request, and one of them answers.

    Whatever else an engine offers, such as loading a LoRA adapter, may change it, and is sent once.
    """
    return head.path in _COMPUTING_PATHS or head.method in _SAFE_METHODS
