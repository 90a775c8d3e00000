"""langchain-openai and langchain-anthropic, for hosted models: invoked, streamed, and a wrong key."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

URL, KEY, PROMPT = sys.argv[1:]
MESSAGES = [("system", PROMPT), ("user", "How are you?")]


def chat(provider: str, key: str) -> Any:
    if provider == "openai":
        return ChatOpenAI(model="gpt-4.1", base_url=f"{URL}/v1", api_key=key, max_retries=0)
    return ChatAnthropic(model="claude-sonnet-5", base_url=URL, api_key=key, max_tokens=9, max_retries=0)


def main() -> None:
    report = {}
    for provider in ("openai", "anthropic"):
        client = chat(provider, KEY)
        first, second = client.invoke(MESSAGES), client.invoke(MESSAGES)
        streamed = "".join(str(chunk.text) for chunk in client.stream(MESSAGES))
        try:
            chat(provider, "wrong").invoke(MESSAGES)
            error = "no error"
        except (openai.AuthenticationError, anthropic.AuthenticationError):
            error = "refused"
        cached = second.usage_metadata["input_token_details"]["cache_read"]
        report[provider] = {"texts": [first.content, streamed], "cached": cached, "wrong key": error}
    print(json.dumps(report))


main()
