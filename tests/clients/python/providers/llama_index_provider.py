"""llama-index, for a hosted model of OpenAI: a chat, streamed and not, and a wrong key."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL, KEY, PROMPT = sys.argv[1:]
MESSAGES = [ChatMessage(role="system", content=PROMPT), ChatMessage(role="user", content="How are you?")]


def chat(key: str) -> Any:
    common = {"model": "gpt-4.1", "api_base": f"{URL}/v1", "context_window": 100_000, "is_chat_model": True}
    return OpenAILike(api_key=key, max_retries=0, **common)


def main() -> None:
    client = chat(KEY)
    first, second = client.chat(MESSAGES), client.chat(MESSAGES)
    streamed = "".join(piece.delta or "" for piece in client.stream_chat(MESSAGES))
    try:
        chat("wrong").chat(MESSAGES)
        error = "no error"
    except openai.AuthenticationError:
        error = "refused"
    cached = second.raw.usage.prompt_tokens_details.cached_tokens
    texts = [first.message.content, streamed]
    print(json.dumps({"openai": {"texts": texts, "cached": cached, "wrong key": error}}))


main()
