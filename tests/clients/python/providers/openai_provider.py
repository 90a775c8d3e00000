"""openai, for a hosted model: chat completions and responses, streamed and not, and a wrong key."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

URL, KEY, PROMPT = sys.argv[1:]
MESSAGES: Any = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "How are you?"}]


def main() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    asked: Any = {"model": "gpt-4.1", "messages": MESSAGES}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    pieces = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    streamed = "".join(one.delta.content or "" for chunk in pieces for one in chunk.choices)
    response = client.responses.create(model="gpt-4.1", instructions=PROMPT, input="How are you?")
    try:
        openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0).chat.completions.create(**asked)
        error = "no error"
    except openai.AuthenticationError:
        error = "refused"
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    cached = second.usage.prompt_tokens_details.cached_tokens
    texts = [first.choices[0].message.content, streamed, response.output_text]
    print(json.dumps({"openai": {"texts": texts, "cached": cached, "wrong key": error}}))


main()
