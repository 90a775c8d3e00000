"""llama-index, with its client for engines that speak OpenAI's API."""

from __future__ import annotations

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL, MODEL = sys.argv[1:]


def main() -> None:
    common = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0, "context_window": 4096}
    chat = OpenAILike(is_chat_model=True, temperature=0, max_tokens=8, **common)
    text = OpenAILike(is_chat_model=False, temperature=0, max_tokens=8, **common)
    question = [ChatMessage(role="system", content="You are terse."), ChatMessage(role="user", content="How are you?")]
    report = {
        "chat": chat.chat(question).message.content,
        "streamed chat": "".join(piece.delta or "" for piece in chat.stream_chat(question)),
        "text": text.complete("def main():").text,
        "streamed text": "".join(piece.delta or "" for piece in text.stream_complete("def main():")),
    }
    print(json.dumps(report))


main()
