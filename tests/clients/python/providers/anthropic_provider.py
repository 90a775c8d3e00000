"""anthropic, for a hosted model: messages, streamed and not, and a wrong key."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic

URL, KEY, PROMPT = sys.argv[1:]


def main() -> None:
    client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    asked: Any = {"model": "claude-sonnet-5", "max_tokens": 9, "system": PROMPT}
    asked |= {"messages": [{"role": "user", "content": "How are you?"}]}
    first, second = (client.messages.create(**asked) for _ in range(2))
    with client.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
    try:
        anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0).messages.create(**asked)
        error = "no error"
    except anthropic.AuthenticationError:
        error = "refused"
    assert first.usage.cache_read_input_tokens == 0
    cached = second.usage.cache_read_input_tokens
    print(json.dumps({"anthropic": {"texts": [first.content[0].text, streamed], "cached": cached, "wrong key": error}}))


main()
